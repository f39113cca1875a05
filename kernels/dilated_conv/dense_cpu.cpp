// The table of the dense kernels: void pointers in, types out.
#include "dense.h"
#include "dense_conv.h"
#include "dense_weight.h"

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

int64_t conv_sums(const DenseConv& p, int64_t channels) {
  const int64_t count = (most_positions(channels) + 1) * sums_pitch(channels);
  return count * (p.conv.dtype == Dtype::f64 ? 8 : 4);
}

void add_conv(const DenseConv& p, const DenseBlock& block, int64_t begin, int64_t end, Range from,
              const void* source, const void* packed, const DenseFinish& finish, void* result,
              void* sums, void* scratch) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    add_conv_of(p, block, begin, end, from, static_cast<const S*>(source),
                static_cast<const T*>(packed), finish, static_cast<S*>(result),
                static_cast<T*>(sums), static_cast<ConvScratch<T>*>(scratch));
  });
}

void pack_grad(const DenseConv& p, const void* grad, int64_t begin, int64_t end, void* packed) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    pack_grad_of(p, static_cast<const S*>(grad), begin, end, static_cast<T*>(packed));
  });
}

int64_t weight_scratch(const DenseConv& p, const WeightBlock& block) {
  const int64_t positions = weight_output_rows(p) * p.conv.columns.input;
  const int64_t panels = weight_rows(block) / kRows;
  return panels * (positions * kRows + kPanelSlack) * (p.conv.dtype == Dtype::f64 ? 8 : 4);
}

void add_weight(const DenseConv& p, const WeightBlock& block, Range outputs, const void* x,
                const void* packed_grad, void* sums, void* scratch) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    add_weight_of(p, block, outputs, static_cast<const S*>(x), static_cast<const T*>(packed_grad),
                  static_cast<T*>(sums), static_cast<T*>(scratch));
  });
}

void merge_weight(const DenseConv& p, const WeightBlock& block, const void* parts, int64_t count,
                  void* weight) {
  by_dtype(p.conv.dtype, [&](auto element, auto sum) {
    using S = decltype(element);
    using T = decltype(sum);
    merge_weight_of(p, block, static_cast<const T*>(parts), count, static_cast<S*>(weight));
  });
}

}  // namespace

extern const DenseKernels dense_kernels = {pack_weight, conv_scratch,   conv_sums,  add_conv,
                                           pack_grad,   weight_scratch, add_weight, merge_weight};

}  // namespace SEGFAST_ISA
}  // namespace segfast
