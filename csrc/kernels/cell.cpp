// One cell in one dtype for one instruction set: compiled once for each with its own flags and defines
//   FASTRNN_ISA   namespace        FASTRNN_VECTOR_BYTES   64, 32, 16 or 0 (scalar)
//   FASTRNN_CELL  struct of cells.hpp    FASTRNN_REAL   float or double    FASTRNN_KERNEL   name of the function below
// The same templates under other flags are other functions: all is in unnamed namespaces inside FASTRNN_ISA, and nothing
// here uses std templates, or the linker might keep an AVX-512 copy of a function that an older CPU then runs.
#include "kernels/kernel.hpp"

namespace fastrnn::FASTRNN_ISA {

extern const Kernel<FASTRNN_REAL> FASTRNN_KERNEL;
const Kernel<FASTRNN_REAL> FASTRNN_KERNEL = FunctionsOf<FASTRNN_CELL, FASTRNN_REAL>::kernel();

}  // namespace fastrnn::FASTRNN_ISA
