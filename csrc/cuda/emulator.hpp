// A GPU of one core, for tests on machines that have none: it runs the kernels' own source on the CPU, block by block, each thread of a
// block on a stack of its own. The blocks of a cooperative launch are there all at once, and take turns. What a real GPU leaves open is
// drawn: the order of blocks, and of threads between two barriers. Threads that wait for each other for ever are found. Shared memory
// begins as NaN, copies in the background are made when they are waited for, and the matrix instructions follow the fragments that the PTX
// manual shows. It finds wrong indices, missing barriers and reads of what nothing wrote; it does not model the memory of a GPU.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define FASTRNN_DEVICE inline

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace fastrnn::emulator {

// ---- blocks and threads ----

struct Copy {
  void* to;
  char bytes[16];
};
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done;
  int barriers, meetings;             // how many of the block's and of the warp's it has reached
  std::vector<std::vector<Copy>> groups;  // copies under way, the last group still open
};

constexpr int warp_size = 32, stack_bytes = 128 * 1024, shared_capacity = 99 * 1024, blocks_at_once = 16;

struct Block {
  dim3 index;
  std::vector<std::unique_ptr<Thread>> threads;
  struct alignas(128) Shared {
    char bytes[shared_capacity];
  };
  std::unique_ptr<Shared> shared = std::make_unique<Shared>();
  int left;  // threads that have not ended
  // of each warp: what its threads brought to the matrix instruction at hand
  struct Fragments {
    float* c;
    uint32_t a[4], b[2];
  } fragments[32][warp_size];
};

struct Machine {
  std::vector<std::unique_ptr<Block>> blocks;
  std::function<void()> body;
  ucontext_t scheduler;
  Block* block = nullptr;
  int current = 0, count = 0;
  uint64_t progress = 0;  // grows with all that a waiting thread may wait for
  std::mt19937 draw{20261123};
  Thread& self() const { return *block->threads[size_t(current)]; }
};
inline Machine& machine() {
  static Machine m;
  return m;
}
[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}
inline void yield() {
  Machine& m = machine();
  if (swapcontext(&m.self().context, &m.scheduler)) fail("swapcontext");
}
inline void enter() {
  Machine& m = machine();
  m.body();
  m.self().done = true;
  m.block->left--;
  m.progress++;
  yield();
}

// Waits until every thread of the block from 'first' to 'last' has reached its barrier of that kind as often as this one.
inline void meet(int first, int last, int Thread::* count) {
  Machine& m = machine();
  const int mine = ++(m.self().*count);
  m.progress++;
  for (;;) {
    bool all = true;
    for (int i = first; i < last && all; i++) {
      const Thread& other = *m.block->threads[size_t(i)];
      all = other.*count >= mine;
      if (!all && other.done) fail("a thread ended while others wait for it at a barrier");
    }
    if (all) return;
    yield();
  }
}

inline void begin_block(Block& b, dim3 index, int threads) {
  b.index = index, b.left = threads;
  std::memset(b.shared->bytes, 0xff, sizeof b.shared->bytes);
  while (int(b.threads.size()) < threads) {
    b.threads.push_back(std::make_unique<Thread>());
    b.threads.back()->stack.reset(new char[stack_bytes]);
  }
  for (int i = 0; i < threads; i++) {
    Thread& t = *b.threads[size_t(i)];
    t.done = false, t.barriers = t.meetings = 0;
    t.groups.assign(1, {});
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = stack_bytes;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }
}
// Lets each thread of a block run up to where it waits, in any order, and again for so many rounds, or until nothing happens any more.
inline void run_block(Block& b, unsigned rounds) {
  Machine& m = machine();
  m.block = &b;
  blockIdx = b.index;
  std::vector<int> order(size_t(m.count));
  for (int i = 0; i < m.count; i++) order[size_t(i)] = i;
  for (uint64_t before = m.progress - 1; b.left && rounds && m.progress != before; rounds--) {
    before = m.progress;
    std::shuffle(order.begin(), order.end(), m.draw);
    for (int i : order) {
      if (b.threads[size_t(i)]->done) continue;
      m.current = i;
      threadIdx = dim3(unsigned(i), 0, 0);
      if (swapcontext(&m.scheduler, &b.threads[size_t(i)]->context)) fail("swapcontext");
    }
  }
}

