// float16 and bfloat16, kept as int16_t, to float and back (to nearest, ties to even). Without
// branches, so that loops over them become vector code on any instruction set.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename To, typename From>
SEGFAST_INLINE To bit_cast(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename S, typename T>
constexpr bool kSameType = false;
template <typename T>
constexpr bool kSameType<T, T> = true;

template <typename F, typename I>
SEGFAST_INLINE F to_float(I x) {
  if constexpr (kSameType<I, int32_t>) {
    return static_cast<F>(x);
  } else {
    return __builtin_convertvector(x, F);
  }
}

// float16: 1 sign, 5 exponent (bias 15), 10 fraction bits. float32: 8 (bias 127), 23. Both ways for
// numbers and vectors: F of float, U of uint32_t, I of int32_t.
template <typename F, typename I, typename U>
SEGFAST_INLINE F widen_f16(U half) {
  const U sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const U rebias = magnitude >= 0x7c00u ? 2u * (127 - 15) - U{} : 127u - 15 - U{};  // inf, NaN: 255
  const U normal = (magnitude << 13) + (rebias << 23);
  const U tiny = bit_cast<U>(to_float<F>(bit_cast<I>(magnitude)) * 0x1p-24f);
  return bit_cast<F>(sign | (magnitude < 0x0400u ? tiny : normal));
}

template <typename F, typename U>
SEGFAST_INLINE U narrow_to_f16(U bits) {
  const U sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const U rebased = magnitude - ((127u - 15) << 23);
  const U normal = (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the result, in units of 2^-24, in the lowest bits.
  const U tiny = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;
  U half = magnitude < 0x38800000u ? tiny : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u - U{} : half;
  half = magnitude > 0x7f800000u ? 0x7e00u - U{} : half;
  return sign | half;
}

SEGFAST_INLINE float f16_to_float(int16_t half) {
  return widen_f16<float, int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(half)));
}
SEGFAST_INLINE int16_t float_to_f16(float x) {
  return static_cast<int16_t>(narrow_to_f16<float>(bit_cast<uint32_t>(x)));
}

SEGFAST_INLINE float bf16_to_float(int16_t half) {
  return bit_cast<float>(static_cast<uint32_t>(static_cast<uint16_t>(half)) << 16);
}

// The bits of floats, numbers or vectors, rounded to their upper half: what bfloat16 keeps. NaN
// stays NaN if the lower half is 0.
template <typename U>
SEGFAST_INLINE U round_to_bf16(U bits) {
  return bits + 0x7fffu + (bits >> 16 & 1u);
}

SEGFAST_INLINE int16_t float_to_bf16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return static_cast<int16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u
                                                                 : round_to_bf16(bits) >> 16);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
