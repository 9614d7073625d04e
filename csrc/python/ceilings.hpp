// Part of module.cpp: what this machine can do at most, for the benchmark runner. The caller times the calls.
#pragma once
#include "host/narrow.hpp"
#include "python/arrays.hpp"
#include "python/gil.hpp"

namespace fastrnn {
namespace {

template <class Work> double without_gil(Work work) {
  PyThreadState* const state = PyEval_SaveThread();
  const double done = work();
  take_gil(state);
  return done;
}

void define_ceilings(py::module_& m) {
  m.def(
      "fma_loop",
      [](int64_t iterations, const std::string& dtype) {
        if (dtype != "float32" && dtype != "float64") throw py::value_error("dtype must be float32 or float64");
        const Isa& isa = choose_isa(nullptr);
        return without_gil([&] { return (dtype == "float32" ? isa.f32->functions.fma_loop : isa.f64->functions.fma_loop)(iterations); });
      },
      py::arg("iterations"), py::arg("dtype"));
  m.def(
      "narrow_loop",
      [](int64_t iterations, const std::string& weights) {
        if (weights != "int8" && weights != "bfloat16") throw py::value_error("weights must be int8 or bfloat16");
        const Format format = weights == "int8" ? Format::int8 : Format::bfloat16;
        const NarrowProducts& products = choose_products(choose_isa(nullptr), nullptr);
        return without_gil([&] { return products.peak(format, iterations); });
      },
      py::arg("iterations"), py::arg("weights"));
  m.def(
      "read_loop",
      [](py::array x, int64_t passes) {
        if (!is_array_of<float>(x) || !is_contiguous(x)) throw py::type_error("x must be a C-contiguous array of float32");
        const float* const data = static_cast<const float*>(x.data());
        const int64_t n = x.size();
        return without_gil([&] { return choose_isa(nullptr).f32->functions.read_loop(data, n, passes); });
      },
      py::arg("x"), py::arg("passes"));
}

}  // namespace
}  // namespace fastrnn
