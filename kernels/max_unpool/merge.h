// How a position of x takes what the windows that chose it hold, in row-major order of the windows:
// the last one's value (unpool), or the sum (pool_backward).
#pragma once

#include "half.h"
#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <Dtype D, bool Sum>
struct Merge {
  using W = WordOf<D>;
  using Real = RealOf<D>;
  static constexpr bool kSum = Sum;
  // Elements of half types are added up as float, beside the output.
  static constexpr bool kInPlace = !(Sum && kIsHalf<D>);
  using Sink = std::conditional_t<kInPlace, W, Real>;

  static SEGFAST_INLINE Sink one(Sink old, W y, bool chosen) {
    if constexpr (!Sum) {
      return chosen ? y : old;
    } else if constexpr (D == Dtype::f16) {
      return old + (chosen ? f16_to_float(y) : 0);
    } else if constexpr (D == Dtype::bf16) {
      return old + (chosen ? bf16_to_float(y) : 0);
    } else {
      return bit_cast<W>(bit_cast<Real>(old) + (chosen ? bit_cast<Real>(y) : 0));
    }
  }

  template <int N>  // only in place
  static SEGFAST_INLINE Vec<W, N> many(Vec<W, N> old, Vec<W, N> y, Vec<W, N> chosen) {
    if constexpr (Sum) {
      return (Vec<W, N>)((Vec<Real, N>)old + (Vec<Real, N>)(y & chosen));
    } else {
      return chosen ? y : old;
    }
  }

  static SEGFAST_INLINE W finish(Sink sink) {
    if constexpr (kInPlace) {
      return sink;
    } else if constexpr (D == Dtype::f16) {
      return float_to_f16(sink);
    } else {
      return float_to_bf16(sink);
    }
  }
};

// A window that reaches a position, and by which of its rows or columns.
struct Reach {
  int64_t output, offset;
};

// All windows that reach `position`, in ascending order; returns how many (at most the kernel).
SEGFAST_INLINE int windows_at(const PoolAxis& axis, int64_t position, Reach* reaches) {
  int count = 0;
  const int64_t shifted = position + axis.padding;
  // With dilation 1 only every stride-th offset can belong to a window's start.
  const int64_t step = axis.dilation == 1 ? axis.stride : 1;
  int64_t offset = axis.kernel - 1;
  if (axis.dilation == 1) offset -= ((offset - shifted) % step + step) % step;
  for (; offset >= 0; offset -= step) {
    const int64_t start = shifted - offset * axis.dilation;
    if (start < 0 || start % axis.stride != 0 || start / axis.stride >= axis.output) continue;
    reaches[count++] = {start / axis.stride, offset};
  }
  return count;
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
