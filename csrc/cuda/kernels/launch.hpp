// How kernels are launched.
#pragma once
#include <atomic>

#include "cuda/host/runtime.hpp"

namespace fastrnn::cuda {

// Launches blocks of 'threads' threads. A chained kernel may start before the one ahead of it in the stream has ended, and waits for it
// by itself: the GPU must be able to (Hopper and later).
struct Launch {
  int64_t blocks;
  int threads, directions, shared_bytes;
  bool chained;
};

template <auto kernel, class... A> void launch(const Launch& l, cudaStream_t stream, A... arguments) {
  if (l.blocks == 0) return;
  if (l.blocks > 0x7fffffff) throw std::overflow_error("more blocks than a launch can have");
  if (l.shared_bytes > 48 * 1024) {  // beyond that a kernel has to be told, once on each device
    static std::atomic<uint64_t> told{0};
    int device;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const uint64_t mine = uint64_t(1) << (device & 63);
    if (device > 63 || !(told.load() & mine)) {
      check(cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared_bytes), "cudaFuncSetAttribute");
      told |= mine;
    }
  }
  cudaLaunchAttribute chain{};
  chain.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  chain.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(l.blocks), 1, unsigned(l.directions));
  config.blockDim = dim3(unsigned(l.threads), 1, 1);
  config.dynamicSmemBytes = size_t(l.shared_bytes);
  config.stream = stream;
  config.attrs = &chain;
  config.numAttrs = l.chained ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace fastrnn::cuda
