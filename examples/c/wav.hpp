// WAV files of one channel: 16-bit samples are read, 32-bit floating-point ones written, so that nothing is rounded.
#pragma once
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Wav {
  uint32_t rate = 0;
  std::vector<int16_t> samples{};
};

// Throws std::runtime_error. The machine is little-endian, as the file is.
inline Wav read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto word = [&](size_t at) { return uint32_t(uint8_t(bytes[at]) | uint8_t(bytes[at + 1]) << 8); };
  const auto number = [&](size_t at) { return word(at) | word(at + 2) << 16; };
  const auto named = [&](size_t at, const char* name) { return !std::memcmp(bytes.data() + at, name, 4); };
  if (bytes.size() < 12 || !named(0, "RIFF") || !named(8, "WAVE")) throw std::runtime_error(path + " is no WAV file");
  Wav wav;
  for (size_t at = 12; bytes.size() - at >= 8;) {
    const size_t size = number(at + 4), first = at + 8;
    if (size > bytes.size() - first) break;
    if (named(at, "fmt ") && size >= 16) {
      if (word(first) != 1 || word(first + 2) != 1 || word(first + 14) != 16)
        throw std::runtime_error(path + " must hold 16-bit samples of one channel");
      wav.rate = number(first + 4);
    } else if (named(at, "data") && wav.rate) {
      wav.samples.resize(size / 2);
      std::memcpy(wav.samples.data(), bytes.data() + first, wav.samples.size() * 2);
      return wav;
    }
    at = first + size + size % 2;
    if (at > bytes.size()) break;
  }
  throw std::runtime_error(path + " is damaged");
}

inline void write_wav(const std::string& path, uint32_t rate, const std::vector<float>& samples) {
  const uint32_t size = uint32_t(samples.size() * 4);
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](uint32_t value, int bytes) { file.write(reinterpret_cast<const char*>(&value), bytes); };
  file << "RIFF", put(size + 36, 4), file << "WAVEfmt ";
  put(16, 4), put(3, 2), put(1, 2), put(rate, 4), put(4 * rate, 4), put(4, 2), put(32, 2);
  file << "data", put(size, 4);
  file.write(reinterpret_cast<const char*>(samples.data()), size);
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}
