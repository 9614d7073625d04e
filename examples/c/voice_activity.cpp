// Does somebody speak? For each piece of 512 samples, 32 ms, an LSTM is told how loud its sixteenths are and a read-out says how sure it
// is: above 0, somebody does.
//
//   voice_activity voice.safetensors voice.wav
#include <cstdio>
#include <cstdlib>
#include <fastrnn.hpp>

#include "wav.hpp"

namespace {

constexpr size_t piece = 512, features = 16, part = piece / features;

// Mean magnitudes of the parts of a piece, exact.
void loudness(const int16_t* samples, float* x) {
  for (size_t i = 0; i < features; i++) {
    int sum = 0;
    for (size_t k = 0; k < part; k++) sum += std::abs(int(samples[i * part + k]));
    x[i] = float(sum) / (part * 32768);
  }
}

void listen(const char* model, const char* path) {
  const Wav wav = read_wav(path);
  fastrnn::api::Stream<float> stream{fastrnn::api::Model(model)};
  float x[features], y;
  for (size_t i = 0; i + piece <= wav.samples.size(); i += piece) {
    loudness(&wav.samples[i], x);
    stream.step(x, {&y, 1});
    std::printf("%7.3f s  %15.9g  %s\n", double(i) / wav.rate, double(y), y > 0 ? "voice" : "");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: voice_activity MODEL IN.wav");
  listen(argv[1], argv[2]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
