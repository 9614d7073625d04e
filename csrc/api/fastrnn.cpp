// The C functions: arguments checked, exceptions kept inside.
#include "api/fastrnn.h"

#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <new>
#include <string>

#include "api/stream.hpp"

using fastrnn::Model;
using fastrnn::Stream;

struct fastrnn_model : Model {};

namespace {

std::string& message() {
  thread_local std::string text;
  return text;
}
fastrnn_status failed(fastrnn_status status, const char* text) {
  try {
    message() = text;
  } catch (const std::bad_alloc&) {}  // the status says what there is to say
  return status;
}

// f() with what it throws turned into a status.
template <class F> fastrnn_status guarded(F f) {
  try {
    f();
    return FASTRNN_OK;
  } catch (const fastrnn::BadModel& error) {
    return failed(FASTRNN_BAD_MODEL, error.what());
  } catch (const fastrnn::UnsupportedModel& error) { return failed(FASTRNN_UNSUPPORTED, error.what()); } catch (const std::bad_alloc&) {
    return failed(FASTRNN_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& error) { return failed(FASTRNN_BAD_ARGUMENT, error.what()); }
}

constexpr int64_t alignment = 128, most = int64_t(1) << 40;

Stream* inside(fastrnn_stream* stream) { return reinterpret_cast<Stream*>(stream); }
const Stream* inside(const fastrnn_stream* stream) { return reinterpret_cast<const Stream*>(stream); }

std::optional<fastrnn::KeptAs> kept_as(const fastrnn_options* options) {
  if (!options || (options->ih == FASTRNN_AS_SAVED && options->hh == FASTRNN_AS_SAVED)) return std::nullopt;
  const auto format = [](fastrnn_weights word) {
    if (word != FASTRNN_BFLOAT16 && word != FASTRNN_INT8)
      throw std::invalid_argument(
          "the options must name FASTRNN_BFLOAT16 or FASTRNN_INT8 for both ih and hh, or FASTRNN_AS_SAVED for both");
    return word == FASTRNN_INT8 ? fastrnn::Format::int8 : fastrnn::Format::bfloat16;
  };
  return fastrnn::KeptAs{format(options->ih), format(options->hh)};
}

std::string contents_of(const char* path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path, "rb"), fclose);
  struct stat facts;
  if (!file || fstat(fileno(file.get()), &facts) != 0 || !S_ISREG(facts.st_mode)) return {};
  std::string bytes(size_t(facts.st_size), '\0');
  return fread(&bytes[0], 1, bytes.size(), file.get()) == bytes.size() ? bytes : std::string();
}

}  // namespace

