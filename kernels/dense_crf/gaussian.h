// exp(-d / 2) in place of squared distances d >= 0, M vectors at once so that their latencies
// overlap. Results below the smallest normal number are 0; NaN stays NaN, provided it has no
// payload: the exponent trick would shift that into the result.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// AVX-512 looks up 32 values in two registers (vpermi2ps): 2^(k/32) as bits, less k << 18.
#if defined(__AVX512F__) && !defined(__clang__)
#define SEGFAST_GAUSSIAN_TABLE 1
constexpr int kTableLanes = 16;
constexpr int32_t kPowers[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
#else
#define SEGFAST_GAUSSIAN_TABLE 0
constexpr int kTableLanes = 0;
#endif

//   -d log2(e) / 2 = n + r,  n a multiple of 1 (of 1/32 with the table), |r| <= half of that
// n sits in the low bits of `shifted`, from where it is added to exponent bits. Polynomials for
// 2^r: minimax with value 1 at 0, relative error 2e-9 (5e-8 beside the table: below the rounding).
template <int M, int N>
SEGFAST_INLINE void gaussian_of(Vec<float, N>* d) {
  using V = Vec<float, N>;
  using U = Vec<uint32_t, N>;  // exponents of results that are replaced below may wrap
  constexpr bool kTable = N == kTableLanes;
  constexpr float kScale = -0.72134752044448170f;                // its float is 1.3e-8 off
  constexpr float kRound = kTable ? 0x1.8p23f / 32 : 0x1.8p23f;  // adding it rounds to such an n
  V shifted[M], r[M], q[M];
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) shifted[k] = d[k] * kScale + kRound;
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) r[k] = d[k] * kScale - (shifted[k] - kRound);
  if constexpr (kTable) {
#if SEGFAST_GAUSSIAN_TABLE
    V power[M];
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) {
      const Vec<int32_t, N> n = (Vec<int32_t, N>)shifted[k];
      power[k] =
          (V)((U)__builtin_shuffle(load<N>(kPowers), load<N>(kPowers + N), n) + ((U)n << 18));
    }
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] = (r[k] * 0.240226503f + 0.693157327f) * r[k];
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] = power[k] * q[k] + power[k];
#endif
  } else {
    constexpr float kPolynomial[] = {1.339887872e-3f,   9.618435485e-3f,   5.5503324615e-2f,
                                     2.40226479303e-1f, 6.93147202857e-1f, 1.0f};
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] = broadcast<float, N>(1.535384993e-4f);
#pragma GCC unroll 8
    for (int n = 0; n < 6; ++n) {
#pragma GCC unroll 8
      for (int k = 0; k < M; ++k) q[k] = q[k] * r[k] + kPolynomial[n];
    }
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] = (V)((U)q[k] + ((U)shifted[k] << 23));
  }
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) d[k] = d[k] > 174.0f ? V{} : q[k];
}

template <int M, int N>
SEGFAST_INLINE void gaussian_of(Vec<double, N>* d) {
  for (int k = 0; k < M; ++k) d[k] = exp_nonpositive<N>(d[k] * -0.5);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
