// The numbers that a network on a GPU is made of: how they are stored and what is computed in.
#pragma once
#include <cstdint>

namespace fastrnn::cuda {

// X(name, struct): the precisions. tf32 is float32 whose products round their factors to 11 bits.
#define FASTRNN_PRECISIONS(X) \
  X(float32, Float32)         \
  X(tf32, Tf32)               \
  X(bfloat16, Bf16)           \
  X(float16, Fp16)            \
  X(float64, Float64)

#define FASTRNN_NAME(name, type) name,
enum class Precision { FASTRNN_PRECISIONS(FASTRNN_NAME) };
#undef FASTRNN_NAME

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Store is what arrays hold; Real what is added up, and what states are kept in.
struct Float32 {
  using Store = float;
  using Real = float;
};
struct Tf32 : Float32 {};
struct Bf16 {
  using Store = Bfloat16;
  using Real = float;
};
struct Fp16 {
  using Store = Float16;
  using Real = float;
};
struct Float64 {
  using Store = double;
  using Real = double;
};

}  // namespace fastrnn::cuda
