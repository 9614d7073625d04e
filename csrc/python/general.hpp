// Part of both bindings: what Python says of a general cell, fastrnn.options.General, read by the names of its fields.
#pragma once
#include <pybind11/stl.h>

#include "host/names.hpp"

namespace pybind11::detail {

template <> struct type_caster<fastrnn::General> {
  PYBIND11_TYPE_CASTER(fastrnn::General, const_name("General"));

  bool load(handle given, bool) {
    try {
      read(given);
      return true;
    } catch (const cast_error&) { return false; } catch (error_already_set& error) {
      if (!error.matches(PyExc_AttributeError) && !error.matches(PyExc_TypeError)) throw;
      return false;
    }
  }

 private:
  void read(handle given) {
    value = {given.attr("clip").cast<double>(), given.attr("coupled").cast<bool>(), given.attr("peephole").cast<bool>(), {}, {}};
    std::tie(value.zoneout[0], value.zoneout[1]) = given.attr("zoneout").cast<std::pair<double, double>>();
    using Side = std::vector<std::tuple<std::string, double, double>>;
    for (const Side& side : given.attr("activations").cast<std::vector<Side>>()) {
      value.activations.emplace_back();
      for (const auto& [name, alpha, beta] : side) value.activations.back().push_back({name, alpha, beta});
    }
  }
};

}  // namespace pybind11::detail
