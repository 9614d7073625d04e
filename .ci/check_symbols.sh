#!/usr/bin/env bash
# Fails where a kernel object holds a symbol that the linker might share between instruction sets.
#
# A weak or unique symbol (nm: w W v V u) exists once in the program, in the version of whichever object came first: an
# AVX-512 copy of it crashes an older CPU. So kernel objects may have none, and what they export has to be in the
# namespace of their instruction set.
#
#   check_symbols.sh BUILD_DIRECTORY...
set -euo pipefail

# What breaks the rule most easily: templates of the standard library. Kernels include the compiler's headers only.
kernels=$(dirname "${BASH_SOURCE[0]}")/../csrc/kernels
if grep --line-number '^#include <' "$kernels"/* | grep --invert-match --extended-regexp '<(cstdint|immintrin\.h|arm_neon\.h)>'; then
  echo "csrc/kernels may include <cstdint> and the compiler's vector headers, and nothing else of the system" >&2
  exit 1
fi

for build in "$@"; do
  objects=0
  while IFS= read -r -d '' object; do
    isa=$(sed -E 's/.*\/(kernels|shared)_([a-z0-9]+).*\.dir\/.*/\2/' <<<"$object")
    bad=$(nm --format=posix "$object" | awk -v own="^_ZN7fastrnn${#isa}$isa" '
      $2 ~ /^[wWvVu]$/ { print "  weak or unique: " $1 }
      $2 ~ /^[ABCDGRST]$/ && $1 !~ own { print "  exported outside the namespace of the instruction set: " $1 }')
    if [[ -n $bad ]]; then
      printf '%s\n%s\n' "$object" "$bad" | c++filt >&2
      exit 1
    fi
    objects=$((objects + 1))
  done < <(find "$build" \( -path '*/kernels_*.dir/*' -o -path '*/shared_*.dir/*' \) -name '*.o' -print0)
  if ((objects == 0)); then
    echo "$build holds no kernel objects" >&2
    exit 1
  fi
  echo "$objects kernel objects, no weak or unique symbol"
done
