// Which kernels this CPU runs. CMake defines FASTRNN_HAS_<ISA> for every instruction set in the build.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels/structs.hpp"

#define DECLARE(isa)                          \
  namespace fastrnn::isa {                    \
  extern const KernelTable<float> table_f32;  \
  extern const KernelTable<double> table_f64; \
  extern const NarrowTable narrow_table;      \
  }                                           \
  DECLARE_PRODUCTS(isa)
#define DECLARE_PRODUCTS(isa)                  \
  namespace fastrnn::isa {                     \
  extern const NarrowProducts narrow_products; \
  }
#define ROW(isa, supported, products) {#isa, supported, &isa::table_f32, &isa::table_f64, &isa::narrow_table, products}

#ifdef FASTRNN_HAS_AVX512
DECLARE(avx512)
DECLARE_PRODUCTS(avx512vnni)
DECLARE_PRODUCTS(avx512amx)
#endif
#ifdef FASTRNN_HAS_AVX2
DECLARE(avx2)
DECLARE_PRODUCTS(avx2vnni)
#endif
#ifdef FASTRNN_HAS_NEON
DECLARE(neon)
DECLARE_PRODUCTS(neondot)
DECLARE_PRODUCTS(neonbf16)
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
[[maybe_unused]] bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
// The system grants the matrix unit's registers to a process that asks for them.
[[maybe_unused]] bool has_avx512amx() {
  constexpr int request_permission = 0x1023, tile_data = 18;
  return has_avx512vnni() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-int8") &&
         __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
[[maybe_unused]] bool has_avx2vnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
#elif defined(__aarch64__)
[[maybe_unused]] bool has_neondot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
[[maybe_unused]] bool has_neonbf16() { return has_neondot() && (getauxval(AT_HWCAP2) & HWCAP2_BF16); }
#endif

#ifdef FASTRNN_HAS_AVX512
const NarrowCandidate avx512_products[] = {{has_avx512amx, &avx512amx::narrow_products},
                                           {has_avx512vnni, &avx512vnni::narrow_products},
                                           {has_avx512, &avx512::narrow_products},
                                           {}};
#endif
#ifdef FASTRNN_HAS_AVX2
const NarrowCandidate avx2_products[] = {{has_avx2vnni, &avx2vnni::narrow_products}, {has_avx2, &avx2::narrow_products}, {}};
#endif
#ifdef FASTRNN_HAS_NEON
const NarrowCandidate neon_products[] = {
    {has_neonbf16, &neonbf16::narrow_products}, {has_neondot, &neondot::narrow_products}, {always, &neon::narrow_products}, {}};
#endif
#ifdef FASTRNN_HAS_SCALAR
const NarrowCandidate scalar_products[] = {{always, &scalar::narrow_products}, {}};
#endif

}  // namespace

const Isa isas[] = {
#ifdef FASTRNN_HAS_AVX512
    ROW(avx512, has_avx512, avx512_products),
#endif
#ifdef FASTRNN_HAS_AVX2
    ROW(avx2, has_avx2, avx2_products),
#endif
#ifdef FASTRNN_HAS_NEON
    ROW(neon, always, neon_products),
#endif
#ifdef FASTRNN_HAS_SCALAR
    ROW(scalar, always, scalar_products),
#endif
    {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr},
};

namespace {
std::string names_of_all() {
  std::string names;
  for (const Isa* isa = isas; isa->name; isa++) names += names.empty() ? isa->name : std::string(", ") + isa->name;
  return names;
}
}  // namespace

const Isa& choose_isa(const char* name) {
  const char* asked = name ? name : getenv("FASTRNN_ISA");
  std::string runs;
  for (const Isa* isa = isas; isa->name; isa++) {
    if (!isa->supported()) continue;
    if (!asked || !*asked || !strcmp(asked, isa->name)) return *isa;
    runs += runs.empty() ? isa->name : std::string(", ") + isa->name;
  }
  if (runs.empty()) throw std::invalid_argument("this build has no kernels for this CPU, but for: " + names_of_all());
  throw std::invalid_argument(std::string(name ? "isa is '" : "the environment sets FASTRNN_ISA to '") + (asked ? asked : "") +
                              "', but this build on this CPU runs: " + runs);
}

}  // namespace fastrnn
