#include "cuda/host/blas.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

namespace fastrnn::cuda {

namespace {

// As cublasLt.h and library_types.h declare them; the numbers are part of the library's binary interface.
using Handle = struct cublasLtContext*;
using Description = struct cublasLtMatmulDescription*;
using Layout = struct cublasLtMatrixLayout*;
using Preference = struct cublasLtMatmulPreference*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
constexpr int type_float32 = 0, type_float64 = 1, type_float16 = 2, type_bfloat16 = 14;
constexpr int compute_float32 = 68, compute_float64 = 70, compute_tf32 = 77;
constexpr int attribute_transpose_a = 3, attribute_transpose_b = 4;
constexpr int preference_workspace = 1, preference_alignment_a = 5, preference_alignment_b = 6, preference_alignment_c = 7,
              preference_alignment_d = 8;

template <class Store> constexpr int type_of = type_float32;
template <> constexpr int type_of<double> = type_float64;
template <> constexpr int type_of<Float16> = type_float16;
template <> constexpr int type_of<Bfloat16> = type_bfloat16;

// A matrix as the library sees it: stored column by column.
struct ByColumns {
  int64_t rows, columns, pitch;
  bool transposed;
  auto key() const { return std::make_tuple(rows, columns, pitch, transposed); }
};
// The factor (rows, k) seen as 'columns by rows' of what is stored along the axis of stride 1.
template <class Store> ByColumns by_columns(const Factor<Store>& f, int64_t rows, int64_t k, bool k_first) {
  const bool along_k = f.k_stride == 1;
  const int64_t pitch = std::max<int64_t>(along_k ? f.row_stride : f.k_stride, along_k ? k : rows);
  return along_k ? ByColumns{k, rows, pitch, !k_first} : ByColumns{rows, k, pitch, k_first};
}

uint32_t alignment(const void* p) {
  return uint32_t(std::min<uintptr_t>(256, uintptr_t(p) & -uintptr_t(p) ? uintptr_t(p) & -uintptr_t(p) : 256));
}

constexpr size_t most_plans = 1024;  // then all are forgotten: batches of ever new sizes must not fill the memory

using Key = std::tuple<int, int, std::tuple<int64_t, int64_t, int64_t, bool>, std::tuple<int64_t, int64_t, int64_t, bool>, int64_t,
                       uint32_t, uint32_t, uint32_t>;

}  // namespace

struct Blas::Library {
  void* library;
  Handle handle = nullptr;
  int (*create)(Handle*);
  int (*destroy)(Handle);
  size_t (*version)();
  int (*description_create)(Description*, int compute, int scale);
  int (*description_set)(Description, int attribute, const void*, size_t);
  int (*description_destroy)(Description);
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t pitch);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_set)(Preference, int attribute, const void*, size_t);
  int (*preference_destroy)(Preference);
  int (*heuristic)(Handle, Description, Layout, Layout, Layout, Layout, Preference, int, Heuristic*, int*);
  int (*matmul)(Handle, Description, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c,
                Layout, void* d, Layout, const Algorithm*, void*, size_t, cudaStream_t);

  // A product's descriptions and the algorithm that the library proposes; made once for each kind of product.
  struct Plan {
    Description description = nullptr;
    Layout a = nullptr, b = nullptr, c = nullptr;
    Algorithm algorithm;
    bool works = false;
  };
  std::map<Key, Plan> plans;
  std::mutex lock;

  explicit Library(const std::string& path) : library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!library) throw std::runtime_error(std::string("cuBLASLt: ") + dlerror());
    get(create, "cublasLtCreate"), get(destroy, "cublasLtDestroy"), get(version, "cublasLtGetVersion");
    get(description_create, "cublasLtMatmulDescCreate"), get(description_set, "cublasLtMatmulDescSetAttribute");
    get(description_destroy, "cublasLtMatmulDescDestroy"), get(layout_create, "cublasLtMatrixLayoutCreate");
    get(layout_destroy, "cublasLtMatrixLayoutDestroy"), get(preference_create, "cublasLtMatmulPreferenceCreate");
    get(preference_set, "cublasLtMatmulPreferenceSetAttribute"), get(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    get(heuristic, "cublasLtMatmulAlgoGetHeuristic"), get(matmul, "cublasLtMatmul");
    if (create(&handle)) throw std::runtime_error(path + ": cublasLtCreate failed");
  }
  ~Library() {
    forget();
    if (handle) destroy(handle);
  }
  void forget() {
    for (auto& [key, plan] : plans) {
      if (plan.description) description_destroy(plan.description);
      for (Layout layout : {plan.a, plan.b, plan.c})
        if (layout) layout_destroy(layout);
    }
    plans.clear();
  }
  template <class Function> void get(Function*& f, const char* name) {
    f = reinterpret_cast<Function*>(dlsym(library, name));
    if (!f) throw std::runtime_error(std::string("cuBLASLt has no ") + name);
  }

  // Of C^T = B^T A^T, since the library's matrices lie the other way round.
  Plan make(int type, int out_type, Precision precision, const ByColumns& b, const ByColumns& a, int64_t m, int64_t n, int64_t pitch,
            const uint32_t (&aligned)[3], size_t room) {
    Plan plan;
    const int compute = precision == Precision::float64 ? compute_float64 : precision == Precision::tf32 ? compute_tf32 : compute_float32;
    const int scale = precision == Precision::float64 ? type_float64 : type_float32, turn_b = b.transposed, turn_a = a.transposed;
    Preference preference = nullptr;
    const auto set = [&](int attribute, auto value) { return preference_set(preference, attribute, &value, sizeof value); };
    const bool made = !description_create(&plan.description, compute, scale) &&
                      !description_set(plan.description, attribute_transpose_a, &turn_b, sizeof turn_b) &&
                      !description_set(plan.description, attribute_transpose_b, &turn_a, sizeof turn_a) &&
                      !layout_create(&plan.a, type, uint64_t(b.rows), uint64_t(b.columns), b.pitch) &&
                      !layout_create(&plan.b, type, uint64_t(a.rows), uint64_t(a.columns), a.pitch) &&
                      !layout_create(&plan.c, out_type, uint64_t(m), uint64_t(n), pitch) && !preference_create(&preference) &&
                      !set(preference_workspace, uint64_t(room)) && !set(preference_alignment_a, aligned[0]) &&
                      !set(preference_alignment_b, aligned[1]) && !set(preference_alignment_c, aligned[2]) &&
                      !set(preference_alignment_d, aligned[2]);
    Heuristic found{};
    int count = 0;
    plan.works = made && !heuristic(handle, plan.description, plan.a, plan.b, plan.c, plan.c, preference, 1, &found, &count) &&
                 count == 1 && found.state == 0 && found.workspace_bytes <= room;
    plan.algorithm = found.algorithm;
    if (preference) preference_destroy(preference);
    return plan;
  }
};

