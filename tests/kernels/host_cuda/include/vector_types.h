// float4 and its relatives, aligned as on the device: a misaligned access of 16 bytes is an error.
#pragma once

#define HOST_CUDA_VECTORS(name, scalar, align2, align4)                             \
  struct name##1 { scalar x; };                                                     \
  struct alignas(align2) name##2 { scalar x, y; };                                  \
  struct name##3 { scalar x, y, z; };                                               \
  struct alignas(align4) name##4 { scalar x, y, z, w; };                            \
  inline name##1 make_##name##1(scalar x) { return {x}; }                           \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

HOST_CUDA_VECTORS(uint, unsigned, 8, 16)
HOST_CUDA_VECTORS(float, float, 8, 16)
#undef HOST_CUDA_VECTORS

// Of the types of 8 bytes, CUDA 13 deprecates the vectors of four.
#define HOST_CUDA_PAIRS(name, scalar)          \
  struct alignas(16) name##2 { scalar x, y; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }

HOST_CUDA_PAIRS(longlong, long long)
HOST_CUDA_PAIRS(ulonglong, unsigned long long)
HOST_CUDA_PAIRS(double, double)
#undef HOST_CUDA_PAIRS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
