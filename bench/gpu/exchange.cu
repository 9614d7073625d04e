// What persistent recurrent kernels are designed from, measured on a Hopper GPU: the exchange of h between blocks in each way there
// is, the copy bandwidth of the memory, the rate of the matrix units from registers. A line each: name, parameters, median, unit.
//   nvcc -O3 -std=c++17 -arch=sm_90a exchange.cu -o exchange && ./exchange
// Exchanges are a chain: what a block sends is computed from every word that all blocks sent the step before. The host computes the
// same; where they differ the program says WRONG and ends with 1. The last line of a whole run is "ok".
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int steps = 2000, across_steps = 1000, launches = 21;
constexpr int solo_bytes = 120 * 1024;               // of shared memory: no two blocks fit a multiprocessor
constexpr uint32_t unset = 0xffffffff;               // two NaN that no cell computes: "not there yet"
template <int H> constexpr int words_of = H * 8 / 2;  // of h: 8 rows of the batch, two bfloat16 a word

template <int W> struct alignas(4 * W) Words {
  uint32_t v[W];
};
using Vector = Words<4>;

// The arithmetic of the chain. Weights are odd: whichever word changes, the sum does.
__host__ __device__ inline uint32_t weight(int block) { return 2 * block + 1; }
__host__ __device__ inline uint32_t next_word(uint32_t sum, uint32_t place, uint32_t step) {
  const uint32_t x = (sum + place * 0x85ebca6b + step * 0xc2b2ae35 + 1) * 0x9e3779b1;
  return (x ^ x >> 16) & 0x7fff7fff;  // never unset
}
template <int W> __device__ Words<W> next_words(const Words<W>& sum, int place, int step) {
  Words<W> x;
  for (int w = 0; w < W; w++) x.v[w] = next_word(sum.v[w], place + w, step);
  return x;
}
template <int W> __device__ void add(Words<W>& sum, const Words<W>& x, uint32_t times) {
  for (int w = 0; w < W; w++) sum.v[w] += times * x.v[w];
}

__device__ uint64_t now() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
  return t;
}

// Ends a kernel that waits for what does not come.
struct Patience {
  uint64_t begin = now();
  int tries = 0;
  __device__ void wear() {
    if (++tries % 256 == 0 && now() - begin > 10'000'000'000) __trap();
  }
};

// Within a cluster

__device__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
__device__ uint32_t peer_address(uint32_t own, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  return address;
}
__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ void barrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(barrier) : "memory");
}
// The one arrival of a phase, which then lasts until that many bytes have come.
__device__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ bool barrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(passed)
               : "r"(barrier), "r"(parity)
               : "memory");
  return passed;
}

__device__ void send_async(uint32_t to, const Words<1>& x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(x.v[0]), "r"(barrier)
               : "memory");
}
__device__ void send_async(uint32_t to, const Vector& x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(x.v[0]),
               "r"(x.v[1]), "r"(x.v[2]), "r"(x.v[3]), "r"(barrier)
               : "memory");
}
// async: st.async and mbarriers. stores: plain stores and the cluster's barrier. alone: nothing leaves the block, what the rest costs.
enum class Way { async, stores, alone };

template <int H, int CL, int W> constexpr int cluster_threads = std::max(words_of<H> / CL / W, 32);

