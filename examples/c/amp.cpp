// A guitar amplifier: an LSTM and a read-out, whose result is added to the sound, as in a plug-in of an audio program: block by block, in
// memory that is there before the first one.
//
//   amp amp.safetensors guitar.wav out.wav
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fastrnn.hpp>

#include "wav.hpp"

namespace {

constexpr size_t block = 64;

class Amp {
 public:
  explicit Amp(const fastrnn::api::Model& model) : stream_(model, 1, block) {}

  // What the audio program calls: it must not wait, and does not.
  void process(const float* x, float* y, size_t n) {
    stream_.run({x, n}, {y, n});
    for (size_t i = 0; i < n; i++) y[i] += x[i];
  }

 private:
  fastrnn::api::Stream<float> stream_;
};

void play(const char* model, const char* from, const char* to) {
  const Wav wav = read_wav(from);
  std::vector<float> x(wav.samples.size()), y(x.size());
  std::transform(wav.samples.begin(), wav.samples.end(), x.begin(), [](int16_t sample) { return float(sample) / 32768; });
  Amp amp{fastrnn::api::Model(model)};
  const auto begin = std::chrono::steady_clock::now();
  for (size_t i = 0; i < x.size(); i += block) amp.process(&x[i], &y[i], std::min(block, x.size() - i));
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  write_wav(to, wav.rate, y);
  const double seconds = double(x.size()) / wav.rate;
  std::printf("%.1f s of sound in %.1f ms: %.0f times as fast as it is played\n", seconds, 1e3 * took, seconds / took);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: amp MODEL IN.wav OUT.wav");
  play(argv[1], argv[2], argv[3]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