// Blocks one after the other, or all 'together'.
inline void run_grid(dim3 grid, dim3 block, int shared_bytes, bool together, std::function<void()> body) {
  Machine& m = machine();
  if (shared_bytes > shared_capacity) fail("more shared memory than the smallest GPU has");
  m.body = std::move(body), gridDim = grid, m.count = int(block.x);
  std::vector<unsigned> order(size_t(grid.x) * grid.z);
  for (size_t i = 0; i < order.size(); i++) order[i] = unsigned(i);
  std::shuffle(order.begin(), order.end(), m.draw);
  while (m.blocks.size() < (together ? order.size() : 1)) m.blocks.push_back(std::make_unique<Block>());
  for (size_t first = 0; first < order.size(); first += together ? order.size() : 1) {
    std::vector<Block*> left;
    for (size_t i = first; i < order.size() && (together || i == first); i++) {
      left.push_back(m.blocks[i - first].get());
      begin_block(*left.back(), dim3(order[i] % grid.x, 0, order[i] / grid.x), m.count);
    }
    while (!left.empty()) {
      const uint64_t before = m.progress;
      std::shuffle(left.begin(), left.end(), m.draw);
      for (Block* b : left) run_block(*b, together ? 1 + m.draw() % 256 : ~0u);
      left.erase(std::remove_if(left.begin(), left.end(), [](const Block* b) { return b->left == 0; }), left.end());
      if (!left.empty() && m.progress == before) fail("all threads that are left wait for ever");
    }
  }
}

}  // namespace fastrnn::emulator

inline void __syncthreads() {
  using namespace fastrnn::emulator;
  meet(0, machine().count, &Thread::barriers);
}

// ---- the runtime ----

using cudaError_t = int;
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = int;
constexpr int cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
              cudaLaunchAttributeProgrammaticStreamSerialization = 6, cudaLaunchAttributeCooperative = 2, cudaMemcpyHostToDevice = 1,
              cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3, cudaEventDisableTiming = 2;
struct cudaLaunchAttribute {
  int id;
  struct {
    int programmaticStreamSerializationAllowed, cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
};
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "unknown error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, 0; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"an emulated GPU on the CPU", 8, 0, 2, size_t(1) << 32, fastrnn::emulator::shared_capacity};
  return 0;
}
struct cudaPointerAttributes {
  int type, device;
};
enum { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  const int values[] = {8, 0, fastrnn::emulator::shared_capacity};
  return *value = values[attribute], 0;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) { return *a = {80}, 0; }
using cudaMemPool_t = int;
enum { cudaMemAllocationTypePinned = 1, cudaMemLocationTypeDevice = 1, cudaMemPoolAttrReleaseThreshold = 4 };
struct cudaMemPoolProps {
  int allocType;
  struct {
    int type, id;
  } location;
};
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return *pool = 1, 0; }
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, int, void*) { return 0; }
inline cudaError_t cudaDeviceSynchronize() { return 0; }
constexpr int cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3;
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void*) { return *a = {cudaMemoryTypeDevice, 0}, 0; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0; }
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaFuncSetAttribute(const void*, int, int) { return 0; }
template <class Kernel> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  return *blocks = fastrnn::emulator::blocks_at_once, 0;
}

// All of it is NaN at first, and so are the guards on both sides, which are looked at in the end. The size stands before them.
namespace fastrnn::emulator {
constexpr size_t guard_bytes = 4096;
inline bool untouched(const unsigned char* p) {
  return std::all_of(p, p + guard_bytes, [](unsigned char c) { return c == 0xff; });
}
}  // namespace fastrnn::emulator

