// Arithmetic that CUDA has and C++ has not, and loads and stores with a hint for the cache.
#pragma once

#include <limits>
#include <type_traits>

#define HOST_CUDA_LOAD(name) \
  template <typename T>      \
  T name(const T* address) { \
    return *address;         \
  }
#define HOST_CUDA_STORE(name)                                                 \
  template <typename T, typename V>                                           \
  void name(T* address, V value) {                                            \
    static_assert(std::is_same_v<T, V>, "CUDA takes no other type of value"); \
    *address = value;                                                         \
  }
HOST_CUDA_LOAD(__ldg)
HOST_CUDA_LOAD(__ldca)
HOST_CUDA_LOAD(__ldcg)
HOST_CUDA_LOAD(__ldcs)
HOST_CUDA_LOAD(__ldcv)
HOST_CUDA_LOAD(__ldlu)
HOST_CUDA_STORE(__stwb)
HOST_CUDA_STORE(__stcg)
HOST_CUDA_STORE(__stcs)
HOST_CUDA_STORE(__stwt)
#undef HOST_CUDA_LOAD
#undef HOST_CUDA_STORE

// As CUDA: NaN loses against a number.
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
using std::isfinite;
using std::isinf;
using std::isnan;

namespace host_cuda {
template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// To an integer as the device converts: NaN is 0, what is beyond the range is its end.
template <typename I, typename F>
I saturate(F x) {
  using Limits = std::numeric_limits<I>;
  if (x != x) return 0;
  if (x >= std::ldexp(F(1), Limits::digits)) return Limits::max();
  if (x < static_cast<F>(Limits::min())) return Limits::min();
  return static_cast<I>(x);
}
}  // namespace host_cuda

inline int __float_as_int(float x) { return host_cuda::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return host_cuda::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return host_cuda::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return host_cuda::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return host_cuda::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return host_cuda::bit_cast<double>(x); }

#define HOST_CUDA_CONVERSIONS(suffix, round)                                                \
  inline int __float2int_##suffix(float x) { return host_cuda::saturate<int>(round(x)); }   \
  inline unsigned __float2uint_##suffix(float x) {                                          \
    return host_cuda::saturate<unsigned>(round(x));                                         \
  }                                                                                         \
  inline long long __float2ll_##suffix(float x) {                                           \
    return host_cuda::saturate<long long>(round(x));                                        \
  }                                                                                         \
  inline int __double2int_##suffix(double x) { return host_cuda::saturate<int>(round(x)); } \
  inline long long __double2ll_##suffix(double x) {                                         \
    return host_cuda::saturate<long long>(round(x));                                        \
  }
HOST_CUDA_CONVERSIONS(rn, std::nearbyint)
HOST_CUDA_CONVERSIONS(rz, std::trunc)
HOST_CUDA_CONVERSIONS(rd, std::floor)
HOST_CUDA_CONVERSIONS(ru, std::ceil)
#undef HOST_CUDA_CONVERSIONS
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
// Each rounded on its own: not contracted to a fused multiply-add.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; ++i) reversed |= (x >> i & 1) << (63 - i);
  return reversed;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>((static_cast<unsigned long long>(x) * y) >> 32);
}
inline int __mulhi(int x, int y) { return static_cast<int>((static_cast<long long>(x) * y) >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
  return static_cast<unsigned>(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
  return static_cast<unsigned>(both >> (shift & 31));
}
// Byte i of the result is byte (selector >> 4 i) & 7 of y:x.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long both = static_cast<unsigned long long>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(both >> (8 * (pick & 7))) & 0xFF;
    if (pick & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << (8 * i);
  }
  return result;
}
