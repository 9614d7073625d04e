// What both devices' bindings say of arrays: shapes in words, and DLPack's structs (version 0).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace fastrnn {

using Shape = std::vector<int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

struct Dlpack {
  void* data;
  struct {
    int32_t kind, id;
  } device;
  int32_t dimensions;
  struct {
    uint8_t kind, bits;
    uint16_t lanes;
  } type;
  int64_t *shape, *strides;
  uint64_t offset;
};
// What a capsule named dltensor holds.
struct DlpackManaged {
  Dlpack tensor;
  void* context;
  void (*deleter)(DlpackManaged*);
};

}  // namespace fastrnn
