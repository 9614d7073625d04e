"""Programs in C and C++, compiled against the installed library as users compile theirs."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from api_support import WEIGHTS, compile_program

import fastrnn
from support import CELLS, assert_same_bits

H = 9

PROGRAM = r"""
#include <fastrnn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  fastrnn_model* model;
  if (argc < 2 || fastrnn_abi_version() != FASTRNN_ABI_VERSION) return 2;
  if (fastrnn_open_file(argv[1], NULL, &model)) return fprintf(stderr, "%s\n", fastrnn_message()), 1;
  const size_t bytes = fastrnn_stream_bytes(model, 1, 1);
  void* memory = malloc(bytes);
  fastrnn_stream* stream;
  if (fastrnn_prepare(model, 1, 1, memory, bytes, &stream)) return 3;
  float x, y;
  while (scanf("%f", &x) == 1) {
    if (fastrnn_step(stream, &x, &y)) return 4;
    printf("%.9g\n", y);
  }
  free(memory);
  fastrnn_close(model);
  return 0;
}
"""


@pytest.mark.parametrize(("name", "standard"), [("main.c", "-std=c99"), ("main.cpp", "-std=c++11")])
def test_a_program_in_c(tmp_path: Path, name: str, standard: str) -> None:
    layers = [fastrnn.GRU(1, H, rng=0), fastrnn.Linear(H, 1, rng=1)]
    fastrnn.save(tmp_path / "model.safetensors", layers)
    (tmp_path / name).write_text(PROGRAM)
    compile_program(tmp_path / name, standard)
    x = np.random.default_rng(0).standard_normal((5, 1, 1), np.float32)
    given = "\n".join(f"{value:.9g}" for value in x.ravel())
    done = subprocess.run(["./main", "model.safetensors"], cwd=tmp_path, input=given, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    wanted = layers[1](layers[0](x)[0]).ravel()
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("word", "compiler"), [("c", "cc main.c"), ("cpp", "c++ -std=c++17 main.cpp")])
def test_the_programs_of_the_documentation(tmp_path: Path, word: str, compiler: str) -> None:
    """Written, compiled and run by the commands of the page."""
    page = Path(__file__).parents[2] / "docs" / "c.md"
    if not page.exists() or shutil.which(compiler.split()[0]) is None:
        pytest.skip("there is no documentation beside the tests, or no compiler")
    python, source, commands = (page.read_text().split(f"```{x}\n")[1].split("```")[0] for x in ("py", word, "sh"))
    assert "cc main.c " in commands
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True)
    (tmp_path / f"main.{word}").write_text(source)
    commands = f'set -e; python() {{ {sys.executable} "$@"; }}\n' + commands.replace("cc main.c", compiler) + "./main"
    done = subprocess.run(["sh", "-c", commands], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lstm, linear = fastrnn.load(tmp_path / "amp.safetensors").values()
    x = np.zeros((164, 1, 1), np.float32)
    x[:100] = 0.5
    y = linear(lstm(x)[0]).ravel()
    np.testing.assert_allclose([float(one) for one in done.stdout.split()], [y[99], y[163]], rtol=1e-4)


# In strict mode Linux ends a process at the first system call that is neither read, write nor exit: so none is made,
# which a lock that has to wait would be. Requests to the heap are counted.
AUDIO = r"""
#define _GNU_SOURCE
#include <fastrnn.h>
#include <fenv.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int requests;
extern void* __libc_malloc(size_t);
extern void __libc_free(void*);
void* malloc(size_t n) { return requests++, __libc_malloc(n); }
void free(void* p) { requests++, __libc_free(p); }

static float x[64 * 8], y[64 * 8], before, after;
static volatile float tiny = 1e-40f;

int main(int argc, char** argv) {
  fastrnn_model* model;
  const fastrnn_options as_given = {(fastrnn_weights)atoi(argv[2]), (fastrnn_weights)atoi(argv[2])};
  if (argc < 3 || fastrnn_open_file(argv[1], &as_given, &model)) return 1;
  const size_t bytes = fastrnn_stream_bytes(model, 1, 64);
  void* memory = malloc(bytes);
  fastrnn_stream* stream;
  if (fastrnn_prepare(model, 1, 64, memory, bytes, &stream)) return 2;
  before = tiny * 0.5f;
  requests = 0;
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 3;
  int failed = 0;
  for (int k = 0; k < 1000; k++) {
    for (int i = 0; i < 64 * 8; i++) x[i] = (float)((k * 31 + i * 7) % 64) / 32 - 1;
    failed |= fastrnn_step(stream, x, y);
    if (k % 100 == 0) failed |= fastrnn_run(stream, x, 64, y) | fastrnn_run(stream, x, 7, y) | fastrnn_reset(stream);
  }
  after = tiny * 0.5f;  // zero if subnormal numbers were still flushed
  if (failed || requests) failed = 4;
  else if (!(before > 0) || before != after) failed = 5;
  syscall(SYS_exit, failed);
}
"""


@pytest.mark.parametrize("weights", [0, *WEIGHTS.values()])
@pytest.mark.parametrize("name", CELLS)
def test_steps_and_runs_ask_the_system_for_nothing(tmp_path: Path, name: str, weights: int) -> None:
    layer = CELLS[name].build(8, 24, num_layers=2)
    width = layer.proj_size if name.startswith("lstm_proj") else 24
    fastrnn.save(tmp_path / "model.safetensors", [layer, fastrnn.Linear(width, 8, rng=1)])
    (tmp_path / "main.c").write_text(AUDIO)
    compile_program(tmp_path / "main.c", "-std=gnu99", "-O1")
    done = subprocess.run(["./main", "model.safetensors", str(weights)], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, {-9: "a system call", 4: "the heap, or a refusal", 5: "the floating-point mode"}


WRAPPED = r"""
#include <fastrnn.hpp>

