#!/usr/bin/env python3
"""Write the library for C as one source file and one header, for programs that want no library to link.

    python csrc/api/amalgamate.py OUT
    c++ -O2 -c OUT/fastrnn.cpp

OUT/fastrnn.cpp holds the kernels once and includes itself for each instruction set; OUT/fastrnn.h is the library's, and
so is fastrnn.hpp, which wraps it for C++. What a program does not need may be left out, for a smaller object that is
sooner compiled: fastrnn_open then refuses the models that need it.
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"

AVX2 = "avx,avx2,bmi,bmi2,f16c,fma,lzcnt,movbe,popcnt,sse3,ssse3,sse4.1,sse4.2"
AVX512 = f"{AVX2},avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
VNNI = f"{AVX512},avx512vnni"
# Of each instruction set: its processor, the bytes of its vectors, and itself and its extensions, each with what the
# compiler calls their instructions and the macros that tell the kernels of them: what CMakeLists.txt says in flags.
ISAS: dict[str, tuple[str, int, dict[str, tuple[str, list[str]]]]] = {
    "avx512": ("__x86_64__", 64, {
        "avx512": (AVX512, []),
        "avx512vnni": (VNNI, ["FASTRNN_VNNI"]),
        "avx512amx": (f"{VNNI},avx512bf16,amx-tile,amx-int8,amx-bf16", ["FASTRNN_VNNI", "FASTRNN_AMX"]),
    }),
    "avx2": ("__x86_64__", 32, {"avx2": (AVX2, []), "avx2vnni": (f"{AVX2},avxvnni", ["FASTRNN_VNNI"])}),
    "neon": ("__aarch64__", 16, {
        "neon": ("", []),
        "neondot": ("dotprod", ["FASTRNN_DOTPROD"]),
        "neonbf16": ("dotprod,bf16", ["FASTRNN_DOTPROD", "FASTRNN_BFDOT"]),
    }),
    "scalar": ("__x86_64__", 0, {"scalar": ("", [])}),
}  # fmt: skip
DTYPES = {"float32": ("float", "f32"), "float64": ("double", "f64")}
HOST = ("host/memory.cpp", "host/narrow.cpp", "host/frozen.cpp", "host/dispatch.cpp")
API = ("api/model.cpp", "api/stream.cpp", "api/fastrnn.cpp")


def cells() -> dict[str, str]:
    """Return the list of cells in structs.hpp, which CMakeLists.txt reads as well: name, and struct in cells.hpp."""
    text = (SOURCES / "kernels/structs.hpp").read_text()
    return dict(re.findall(r"X\(([a-z0-9_]+), ([A-Za-z0-9<>]+)\)", text))


SYSTEM = r"^#include <[^\n]*\n"
SYSTEM_BY_CONDITION = r"^#if [^\n]*\n(?:#include <[^\n]*\n|#elif [^\n]*\n)+#endif\n"
TRAINING = r"^#ifndef FASTRNN_FORWARD_ONLY\n.*?#endif\n"


class Text:
    """Sources one after the other, in which each header stands once and those of the system are taken out."""

    def __init__(self) -> None:
        self.system: list[str] = []
        self._seen = {"api/fastrnn.h"}  # which HEAD includes

    def of(self, name: str) -> str:
        if name in self._seen:
            return ""
        if name.endswith(".hpp"):
            self._seen.add(name)
        text = re.sub(TRAINING, "", (SOURCES / name).read_text(), flags=re.M | re.S)
        for pattern in (SYSTEM_BY_CONDITION, SYSTEM):
            text = re.sub(pattern, self._take, text, flags=re.M)
        text = text.replace("#pragma once\n", "")
        text = re.sub(r'^#include "([^"]*)"\n', lambda found: self.of(found[1]), text, flags=re.M)
        return f"// ==== {name}\n{text.strip()}\n\n"

    def _take(self, found: "re.Match[str]") -> str:
        if "FASTRNN_VECTOR_BYTES" not in found[0] and found[0] not in self.system:  # those of vectors are in HEAD
            self.system.append(found[0])
        return ""


def kernels_of(text: Text, wanted: list[str], dtypes: list[str]) -> str:
    """Return the kernels of the instruction set that macros name; with FASTRNN_EXTENSION what an extension has."""
    parts = [text.of("kernels/vec.hpp"), "#ifndef FASTRNN_EXTENSION\n\n", text.of("kernels/kernel.hpp")]
    for name, struct in cells().items():
        for dtype, (real, suffix) in DTYPES.items():
            macros = {"CELL": struct, "REAL": real, "KERNEL": f"{name}_{suffix}"}
            there = name in wanted and dtype in dtypes
            parts.append(unit(text, "kernels/cell.cpp", macros) if there else no_cell(macros))
        macros = {"CELL": struct, "KERNEL": f"{name}_narrow"}
        there = name in wanted and "float32" in dtypes
        parts.append(unit(text, "kernels/narrow_cell.cpp", macros) if there else no_narrow_cell(macros))
    parts += [text.of("kernels/shared.cpp"), "#endif  // FASTRNN_EXTENSION\n\n", text.of("kernels/narrow.cpp")]
    return "".join(parts)


def unit(text: Text, name: str, macros: dict[str, str]) -> str:
    """Return a source that CMakeLists.txt compiles with these macros."""
    define = "".join(f"#define FASTRNN_{macro} {value}\n" for macro, value in macros.items())
    return define + text.of(name) + "".join(f"#undef FASTRNN_{macro}\n" for macro in macros) + "\n"


def no_cell(macros: dict[str, str]) -> str:
    """Return an empty kernel in the place of one that is left out, by which fastrnn_open knows it."""
    kernel = f"const Kernel<{macros['REAL']}> {macros['KERNEL']}"
    return f"namespace fastrnn::FASTRNN_ISA {{\nextern {kernel};\n{kernel} = {{}};\n}}\n\n"


def no_narrow_cell(macros: dict[str, str]) -> str:
    function = f"void {macros['KERNEL']}(const Direction<float>&, const Seat&)"
    return f"namespace fastrnn::FASTRNN_ISA {{\n{function};\n{function} {{}}\n}}\n\n"


def pass_of(name: str, own: bool, vector_bytes: int, target: str, macros: list[str]) -> str:
    """Return what includes the kernels once: macros for them, and for the compiler what it may use."""
    defines = [f"FASTRNN_ISA {name}", f"FASTRNN_VECTOR_BYTES {vector_bytes}", *macros]
    if not own:
        defines.append("FASTRNN_EXTENSION")
    begin, end = "", ""
    if vector_bytes:  # scalar kernels are as the flags say
        begin = '#pragma GCC push_options\n#pragma GCC optimize("O3")\n'
        begin += f'#pragma GCC target("{gcc_target(target, vector_bytes)}")\n' if target else ""
        begin, end = f"#if !defined(__clang__)\n{begin}", "#if !defined(__clang__)\n#pragma GCC pop_options\n"
        if target:
            begin += f'#else\n#pragma clang attribute push(__attribute__((target("{target}"))), apply_to = function)\n'
            end += "#else\n#pragma clang attribute pop\n"
        begin, end = f"{begin}#endif\n", f"{end}#endif\n"
    define = "".join(f"#define {one}\n" for one in defines)
    undefine = "".join(f"#undef {one.split()[0]}\n" for one in defines)
    return f"{define}{begin}#include __FILE_NAME__\n{end}{undefine}\n"


def gcc_target(target: str, vector_bytes: int) -> str:
    if target.startswith("dotprod"):
        return f"arch=armv8.2-a+{target.replace(',', '+')}"
    return target + (",prefer-vector-width=512" if vector_bytes == 64 else "")


def version() -> str:
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert found
    return found[1]


HEAD = """\
// fastrnn {version} for C in one file, written by csrc/api/amalgamate.py: what is to be changed stands in the sources.
//
//   c++ -O2 -c fastrnn.cpp
//
// C++17, GCC 12 or Clang 19 or newer, Linux. No flag names a processor: the file includes itself for each instruction
// set, and which one runs is chosen at run time. GCC compiles the kernels as with -O3. fastrnn.h says how to use it.
//
{licence}
#ifndef FASTRNN_ISA
#if !defined(__linux__) || !({processors})
#error "this fastrnn.cpp is for Linux on the processors that have {isas}"
#elif defined(__clang__) ? __clang_major__ < 19 : !defined(__GNUC__) || __GNUC__ < 12
#error "fastrnn.cpp needs GCC 12 or Clang 19, or newer: others do not know all that it asks of vectors and processors"
#elif __cplusplus < 201703L
#error "fastrnn needs C++17: compile with -std=c++17"
#endif

