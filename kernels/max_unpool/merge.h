// How a position of x takes what the windows that chose it hold, in row-major order of the windows:
// the last one's value (unpool), their sum (pool_backward), or the only one's (pool_backward of
// disjoint windows, whose sums, begun at 0, have one term: it is moved, but -0 becomes 0).
#pragma once

#include "half.h"
#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <Dtype D>
SEGFAST_INLINE RealOf<D> to_real(WordOf<D> y) {
  if constexpr (D == Dtype::f16) return f16_to_float(y);
  if constexpr (D == Dtype::bf16) return bf16_to_float(y);
  if constexpr (!kIsHalf<D>) return bit_cast<RealOf<D>>(y);
}
template <Dtype D>
SEGFAST_INLINE WordOf<D> from_real(RealOf<D> sum) {
  if constexpr (D == Dtype::f16) return float_to_f16(sum);
  if constexpr (D == Dtype::bf16) return float_to_bf16(sum);
  if constexpr (!kIsHalf<D>) return bit_cast<WordOf<D>>(sum);
}

// Each way of merging: what a position keeps (Sink), how one window changes it (one; many for
// vectors, where what is kept is as wide as x: kInPlace), what is written. kOnly: windows do not
// overlap, kSum: they do, which leaves few geometries (of columns) to each.

// The last value, moved; Only: of at most one, and never -0.
template <typename W_, bool Only>
struct Moved {
  using W = W_;
  using Sink = W;
  static constexpr bool kSum = false, kOnly = Only, kInPlace = true;
  static constexpr W kMinusZero = static_cast<W>(std::make_unsigned_t<W>{1} << (8 * sizeof(W) - 1));

  static SEGFAST_INLINE W moved(W y) { return Only && y == kMinusZero ? 0 : y; }
  template <int N>
  static SEGFAST_INLINE Vec<W, N> moved(Vec<W, N> y) {
    if (!Only) return y;
    return y & (Vec<W, N>)(y != (kMinusZero - Vec<W, N>{}));
  }
  static SEGFAST_INLINE Sink one(Sink old, W y, bool chosen) { return chosen ? moved(y) : old; }
  template <int N>
  static SEGFAST_INLINE Vec<W, N> many(Vec<W, N> old, Vec<W, N> y, Vec<W, N> chosen) {
    return chosen ? moved<N>(y) : old;
  }
  static SEGFAST_INLINE W finish(Sink sink) { return sink; }
};

// The sum, in float or wider.
template <Dtype D>
struct Summed {
  using W = WordOf<D>;
  using Sink = RealOf<D>;
  static constexpr bool kSum = true, kOnly = false, kInPlace = !kIsHalf<D>;

  static SEGFAST_INLINE Sink one(Sink old, W y, bool chosen) {
    return old + (chosen ? to_real<D>(y) : 0);
  }
  template <int N>  // only in place
  static SEGFAST_INLINE Vec<W, N> many(Vec<W, N> old, Vec<W, N> y, Vec<W, N> chosen) {
    return (Vec<W, N>)((Vec<Sink, N>)old + (Vec<Sink, N>)(y & chosen));
  }
  static SEGFAST_INLINE W finish(Sink sink) { return from_real<D>(sink); }
};

// A window that reaches a position, and by which of its rows or columns.
struct Reach {
  int64_t output, offset;
};

// The windows that reach a position: position + padding = quotient * stride + remainder. Positions
// are passed through in order, which saves dividing.
class Reaches {
 public:
  Reaches(const PoolAxis& axis, int64_t position)
      : axis_(&axis),
        quotient_((position + axis.padding) / axis.stride),
        remainder_((position + axis.padding) % axis.stride) {}

  void next() {
    if (++remainder_ < axis_->stride) return;
    remainder_ = 0;
    ++quotient_;
  }

  // All windows in ascending order; returns how many (at most the kernel).
  int list(Reach* reaches) const {
    int count = 0;
    if (axis_->dilation == 1) {
      // offset = remainder + t * stride of window quotient - t
      int64_t t = 0, offset = remainder_;
      if (offset >= axis_->kernel) return 0;
      while (offset + axis_->stride < axis_->kernel) ++t, offset += axis_->stride;
      for (; t >= 0; --t, offset -= axis_->stride) {
        const int64_t output = quotient_ - t;
        if (output >= 0 && output < axis_->output) reaches[count++] = {output, offset};
      }
      return count;
    }
    const int64_t shifted = quotient_ * axis_->stride + remainder_;
    for (int64_t offset = axis_->kernel - 1; offset >= 0; --offset) {
      const int64_t start = shifted - offset * axis_->dilation, output = start / axis_->stride;
      if (start < 0 || output * axis_->stride != start || output >= axis_->output) continue;
      reaches[count++] = {output, offset};
    }
    return count;
  }

 private:
  const PoolAxis* axis_;
  int64_t quotient_, remainder_;
};

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
