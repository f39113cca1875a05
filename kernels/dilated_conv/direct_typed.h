// Pointers of the contract (direct.h) in the types they have: maps of S, sums and arranged weights
// of T. work(...) is compiled for every dtype.
#pragma once

#include "dilated_conv.h"
#include "direct_elements.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// work(source, weights, bias, target): a convolution or its input's gradient
template <typename Work>
void with_maps(Dtype dtype, const void* source, const void* weights, const void* bias, void* target,
               const Work& work) {
  by_dtype(dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    work(static_cast<const S*>(source), static_cast<const decltype(sum)*>(weights),
         static_cast<const S*>(bias), static_cast<S*>(target));
  });
}

// work(grad, x, sums): the weight's gradient
template <typename Work>
void with_sums(Dtype dtype, const void* grad, const void* x, void* sums, const Work& work) {
  by_dtype(dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    work(static_cast<const S*>(grad), static_cast<const S*>(x), static_cast<decltype(sum)*>(sums));
  });
}

// What Scratch<S, T>(p, facts..., arena) takes.
template <template <typename, typename> typename Scratch, typename... Facts>
int64_t bytes_of(const DilatedConv& p, Facts... facts) {
  Arena arena(nullptr);
  by_dtype(p.dtype, [&](auto element, auto sum) {
    Scratch<decltype(element), decltype(sum)>(p, facts..., &arena);
  });
  return arena.used();
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
