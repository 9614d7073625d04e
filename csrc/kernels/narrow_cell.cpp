// The forward pass of one cell with narrow weights, in float32; the defines are those of cell.cpp.
#include "kernels/forward.hpp"

namespace fastrnn::FASTRNN_ISA {

void FASTRNN_KERNEL(const Direction<float>& d, const Seat& seat);
void FASTRNN_KERNEL(const Direction<float>& d, const Seat& seat) {
  FlushToZero mode;
  Forward<FASTRNN_CELL, VectorOf<float>::type, float, true>{d, seat}.run();
}

}  // namespace fastrnn::FASTRNN_ISA
