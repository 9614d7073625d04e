// cuBLASLt, found at run time: the products over many tokens go to it where it is. Never linked, never bundled.
#pragma once
#include <memory>
#include <string>

#include "cuda/host/runtime.hpp"
#include "cuda/kernels/numbers.hpp"
#include "cuda/kernels/sweep.hpp"

namespace fastrnn::cuda {

class Blas {
 public:
  // Of the library of that name or path, for the current device. Throws std::runtime_error that says what is wrong with it.
  explicit Blas(const std::string& path);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // C of Store, or of Real if it is wide. False: it has no algorithm for that product.
  template <class Store>
  bool multiply(const MatrixProduct<Store>& p, void* c, bool wide, Precision precision, void* workspace, int64_t workspace_bytes,
                cudaStream_t stream);
  size_t version() const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;
};

}  // namespace fastrnn::cuda
