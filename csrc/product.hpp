// The plain matrix product of the read-out layer, over the same panels and threads as the cells.
#pragma once
#include "gang.hpp"
#include "memory.hpp"

namespace fastrnn {

// A product made ready, as ForwardRun is a call. The same bits for any number of threads.
template <class Real> class ProductRun {
 public:
  ProductRun(const Isa& isa, const Product<Real>& product, int threads);
  double microseconds() const { return microseconds_; }
  bool run(Interrupt interrupt);

 private:
  const Functions<Real>& functions_;
  Product<Real> product_;
  double microseconds_;
  Gang gang_;
  Memory memory_;
  Control control_{};
  Barrier barrier_{};
};

}  // namespace fastrnn
