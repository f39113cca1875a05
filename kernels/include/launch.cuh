// How kernels are launched, and what they count with. Compiled by nvcc, and by g++ where the tests
// run kernels on the processor: g++ does not know <<<>>> nor extern __shared__.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace segfast {

constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridYZ = 65535;
constexpr size_t kSharedWithoutAsking = 48 * 1024;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a launch: 64 bits, so that a size beyond the limits is refused and not cut off.
struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Of this thread and of all, along x: int64 before the multiply.
__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// The shared memory that launch() was asked for, as T[], aligned to 16 bytes.
template <typename T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char segfast_dynamic_shared[];
  return reinterpret_cast<T*>(segfast_dynamic_shared);
#else
  return static_cast<T*>(host_cuda::dynamic_shared());
#endif
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...); returns a cudaError_t, 0 for success.
// Nothing is launched where a side of the grid is 0.
template <typename... Params, typename... Args>
int launch(void (*kernel)(Params...), const Grid& grid, dim3 block, size_t shared_bytes,
           CUstream_st* stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (grid.x < 0 || grid.x > kMaxGridX || grid.y < 0 || grid.y > kMaxGridYZ || grid.z < 0 ||
      grid.z > kMaxGridYZ)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > kSharedWithoutAsking) {
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace segfast