extern "C" {

int fastrnn_abi_version(void) { return FASTRNN_ABI_VERSION; }
const char* fastrnn_version(void) { return FASTRNN_VERSION; }
const char* fastrnn_message(void) { return message().c_str(); }

fastrnn_status fastrnn_open(const void* bytes, size_t size, const fastrnn_options* options, fastrnn_model** model) {
  if (!bytes || !model) return failed(FASTRNN_BAD_ARGUMENT, "bytes and model must not be null");
  *model = nullptr;
  return guarded([&] {
    std::unique_ptr<Model> read = fastrnn::read_model(static_cast<const char*>(bytes), size, kept_as(options));
    *model = new fastrnn_model{std::move(*read)};
  });
}

fastrnn_status fastrnn_open_file(const char* path, const fastrnn_options* options, fastrnn_model** model) {
  if (!path || !model) return failed(FASTRNN_BAD_ARGUMENT, "path and model must not be null");
  *model = nullptr;
  fastrnn_status status = FASTRNN_OK;
  const fastrnn_status read = guarded([&] {
    const std::string bytes = contents_of(path);
    status = bytes.empty() ? failed(FASTRNN_NO_FILE, (std::string(path) + " cannot be read, or is empty").c_str())
                           : fastrnn_open(bytes.data(), bytes.size(), options, model);
  });
  return read ? read : status;
}

void fastrnn_close(fastrnn_model* model) { delete model; }

fastrnn_dtype fastrnn_model_dtype(const fastrnn_model* model) { return model->f64 ? FASTRNN_FLOAT64 : FASTRNN_FLOAT32; }
int64_t fastrnn_input_size(const fastrnn_model* model) {
  return model->by_dtype([&](auto real) { return model->parts<decltype(real)>().front().inputs; });
}
int64_t fastrnn_output_size(const fastrnn_model* model) {
  return model->by_dtype([&](auto real) { return model->parts<decltype(real)>().back().outputs; });
}
int fastrnn_takes_ids(const fastrnn_model* model) {
  return model->by_dtype([&](auto real) { return int(model->parts<decltype(real)>().front().takes_ids()); });
}
int fastrnn_is_causal(const fastrnn_model* model) { return model->causal; }
const char* fastrnn_model_isa(const fastrnn_model* model) { return model->isa->name; }

size_t fastrnn_stream_bytes(const fastrnn_model* model, int64_t batch, int64_t steps) {
  if (!model || batch < 1 || steps < 1 || batch > most / steps)
    return failed(FASTRNN_BAD_ARGUMENT, "model must not be null, batch and steps must be positive, and there are limits"), size_t(0);
  int64_t bytes = 0;
  return guarded([&] { bytes = fastrnn::stream_bytes(*model, batch, steps); }) ? 0 : size_t(bytes + alignment);
}

fastrnn_status fastrnn_prepare(const fastrnn_model* model, int64_t batch, int64_t steps, void* memory, size_t bytes,
                               fastrnn_stream** stream) {
  if (!model || !memory || !stream) return failed(FASTRNN_BAD_ARGUMENT, "model, memory and stream must not be null");
  *stream = nullptr;
  const size_t wanted = fastrnn_stream_bytes(model, batch, steps);
  if (!wanted || bytes < wanted)
    return failed(FASTRNN_BAD_ARGUMENT, "batch and steps must be positive, and the memory as fastrnn_stream_bytes says");
  char* const block = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + alignment - 1) / alignment * alignment);
  return guarded([&] { *stream = reinterpret_cast<fastrnn_stream*>(fastrnn::make_stream(*model, batch, steps, block)); });
}

fastrnn_status fastrnn_step(fastrnn_stream* stream, const void* x, void* y) {
  if (!stream || !x || !y) return failed(FASTRNN_BAD_ARGUMENT, "stream, x and y must not be null");
  if (!inside(stream)->causal()) return failed(FASTRNN_UNSUPPORTED, "a layer runs backwards in time: use fastrnn_run on whole sequences");
  inside(stream)->run(x, 1, y);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_run(fastrnn_stream* stream, const void* x, int64_t T, void* y) {
  if (!stream || T < 0 || (T && (!x || !y))) return failed(FASTRNN_BAD_ARGUMENT, "stream, x and y must not be null, nor T negative");
  if (!inside(stream)->causal() && T > inside(stream)->steps())
    return failed(FASTRNN_UNSUPPORTED,
                  "a layer runs backwards in time: the sequence must not be longer than the steps it was prepared for");
  inside(stream)->run(x, T, y);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_reset(fastrnn_stream* stream) {
  if (!stream) return failed(FASTRNN_BAD_ARGUMENT, "stream must not be null");
  inside(stream)->reset();
  return FASTRNN_OK;
}

int64_t fastrnn_state_size(const fastrnn_stream* stream) { return stream ? inside(stream)->state_size() : 0; }
fastrnn_status fastrnn_get_state(const fastrnn_stream* stream, void* state) {
  if (!stream || !state) return failed(FASTRNN_BAD_ARGUMENT, "stream and state must not be null");
  inside(stream)->get_state(state);
  return FASTRNN_OK;
}
fastrnn_status fastrnn_set_state(fastrnn_stream* stream, const void* state) {
  if (!stream || !state) return failed(FASTRNN_BAD_ARGUMENT, "stream and state must not be null");
  inside(stream)->set_state(state);
  return FASTRNN_OK;
}

}  // extern "C"
