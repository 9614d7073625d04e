// Who comes before whom in one direction of one layer; the same on every device.
#pragma once
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// 'step' counts in the order in which the direction runs, t is time. Rows, derived from this, tells steps(), reverse(), and of a row
// length(row) and reset(t, row).
template <class Rows> struct Timeline {
  FASTRNN_FN const Rows& rows() const { return static_cast<const Rows&>(*this); }
  FASTRNN_FN int64_t time(int64_t step) const { return rows().reverse() ? rows().steps() - 1 - step : step; }
  FASTRNN_FN int64_t before(int64_t t) const { return rows().reverse() ? t + 1 : t - 1; }
  FASTRNN_FN bool is_first(int64_t t, int64_t row) const { return t == (rows().reverse() ? rows().length(row) - 1 : 0); }
  FASTRNN_FN bool is_last(int64_t t, int64_t row) const { return t == (rows().reverse() ? 0 : rows().length(row) - 1); }
  // Is the state that enters step t cut off? A cut lies between t-1 and t, so in reverse the one at t+1 counts.
  FASTRNN_FN bool cut_before(int64_t t, int64_t row) const { return rows().reverse() ? cut(t + 1, row) : rows().reset(t, row); }
  FASTRNN_FN bool cut_after(int64_t t, int64_t row) const { return rows().reverse() ? rows().reset(t, row) : cut(t + 1, row); }

 private:
  FASTRNN_FN bool cut(int64_t t, int64_t row) const { return t < rows().length(row) && rows().reset(t, row); }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