// CL blocks, each sends its words of h, W at a time, to all: those of step t to buffer t % 2.
// Why a buffer is free again at t + 2: a peer sends then only after all words of t + 1 came to it. Each thread here sends its own of
// these after it has read the buffer, since they are computed from what it read; so all have read it and passed its barrier, and thread 0
// has asked for the next bytes before any can come. Nor can a wait miss its phase: the next one needs the waiting thread's words.
template <Way way, int H, int CL, int W>
__global__ void __launch_bounds__(cluster_threads<H, CL, W>) in_cluster(uint32_t* out, uint64_t* ns) {
  constexpr int all = words_of<H>, own = all / CL;
  struct Room {
    alignas(16) uint32_t h[2][all];
    uint64_t full[2];
  };
  __shared__ Room room;
  const auto cluster = cooperative_groups::this_cluster();
  const int tid = threadIdx.x, rank = cluster.block_rank(), i = tid * W;
  const bool works = i < own;
  const uint32_t full = shared_address(room.full);
  for (int k = tid; k < 2 * all; k += blockDim.x) room.h[k / all][k % all] = unset;
  for (int b = 0; b < 2 && tid == 0; b++) {
    barrier_init(full + 8 * b);
    barrier_expect(full + 8 * b, 4 * all);
  }
  uint32_t peers[CL];  // each block begins with another one
#pragma unroll
  for (int k = 0; k < CL; k++) peers[k] = peer_address(shared_address(&room), (rank + k) % CL);
  Words<W> mine = {};
  Patience patience;
  __syncwarp();
  cluster_sync();
  const uint64_t begin = now();
  for (int t = 0; t < steps; t++) {
    const int b = t % 2;
    const uint32_t place = 4 * (b * all + rank * own + i);
#pragma unroll
    for (int k = 0; k < CL && works; k++) {
      if constexpr (way == Way::async) send_async(peers[k] + place, mine, peers[k] + uint32_t(sizeof room.h) + 8 * b);
      Words<W>* const here = reinterpret_cast<Words<W>*>(&room.h[b][(way == Way::alone ? k : rank) * own + i]);
      if constexpr (way == Way::stores) *cluster.map_shared_rank(here, (rank + k) % CL) = mine;
      if constexpr (way == Way::alone) *here = mine;
    }
    if constexpr (way == Way::async) {
      while (works && !barrier_passed(full + 8 * b, t / 2 % 2)) patience.wear();
      if (tid == 0) barrier_expect(full + 8 * b, 4 * all);
    }
    __syncwarp();
    if constexpr (way == Way::stores) cluster_sync();
    if constexpr (way == Way::alone) __syncthreads();
    Words<W> sum = {};
#pragma unroll
    for (int k = 0; k < CL && works; k++) add(sum, *reinterpret_cast<const Words<W>*>(&room.h[b][k * own + i]), weight(k));
    mine = next_words(sum, rank * own + i, t);
  }
  if (tid == 0 && blockIdx.x == 0) *ns = now() - begin;
  __syncwarp();
  cluster_sync();  // no block ends while a peer could still write to it
  if (works) *reinterpret_cast<Words<W>*>(out + blockIdx.x * own + i) = mine;
}

// Through the second-level cache

// Each word is looked at by itself and never changes once it is there: no order between them is needed.
__device__ void put(Vector* to, const Vector& x) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.v[0]), "r"(x.v[1]), "r"(x.v[2]), "r"(x.v[3])
               : "memory");
}
__device__ void get_if(bool wanted, const Vector* from, Vector& x) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(x.v[0]), "+r"(x.v[1]), "+r"(x.v[2]), "+r"(x.v[3])
               : "l"(from), "r"(uint32_t(wanted))
               : "memory");
}
__device__ bool missing(const Vector& x) { return x.v[0] == unset || x.v[1] == unset || x.v[2] == unset || x.v[3] == unset; }

// What the first warp has written is there for all once the block is counted.
__device__ void count_and_wait(unsigned* counter, unsigned until, Patience& patience) {
  __syncwarp();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    for (unsigned seen = 0; seen < until; patience.wear())
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  }
  __syncthreads();
}

constexpr int across_threads = 256, across_warps = across_threads / 32;

// Adds up over the threads whose numbers agree modulo 'own'; the first 'own' threads get the sums.
template <int own> __device__ Vector block_sum(Vector x, Vector (&parts)[across_warps][own]) {
  const int tid = threadIdx.x;
#pragma unroll
  for (int d = 16; d >= own; d /= 2)
    for (int c = 0; c < 4; c++) x.v[c] += __shfl_xor_sync(~0u, x.v[c], d);
  if (tid % 32 < own) parts[tid / 32][tid % 32] = x;
  __syncthreads();
  Vector sum = {};
  for (int w = 0; w < across_warps && tid < own; w++) add(sum, parts[w][tid], 1);
  return sum;
}

// flags: the words themselves say whether they are there. counter: each block counts itself. grid: cooperative groups.
enum class Signal { flags, counter, grid };

