// CUDA's runtime, or with FASTRNN_EMULATE the emulator's, which runs kernels on the CPU for tests.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef FASTRNN_EMULATE
#include "cuda/emulator.hpp"
#else
#include <cuda_runtime.h>
#endif

namespace fastrnn::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace fastrnn::cuda
