// Which kernels this CPU runs. CMake defines FASTRNN_HAS_<ISA> for every instruction set in the build.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/structs.hpp"

#define DECLARE(isa)                          \
  namespace fastrnn::isa {                    \
  extern const KernelTable<float> table_f32;  \
  extern const KernelTable<double> table_f64; \
  }
#define ROW(isa, supported) {#isa, supported, &isa::table_f32, &isa::table_f64}

#ifdef FASTRNN_HAS_AVX512
DECLARE(avx512)
#endif
#ifdef FASTRNN_HAS_AVX2
DECLARE(avx2)
#endif
#ifdef FASTRNN_HAS_NEON
DECLARE(neon)
#endif
#ifdef FASTRNN_HAS_SCALAR
DECLARE(scalar)
#endif

namespace fastrnn {
namespace {

[[maybe_unused]] bool always() { return true; }

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

const Isa isas[] = {
#ifdef FASTRNN_HAS_AVX512
    ROW(avx512, has_avx512),
#endif
#ifdef FASTRNN_HAS_AVX2
    ROW(avx2, has_avx2),
#endif
#ifdef FASTRNN_HAS_NEON
    ROW(neon, always),
#endif
#ifdef FASTRNN_HAS_SCALAR
    ROW(scalar, always),
#endif
    {nullptr, nullptr, nullptr, nullptr},
};

const Isa& choose_isa(const char* name) {
  const char* asked = name ? name : getenv("FASTRNN_ISA");
  std::string runs;
  for (const Isa* isa = isas; isa->name; isa++) {
    if (!isa->supported()) continue;
    if (!asked || !*asked || !strcmp(asked, isa->name)) return *isa;
    runs += runs.empty() ? isa->name : std::string(", ") + isa->name;
  }
  throw std::invalid_argument(std::string(name ? "isa is '" : "the environment sets FASTRNN_ISA to '") + (asked ? asked : "") +
                              "', but this build on this CPU runs: " + runs);
}

}  // namespace fastrnn
