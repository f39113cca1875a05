// Stands in for CUDA's header of this name: storage, conversions, comparisons, simple arithmetic.
#pragma once

#include "small_float.h"

namespace host_cuda {
struct Bfloat16Format {
  static float to_float(unsigned short bits) {
    return bit_cast<float>(static_cast<unsigned>(bits) << 16);
  }
  static unsigned short from_float(float x) {  // to nearest, ties to even
    if (std::isnan(x)) return 0x7FFF;
    const unsigned bits = bit_cast<unsigned>(x);
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
};
}  // namespace host_cuda

using __nv_bfloat16 = host_cuda::SmallFloat<host_cuda::Bfloat16Format>;
using __nv_bfloat162 = host_cuda::SmallFloat2<host_cuda::Bfloat16Format>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return host_cuda::bit_cast<__nv_bfloat16>(bits);
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
