#include "product.hpp"

#include <algorithm>

#include "plan.hpp"

namespace fastrnn {
namespace {

template <class Real> double predicted(const Functions<Real>& f, const Product<Real>& p) {
  return 2. * double(p.n) * double(p.K) * double(p.m) / (flops_of_a_lane * f.lanes);
}

}  // namespace

template <class Real>
ProductRun<Real>::ProductRun(const Isa& isa, const Product<Real>& product, int threads)
    : functions_(table_of<Real>(isa).functions),
      product_(product),
      microseconds_(predicted(functions_, product)),
      gang_(microseconds_ < 40 ? 1 : int(std::min<int64_t>(threads, (product.n + 5) / 6)), microseconds_) {
  const int64_t N = functions_.lanes;
  auto lay_out = [&](Arena& arena) {
    product_.columns = product_.a_transposed ? arena.take<Real>(times(product_.n, plus(product_.K, N))) : nullptr;
    product_.panel = arena.take<Real>(times(times(plus(product_.m, N - 1) / N, product_.K), N));
    product_.tables = arena.take<const void*>(times(2, product_.n));
  };
  memory_ = laid_out(lay_out, true);
}

template <class Real> bool ProductRun<Real>::run(Interrupt interrupt) {
  control_ = {interrupt.asked, interrupt.context, 0, 0};
  barrier_.size = gang_.size();
  auto job = [](void* self, int rank) {
    auto& r = *static_cast<ProductRun*>(self);
    r.functions_.product(r.product_, {rank, r.gang_.size(), false, rank == 0, &r.barrier_, &r.control_});
  };
  gang_.run(job, this, control_);
  return control_.stop != 0;
}

template class ProductRun<float>;
template class ProductRun<double>;

}  // namespace fastrnn
