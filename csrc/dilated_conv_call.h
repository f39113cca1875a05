// Arguments of segfast::_dilated_conv_direct, _dilated_conv_dense and their gradients, checked, as
// the kernels want them: what the bindings share.
#pragma once

#include <optional>

#include "csrc/check.h"
#include "csrc/memory_format.h"
#include "kernels/dilated_conv/dilated_conv.h"

namespace segfast {

using MaybeTensor = std::optional<Tensor>;

// The last seven arguments of each operator: each but groups vertical, horizontal.
struct Strides {
  int64_t sh, sw, ph, pw, dh, dw, groups;
};

// Of positions, taps, strides, channels: products of two fit 64 bits, and their sums.
constexpr int64_t kSizeLimit = int64_t{1} << 31;
constexpr bool is_size(int64_t n) { return n >= 1 && n < kSizeLimit; }

inline Axis axis_of(int64_t input, int64_t output, int64_t taps, int64_t stride, int64_t padding,
                    int64_t dilation) {
  STD_TORCH_CHECK(
      is_size(taps) && is_size(stride) && is_size(dilation) && padding >= 0 && padding < kSizeLimit,
      "kernel, stride and dilation must be at least 1, padding at least 0, all below 2^31, got ",
      taps, ", ", stride, ", ", dilation, ", ", padding);
  STD_TORCH_CHECK(is_size(input) && is_size(output),
                  "maps must be at least 1x1 and below 2^31, got ", input, " and ", output);
  return {input, output, taps, stride, padding, dilation};
}

// x [N, G C, H, W], y [N, G O, Ho, Wo], weight [G O, C, kh, kw]
inline DilatedConv problem(const Sizes& x, const Sizes& y, const Sizes& weight, const Strides& s,
                           ScalarType dtype) {
  STD_TORCH_CHECK(is_size(s.groups) && is_size(weight[0]) && is_size(weight[1]) && x[0] == y[0] &&
                      x[1] == weight[1] * s.groups && y[1] == weight[0] &&
                      weight[0] % s.groups == 0,
                  "sizes of maps, weight and groups=", s.groups, " do not fit");
  return {dtype_of(dtype, "x"),
          x[0],
          s.groups,
          weight[1],
          weight[0] / s.groups,
          axis_of(x[2], y[2], weight[2], s.sh, s.ph, s.dh),
          axis_of(x[3], y[3], weight[3], s.sw, s.pw, s.dw)};
}

}  // namespace segfast
