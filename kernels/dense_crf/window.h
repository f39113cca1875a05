// Symmetric filter along a strided axis, several outputs at a time.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Outputs computed together: the values they share stay in registers, and an FMA takes as many
// cycles as there are independent sums.
constexpr int kWindow = kVectorRegisters >= 32 ? 8 : 5;

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
  const auto step = [&](int u, T tap) __attribute__((always_inline)) {  // u = r mod kWindow
    left[kWindow - u] = load<N>(next_left);
    right[u - 1] = load<N>(next_right);
    next_left -= stride;
    next_right += stride;
    const V scale = broadcast<T, N>(tap);
#pragma GCC unroll 8
    for (int b = 0; b < kWindow; ++b) {
      sum[b] += scale * (left[(kWindow + b - u) % kWindow] + right[(b + u) % kWindow]);
    }
  };
  int64_t r = 1;
  for (; r + kWindow <= radius + 1; r += kWindow) {
#pragma GCC unroll 8
    for (int u = 1; u <= kWindow; ++u) step(u, taps[r + u - 1]);
  }
#pragma GCC unroll 8
  for (int u = 1; u < kWindow; ++u) {
    if (r > radius) break;
    step(u, taps[r++]);
  }
#pragma GCC unroll 8
  for (int b = 0; b < kWindow; ++b) {
    if (b < count) emit(b, sum[b]);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