Blas::Blas(const std::string& path) : library_(new Library(path)) {}
Blas::~Blas() = default;
size_t Blas::version() const { return library_->version(); }

template <class Store>
bool Blas::multiply(const MatrixProduct<Store>& p, void* c, bool wide, Precision precision, void* workspace, int64_t room,
                    cudaStream_t stream) {
  Library& l = *library_;
  const int type = type_of<Store>, out_type = wide && sizeof(Store) == 2 ? type_float32 : type;
  const ByColumns b = by_columns(p.b, p.m, p.K, false), a = by_columns(p.a, p.n, p.K, true);
  const uint32_t aligned[3] = {alignment(p.b.base), alignment(p.a.base), alignment(c)};
  const Key key{int(precision), out_type, b.key(), a.key(), p.pitch, aligned[0], aligned[1], aligned[2]};
  const std::lock_guard<std::mutex> held(l.lock);
  if (l.plans.size() >= most_plans) l.forget();
  auto found = l.plans.find(key);
  if (found == l.plans.end())
    found = l.plans.emplace(key, l.make(type, out_type, precision, b, a, p.m, p.n, p.pitch, aligned, size_t(room))).first;
  const Library::Plan* const plan = &found->second;
  if (!plan->works) return false;
  const double one = 1, zero = 0;
  const float one_f = 1, zero_f = 0;
  const bool f64 = precision == Precision::float64;
  const void* const alpha = f64 ? (const void*)&one : &one_f;
  const void* const beta = p.add ? alpha : f64 ? (const void*)&zero : &zero_f;
  return !l.matmul(l.handle, plan->description, alpha, p.b.base, plan->a, p.a.base, plan->b, beta, c, plan->c, c, plan->c, &plan->algorithm,
                   workspace, size_t(room), stream);
}

template bool Blas::multiply(const MatrixProduct<float>&, void*, bool, Precision, void*, int64_t, cudaStream_t);
template bool Blas::multiply(const MatrixProduct<double>&, void*, bool, Precision, void*, int64_t, cudaStream_t);
template bool Blas::multiply(const MatrixProduct<Float16>&, void*, bool, Precision, void*, int64_t, cudaStream_t);
template bool Blas::multiply(const MatrixProduct<Bfloat16>&, void*, bool, Precision, void*, int64_t, cudaStream_t);

}  // namespace fastrnn::cuda
