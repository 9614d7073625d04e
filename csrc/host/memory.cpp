#include "host/memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

namespace fastrnn {

int64_t times(int64_t a, int64_t b) {
  int64_t c;
  if (__builtin_mul_overflow(a, b, &c)) throw std::overflow_error("size passes 2**63 - 1");
  return c;
}
int64_t plus(int64_t a, int64_t b) {
  int64_t c;
  if (__builtin_add_overflow(a, b, &c)) throw std::overflow_error("size passes 2**63 - 1");
  return c;
}

namespace {

// Fresh pages cost more to get than a short call takes, so one block waits for the next call.
struct Spare {
  std::mutex lock;
  char* data = nullptr;
  int64_t bytes = 0;
};
constexpr int64_t most_to_keep = int64_t(64) << 20;

Spare& spare() {
  static Spare* const one = new Spare;  // never destroyed: a thread may outlive the interpreter
  return *one;
}

bool fills = false;

constexpr int64_t huge_page = int64_t(2) << 20, worth_huge_pages = 2 * huge_page;

}  // namespace

void use_huge_pages(char* block, int64_t bytes) {
  if (bytes < worth_huge_pages) return;
  char* const first = block + (huge_page - int64_t(reinterpret_cast<uintptr_t>(block) % huge_page)) % huge_page;
  const int64_t whole = (block + bytes - first) / huge_page * huge_page;
  if (whole > 0) madvise(first, size_t(whole), MADV_HUGEPAGE);  // a wish: where it is not granted nothing is lost
}

void fill_memory(bool on) { fills = on; }

Memory::Memory(int64_t bytes, bool short_lived) : bytes_(std::max<int64_t>(bytes, 128)), short_lived_(short_lived) {
  get();
  if (fills) std::memset(data_, 0xff, size_t(bytes_));
}

void Memory::get() {
  Spare& kept = spare();
  if (short_lived_ && bytes_ <= most_to_keep && kept.lock.try_lock()) {
    const bool fits = kept.bytes >= bytes_ && kept.bytes / 4 <= bytes_ + (1 << 20);
    if (fits) std::swap(data_, kept.data), bytes_ = kept.bytes, kept.bytes = 0;
    kept.lock.unlock();
    if (fits) return;
  }
  void* p = nullptr;
  if (posix_memalign(&p, 128, size_t(bytes_))) throw std::bad_alloc();
  data_ = static_cast<char*>(p);
  if (short_lived_) use_huge_pages(data_, bytes_);
}

Memory::~Memory() {
  Spare& kept = spare();
  if (data_ && short_lived_ && bytes_ <= most_to_keep && kept.lock.try_lock()) {
    if (kept.bytes < bytes_) std::swap(data_, kept.data), std::swap(bytes_, kept.bytes);
    kept.lock.unlock();
  }
  free(data_);
}

}  // namespace fastrnn
