// One state of a model, in memory of the caller's: after it is made, steps and runs ask the system for nothing.
#pragma once
#include "api/model.hpp"

namespace fastrnn {

// What a stream looks like to callers that do not know the dtype.
class Stream {
 public:
  virtual void run(const void* x, int64_t T, void* y) = 0;
  virtual void reset() = 0;
  virtual void get_state(void* state) const = 0;
  virtual void set_state(const void* state) = 0;
  int64_t state_size() const { return state_size_; }
  int64_t steps() const { return steps_; }
  bool causal() const { return causal_; }

 protected:
  ~Stream() = default;  // lies in the caller's memory and owns nothing
  int64_t state_size_ = 0, steps_ = 0;
  bool causal_ = true;
};

// Bytes of a stream and all that it works in. Throws std::overflow_error.
int64_t stream_bytes(const Model& model, int64_t batch, int64_t steps);
// Makes it there; the block is aligned for vectors and has so many bytes.
Stream* make_stream(const Model& model, int64_t batch, int64_t steps, char* block);

}  // namespace fastrnn
