// exp(-d / 2) in place of squared distances d >= 0, and 2^t, M vectors at once so that their
// latencies overlap. (The softmax takes simd.h's exp instead, which keeps any NaN.)
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// A table of 2^(k / 2^kTableBits), looked up in registers: 32 entries in two of AVX-512
// (vpermi2ps), 8 in one of AVX2 (vpermps). As bits, less k where it will be added.
#if defined(SEGFAST_AVX512) && !defined(__clang__)
constexpr int kTableBits = 5;
constexpr int32_t kPowers[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
template <typename I>
SEGFAST_INLINE I power_entry(I n) {
  return __builtin_shuffle(load<16>(kPowers), load<16>(kPowers + 16), n);
}
#elif defined(__AVX2__) && !defined(__clang__)
constexpr int kTableBits = 3;
constexpr int32_t kPowers[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
template <typename I>
SEGFAST_INLINE I power_entry(I n) {
  return __builtin_shuffle(load<8>(kPowers), n);
}
#else
constexpr int kTableBits = 0;
#endif

// 2^t in place of t, -126 <= t < 127.
//   t = n + r,  n a multiple of 2^-kTableBits, |r| <= half of that
// n sits in the low bits of `shifted`, from where it is added to exponent bits. Polynomials for
// 2^r: minimax with value 1 at 0; relative errors 2e-9, 3e-8 (8 entries) and 5e-8 (32): below the
// rounding.
template <int M, int N>
SEGFAST_INLINE void exp2_of(Vec<float, N>* t) {
  using V = Vec<float, N>;
  using I = Vec<int32_t, N>;
  using U = Vec<uint32_t, N>;  // the exponent may wrap where t is out of range
  constexpr float kRound = 0x1.8p23f / (1 << kTableBits);  // adding it rounds to such an n
  V shifted[M], r[M], q[M];
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) shifted[k] = t[k] + kRound;
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) r[k] = t[k] - (shifted[k] - kRound);
  if constexpr (kTableBits > 0) {
    V power[M];
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) {
      const I n = (I)shifted[k];
      power[k] = (V)((U)power_entry(n) + ((U)n << (23 - kTableBits)));
    }
    if constexpr (kTableBits == 5) {
#pragma GCC unroll 8
      for (int k = 0; k < M; ++k) q[k] = r[k] * 0.240226503f + 0.693157327f;
    } else {
#pragma GCC unroll 8
      for (int k = 0; k < M; ++k) q[k] = r[k] * 5.5496028e-2f + 0.24025763f;
#pragma GCC unroll 8
      for (int k = 0; k < M; ++k) q[k] = q[k] * r[k] + 0.693147215f;
    }
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] *= r[k];
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) t[k] = power[k] * q[k] + power[k];
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) q[k] = broadcast<float, N>(kExp2Polynomial[0]);
#pragma GCC unroll 8
    for (int n = 1; n < 7; ++n) {
#pragma GCC unroll 8
      for (int k = 0; k < M; ++k) q[k] = q[k] * r[k] + kExp2Polynomial[n];
    }
#pragma GCC unroll 8
    for (int k = 0; k < M; ++k) t[k] = (V)((U)q[k] + ((U)shifted[k] << 23));
  }
}

// Results below the smallest normal number are 0; NaN stays NaN, provided it has no payload: the
// exponent trick would shift that into the result.
template <int M, int N>
SEGFAST_INLINE void gaussian_of(Vec<float, N>* d) {
  constexpr float kScale = -0.72134752044448170f;  // -log2(e) / 2; its float is 1.3e-8 off
  Vec<float, N> t[M];
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) t[k] = d[k] * kScale;
  exp2_of<M, N>(t);
#pragma GCC unroll 8
  for (int k = 0; k < M; ++k) d[k] = d[k] > 174.0f ? Vec<float, N>{} : t[k];
}

template <int M, int N>
SEGFAST_INLINE void gaussian_of(Vec<double, N>* d) {
  for (int k = 0; k < M; ++k) d[k] = exp_nonpositive<N>(d[k] * -0.5);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
