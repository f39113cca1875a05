// The Gaussian of the pixel grid is a product: one pass along the lines, one along the columns.
#include "dense_crf.cuh"

namespace segfast {
namespace {

constexpr int kWindow = 8;  // outputs of a thread: the values that they share are loaded once

// An axis of `size` positions of a [outer, size, inner] array of vectors.
struct Axis {
  int64_t outer, size, inner, radius, blocks;
  Divider by_inner, by_blocks;

  Axis(int64_t outer, int64_t size, int64_t inner, int64_t radius)
      : outer(outer),
        size(size),
        inner(inner),
        radius(radius),
        blocks(ceil_div(size, kWindow)),
        by_inner(inner > 0 ? inner : 1),
        by_blocks(blocks > 0 ? blocks : 1) {}
};

__device__ int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// out[p] = after[p] sum_{|r| <= R} taps[|r|] before[p + r] in[p + r]
template <typename T>
__global__ void conv_kernel(Axis a, const T* __restrict__ taps,  // [radius + 1]
                            const T* __restrict__ before,        // [size]
                            const T* __restrict__ after,         // [size]
                            const T* __restrict__ in,            // [outer, size, inner] vectors
                            T* __restrict__ out) {               // the same
  const int64_t thread = thread_index(), block_of_all = a.by_inner(thread);
  const int64_t outer = a.by_blocks(block_of_all);
  if (outer >= a.outer) return;
  const int64_t first = (block_of_all - outer * a.blocks) * kWindow;
  const int64_t stride = a.inner * kLanes<T>;
  const int64_t start = (outer * a.size * a.inner + thread - block_of_all * a.inner) * kLanes<T>;
  in += start;
  out += start;
  Vector<T> sum[kWindow] = {};
  const auto add = [&](int64_t p, auto near_end) {
    Vector<T> v = load_vector(in + p * stride);
    const T scale = before[p];
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) v.at[i] *= scale;
#pragma unroll
    for (int b = 0; b < kWindow; ++b) {
      const int64_t r = p < first + b ? first + b - p : p - first - b;
      if (!decltype(near_end)::value || r <= a.radius) add_times(sum[b], taps[r], v);
    }
  };
  using Near = std::integral_constant<bool, true>;
  using Inside = std::integral_constant<bool, false>;
  // All outputs reach the positions from `inside` to before `beyond`.
  const int64_t low = clamp(first - a.radius, 0, a.size);
  const int64_t high = clamp(first + kWindow + a.radius, 0, a.size);
  const int64_t inside = clamp(first + kWindow - 1 - a.radius, low, high);
  const int64_t beyond = clamp(first + a.radius + 1, inside, high);
  int64_t p = low;
  for (; p < inside; ++p) add(p, Near{});
  for (; p < beyond; ++p) add(p, Inside{});
  for (; p < high; ++p) add(p, Near{});
#pragma unroll
  for (int b = 0; b < kWindow; ++b) {
    if (first + b >= a.size) break;
    const T scale = after[first + b];
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) sum[b].at[i] *= scale;
    store(out + (first + b) * stride, sum[b]);
  }
}

}  // namespace

int spatial_conv_cuda(const ConvSize& s, const void* taps_y, const void* taps_x,
                      const void* before_y, const void* before_x, const void* after_y,
                      const void* after_x, const void* values, void* between, void* out,
                      CUstream_st* stream) {
  if (s.images * s.height * s.width == 0) return cudaSuccess;
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    const int64_t vectors = s.row / kLanes<T>;
    const auto pass = [&](const Axis& a, const void* taps, const void* before, const void* after,
                          const void* in, void* to) -> int {
      return launch(conv_kernel<T>, blocks_for(a.outer * a.blocks * a.inner, kBlock), kBlock, 0,
                    stream, a, static_cast<const T*>(taps), static_cast<const T*>(before),
                    static_cast<const T*>(after), static_cast<const T*>(in), static_cast<T*>(to));
    };
    const int error = pass(Axis(s.images * s.height, s.width, vectors, s.radius_x), taps_x,
                           before_x, after_x, values, between);
    if (error != cudaSuccess) return error;
    return pass(Axis(s.images, s.height, s.width * vectors, s.radius_y), taps_y, before_y, after_y,
                between, out);
  });
}

}  // namespace segfast