// Every block writes its vectors of y[t], then reads all of it. y (across_steps, words of h) is unset before; no place is used twice.
template <Signal signal, int H, int blocks>
__global__ void __launch_bounds__(across_threads) across(Vector* y, unsigned* counter, Vector* out, uint64_t* ns) {
  constexpr int all = words_of<H> / 4, own = all / blocks, loads = all / across_threads;
  static_assert(own <= 32 && across_threads % own == 0 && all % across_threads == 0);
  __shared__ Vector parts[2][across_warps][own];
  const int tid = threadIdx.x, block = blockIdx.x;
  const auto grid = cooperative_groups::this_grid();
  Vector mine = {};
  Patience patience;
  grid.sync();
  const uint64_t begin = now();
  for (int t = 0; t < across_steps; t++, y += all) {
    if (tid < own) put(y + block * own + tid, mine);
    if constexpr (signal == Signal::counter) count_and_wait(counter, unsigned(t + 1) * blocks, patience);
    if constexpr (signal == Signal::grid) grid.sync();
    Vector got[loads];
    for (int k = 0; k < loads; k++) got[k] = {unset, unset, unset, unset};
    for (bool again = true; again; patience.wear()) {
#pragma unroll
      for (int k = 0; k < loads; k++) get_if(missing(got[k]), y + tid + k * across_threads, got[k]);
      again = false;
      for (int k = 0; k < loads && signal == Signal::flags; k++) again |= missing(got[k]);
    }
    Vector sum = {};
    for (int k = 0; k < loads; k++) add(sum, got[k], weight((tid + k * across_threads) / own));
    mine = next_words(block_sum(sum, parts[t % 2]), 4 * (block * own + tid), t);
  }
  if (tid == 0 && block == 0) *ns = now() - begin;
  if (tid < own) out[block * own + tid] = mine;
}

// Nothing but the barriers of a cluster or of the whole grid.
template <bool whole> __global__ void barriers(uint64_t* ns) {
  const auto sync = [] {
    if constexpr (whole) cooperative_groups::this_grid().sync();
    else cluster_sync();
  };
  sync();
  const uint64_t begin = now();
  for (int t = 0; t < steps; t++) sync();
  if (threadIdx.x == 0 && blockIdx.x == 0) *ns = now() - begin;
}

// The matrix units

constexpr int mma_rounds = 16384, mma_chains = 8;

// The factors are 1 and -1, so that every sum is a whole number that a float holds.
__global__ void multiply(int rounds, float4* out) {
  uint32_t x[6];  // a and b
  for (int i = 0; i < 6; i++) x[i] = 0x3f803f80 | (next_word(threadIdx.x % 32, i, 0) << 1 & 0x80008000);
  float4 c[mma_chains] = {};
#pragma unroll 1
  for (int round = 0; round < rounds; round++)
#pragma unroll
    for (int i = 0; i < mma_chains; i++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                   : "+f"(c[i].x), "+f"(c[i].y), "+f"(c[i].z), "+f"(c[i].w)
                   : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]));
  for (int i = 1; i < mma_chains; i++) c[0].x += c[i].x, c[0].y += c[i].y, c[0].z += c[i].z, c[0].w += c[i].w;
  out[blockIdx.x * blockDim.x + threadIdx.x] = c[0];
}