{system}
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FASTRNN_VERSION "{version}"
#define FASTRNN_FORWARD_ONLY
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wunused"
#pragma GCC visibility push(hidden)
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off", "no-math-errno")
#endif
#include "fastrnn.h"

"""
ALONE = """\
// A stream runs in its caller's thread, which has nobody to wait for.
int64_t fastrnn::wait_longer(const int*, int) { return 0; }

"""
BETWEEN = """\
#if !defined(__clang__)
#pragma GCC pop_options
#endif
#pragma GCC visibility pop
#pragma GCC diagnostic pop

#else  // the kernels of one instruction set

"""


def source(isas: list[str], wanted: list[str], dtypes: list[str]) -> str:
    """Return fastrnn.cpp."""
    text = Text()
    common = text.of("kernels/structs.hpp") + text.of("kernels/team.hpp")
    kernels = kernels_of(text, wanted, dtypes)
    passes = ""
    for isa in isas:
        processor, vector_bytes, versions = ISAS[isa]
        inside = "".join(pass_of(name, name == isa, vector_bytes, *given) for name, given in versions.items())
        passes += f"#if defined({processor})\n#define FASTRNN_HAS_{isa.upper()}\n{inside}#endif\n\n"
    rest = "".join(text.of(name) for name in HOST + API)
    macros = dict.fromkeys(re.findall(r"^#define (\w+)", kernels, flags=re.M))
    head = HEAD.format(
        version=version(),
        licence="".join(f"// {line}".rstrip() + "\n" for line in (ROOT / "LICENSE").read_text().splitlines()),
        processors=" || ".join(sorted({f"defined({ISAS[isa][0]})" for isa in isas})),
        isas=", ".join(isas),
        system="".join(text.system),
    )
    undefine = "".join(f"#undef {macro}\n" for macro in macros)
    return f"{head}{common}{ALONE}{passes}{rest}{BETWEEN}{kernels}{undefine}#endif\n"


def main() -> None:
    names, which = list(cells()), "what to hold, of {}; all without this option"
    usage = "%(prog)s OUT [--isas NAME ...] [--cells NAME ...] [--dtypes NAME ...]"
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder to write fastrnn.cpp, fastrnn.h and fastrnn.hpp to")
    for option, known in (("--isas", list(ISAS)), ("--cells", names), ("--dtypes", list(DTYPES))):
        text = which.format(", ".join(known))
        parser.add_argument(option, nargs="+", choices=known, default=known, metavar="NAME", help=text)
    given = parser.parse_args()
    if given.out.exists() and not given.out.is_dir():
        parser.error(f"{given.out} is no folder")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "fastrnn.cpp").write_text(source(list(dict.fromkeys(given.isas)), given.cells, given.dtypes))
    for header in ("fastrnn.h", "fastrnn.hpp"):
        (given.out / header).write_text((SOURCES / "api" / header).read_text())


if __name__ == "__main__":
    main()
