// y[o] = max over the window of o inside x; packed[o] = the first offset that attains it, or the
// last NaN. A thread makes the outputs whose offsets share a byte: 4, 2 or 1.
#include "windows.cuh"

namespace segfast {
namespace {

// The maximum so far, and its offset.
template <typename T>
struct Best {
  Real<T> value;
  int offset;

  __device__ void look(T x, int at) {
    const Real<T> v = static_cast<Real<T>>(x);
    if (v > value || v != v) value = v, offset = at;
  }
};

template <typename T>
__device__ Real<T> minus_infinity() {
  return -static_cast<Real<T>>(INFINITY);
}

// Window (row, column) of V lanes, the first of which is x. K: a kernel of K x K without dilation,
// or 0 for any.
template <int K, int V, typename T>
__device__ void pool_window(const Maps& m, const T* x, int64_t row, int64_t column,
                            Best<T> (&best)[V]) {
  const int64_t top = m.rows.start(row), left = m.columns.start(column);
  const Range i = m.rows.inside(top), j = m.columns.inside(left);
  const int64_t kernel = K ? K : m.columns.kernel;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    best[v] = {minus_infinity<T>(), static_cast<int>(i.begin * kernel + j.begin)};
  }
  const auto look = [&](const Lanes<T, V>& seen, int offset) {
#pragma unroll
    for (int v = 0; v < V; ++v) best[v].look(seen.at[v], offset);
  };
  const int64_t line = m.columns.input * m.inner;
  const T* first = x + top * line + left * m.inner;
  if constexpr (K > 0) {  // what lies outside is never above the maximum
#pragma unroll
    for (int a = 0; a < K; ++a) {
      Lanes<T, V> seen[K];
#pragma unroll
      for (int b = 0; b < K; ++b) {
#pragma unroll
        for (int v = 0; v < V; ++v) seen[b].at[v] = static_cast<T>(minus_infinity<T>());
        const bool inside = a >= i.begin && a < i.end && b >= j.begin && b < j.end;
        if (inside) seen[b] = load<V>(first + a * line + b * m.inner);
      }
#pragma unroll
      for (int b = 0; b < K; ++b) look(seen[b], a * K + b);
    }
  } else {
    for (int64_t a = i.begin; a < i.end; ++a) {
      const T* at = first + a * m.rows.dilation * line;
      for (int64_t b = j.begin; b < j.end; ++b) {
        const int64_t step = b * m.columns.dilation * m.inner;
        look(load<V>(at + step), static_cast<int>(a * kernel + b));
      }
    }
  }
}

template <int K>
constexpr int kBitsOf = offset_bits(K * K);

// item.column counts bytes of a packed row.
template <int K, int V, typename T>
__device__ void pool_byte(const Maps& m, const Item& item, const T* x, T* y, uint8_t* packed) {
  const int bits = K ? kBitsOf<K> : m.bits, outputs = 8 / bits;
  const int64_t first = item.column * outputs;
  Lanes<uint8_t, V> bytes = {};
#pragma unroll 1
  for (int k = 0; k < outputs && first + k < m.columns.output; ++k) {
    Best<T> best[V];
    pool_window<K>(m, x + m.at_x(item.image, 0, 0, item.lane), item.row, first + k, best);
    Lanes<T, V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values.at[v] = static_cast<T>(best[v].value);
      bytes.at[v] = static_cast<uint8_t>(bytes.at[v] | best[v].offset << k * bits);
    }
    store(y + m.at_y(item.image, item.row, first + k, item.lane), values);
  }
  if (packed != nullptr) {
    store(packed + m.at_packed(item.image, item.row, first, item.lane), bytes);
  }
}

template <typename T, int V, int K>
__global__ void pool_kernel(Maps m, Items items,
                            const T* __restrict__ x,         // [outer, H, W, inner]
                            T* __restrict__ y,               // [outer, Ho, Wo, inner]
                            uint8_t* __restrict__ packed) {  // [outer, Ho, Wp, inner], or null
  const int64_t thread = thread_index();
  if (thread < items.count) pool_byte<K, V>(m, items.at(thread), x, y, packed);
}

// 2x2 windows side by side in a plane: 2 x 8 values of x in, 4 values and one byte out.
template <typename T>
__global__ void pool_quads_kernel(Maps m, Items items, int x_unit, int y_unit,
                                  const T* __restrict__ x,         // [outer, H, W]
                                  T* __restrict__ y,               // [outer, Ho, Wo]
                                  uint8_t* __restrict__ packed) {  // [outer, Ho, Wp], or null
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const Quads quads(item);
  T seen[2][8], values[4];
  quads.load(m, x, x_unit, static_cast<T>(minus_infinity<T>()), seen);
  int byte = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Best<T> best = {static_cast<Real<T>>(seen[0][2 * k]), 0};
#pragma unroll
    for (int offset = 1; offset < 4; ++offset)
      best.look(seen[offset / 2][2 * k + offset % 2], offset);
    values[k] = static_cast<T>(best.value);
    if (quads.window + k < m.columns.output) byte |= best.offset << 2 * k;
  }
  store_row(y + m.at_y(item.image, item.row, quads.window, 0), y_unit,
            m.columns.output - quads.window, values);
  if (packed != nullptr) packed[thread] = static_cast<uint8_t>(byte);
}

template <typename T, int V>
int pool_any(const Pooling& p, const T* x, T* y, uint8_t* packed, CUstream_st* stream) {
  const Maps m(p);
  const Items items(m.outer, p.rows.output, m.bytes, m.inner, V);
  const bool square =
      p.rows.kernel == p.columns.kernel && p.rows.dilation == 1 && p.columns.dilation == 1;
  const auto kernel = square && p.rows.kernel == 2   ? pool_kernel<T, V, 2>
                      : square && p.rows.kernel == 3 ? pool_kernel<T, V, 3>
                                                     : pool_kernel<T, V, 0>;
  return launch_items(kernel, items, stream, m, items, x, y, packed);
}

template <typename T>
int pool(const Pooling& p, const T* x, T* y, uint8_t* packed, CUstream_st* stream) {
  constexpr int V = kLanes<T>;
  if (!p.channels_last && is_two_by_two(p)) {
    return launch_quads(pool_quads_kernel<T>, p, p.rows.output, packed_row(p), x, y, stream, x, y,
                        packed);
  }
  return has_vectors<T>(p, x, y, packed) ? pool_any<T, V>(p, x, y, packed, stream)
                                         : pool_any<T, 1>(p, x, y, packed, stream);
}

}  // namespace

int max_pool_cuda(const Pooling& p, const void* x, void* y, uint8_t* packed, CUstream_st* stream) {
  return for_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    return pool(p, static_cast<const T*>(x), static_cast<T*>(y), packed, stream);
  });
}

}  // namespace segfast
