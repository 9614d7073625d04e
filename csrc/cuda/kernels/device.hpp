// What a kernel uses of a GPU beyond C++; the emulator has its own.
#pragma once
#include "cuda/host/runtime.hpp"

#ifndef FASTRNN_EMULATE

namespace fastrnn::device {
namespace {

#define FASTRNN_DEVICE __device__ __forceinline__

FASTRNN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char fastrnn_shared[];
  return fastrnn_shared;
}

// 16 bytes from global to shared memory, in the background; zeros with a null source. A group is what was copied since the last one.
FASTRNN_DEVICE void copy_later(void* to, const void* from) {
  const unsigned at = unsigned(__cvta_generic_to_shared(to)), bytes = from ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from ? from : to), "r"(bytes) : "memory");
}
FASTRNN_DEVICE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups> FASTRNN_DEVICE void wait_for_all_but() { asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory"); }

// Ends when the kernel ahead in the stream has, and its results can be read; and lets the next one start.
FASTRNN_DEVICE void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
FASTRNN_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What the block's threads wrote before its last barrier is there for whoever has waited for this count.
FASTRNN_DEVICE void count_one(unsigned* counter) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); }
// Ends when so many have been counted since it was zero; counts wrap. What they wrote must be read past the first-level cache.
FASTRNN_DEVICE void wait_for_count(const unsigned* counter, unsigned until) {
  unsigned seen;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  while (int(seen - until) < 0);
}

FASTRNN_DEVICE float root(float x) { return sqrtf(x); }
FASTRNN_DEVICE double root(double x) { return sqrt(x); }

FASTRNN_DEVICE uint16_t to_bfloat16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
FASTRNN_DEVICE uint16_t to_float16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
FASTRNN_DEVICE float from_float16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// c (16x8) += a (16xk) b (kx8) over the warp, in the fragments that the PTX manual shows for mma.m16n8k16 (16 bits) and m16n8k8 (tf32).
struct MultiplyBfloat16 {
  static FASTRNN_DEVICE void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};
struct MultiplyFloat16 {
  static FASTRNN_DEVICE void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};
struct MultiplyTf32 {
  static FASTRNN_DEVICE uint32_t rounded(uint32_t x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(x)));
    return bits;
  }
  static FASTRNN_DEVICE void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(rounded(a0)), "r"(rounded(a1)), "r"(rounded(a2)), "r"(rounded(a3)), "r"(rounded(b0)), "r"(rounded(b1)));
  }
};
}  // namespace
}  // namespace fastrnn::device

#endif
