// The table of the dense kernels: void pointers in, types out.
#include "dense.h"
#include "dense_conv.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

void pack_weight(const DenseConv& p, const void* weight, int64_t begin, int64_t end, void* packed) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    pack_weight_of(p, static_cast<const S*>(weight), begin, end, static_cast<T*>(packed));
  });
}

int64_t conv_scratch(const DenseConv& p) {
  return p.conv.dtype == Dtype::f64 ? sizeof(ConvScratch<double>) : sizeof(ConvScratch<float>);
}

void conv(const DenseConv& p, const DenseBlock& block, int64_t begin, int64_t end,
          const void* source, const void* packed, const DenseFinish& finish, void* result,
          void* scratch) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    conv_of(p, block, begin, end, static_cast<const S*>(source), static_cast<const T*>(packed),
            finish, static_cast<S*>(result), static_cast<ConvScratch<T>*>(scratch));
  });
}

}  // namespace

extern const DenseKernels dense_kernels = {pack_weight, conv_scratch, conv};

}  // namespace SEGFAST_ISA
}  // namespace segfast
