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

// float16: 1 sign, 5 exponent (bias 15), 10 fraction bits. float32: 8 (bias 127), 23.
SEGFAST_INLINE float f16_to_float(int16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const uint32_t rebias = magnitude >= 0x7c00u ? 2 * (127 - 15) : 127 - 15;  // inf, NaN: to 255
  const uint32_t normal = (magnitude << 13) + (rebias << 23);
  const uint32_t tiny =
      bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return bit_cast<float>(sign | (magnitude < 0x0400u ? tiny : normal));
}

SEGFAST_INLINE int16_t float_to_f16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rebased = magnitude - ((127 - 15) << 23);
  const uint32_t normal = (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13;
  // Below 2^-14: adding 1/2 leaves the result, in units of 2^-24, in the lowest bits.
  const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? tiny : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<int16_t>(sign | half);
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
