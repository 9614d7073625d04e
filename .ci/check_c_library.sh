#!/usr/bin/env bash
# Builds the library for C without Python, installs it, and compiles programs against it as users do: by CMake's find_package, with the
# shared and the static library, and by pkg-config.
#
#   check_c_library.sh DIRECTORY
set -euo pipefail

work=$1
mkdir -p "$work/user"
cmake -S . -B "$work/build" -G Ninja -DFASTRNN_PYTHON=OFF -DFASTRNN_ISAS=scalar -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 \
  -DCMAKE_INSTALL_PREFIX="$work/prefix" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/build" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --install "$work/build" >"$work/log"

cat >"$work/user/main.c" <<'C'
#include <fastrnn.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  fastrnn_model* model;
  if (fastrnn_abi_version() != FASTRNN_ABI_VERSION || fastrnn_open("rubbish!", 8, NULL, &model) != FASTRNN_BAD_MODEL) return 1;
  return printf("%s: %s\n", fastrnn_version(), fastrnn_message()) < 0;
}
C
cat >"$work/user/wrapped.cpp" <<'CPP'
#include <fastrnn.hpp>

int main() try { fastrnn::api::Model("rubbish!", 8); } catch (const fastrnn::api::Error& error) {
  return error.status() != FASTRNN_BAD_MODEL;
}
CPP
cat >"$work/user/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.20)
project(user LANGUAGES C CXX)
find_package(fastrnn 0.1 REQUIRED)
foreach(library IN ITEMS fastrnn fastrnn_static)
  add_executable(with_${library} main.c)
  target_link_libraries(with_${library} PRIVATE fastrnn::${library})
  set_target_properties(with_${library} PROPERTIES LINKER_LANGUAGE CXX)
endforeach()
add_executable(wrapped wrapped.cpp)
target_compile_features(wrapped PRIVATE cxx_std_17)
target_link_libraries(wrapped PRIVATE fastrnn::fastrnn_static)
CMAKE
cmake -S "$work/user" -B "$work/user/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/user/build" >"$work/log" || { cat "$work/log"; exit 1; }
"$work/user/build/with_fastrnn"
"$work/user/build/with_fastrnn_static"
"$work/user/build/wrapped"

pc=$(find "$work/prefix" -name fastrnn.pc)
if command -v pkg-config >/dev/null; then
  read -ra flags <<<"$(PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --cflags --libs fastrnn)"
  cc "$work/user/main.c" "${flags[@]}" -Wl,-rpath,"$(dirname "$(dirname "$pc")")" -o "$work/user/by_pkg_config"
  "$work/user/by_pkg_config"
fi
