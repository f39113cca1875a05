// Each kernel is y[i] = x[n - 1 - i] for one block of n threads, and wrong in one way.
#include "demos.h"
#include "launch.cuh"

namespace demos {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <Fault which>
__device__ void reverse_twice(const float* x, float* y, int n) {
  __shared__ float s[kThreads];
  const int i = threadIdx.x;
  s[i] = x[i];
  if (which != Fault::missing_barrier) __syncthreads();
  float v = s[n - 1 - i];
  if (which != Fault::missing_second_barrier) __syncthreads();
  s[i] = v;  // to and fro: y = x reversed three times
  __syncthreads();
  v = s[n - 1 - i];
  __syncthreads();
  s[i] = v;
  __syncthreads();
  y[i] = s[n - 1 - i];
}

template <Fault which>
__global__ void kernel(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  const float v = x[n - 1 - i];
  if constexpr (which == Fault::missing_barrier || which == Fault::missing_second_barrier) {
    reverse_twice<which>(x, y, n);
  } else if constexpr (which == Fault::missing_warp_barrier) {
    __shared__ float s[kThreads];
    s[i] = v;
    const float of_neighbour = s[i ^ 1];  // as if lanes were in step
    y[i] = __shfl_xor_sync(kAllLanes, of_neighbour, 1);
  } else if constexpr (which == Fault::read_past_the_end) {
    y[i] = i == 0 ? x[n] : v;
  } else if constexpr (which == Fault::write_past_the_end) {
    y[i] = v;
    if (i == 5) y[n] = v;
  } else if constexpr (which == Fault::read_before_the_start) {
    y[i] = x[n - 2 - i];
  } else if constexpr (which == Fault::shared_past_the_end) {
    __shared__ float s[kThreads];
    float* volatile p = s + i;  // only the red zone behind s can tell
    p[1] = v;
    __syncthreads();
    y[i] = p[1];
  } else if constexpr (which == Fault::shared_index) {
    __shared__ float s[8][8];
    s[i / 8][i % 8 + (n > 0)] = v;
    y[i] = s[i / 8][i % 8 + (n > 0)];
  } else if constexpr (which == Fault::dynamic_past_the_end) {
    float* s = segfast::dynamic_shared<float>();
    s[i + 1] = v;
    y[i] = s[i + 1];
  } else if constexpr (which == Fault::uninitialised_shared) {
    __shared__ float s[kThreads];
    if (i != 3) s[i] = v;
    __syncthreads();
    y[i] = s[i];
  } else if constexpr (which == Fault::shared_of_the_last_block) {
    __shared__ float s[kThreads];
    float* d = segfast::dynamic_shared<float>();
    if (gridDim.x == 2 && y[0] != y[0]) s[i] = d[i] = v;  // whichever comes first
    __syncthreads();
    y[i] = (s[i] + d[i]) / 2;
  } else if constexpr (which == Fault::divergent_barrier) {
    if (i < 32) __syncthreads();
    y[i] = v;
    __syncthreads();
  } else if constexpr (which == Fault::deadlock) {
    if (i == 40) {
      y[i] = __shfl_sync(kAllLanes, v, 8);
    } else {
      __syncthreads();
    }
  } else if constexpr (which == Fault::foreign_mask) {
    y[i] = __shfl_sync(0x0000FFFFu, v, 0);
  } else if constexpr (which == Fault::misaligned_load) {
    if (i < n / 4 - 1) y[i] = reinterpret_cast<const float4*>(x + 1)[i].x;
  } else if constexpr (which == Fault::signed_overflow) {
    y[i] = static_cast<float>((n + i) * 40000000);
  } else if constexpr (which == Fault::order_of_blocks) {
    // Block b continues what block b - 1 has left.
    if (i == 0) y[blockIdx.x] = blockIdx.x == 0 ? x[0] : y[blockIdx.x - 1];
  } else if constexpr (which == Fault::endless_spin) {
    __shared__ int lock;
    if (i == 0) lock = 1;
    __syncthreads();
    while (atomicCAS(&lock, 0, 1) != 0) {
    }
    y[i] = v;
  } else if constexpr (which == Fault::sum_without_atomic) {
    __shared__ int sum;
    if (i == 0) sum = 0;
    __syncthreads();
    sum += 1;
    y[i] = v;
  } else if constexpr (which == Fault::plain_and_atomic) {
    __shared__ int sum;
    if (i == 0) sum = 0;
    atomicAdd(&sum, 1);
    y[i] = v;
  } else if constexpr (which == Fault::message || which == Fault::message_without_fence) {
    // Every block writes one value; the last that comes reads them all. y[n - 1], 0 at first,
    // counts.
    __shared__ bool is_last;
    int* count = reinterpret_cast<int*>(y + n - 1);
    if (i == 0) {
      y[blockIdx.x] = v;
      if (which == Fault::message) __threadfence();
      is_last = atomicAdd(count, 1) == static_cast<int>(gridDim.x) - 1;
      if (which == Fault::message) __threadfence();
    }
    __syncthreads();
    if (is_last && i < gridDim.x) y[i] += 1;
  } else if constexpr (which == Fault::message_in_a_warp) {
    __shared__ float s[kThreads];
    s[i] = v;
    __syncwarp();
    y[i] = s[i ^ 1];
    __syncwarp();
    s[i ^ 1] = y[i];
    __syncthreads();
    y[i] = s[i];
  } else {
    y[i] = v;
  }
}

template <Fault which>
int run(const float* x, float* y, int n, CUstream_st* stream) {
  segfast::Grid grid{1};
  dim3 block(n);
  size_t shared_bytes = 0;
  if (which == Fault::dynamic_past_the_end) shared_bytes = n * sizeof(float);
  if (which == Fault::shared_of_the_last_block) grid.x = 2, shared_bytes = n * sizeof(float);
  if (which == Fault::order_of_blocks) grid.x = n;
  if (which == Fault::message || which == Fault::message_without_fence) grid.x = 5;
  if (which == Fault::too_much_shared) shared_bytes = 1 << 20;
  if (which == Fault::too_many_threads) block = dim3(32, 33);
  if (which == Fault::grid_too_large) grid.y = 65536;
  return segfast::launch(kernel<which>, grid, block, shared_bytes, stream, x, y, n);
}

template <int which>
int find(Fault wanted, const float* x, float* y, int n, CUstream_st* stream) {
  if (static_cast<int>(wanted) == which) return run<Fault{which}>(x, y, n, stream);
  if constexpr (which > 0) return find<which - 1>(wanted, x, y, n, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

int fault(Fault which, const float* x, float* y, int n, CUstream_st* stream) {
  return find<static_cast<int>(Fault::grid_too_large)>(which, x, y, n, stream);
}

}  // namespace demos
