// What the bindings of both devices share: cells by name, shapes in words, DLPack's structs (version 0).
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "fastrnn.hpp"

namespace fastrnn {

using Shape = std::vector<int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

inline Cell cell_named(const std::string& name, bool projected) {
  if (projected && name != "lstm") throw std::invalid_argument("proj_size is for the lstm cell only");
  if (projected) return Cell::lstm_projected;
  std::string known;
  for (int i = 0; i < cell_count; i++) {
    if (Cell(i) == Cell::lstm_projected) continue;
    if (name == cell_names[i]) return Cell(i);
    known += std::string(known.empty() ? "" : ", ") + cell_names[i];
  }
  throw std::invalid_argument("cell is '" + name + "' but must be one of " + known);
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
// What a capsule named dlpack_exchange_api holds: DLPack's C functions of a type of tensors.
struct DlpackExchange {
  uint32_t major, minor;
  void* older;
  void *allocate, *managed_of, *object_of;
  int (*view)(void* object, Dlpack*);  // null where there is none; the memory is the object's
  void* stream;
};

}  // namespace fastrnn