inline cudaError_t cudaMallocFromPoolAsync(void** p, size_t bytes, cudaMemPool_t, cudaStream_t) {
  using namespace fastrnn::emulator;
  const size_t all = 256 + 2 * guard_bytes + (bytes + 255) / 256 * 256;
  auto* const base = bytes < (size_t(1) << 40) ? static_cast<unsigned char*>(std::aligned_alloc(256, all)) : nullptr;
  if (!base) return cudaErrorMemoryAllocation;
  std::memset(base, 0xff, all);
  std::memcpy(base, &bytes, sizeof bytes);
  *p = base + 256 + guard_bytes;
  return 0;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
  using namespace fastrnn::emulator;
  auto* const first = static_cast<unsigned char*>(p);
  size_t bytes;
  std::memcpy(&bytes, first - guard_bytes - 256, sizeof bytes);
  if (!untouched(first - guard_bytes) || !untouched(first + bytes)) fail("something was written outside of its array");
  return std::free(first - guard_bytes - 256), 0;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  return bytes ? (std::memcpy(to, from, bytes), 0) : 0;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) { return std::memset(p, value, bytes), 0; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = 0; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return 0; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return 0; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return 0; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
template <class... P, class... A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(P...), A... arguments) {
  std::tuple<P...> given{static_cast<P>(arguments)...};
  const bool together = c->numAttrs && c->attrs->id == cudaLaunchAttributeCooperative && c->attrs->val.cooperative;
  fastrnn::emulator::run_grid(c->gridDim, c->blockDim, int(c->dynamicSmemBytes), together, [&] { std::apply(kernel, given); });
  return 0;
}

// ---- as device.hpp has it ----

namespace fastrnn::device {
namespace {

inline char* shared_memory() { return emulator::machine().block->shared->bytes; }
inline emulator::Thread& this_thread() { return emulator::machine().self(); }

inline void copy_later(void* to, const void* from) {
  if ((uintptr_t(to) | uintptr_t(from)) % 16) emulator::fail("a copy of 16 bytes is not aligned");
  emulator::Copy copy{to, {}};
  if (from) std::memcpy(copy.bytes, from, 16);
  this_thread().groups.back().push_back(copy);
}
inline void end_group() { this_thread().groups.emplace_back(); }
template <int groups> void wait_for_all_but() {
  auto& all = this_thread().groups;
  while (int(all.size()) - 1 > groups) {
    for (const emulator::Copy& copy : all.front()) std::memcpy(copy.to, copy.bytes, 16);
    all.erase(all.begin());
  }
}
inline void wait_for_last_kernel() {}
inline void let_next_kernel_start() {}
inline void count_one(unsigned* counter) { ++*counter, emulator::machine().progress++; }
inline void wait_for_count(const unsigned* counter, unsigned until) {
  while (int(*counter - until) < 0) emulator::yield();
}

inline float root(float x) { return std::sqrt(x); }
inline double root(double x) { return std::sqrt(x); }

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = as_bits(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_float16(float x) {
  const _Float16 half = _Float16(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float from_float16(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return float(half);
}

// One matrix instruction of a warp; element(register, i) is the i-th number in a register, 'each' how many there are.
template <int each, class Element> void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  emulator::Machine& m = emulator::machine();
  const int warp = m.current / emulator::warp_size, first = warp * emulator::warp_size;
  auto& all = m.block->fragments[warp];
  auto& mine = all[m.current - first];
  mine = {c, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  emulator::meet(first, first + emulator::warp_size, &emulator::Thread::meetings);
  const int lane = m.current - first;
  float sums[4] = {c[0], c[1], c[2], c[3]};
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 8 * each; k++) {
      // element k of a row lies with lane (row % 8) * 4 + k / each % 4, in the first or second half of the registers
      const int quad = k / each % 4, half = k / (4 * each);
      const float left = element(all[row % 8 * 4 + quad].a[2 * half + row / 8], k % each);
      const float right = element(all[column * 4 + quad].b[half], k % each);
      sums[i] += left * right;
    }
  }
  emulator::meet(first, first + emulator::warp_size, &emulator::Thread::meetings);
  std::memcpy(c, sums, sizeof sums);
}
struct MultiplyBfloat16 {
  static void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    multiply_fragments<2>(c, {a0, a1, a2, a3}, {b0, b1}, [](uint32_t r, int i) { return as_float(i ? r & 0xffff0000u : r << 16); });
  }
};
struct MultiplyFloat16 {
  static void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    multiply_fragments<2>(c, {a0, a1, a2, a3}, {b0, b1}, [](uint32_t r, int i) { return from_float16(uint16_t(i ? r >> 16 : r)); });
  }
};
struct MultiplyTf32 {
  static void run(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    multiply_fragments<1>(c, {a0, a1, a2, a3}, {b0, b1}, [](uint32_t r, int) {
      const float x = as_float(r);
      return x - x == 0 ? as_float((r + 0x1000u) & ~0x1fffu) : x;
    });
  }
};

}  // namespace
}  // namespace fastrnn::device
