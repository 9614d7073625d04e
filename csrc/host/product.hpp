// What the read-out layer and its loss need of the core, over the same panels and threads as the cells.
#pragma once
#include "host/memory.hpp"
#include "host/threads.hpp"

namespace fastrnn {

// A piece of work made ready, as ForwardRun is a call. The same bits for any number of threads.
class TeamRun {
 public:
  double microseconds() const { return microseconds_; }
  bool run(Interrupt interrupt);

 protected:
  // work: of a vector lane, in operations.
  TeamRun(double work, int64_t most_threads, HostThreads host);
  virtual ~TeamRun() = default;
  virtual void work(const Seat& seat) = 0;
  int size() const { return lease_.size(); }

 private:
  double microseconds_;
  Lease lease_;
  Control control_{};
  Barrier barrier_{};
};

template <class Real> class ProductRun final : public TeamRun {
 public:
  ProductRun(const Isa& isa, const Product<Real>& product, int threads, HostThreads host);

 private:
  void work(const Seat& seat) override { functions_.product(product_, seat); }
  const Functions<Real>& functions_;
  Product<Real> product_;
  Memory memory_;
};

template <class Real> class SoftmaxRun final : public TeamRun {
 public:
  SoftmaxRun(const Isa& isa, const Softmax<Real>& softmax, int threads);

 private:
  void work(const Seat& seat) override { functions_.softmax(softmax_, seat); }
  const Functions<Real>& functions_;
  Softmax<Real> softmax_;
};

}  // namespace fastrnn