// The host

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <class T> struct Buffer {
  T* data = nullptr;
  size_t bytes;
  explicit Buffer(size_t n) : bytes(n * sizeof(T)) { check(cudaMalloc(&data, bytes), "cudaMalloc"); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void set(int byte) const { check(cudaMemset(data, byte, bytes), "cudaMemset"); }
  std::vector<T> host() const {
    std::vector<T> copy(bytes / sizeof(T));
    check(cudaMemcpy(copy.data(), data, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return copy;
  }
};

std::string text(const char* name, int value) { return std::string(name) + "=" + std::to_string(value); }
void report(const char* name, const std::string& parameters, double value, const char* unit) {
  std::printf("%s\t%s\t%.1f\t%s\n", name, parameters.c_str(), value, unit);
  std::fflush(stdout);
}
void skip(const char* name, const std::string& parameters) {
  std::printf("%s\t%s\tskipped\tthe device cannot hold that at once\n", name, parameters.c_str());
}
void need(bool right, const char* name, const std::string& parameters) {
  if (right) return;
  std::printf("WRONG\t%s\t%s\n", name, parameters.c_str());
  std::exit(1);
}

// The median of what sample() returns, but for the first time.
template <class Sample> double median(const Sample& sample) {
  std::vector<double> seen;
  for (int i = 0; i <= launches; i++) seen.push_back(sample());
  std::sort(seen.begin() + 1, seen.end());
  return seen[1 + launches / 2];
}

// Of one of eight in a row, so that the host's part does not count.
template <class Start> double seconds(const Start& start) {
  return median([&] {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 8; i++) start();
    check(cudaDeviceSynchronize(), "what was timed");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 8;
  });
}

// In clusters of that many blocks; 0: a cooperative grid.
struct Launch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  template <class Kernel> Launch(Kernel* kernel, int blocks, int threads, int cluster) {
    attribute.id = cluster ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
    if (cluster) attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    else attribute.val.cooperative = 1;
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = solo_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    const auto set = [&](cudaFuncAttribute what, int value) {
      check(cudaFuncSetAttribute((const void*)kernel, what, value), "cudaFuncSetAttribute");
    };
    set(cudaFuncAttributeMaxDynamicSharedMemorySize, solo_bytes);
    if (cluster > 8) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  Launch(const Launch&) = delete;
};

// How many clusters the device holds at once.
template <class Kernel> int most_clusters(Kernel* kernel, int threads, int cluster) {
  int most = 0;
  const Launch one(kernel, cluster, threads, cluster);
  if (cudaOccupancyMaxActiveClusters(&most, (const void*)kernel, &one.config) == cudaSuccess) return most;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

// Median nanoseconds of one of 'count' steps; after() looks at what each launch has left.
template <class Kernel, class After, class... A>
double step_time(Kernel* kernel, const Launch& how, int count, const After& after, A... arguments) {
  const Buffer<uint64_t> ns(1);
  return median([&] {
    check(cudaLaunchKernelEx(&how.config, kernel, arguments..., ns.data), "cudaLaunchKernelEx");
    check(cudaDeviceSynchronize(), "the kernel");
    after();
    return double(ns.host()[0]) / count;
  });
}

// The words that the blocks of a chain end with, side by side.
std::vector<uint32_t> last_words(int all, int blocks, int count, bool alone) {
  const int own = all / blocks;
  std::vector<uint32_t> h(all), sums(all);
  for (int t = 0; t < count; t++) {
    for (int i = 0; i < (alone ? all : own); i++) {
      sums[i] = 0;
      for (int k = 0; k < blocks; k++) sums[i] += weight(k) * h[alone ? i : k * own + i];
    }
    for (int i = 0; i < all; i++) h[i] = next_word(sums[alone ? i : i % own], uint32_t(i), uint32_t(t));
  }
  return h;
}

template <Way way, int H, int CL, int W> void cluster_lines(const char* name) {
  constexpr int all = words_of<H>, threads = cluster_threads<H, CL, W>;
  const auto kernel = in_cluster<way, H, CL, W>;
  const std::string shape = text("H", H) + " " + text("cluster", CL) + " " + text("bytes", 4 * W);
  const int most = most_clusters(kernel, threads, CL);
  if (most == 0) return skip(name, shape);
  const std::vector<uint32_t> expected = last_words(all, CL, steps, way == Way::alone);
  for (int clusters : {1, most}) {
    const std::string parameters = shape + " " + text("clusters", clusters);
    const Buffer<uint32_t> out(size_t(clusters) * all);
    out.set(0xff);
    const auto verify = [&] {
      const std::vector<uint32_t> got = out.host();
      for (size_t i = 0; i < got.size(); i++) need(got[i] == expected[i % all], name, parameters);
      out.set(0xff);
    };
    report(name, parameters, step_time(kernel, Launch(kernel, clusters * CL, threads, CL), steps, verify, out.data), "ns");
  }
}

template <int H, int CL> void ways() {
  cluster_lines<Way::async, H, CL, 1>("st.async");
  cluster_lines<Way::async, H, CL, 4>("st.async");
  cluster_lines<Way::stores, H, CL, 4>("st and barrier.cluster");
  cluster_lines<Way::alone, H, CL, 1>("without exchange");
  cluster_lines<Way::alone, H, CL, 4>("without exchange");
}

template <int CL> void cluster_size() {
  const auto kernel = barriers<false>;
  const int most = most_clusters(kernel, 256, CL);
  if (most == 0) return skip("clusters", text("cluster", CL));
  for (int clusters : {1, most}) {
    const Launch how(kernel, clusters * CL, 256, CL);
    report("barrier.cluster", text("cluster", CL) + " " + text("clusters", clusters), step_time(kernel, how, steps, [] {}), "ns");
  }
  ways<256, CL>(), ways<512, CL>();
}

template <Signal signal, int H, int blocks> void across_line(const char* name, int multiprocessors) {
  const std::string parameters = text("H", H) + " " + text("blocks", blocks);
  if (multiprocessors < blocks) return skip(name, parameters);
  const auto kernel = across<signal, H, blocks>;
  const Buffer<Vector> y(size_t(across_steps) * words_of<H> / 4);
  const Buffer<uint32_t> out(words_of<H>);
  const Buffer<unsigned> counter(1);
  const std::vector<uint32_t> expected = last_words(words_of<H>, blocks, across_steps, false);
  const auto reset = [&] { y.set(0xff), out.set(0xff), counter.set(0); };
  const auto verify = [&] {
    need(out.host() == expected, name, parameters);
    reset();
  };
  reset();
  const Launch how(kernel, blocks, across_threads, 0);
  report(name, parameters, step_time(kernel, how, across_steps, verify, y.data, counter.data, (Vector*)out.data), "ns");
}

template <int H, int blocks> void signals(int multiprocessors) {
  across_line<Signal::flags, H, blocks>("L2, flags in the data", multiprocessors);
  across_line<Signal::counter, H, blocks>("L2, release counter", multiprocessors);
  across_line<Signal::grid, H, blocks>("L2, grid.sync", multiprocessors);
}

void copy_line() {
  const size_t n = size_t(1) << 27;  // 512 MiB
  const Buffer<uint32_t> from(n), to(n);
  std::vector<uint32_t> words(n);
  for (size_t i = 0; i < n; i++) words[i] = next_word(uint32_t(i), 0, 0);
  check(cudaMemcpy(from.data, words.data(), from.bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  to.set(0xff);
  const double time = seconds([&] { check(cudaMemcpyAsync(to.data, from.data, to.bytes, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync"); });
  need(to.host() == words, "copy", "MiB=512");
  report("copy, read and written", "MiB=512", 2e-9 * double(to.bytes) / time, "GB/s");
}

void multiply_line(int multiprocessors, int warps) {
  const char* const name = "mma.m16n8k16 bf16";
  const Buffer<float> out(size_t(multiprocessors) * warps * 128);
  const auto run = [&](int rounds) {
    multiply<<<multiprocessors, warps * 32>>>(rounds, (float4*)out.data);
    check(cudaGetLastError(), name);
  };
  run(1);
  const std::vector<float> one = out.host();
  out.set(0xff);
  const double time = seconds([&] { run(mma_rounds); });
  const std::vector<float> all = out.host();
  for (size_t i = 0; i < all.size(); i++) need(all[i] == mma_rounds * one[i], name, text("warps", warps));
  const double operations = 2. * 16 * 8 * 16 * mma_rounds * mma_chains * warps * multiprocessors;
  report(name, text("warps", warps), 1e-12 * operations / time, "TFLOP/s");
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const int n = device.multiProcessorCount;
  report("device", device.name, n, "multiprocessors");
  cluster_size<2>(), cluster_size<4>(), cluster_size<8>(), cluster_size<16>();
  const Launch whole(barriers<true>, n, across_threads, 0);
  report("grid.sync", text("blocks", n), step_time(barriers<true>, whole, steps, [] {}), "ns");
  signals<1024, 64>(n), signals<1024, 128>(n), signals<2048, 64>(n), signals<2048, 128>(n);
  copy_line();
  for (int warps : {4, 8, 16}) multiply_line(n, warps);
  std::puts("ok");
}
