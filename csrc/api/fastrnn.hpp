// fastrnn.h for C++17 and later: models and streams that give back what they hold, arrays that know their size, errors as exceptions.
//
// All is inline over the C functions, so that the compilers of the program and of the library need not agree. It lies in fastrnn::api,
// which the library itself leaves empty: a program that links the static library, where fastrnn::Model is another class, holds both.
//
// As in C, a model may be used by any number of threads and a stream by one at a time; step, run and reset of a stream ask the system for
// nothing where they succeed. Where the sizes do not fit they throw before anything runs, which is for a program's first call to show.
#ifndef FASTRNN_HPP
#define FASTRNN_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "fastrnn.h"

namespace fastrnn::api {

// What a C function refused, in its words.
class Error : public std::runtime_error {
 public:
  Error(fastrnn_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  fastrnn_status status() const noexcept { return status_; }

 private:
  fastrnn_status status_;
};

inline void check(fastrnn_status status) {
  if (status != FASTRNN_OK) throw Error(status, fastrnn_message());
}

// Contiguous elements of somebody else's: a pointer and a size, a C array, or whatever has data() and size(): std::vector, std::array,
// and std::span where there is one.
template <class T> class View {
 public:
  View(T* data, size_t size) noexcept : data_(data), size_(size) {}
  template <size_t N> View(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <class C, class Pointer = decltype(std::declval<C&>().data()),
            class = std::enable_if_t<std::is_convertible_v<std::remove_pointer_t<Pointer> (*)[], T (*)[]>>,
            class = decltype(std::declval<C&>().size())>
  View(C&& container) noexcept : data_(container.data()), size_(container.size()) {}

  T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }

 private:
  T* data_;
  size_t size_;
};

// A model, opened. Copies are the same model, which lives as long as one of them or a stream of it.
class Model {
 public:
  // From a file, or from the bytes of one. Throws Error.
  explicit Model(const std::string& path, fastrnn_options options = {}) {
    fastrnn_model* model = nullptr;
    check_version(), check(fastrnn_open_file(path.c_str(), &options, &model));
    model_.reset(model, fastrnn_close);
  }
  Model(const void* bytes, size_t size, fastrnn_options options = {}) {
    fastrnn_model* model = nullptr;
    check_version(), check(fastrnn_open(bytes, size, &options, &model));
    model_.reset(model, fastrnn_close);
  }

  fastrnn_dtype dtype() const noexcept { return fastrnn_model_dtype(get()); }
  int64_t input_size() const noexcept { return fastrnn_input_size(get()); }
  int64_t output_size() const noexcept { return fastrnn_output_size(get()); }
  bool takes_ids() const noexcept { return fastrnn_takes_ids(get()) != 0; }
  bool is_causal() const noexcept { return fastrnn_is_causal(get()) != 0; }
  const char* isa() const noexcept { return fastrnn_model_isa(get()); }
  const fastrnn_model* get() const noexcept { return model_.get(); }

 private:
  static void check_version() {
    if (fastrnn_abi_version() != FASTRNN_ABI_VERSION)
      throw Error(FASTRNN_UNSUPPORTED, "fastrnn.h and the library are of different versions: " + std::to_string(FASTRNN_ABI_VERSION) +
                                           " and " + std::to_string(fastrnn_abi_version()));
  }

  std::shared_ptr<fastrnn_model> model_{};
};

// One state of a model of Real, float or double, with the memory that it works in. x: (T,B,I) numbers, or (T,B) ids for a model that
// takes ids; y: (T,B,O).
template <class Real> class Stream {
  static_assert(std::is_same_v<Real, float> || std::is_same_v<Real, double>, "models compute with float or double");

 public:
  // Of `batch` sequences, runs work through at most `steps` time steps at once. Throws Error, also for a model of the other dtype.
  explicit Stream(Model model, int64_t batch = 1, int64_t steps = 1) : model_(std::move(model)), batch_(batch) {
    if (model_.dtype() != (sizeof(Real) == 4 ? FASTRNN_FLOAT32 : FASTRNN_FLOAT64))
      throw Error(FASTRNN_BAD_ARGUMENT,
                  sizeof(Real) == 4 ? "the model is of float64: use Stream<double>" : "the model is of float32: use Stream<float>");
    const size_t bytes = fastrnn_stream_bytes(model_.get(), batch, steps);
    if (!bytes) throw Error(FASTRNN_BAD_ARGUMENT, fastrnn_message());
    memory_.reset(new char[bytes]);
    check(fastrnn_prepare(model_.get(), batch, steps, memory_.get(), bytes, &stream_));
    inputs_ = batch * (model_.takes_ids() ? 1 : model_.input_size()), outputs_ = batch * model_.output_size();
  }

  const Model& model() const noexcept { return model_; }
  int64_t batch() const noexcept { return batch_; }

  void step(View<const Real> x, View<Real> y) { run_steps(x, y, false, true); }
  void step(View<const int64_t> ids, View<Real> y) { run_steps(ids, y, true, true); }
  // As many time steps as x holds.
  void run(View<const Real> x, View<Real> y) { run_steps(x, y, false, false); }
  void run(View<const int64_t> ids, View<Real> y) { run_steps(ids, y, true, false); }
  void reset() { check(fastrnn_reset(stream_)); }

  size_t state_size() const noexcept { return static_cast<size_t>(fastrnn_state_size(stream_)); }
  void get_state(View<Real> state) const { check_state(state.size()), check(fastrnn_get_state(stream_, state.data())); }
  void set_state(View<const Real> state) { check_state(state.size()), check(fastrnn_set_state(stream_, state.data())); }
  fastrnn_stream* get() noexcept { return stream_; }

 private:
  template <class X> void run_steps(View<const X> x, View<Real> y, bool ids, bool one) {
    const size_t inputs = static_cast<size_t>(inputs_), outputs = static_cast<size_t>(outputs_), T = x.size() / inputs;
    if (ids != model_.takes_ids())
      throw Error(FASTRNN_BAD_ARGUMENT, ids ? "the model takes numbers, not ids" : "the model takes ids, int64_t");
    if (T * inputs != x.size() || T * outputs != y.size() || (one && T != 1))
      throw Error(FASTRNN_BAD_ARGUMENT, "x of " + std::to_string(x.size()) + " and y of " + std::to_string(y.size()) +
                                            " elements do not fit: one time step has " + std::to_string(inputs) + " and " +
                                            std::to_string(outputs));
    check(one ? fastrnn_step(stream_, x.data(), y.data()) : fastrnn_run(stream_, x.data(), static_cast<int64_t>(T), y.data()));
  }
  void check_state(size_t size) const {
    if (size != state_size())
      throw Error(FASTRNN_BAD_ARGUMENT, "the state has " + std::to_string(state_size()) + " elements, not " + std::to_string(size));
  }

  Model model_;
  std::unique_ptr<char[]> memory_{};
  fastrnn_stream* stream_ = nullptr;
  int64_t batch_, inputs_ = 0, outputs_ = 0;
};

}  // namespace fastrnn::api

#endif
