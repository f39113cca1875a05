#include "demos.h"
#include "launch.cuh"

namespace demos {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <typename T>
__device__ T warp_sum(T v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// One block per row; the order of the sum is fixed.
template <int kThreads>
__global__ void row_sums_kernel(const float* __restrict__ x, Matrix size, float* sums) {
  __shared__ __align__(16) float of_warp[kThreads / 32];
  const float* row = x + blockIdx.x * size.row_stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < size.columns; i += kThreads) sum += __ldg(row + i);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(threadIdx.x < kThreads / 32 ? of_warp[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void scan_kernel(const int* x, int* scan, int64_t count) {
  __shared__ int of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int v = threadIdx.x < count ? x[threadIdx.x] : 0;
  for (int step = 1; step < 32; step *= 2) {
    const int left = __shfl_up_sync(kAllLanes, v, step);
    if (lane >= step) v += left;
  }
  if (lane == 31) of_warp[warp] = v;
  __syncthreads();
  if (warp == 0) {
    int w = lane < blockDim.x / 32 ? of_warp[lane] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kAllLanes, w, step);
      if (lane >= step) w += left;
    }
    of_warp[lane] = w;
  }
  __syncthreads();
  if (warp > 0) v += of_warp[warp - 1];
  if (threadIdx.x < count) scan[threadIdx.x] = v;
}

// What the collectives give, in a block whose last warp may be partial.
__global__ void warp_facts_kernel(unsigned* facts) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned first = threadIdx.x - lane;
  const unsigned lanes = min(32u, blockDim.x - first);
  const unsigned mask = lanes == 32 ? kAllLanes : (1u << lanes) - 1;
  unsigned* fact = facts + 8 * threadIdx.x;
  fact[0] = __ballot_sync(mask, lane % 3 == 0);
  fact[1] = __any_sync(mask, lane == 7) + 2 * __all_sync(mask, lane < 32);
  fact[2] = __shfl_sync(mask, threadIdx.x, 2, 4);
  fact[3] = __shfl_down_sync(mask, threadIdx.x, 1, 8);
  fact[4] = __match_any_sync(mask, lane / 5);
  fact[5] = __syncthreads_count(threadIdx.x % 2);
  fact[6] = __syncthreads_or(threadIdx.x == 1) + 2 * __syncthreads_and(threadIdx.x < 5);
  if (lane % 2) {  // the odd lanes by themselves
    const unsigned odd = mask & 0xAAAAAAAAu;
    fact[7] = __popc(__ballot_sync(odd, 1));
  } else {
    fact[7] = __ffs(static_cast<int>(__brev(__activemask() | 1u << lane)));
  }
}

}  // namespace

int row_sums(const float* x, const Matrix& size, float* sums, CUstream_st* stream) {
  return segfast::launch(row_sums_kernel<128>, {size.rows}, 128, 0, stream, x, size, sums);
}

int inclusive_scan(const int* x, int* scan, int64_t count, CUstream_st* stream) {
  const unsigned threads = static_cast<unsigned>(segfast::ceil_div(count, 32) * 32);
  return segfast::launch(scan_kernel, {1}, threads, 0, stream, x, scan, count);
}

int warp_facts(unsigned* facts, int threads, CUstream_st* stream) {
  return segfast::launch(warp_facts_kernel, {1}, threads, 0, stream, facts);
}

}  // namespace demos
