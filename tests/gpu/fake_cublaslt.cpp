// Stands in for cuBLASLt where there is no GPU: the same entry points, on the CPU, element by element. It shows that fastrnn describes
// its products rightly: which way each matrix lies, what is transposed, what is added.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Description {
  int compute, scale, transpose_a = 0, transpose_b = 0;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t pitch;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

double read(const void* p, int type, int64_t at) {
  if (type == 0) return static_cast<const float*>(p)[at];
  if (type == 1) return static_cast<const double*>(p)[at];
  const uint16_t bits = static_cast<const uint16_t*>(p)[at];
  if (type == 2) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return double(half);
  }
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}
void write(void* p, int type, int64_t at, double value) {
  if (type == 0) static_cast<float*>(p)[at] = float(value);
  if (type == 1) static_cast<double*>(p)[at] = value;
  if (type == 2) {
    const _Float16 half = _Float16(value);
    std::memcpy(static_cast<uint16_t*>(p) + at, &half, 2);
  }
  if (type == 14) {
    const float x = float(value);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    static_cast<uint16_t*>(p)[at] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}
bool fits(const Layout& l, bool transposed, uint64_t rows, uint64_t columns) {
  return l.rows == (transposed ? columns : rows) && l.columns == (transposed ? rows : columns) && l.pitch >= int64_t(l.rows);
}

}  // namespace

extern "C" {

int fake_products = 0;

int cublasLtCreate(void** handle) { return *handle = new int(7), 0; }
int cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), 0; }
size_t cublasLtGetVersion() { return 999; }

int cublasLtMatmulDescCreate(Description** d, int compute, int scale) { return *d = new Description{compute, scale}, 0; }
int cublasLtMatmulDescDestroy(Description* d) { return delete d, 0; }
int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t bytes) {
  if (bytes != 4 || (attribute != 3 && attribute != 4)) return 7;
  std::memcpy(attribute == 3 ? &d->transpose_a : &d->transpose_b, value, 4);
  return 0;
}
int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
  return *l = new Layout{type, rows, columns, pitch}, 0;
}
int cublasLtMatrixLayoutDestroy(Layout* l) { return delete l, 0; }
int cublasLtMatmulPreferenceCreate(Preference** p) { return *p = new Preference, 0; }
int cublasLtMatmulPreferenceDestroy(Preference* p) { return delete p, 0; }
int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t bytes) {
  if (attribute == 1 && bytes == 8) return std::memcpy(&p->workspace, value, 8), 0;
  if (attribute >= 5 && attribute <= 8 && bytes == 4) return std::memcpy(&p->alignment[attribute - 5], value, 4), 0;
  return 7;
}

int cublasLtMatmulAlgoGetHeuristic(void*, Description* d, Layout* a, Layout* b, Layout* c, Layout* out, Preference* p, int wanted,
                                   Heuristic* found, int* count) {
  const bool f64 = a->type == 1;
  if (wanted != 1 || c != out || p->workspace < 1 || d->compute != (f64 ? 70 : d->compute == 77 ? 77 : 68) || d->scale != (f64 ? 1 : 0))
    return 7;
  if (a->type != b->type) return 15;
  *found = {};
  for (int i = 0; i < 4; i++) found->algorithm[i] = p->alignment[i];
  *count = 1;
  return 0;
}

int cublasLtMatmul(void* handle, Description* d, const void* alpha, const void* a, Layout* la, const void* b, Layout* lb, const void* beta,
                   const void* c, Layout* lc, void* out, Layout* lo, const uint64_t* algorithm, void* workspace, size_t, void*) {
  const uint64_t m = lc->rows, n = lc->columns, k = d->transpose_a ? la->rows : la->columns;
  if (*static_cast<int*>(handle) != 7 || c != out || lc != lo || !workspace || !fits(*la, d->transpose_a, m, k) ||
      !fits(*lb, d->transpose_b, k, n))
    return 7;
  const void* const pointers[] = {a, b, c, out};
  for (int i = 0; i < 4; i++)
    if (uintptr_t(pointers[i]) % algorithm[i]) return 7;
  const double times = read(alpha, d->scale, 0), keep = read(beta, d->scale, 0);
  for (uint64_t i = 0; i < m; i++)
    for (uint64_t j = 0; j < n; j++) {
      double sum = 0;
      for (uint64_t l = 0; l < k; l++)
        sum += read(a, la->type, int64_t(d->transpose_a ? l + i * uint64_t(la->pitch) : i + l * uint64_t(la->pitch))) *
               read(b, lb->type, int64_t(d->transpose_b ? j + l * uint64_t(lb->pitch) : l + j * uint64_t(lb->pitch)));
      const int64_t at = int64_t(i + j * uint64_t(lc->pitch));
      write(out, lc->type, at, times * sum + (keep == 0 ? 0 : keep * read(out, lc->type, at)));
    }
  fake_products++;
  return 0;
}
}
