/* Times a model through fastrnn.h, and prints nanoseconds as name value lines:
 *   step     a call of fastrnn_step, the mean of the fastest of some rounds
 *   run      a time step of fastrnn_run over pieces of 64 of them
 *   p50 p99.9 max   of a million calls, each timed alone, less what the clock takes
 *
 *   steps MODEL [MILLIONS] */
#define _GNU_SOURCE
#include <fastrnn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { piece = 64, rounds = 40 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int compare(const void* a, const void* b) {
  const float x = *(const float*)a, y = *(const float*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  fastrnn_model* model;
  if (argc < 2 || fastrnn_open_file(argv[1], NULL, &model)) return fprintf(stderr, "%s\n", fastrnn_message()), 1;
  const size_t bytes = fastrnn_stream_bytes(model, 1, piece);
  void* const memory = malloc(bytes);
  fastrnn_stream* stream;
  if (!memory || fastrnn_prepare(model, 1, piece, memory, bytes, &stream)) return 2;
  const int64_t inputs = fastrnn_input_size(model), outputs = fastrnn_output_size(model);
  float* const x = malloc((size_t)(piece * inputs) * sizeof *x);
  float* const y = malloc((size_t)(piece * outputs) * sizeof *y);
  for (int64_t i = 0; i < piece * inputs; i++) x[i] = (float)(i * 7 % 64) / 32 - 1;

  int calls = piece; /* about a millisecond of them */
  double step = 1e30, run = 1e30;
  for (int round = 0; round < rounds; round++) {
    double begin = now();
    for (int k = 0; k < calls; k++) fastrnn_step(stream, x + k % piece * inputs, y);
    double took = (now() - begin) / calls;
    if (round == 0) calls = (int)(1e6 / took / piece + 1) * piece;
    else if (took < step) step = took;
    begin = now();
    for (int k = 0; k < calls; k += piece) fastrnn_run(stream, x, piece, y);
    took = (now() - begin) / calls;
    if (round && took < run) run = took;
  }
  printf("step %.1f\nrun %.1f\n", step, run);

  const int n = argc > 2 ? (int)(1e6 * atof(argv[2])) : 0;
  if (!n) return 0;
  float* const each = malloc((size_t)n * sizeof *each);
  double clock = 1e30;
  for (int k = 0; k < 1000; k++) {
    const double begin = now(), took = now() - begin;
    if (took < clock) clock = took;
  }
  for (int k = 0; k < n; k++) {
    const double begin = now();
    fastrnn_step(stream, x + k % piece * inputs, y);
    each[k] = (float)(now() - begin - clock);
  }
  qsort(each, (size_t)n, sizeof *each, compare);
  printf("p50 %.0f\np99.9 %.0f\nmax %.0f\n", each[n / 2], each[n / 1000 * 999], each[n - 1]);
  return 0;
}
