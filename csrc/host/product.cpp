#include "host/product.hpp"

#include <algorithm>

#include "host/plan.hpp"

namespace fastrnn {

TeamRun::TeamRun(double work, int64_t most_threads, HostThreads host)
    : microseconds_(work / flops_of_a_lane), lease_(microseconds_ < 40 ? 1 : int(most_threads), microseconds_, host) {}

bool TeamRun::run(Interrupt interrupt) {
  control_ = {interrupt.asked, interrupt.context, 0, 0};
  auto job = [](void* self, int rank) {
    auto& r = *static_cast<TeamRun*>(self);
    r.work({rank, r.lease_.size(), false, rank == 0, &r.barrier_, &r.control_});
  };
  do barrier_.size = lease_.size();  // with fewer threads than were hoped for the scratch is larger than it need be
  while (!lease_.run(job, this, control_));
  return control_.stop != 0;
}

template <class Real>
ProductRun<Real>::ProductRun(const Isa& isa, const Product<Real>& product, int threads, HostThreads host)
    : TeamRun(2. * double(product.n) * double(product.K) * double(product.m) / table_of<Real>(isa).functions.lanes,
              std::min<int64_t>(threads, (product.n + 5) / 6), host),
      functions_(table_of<Real>(isa).functions),
      product_(product) {
  const int64_t N = functions_.lanes;
  auto lay_out = [&](Arena& arena) {
    product_.columns = product_.a_transposed ? arena.take<Real>(times(times(size(), product_rows), plus(product_.K, N))) : nullptr;
    product_.panel = arena.take<Real>(times(times(plus(product_.m, N - 1) / N, product_.K), N));
    product_.row_pointers = arena.take<const void*>(times(2, product_.n));
  };
  memory_ = laid_out(lay_out, true);
}

template <class Real>
SoftmaxRun<Real>::SoftmaxRun(const Isa& isa, const Softmax<Real>& softmax, int threads)
    : TeamRun(40. * double(softmax.n) * double(softmax.m) / table_of<Real>(isa).functions.lanes, std::min<int64_t>(threads, softmax.n), {}),
      functions_(table_of<Real>(isa).functions),
      softmax_(softmax) {}

template class ProductRun<float>;
template class ProductRun<double>;
template class SoftmaxRun<float>;
template class SoftmaxRun<double>;

}  // namespace fastrnn
