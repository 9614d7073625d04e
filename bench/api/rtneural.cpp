// RTNeural on the models of steps.py: its sizes are those of the compiler, its weights random. Prints nanoseconds of a step, read-out
// included, the fastest of some rounds:
//
//   c++ -std=c++17 -O3 -DNDEBUG -march=native -DRTNEURAL_USE_XSIMD=1 -DRTNEURAL_DEFAULT_ALIGNMENT=64 -DRTNEURAL_NAMESPACE=RTNeural
//       -I RTNEURAL -I RTNEURAL/modules/json -I XSIMD/include rtneural.cpp -o rtneural
//
// with -DRTNEURAL_USE_EIGEN=1, an alignment of 32 and -I EIGEN for its Eigen backend.
#include <RTNeural/RTNeural.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>

namespace {

using Rows = std::vector<std::vector<float>>;

Rows draw(size_t rows, size_t columns) {
  static std::mt19937 generator(0);
  std::uniform_real_distribution<float> numbers(-0.3f, 0.3f);
  Rows drawn(rows, std::vector<float>(columns));
  for (auto& row : drawn)
    for (float& number : row) number = numbers(generator);
  return drawn;
}

template <int H> void set_biases(RTNeural::LSTMLayerT<float, 1, H>& layer) { layer.setBVals(draw(1, 4 * H)[0]); }
template <int H> void set_biases(RTNeural::GRULayerT<float, 1, H>& layer) { layer.setBVals(draw(2, 3 * H)); }

template <class Recurrent, int H> double time_of(size_t gates) {
  RTNeural::ModelT<float, 1, 1, Recurrent, RTNeural::DenseT<float, H, 1>> model;
  auto& recurrent = model.template get<0>();
  recurrent.setWVals(draw(1, gates * H)), recurrent.setUVals(draw(H, gates * H)), set_biases(recurrent);
  float bias = 0.1f;
  model.template get<1>().setWeights(draw(1, H)), model.template get<1>().setBias(&bias);
  model.reset();

  alignas(64) float x[16] = {};
  double best = 1e30;
  long calls = 64;
  volatile float sink = 0;
  for (int round = 0; round < 40; round++) {
    float sum = 0;
    const auto begin = std::chrono::steady_clock::now();
    for (long k = 0; k < calls; k++) x[0] = float(k * 7 % 64) / 32 - 1, sum += model.forward(x);
    const double took = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / double(calls);
    sink = sum;
    if (round == 0) calls = long(1e6 / took / 64 + 1) * 64;
    else best = std::min(best, took);
  }
  (void)sink;
  return best;
}

template <int H> void row() {
  std::printf("%3d %8.1f %8.1f\n", H, time_of<RTNeural::LSTMLayerT<float, 1, H>, H>(4), time_of<RTNeural::GRULayerT<float, 1, H>, H>(3));
}

}  // namespace

int main() {
  std::printf("  H     LSTM      GRU\n");
  row<4>(), row<8>(), row<12>(), row<16>(), row<20>(), row<24>(), row<32>(), row<40>(), row<64>(), row<80>();
}
