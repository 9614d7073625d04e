// DLPack's structs (version 0), for the bindings of both devices.
#pragma once
#include <cstdint>

namespace fastrnn {

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
