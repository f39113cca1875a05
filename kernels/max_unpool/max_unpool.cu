// Unpooling and the pool's gradient: gathers over x, a thread for what it writes.
//
//   unpool          x[p] = y[o] of the last window o that chose p, else 0
//   pool_backward   x[p] = sum of y[o] over the windows that chose p, in row-major order
//
// Where no position belongs to two windows both are the same, but that 0 + -0 = 0.
#include "windows.cuh"

namespace segfast {
namespace {

// One position and V lanes.
template <typename T, int V, bool Sum>
__global__ void spread_kernel(Maps m, Items items,
                              const T* __restrict__ y,             // [outer, Ho, Wo, inner]
                              const uint8_t* __restrict__ packed,  // [outer, Ho, Wp, inner]
                              T* __restrict__ x) {                 // [outer, H, W, inner]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  using Sink = std::conditional_t<Sum, Real<T>, T>;
  Sink sink[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sink[v] = Sink(0);

  const Range rows = m.rows.windows(item.row), columns = m.columns.windows(item.column);
#pragma unroll 1
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t i = m.rows.offset(item.row, row);
    if (i < 0) continue;
#pragma unroll 1
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const int64_t j = m.columns.offset(item.column, column);
      if (j < 0) continue;
      const int offset = static_cast<int>(i * m.columns.kernel + j);
      const auto bytes = load<V>(packed + m.at_packed(item.image, row, column, item.lane));
      const auto values = load<V>(y + m.at_y(item.image, row, column, item.lane));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (m.offset(bytes.at[v], column) != offset) continue;
        if constexpr (Sum) {
          sink[v] += static_cast<Sink>(values.at[v]);
        } else {
          sink[v] = values.at[v];
        }
      }
    }
  }
  Lanes<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.at[v] = static_cast<T>(sink[v]);
  store(x + m.at_x(item.image, item.row, item.column, item.lane), result);
}

// 2x2 windows side by side. `zero`: a value that counts as 0.
//
// In a plane: 4 values and one byte in, 2 x 8 values of x out, less where x or y ends before.
template <typename T>
__global__ void spread_quads_kernel(Maps m, Items items, int x_unit, int y_unit, T zero,
                                    const T* __restrict__ y,             // [outer, Ho, Wo]
                                    const uint8_t* __restrict__ packed,  // [outer, Ho, Wp]
                                    T* __restrict__ x) {                 // [outer, H, W]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const Quads quads(item);
  const int64_t there = m.columns.output - quads.window;  // windows
  T values[4] = {};
  int byte = 0;
  if (item.row < m.rows.output && there > 0) {
    byte = packed[m.at_packed(item.image, item.row, quads.window, 0)];
    load_row(y + m.at_y(item.image, item.row, quads.window, 0), y_unit, there, T(0), values);
  }
  T result[2][8];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (values[k] == zero) values[k] = 0;
#pragma unroll
    for (int offset = 0; offset < 4; ++offset) {
      result[offset / 2][2 * k + offset % 2] = (byte >> 2 * k & 3) == offset ? values[k] : T(0);
    }
  }
  quads.store(m, x, x_unit, result);
}

// The same for V channels of one window.
template <typename T, int V>
__global__ void spread_quad_lanes_kernel(
    Maps m, Items items, T zero,
    const T* __restrict__ y,             // [outer, Ho, Wo, inner]
    const uint8_t* __restrict__ packed,  // [outer, Ho, Wp, inner]
    T* __restrict__ x) {                 // [outer, H, W, inner]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  Lanes<T, V> values = {};
  Lanes<uint8_t, V> bytes = {};
  if (item.row < m.rows.output && item.column < m.columns.output) {
    values = load<V>(y + m.at_y(item.image, item.row, item.column, item.lane));
    bytes = load<V>(packed + m.at_packed(item.image, item.row, item.column, item.lane));
  }
  const int shift = m.shift(item.column);
#pragma unroll
  for (int offset = 0; offset < 4; ++offset) {
    const int64_t row = 2 * item.row + offset / 2, column = 2 * item.column + offset % 2;
    if (row >= m.rows.input || column >= m.columns.input) continue;
    Lanes<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool here = (bytes.at[v] >> shift & 3) == offset && values.at[v] != zero;
      result.at[v] = here ? values.at[v] : T(0);
    }
    store(x + m.at_x(item.image, row, column, item.lane), result);
  }
}

template <bool Sum, typename T>
int spread(const Pooling& p, const T* y, const uint8_t* packed, T* x, CUstream_st* stream) {
  const Maps m(p);
  const auto run = [&](auto kernel, int lanes) {
    const Items items(m.outer, p.rows.input, p.columns.input, m.inner, lanes);
    return launch_items(kernel, items, stream, m, items, y, packed, x);
  };
  constexpr int V = kLanes<T>;
  return has_vectors<T>(p, x, y, packed) ? run(spread_kernel<T, V, Sum>, V)
                                         : run(spread_kernel<T, 1, Sum>, 1);
}

template <typename T>
int spread_quads(const Pooling& p, T zero, const T* y, const uint8_t* packed, T* x,
                 CUstream_st* stream) {
  const int64_t rows = ceil_div(p.rows.input, 2), columns = ceil_div(p.columns.input, 2);
  if (!p.channels_last) {
    return launch_quads(spread_quads_kernel<T>, p, rows, ceil_div(columns, 4), x, y, stream, zero,
                        y, packed, x);
  }
  const Maps m(p);
  const auto run = [&](auto kernel, int lanes) {
    const Items items(m.outer, rows, columns, m.inner, lanes);
    return launch_items(kernel, items, stream, m, items, zero, y, packed, x);
  };
  constexpr int V = kLanes<T>;
  return has_vectors<T>(p, x, y, packed) ? run(spread_quad_lanes_kernel<T, V>, V)
                                         : run(spread_quad_lanes_kernel<T, 1>, 1);
}

}  // namespace

int max_unpool_cuda(const Pooling& p, const void* y, const uint8_t* packed, void* x,
                    CUstream_st* stream) {
  return for_word(p.dtype, [&](auto word) {
    using T = decltype(word);
    const T* from = static_cast<const T*>(y);
    T* to = static_cast<T*>(x);
    return is_two_by_two(p) ? spread_quads(p, T(0), from, packed, to, stream)
                            : spread<false>(p, from, packed, to, stream);
  });
}

int max_pool_backward_cuda(const Pooling& p, const void* y, const uint8_t* packed, void* x,
                           CUstream_st* stream) {
  if (is_two_by_two(p)) {
    return for_word(p.dtype, [&](auto word) {
      using T = decltype(word);
      constexpr T minus_zero = T(T(1) << (8 * sizeof(T) - 1));
      return spread_quads(p, minus_zero, static_cast<const T*>(y), packed, static_cast<T*>(x),
                          stream);
    });
  }
  return for_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    return spread<true>(p, static_cast<const T*>(y), packed, static_cast<T*>(x), stream);
  });
}

}  // namespace segfast
