// One cell in one dtype for one instruction set: compiled once for each with its own flags and defines
//   FASTRNN_ISA   namespace        FASTRNN_VECTOR_BYTES   64, 32, 16 or 0 (scalar)
//   FASTRNN_CELL  struct of cells.hpp    FASTRNN_REAL   float or double    FASTRNN_KERNEL   name of the function below
// The same templates under other flags are other functions: all is in unnamed namespaces inside FASTRNN_ISA, and nothing
// here uses std templates, or the linker might keep an AVX-512 copy of a function that an older CPU then runs.
#include "kernels/backward.hpp"
#include "kernels/lone.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

using Real = FASTRNN_REAL;
using V = VectorOf<Real>::type;
using C = FASTRNN_CELL;
static_assert(C::gates <= 4 && C::slots.count - C::slots.plain <= max_slots && C::tape <= 4 && C::states <= max_states,
              "Unit and UnitGradient in cells.hpp have room for so many");

void pack(const Direction<Real>& d, const Seat& seat) { pack_forward<C, V>(d, seat); }

void forward(const Direction<Real>& d, const Seat& seat) {
  FlushToZero mode;
  if constexpr (Lone<C, V, Real>::possible)
    if (Lone<C, V, Real>::fits(d, seat)) return Lone<C, V, Real>{d, seat}.run();
  Forward<C, V, Real>{d, seat}.run();
}

void backward(const BackwardDirection<Real>& q, const Seat& seat) {
  FlushToZero mode;
  Backward<C, V, Real>{q, seat}.run();
}

}  // namespace

extern const Kernel<Real> FASTRNN_KERNEL;
const Kernel<Real> FASTRNN_KERNEL = {Lanes<V>::n,   C::gates, C::phase[0].gates, C::tape, C::phases, C::states, vectors_of<C>(),
                                     norms_of<C>(), C::slots, C::projected,      pack,    forward,   backward};

}  // namespace fastrnn::FASTRNN_ISA