#include <cstdio>
#include <cstring>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

using namespace fastrnn::api;

static int failures = 0;
static void failed(int line, const char* what) { failures++, std::fprintf(stderr, "line %d: %s\n", line, what); }
#define EXPECT(condition) (condition) ? void() : failed(__LINE__, #condition)
template <class F> std::string refusal(fastrnn_status status, F f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT(error.status() == status);
    return error.what();
  }
  return "none";
}
static bool has(const std::string& text, const char* words) { return text.find(words) != std::string::npos; }

template <class Real> void numbers(const char* path) {
  Model* const opened = new Model(path);
  Stream<Real> stream(*opened, 2, 3);
  delete opened;  // the stream holds it
  EXPECT(stream.model().input_size() == 3 && stream.model().output_size() == 5 && stream.model().is_causal());
  std::vector<Real> x(7 * 2 * 3), y(7 * 2 * 5), again(y), state(stream.state_size());
  for (size_t i = 0; i < x.size(); i++) x[i] = Real(i % 11) / 8 - Real(0.5);
  stream.run(x, y);
  stream.get_state(state);
  Stream<Real> moved = std::move(stream);
  moved.reset();
  for (size_t t = 0; t < 7; t++) moved.step({x.data() + t * 6, 6}, {again.data() + t * 10, 10});
  for (size_t i = 0; i < y.size(); i++) EXPECT(y[i] - again[i] < Real(1e-6) && again[i] - y[i] < Real(1e-6));
  moved.set_state(state);
  Real one[6] = {}, out[10], wanted[10];
  moved.step(one, out);
  moved.set_state(state);
#if __cplusplus >= 202002L
  moved.run(std::span<const Real>(one), std::span<Real>(wanted));
#else
  moved.run(one, wanted);
#endif
  EXPECT(!std::memcmp(out, wanted, sizeof out));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { moved.step(x, y); }), "x of 42 and y of 70 elements do not fit"));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { moved.run(one, y); }), "one time step has 6 and 10"));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { moved.set_state(y); }), "not 70"));
  const std::vector<int64_t> ids(2);
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { moved.step(ids, out); }), "numbers, not ids"));
}

int main(int, char** path) {
  numbers<float>(path[1]);
  numbers<double>(path[2]);
  Stream<float> words(Model(path[3], {FASTRNN_INT8, FASTRNN_INT8}), 2);
  const std::vector<int64_t> ids{3, 1};
  std::vector<float> y(2 * size_t(words.model().output_size()));
  words.run(ids, y);
  for (const float value : y) std::printf("%.9g\n", double(value));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { words.step(y, y); }), "takes ids"));
  EXPECT(has(refusal(FASTRNN_NO_FILE, [] { Model("/nowhere"); }), "/nowhere"));
  EXPECT(has(refusal(FASTRNN_BAD_MODEL, [] { Model("rubbish!", 8); }), "safetensors"));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { Stream<float>(Model(path[2])); }), "Stream<double>"));
  EXPECT(has(refusal(FASTRNN_UNSUPPORTED, [&] { Model(path[2], {FASTRNN_INT8, FASTRNN_INT8}); }), "is of float64"));
  EXPECT(has(refusal(FASTRNN_BAD_ARGUMENT, [&] { Stream<float>(Model(path[1]), 0); }), "must be positive"));
  return failures;
}
"""


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_the_wrapper_for_cpp(tmp_path: Path, standard: str) -> None:
    (tmp_path / "main.cpp").write_text(WRAPPED)
    program = compile_program(tmp_path / "main.cpp", f"-std={standard}", "-Wconversion", "-Wshadow")
    models = {
        "float32.safetensors": [fastrnn.GRU(3, 4, rng=0), fastrnn.Linear(4, 5, rng=1)],
        "float64.safetensors": [fastrnn.LSTM(3, 5, rng=0, dtype="float64")],
        "words.safetensors": [fastrnn.Embedding(4, 3, rng=0), fastrnn.LSTM(3, 5, rng=1)],
    }
    for name, layers in models.items():
        fastrnn.save(tmp_path / name, layers)
    done = subprocess.run([program, *models], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    embedding, lstm = models["words.safetensors"]
    y, _ = lstm.freeze(weights="int8")(embedding(np.array([[3, 1]])))
    assert_same_bits(np.array(done.stdout.split(), np.float32), y.ravel())
