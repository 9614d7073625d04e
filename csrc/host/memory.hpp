// Sizes that refuse to wrap, and the memory that calls and tapes take.
#pragma once
#include <cstdint>
#include <utility>

namespace fastrnn {

// int64 products that refuse to wrap: std::overflow_error.
int64_t times(int64_t a, int64_t b);
int64_t plus(int64_t a, int64_t b);

// Asks the system for huge pages behind a large block that is to be written: the first touch of each page costs more than what a
// kernel writes to it.
void use_huge_pages(char* block, int64_t bytes);

// On, all memory of calls and tapes holds 0xff before it is used: NaN, and pointers that fault. For tests.
void fill_memory(bool on);

// Memory aligned for vectors. A short-lived one, of a call, leaves its block to the next call if that is a large one.
class Memory {
 public:
  Memory() = default;
  Memory(int64_t bytes, bool short_lived);
  ~Memory();
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(short_lived_, other.short_lived_);
    return *this;
  }
  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void get();
  char* data_ = nullptr;
  int64_t bytes_ = 0;
  bool short_lived_ = false;
};

// Deals out a block of memory; with a null block it only counts.
class Arena {
 public:
  static constexpr int64_t alignment = 128;
  explicit Arena(char* base) : base_(base) {}
  template <class T> T* take(int64_t count) {
    const int64_t at = used_;
    used_ = plus(used_, plus(times(count, sizeof(T)), alignment - 1) & -alignment);
    arrays_++;
    if (used_ > most_) most_ = used_;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  bool deals() const { return base_ != nullptr; }
  int64_t mark() const { return used_; }
  void back_to(int64_t mark) { used_ = mark; }
  int64_t most() const { return most_; }
  int64_t arrays() const { return arrays_; }  // that were taken

 private:
  char* base_;
  int64_t used_ = 0, most_ = 0, arrays_ = 0;
};

// What lay_out(arena) takes.
template <class LayOut> int64_t bytes_of(const LayOut& lay_out) {
  Arena count(nullptr);
  lay_out(count);
  return count.most();
}
// Measured and then dealt out.
template <class LayOut> Memory laid_out(LayOut lay_out, bool short_lived) {
  Memory memory(bytes_of(lay_out), short_lived);
  Arena arena(memory.data());
  lay_out(arena);
  return memory;
}

}  // namespace fastrnn
