// The contract that the kernels of dilated convolution share: sizes, and which taps are live where
// (the same words as geometry.py).
//
//   tap t of output o reads input o * stride - padding + t * dilation
//
// Tensors are dense: x [N, G C, H, W], weight [G O, C, kh, kw], y [N, G O, Ho, Wo], where
// G C = groups * in_channels and G O = groups * out_channels. Maps lie in this order, but those of
// the direct kernels of pixels as [N, H, W, C].
#pragma once

#include <cstdint>

#include "dtype.h"

namespace segfast {

// Along one direction. padding: before the first input. What lies behind the last input is zero,
// however much of it the outputs ask for.
struct Axis {
  int64_t input, output;  // positions
  int64_t taps, stride, padding, dilation;
};

struct Range {
  int64_t begin, end;
};

struct DilatedConv {
  Dtype dtype;  // of maps, weight and bias
  int64_t batch, groups;
  int64_t in_channels, out_channels;  // of one group
  Axis rows, columns;
};

// static: an inline function would be a weak symbol in every per-instruction-set object.
static constexpr int64_t floor_divide(int64_t a, int64_t b) {  // b > 0
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}

// The input that a tap of an output reads, if there is one.
static constexpr int64_t input_of(const Axis& axis, int64_t tap, int64_t output) {
  return output * axis.stride - axis.padding + tap * axis.dilation;
}

// The outputs whose tap reads an input; begin = end where there are none.
static constexpr Range live(const Axis& axis, int64_t tap) {
  const int64_t shift = axis.padding - tap * axis.dilation;  // o * stride >= shift, < shift + input
  const int64_t first = -floor_divide(-shift, axis.stride);
  const int64_t last = -floor_divide(-(shift + axis.input), axis.stride);
  const int64_t begin = first < 0 ? 0 : first;
  const int64_t end = last < axis.output ? last : axis.output;
  return {begin, end < begin ? begin : end};
}

static constexpr int64_t taps(const DilatedConv& p) { return p.rows.taps * p.columns.taps; }
static constexpr int64_t weights_of(const DilatedConv& p) {
  return p.groups * p.out_channels * p.in_channels * taps(p);
}

}  // namespace segfast
