#include "demos.h"
#include "launch.cuh"

namespace demos {
namespace {

__global__ void histogram_kernel(const int* x, int64_t count, unsigned* bins, int n_bins) {
  unsigned* of_block = segfast::dynamic_shared<unsigned>();
  for (int b = threadIdx.x; b < n_bins; b += blockDim.x) of_block[b] = 0;
  __syncthreads();
  for (int64_t i = segfast::thread_index(); i < count; i += segfast::thread_count())
    atomicAdd(&of_block[x[i]], 1);
  __syncthreads();
  for (int b = threadIdx.x; b < n_bins; b += blockDim.x) atomicAdd(&bins[b], of_block[b]);
}

// Open addressing: a slot is claimed by an exchange, and found by all who come later.
__global__ void distinct_kernel(const int* x, int64_t count, int* slots, unsigned capacity,
                                int* n_distinct) {
  const int64_t i = segfast::thread_index();
  if (i >= count) return;
  for (unsigned slot = static_cast<unsigned>(x[i]) * 2654435761u % capacity;;
       slot = (slot + 1) % capacity) {
    const int found = atomicCAS(&slots[slot], -1, x[i]);
    if (found == -1) atomicAdd(n_distinct, 1);
    if (found == -1 || found == x[i]) return;
  }
}

__global__ void integer_atomics_kernel(const int* x, int64_t count, int* found) {
  const int64_t i = segfast::thread_index();
  if (i >= count) return;
  const int v = x[i];
  atomicAdd(found, v);
  atomicSub(found + 1, v);
  atomicMin(found + 2, v);
  atomicMax(found + 3, v);
  atomicAnd(found + 4, v);
  atomicOr(found + 5, v);
  atomicXor(found + 6, v);
  atomicExch(found + 7, v);
  atomicInc(reinterpret_cast<unsigned*>(found) + 8, 10);
}

}  // namespace

int integer_atomics(const int* x, int64_t count, int* found, CUstream_st* stream) {
  return segfast::launch(integer_atomics_kernel, {segfast::ceil_div(count, 64)}, 64, 0, stream, x,
                         count, found);
}

int histogram(const int* x, int64_t count, unsigned* bins, int n_bins, CUstream_st* stream) {
  return segfast::launch(histogram_kernel, {segfast::ceil_div(count, 256)}, 64,
                         n_bins * sizeof(unsigned), stream, x, count, bins, n_bins);
}

int distinct(const int* x, int64_t count, int* slots, unsigned capacity, int* n_distinct,
             CUstream_st* stream) {
  return segfast::launch(distinct_kernel, {segfast::ceil_div(count, 96)}, 96, 0, stream, x, count,
                         slots, capacity, n_distinct);
}

}  // namespace demos
