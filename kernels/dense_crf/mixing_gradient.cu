// dM = sum over all pixels of R Q^T, chunk by chunk: no sum depends on the order of blocks.
#include "dense_crf.cuh"

namespace segfast {
namespace {

constexpr int kSide = 32;  // labels of a tile of the product, and pixels that are held at once
constexpr int kPerThread = 4;
constexpr int kThreads = kSide * kSide / kPerThread;

// One block: one chunk of pixels, one tile (l, k) of the product.
template <typename T>
__global__ void product_kernel(ProductSize s, int64_t chunk, int tiles,
                               const T* __restrict__ a,         // [B N, row]
                               const T* __restrict__ b,         // [B N, row]
                               T* __restrict__ partial) {       // [chunks, L, L], or [chunks, L]
  __shared__ T of_a[kSide][kSide + 1], of_b[kSide][kSide + 1];  // [pixel, label]
  const int tile = blockIdx.y;
  const int l0 = (s.diagonal ? tile : tile / tiles) * kSide;
  const int k0 = (s.diagonal ? tile : tile % tiles) * kSide;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide * kPerThread;
  const int64_t first = blockIdx.x * chunk;
  const int64_t end = first + chunk < s.points ? first + chunk : s.points;
  T sum[kPerThread] = {};
  for (int64_t start = first; start < end; start += kSide) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t p = start + y + i;
      of_a[y + i][x] = p < end && l0 + x < s.labels ? a[p * s.row + l0 + x] : T(0);
      of_b[y + i][x] = p < end && k0 + x < s.labels ? b[p * s.row + k0 + x] : T(0);
    }
    __syncthreads();
#pragma unroll 8
    for (int p = 0; p < kSide; ++p) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) sum[i] += of_a[p][y + i] * of_b[p][x];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t l = l0 + y + i, k = k0 + x, c = blockIdx.x;
    if (l >= s.labels || k >= s.labels) continue;
    if (!s.diagonal) {
      partial[(c * s.labels + l) * s.labels + k] += sum[i];
    } else if (l == k) {
      partial[c * s.labels + l] += sum[i];
    }
  }
}

}  // namespace

int mixing_gradient_cuda(const ProductSize& s, const void* a, const void* b, void* partial,
                         CUstream_st* stream) {
  const int64_t chunk = ceil_div(ceil_div(s.points, s.chunks), kSide) * kSide;
  const int64_t tiles = ceil_div(s.labels, kSide);
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    return launch(product_kernel<T>, {s.chunks, s.diagonal ? tiles : tiles * tiles}, kThreads, 0,
                  stream, s, chunk, static_cast<int>(tiles), static_cast<const T*>(a),
                  static_cast<const T*>(b), static_cast<T*>(partial));
  });
}

}  // namespace segfast
