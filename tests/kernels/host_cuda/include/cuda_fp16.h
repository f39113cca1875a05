// Stands in for CUDA's header of this name: storage, conversions, comparisons, simple arithmetic.
#pragma once

#include "small_float.h"

namespace host_cuda {
struct HalfFormat {
  static float to_float(unsigned short bits) { return bit_cast<_Float16>(bits); }
  static unsigned short from_float(float x) {
    return bit_cast<unsigned short>(static_cast<_Float16>(x));
  }
};
}  // namespace host_cuda

using __half = host_cuda::SmallFloat<host_cuda::HalfFormat>;
using __half2 = host_cuda::SmallFloat2<host_cuda::HalfFormat>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return host_cuda::bit_cast<__half>(bits); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
