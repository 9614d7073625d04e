// What a call reads: which sequences run when, and token ids. The containers behind Schedule and DistinctIds; no Python.
#pragma once
#include <vector>

#include "host/memory.hpp"
#include "kernels/structs.hpp"

namespace fastrnn {

// Schedule with its arrays.
class Batch {
 public:
  Batch(int64_t T, int64_t B, const int64_t* lengths, Rows<const uint8_t> reset);
  // Sizes only, for laying out: all rows run to the end.
  Batch(int64_t T, int64_t B) : schedule_{T, B, nullptr, nullptr, nullptr, nullptr, nullptr, {}}, tokens_(times(T, B)) {}
  const Schedule& schedule() const { return schedule_; }
  int64_t tokens() const { return tokens_; }

 private:
  std::vector<int64_t> data_;
  Schedule schedule_;
  int64_t tokens_ = 0;
};

// DistinctIds with its arrays.
class TokenIds {
 public:
  // ids (T,B,1) of the tokens that run, each in [0, vocabulary): throws std::out_of_range.
  TokenIds(const Schedule& schedule, Rows<const int64_t> ids, int64_t vocabulary);
  DistinctIds tokens() const { return {int64_t(id_.size()), id_.data(), row_.data()}; }

 private:
  std::vector<int64_t> id_, row_;
};

}  // namespace fastrnn
