// Symmetric filter along a strided axis, several outputs at a time.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Outputs computed together: the values they share stay in registers.
constexpr int kWindow = kVectorRegisters >= 32 ? 8 : 4;

//   emit(b, sum_{r = -R..R} taps[|r|] in[b + r]),  b in [0, count), count <= kWindow
// for N lanes; position p is at in + p * stride. Reads positions -R .. kWindow - 1 + R.
// Each r adds one value to the left and one to the right window, kept as rings of registers.
template <int N, typename T, typename Emit>
SEGFAST_INLINE void symmetric_window(const T* in, int64_t stride, const T* taps, int64_t radius,
                                     int count, const Emit& emit) {
  using V = Vec<T, N>;
  V sum[kWindow], left[kWindow], right[kWindow];
#pragma GCC unroll 8
  for (int b = 0; b < kWindow; ++b) {
    left[b] = right[b] = load<N>(in + b * stride);
    sum[b] = left[b] * taps[0];
  }
  const T *next_left = in - stride, *next_right = in + kWindow * stride;
  for (int64_t base = 0; base < radius; base += kWindow) {
#pragma GCC unroll 8
    for (int u = 1; u <= kWindow; ++u) {  // r = base + u
      if (base + u > radius) break;
      left[(kWindow - u) % kWindow] = load<N>(next_left);
      right[(u - 1) % kWindow] = load<N>(next_right);
      next_left -= stride;
      next_right += stride;
      const V tap = broadcast<T, N>(taps[base + u]);
#pragma GCC unroll 8
      for (int b = 0; b < kWindow; ++b) {
        sum[b] += tap * (left[(kWindow + b - u) % kWindow] + right[(b + u) % kWindow]);
      }
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < kWindow; ++b) {
    if (b < count) emit(b, sum[b]);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
