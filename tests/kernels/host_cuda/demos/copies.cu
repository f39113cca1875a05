#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "demos.h"
#include "launch.cuh"

namespace demos {
namespace {

constexpr int kTile = 32;
constexpr int kRows = 8;  // of threads

// y = x^T through a tile: both sides are read and written along their rows.
__global__ void transpose_kernel(const float* __restrict__ x, Matrix size, float* __restrict__ y) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile;
  for (int r = threadIdx.y; r < kTile; r += kRows)
    if (row + r < size.rows && column + threadIdx.x < size.columns)
      tile[r][threadIdx.x] = x[(row + r) * size.row_stride + column + threadIdx.x];
  __syncthreads();
  for (int r = threadIdx.y; r < kTile; r += kRows)
    if (column + r < size.columns && row + threadIdx.x < size.rows)
      y[(column + r) * size.rows + row + threadIdx.x] = tile[threadIdx.x][r];
}

template <typename T>
struct alignas(16) Packet {
  static constexpr int kItems = 16 / sizeof(T);
  T item[kItems];
};

// y = 2 x, 16 bytes at a time, then what is left over.
template <typename T>
__global__ void twice_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t count) {
  constexpr int kItems = Packet<T>::kItems;
  const int64_t i = segfast::thread_index() * kItems;
  if (i + kItems <= count) {
    union {
      uint4 raw;
      T item[kItems];
    } v;
    v.raw = __ldcs(reinterpret_cast<const uint4*>(x + i));
#pragma unroll
    for (int k = 0; k < kItems; ++k) v.item[k] = T(2.0f * static_cast<float>(v.item[k]));
    __stcs(reinterpret_cast<uint4*>(y + i), v.raw);
  } else {
    for (int64_t k = i; k < count; ++k) y[k] = x[k] + x[k];
  }
}

template <typename T>
int launch_twice(const void* x, void* y, int64_t count, CUstream_st* stream) {
  const int64_t packets = segfast::ceil_div(count, Packet<T>::kItems);
  return segfast::launch(twice_kernel<T>, {segfast::ceil_div(packets, 64)}, 64, 0, stream,
                         static_cast<const T*>(x), static_cast<T*>(y), count);
}

}  // namespace

int transpose(const float* x, const Matrix& size, float* y, CUstream_st* stream) {
  const segfast::Grid grid{segfast::ceil_div(size.columns, kTile),
                           segfast::ceil_div(size.rows, kTile)};
  return segfast::launch(transpose_kernel, grid, dim3(kTile, kRows), 0, stream, x, size, y);
}

int twice(const void* x, void* y, int64_t count, Dtype dtype, CUstream_st* stream) {
  switch (dtype) {
    case Dtype::float32:
      return launch_twice<float>(x, y, count, stream);
    case Dtype::float16:
      return launch_twice<__half>(x, y, count, stream);
    case Dtype::bfloat16:
      return launch_twice<__nv_bfloat16>(x, y, count, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace demos
