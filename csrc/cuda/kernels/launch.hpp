// How kernels are launched.
#pragma once
#include <atomic>

#include "cuda/host/runtime.hpp"

namespace fastrnn::cuda {

// Launches blocks of 'threads' threads. A chained kernel may start before the one ahead of it in the stream has ended, and waits for it
// by itself: the GPU must be able to (Hopper and later). The blocks of one that is 'together' are all on the GPU at once, or it fails.
struct Launch {
  int64_t blocks;
  int threads, directions;
  int64_t shared_bytes;
  bool chained, together = false;
};

// Beyond 48 KB of shared memory a kernel has to be told, once on each device; then it may have all that a block can.
template <auto kernel> void allow_shared(int64_t bytes) {
  if (bytes <= 48 * 1024) return;
  static std::atomic<uint64_t> told{0};
  int device, most;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const uint64_t mine = uint64_t(1) << (device & 63);
  if (device <= 63 && (told.load() & mine)) return;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  check(cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "cudaFuncSetAttribute");
  told |= mine;
}

// Shared memory that a block may have on the current device.
inline int most_shared() {
  int device, most;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return most;
}
// How many blocks a multiprocessor of the current device holds at once.
template <auto kernel> int blocks_held(int threads, int64_t shared_bytes) {
  int blocks;
  allow_shared<kernel>(shared_bytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, size_t(shared_bytes)), "cudaOccupancyMaxActiveBlocks");
  return blocks;
}

template <auto kernel, class... A> void launch(const Launch& l, cudaStream_t stream, A... arguments) {
  if (l.blocks == 0) return;
  if (l.blocks > 0x7fffffff) throw std::overflow_error("more blocks than a launch can have");
  allow_shared<kernel>(l.shared_bytes);
  cudaLaunchAttribute how{};
  if (l.together) {
    how.id = cudaLaunchAttributeCooperative;
    how.val.cooperative = 1;
  } else {
    how.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    how.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(l.blocks), 1, unsigned(l.directions));
  config.blockDim = dim3(unsigned(l.threads), 1, 1);
  config.dynamicSmemBytes = size_t(l.shared_bytes);
  config.stream = stream;
  config.attrs = &how;
  config.numAttrs = l.chained || l.together ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace fastrnn::cuda
