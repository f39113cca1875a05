// y[o] = x[position chosen by o], 0 where that lies outside x; winners: 0 also where a later window
// chose the same position.
#include "windows.cuh"

namespace segfast {
namespace {

// Whether a window after (row, column), in row-major order, chose position (h, w), too.
__device__ bool is_overwritten(const Maps& m, const Item& item, int64_t h, int64_t w,
                               const uint8_t* packed) {
  const Range rows = m.rows.windows(h), columns = m.columns.windows(w);
  for (int64_t row = item.row; row < rows.end; ++row) {
    const int64_t i = m.rows.offset(h, row);
    if (i < 0) continue;
    for (int64_t column = row == item.row ? item.column + 1 : columns.begin; column < columns.end;
         ++column) {
      const int64_t j = m.columns.offset(w, column);
      if (j < 0) continue;
      const uint8_t byte = packed[m.at_packed(item.image, row, column, item.lane)];
      if (m.offset(byte, column) == i * m.columns.kernel + j) return true;
    }
  }
  return false;
}

// One window and V lanes.
template <typename T, int V, bool Winners>
__global__ void gather_kernel(Maps m, Items items,
                              const T* __restrict__ x,             // [outer, H, W, inner]
                              const uint8_t* __restrict__ packed,  // [outer, Ho, Wp, inner]
                              T* __restrict__ y) {                 // [outer, Ho, Wo, inner]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const int64_t top = m.rows.start(item.row), left = m.columns.start(item.column);
  const auto bytes = load<V>(packed + m.at_packed(item.image, item.row, item.column, item.lane));
  Lanes<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t offset = m.offset(bytes.at[v], item.column);
    const int64_t i = m.by_kernel(offset), j = offset - i * m.columns.kernel;
    const int64_t h = top + i * m.rows.dilation, w = left + j * m.columns.dilation;
    result.at[v] = 0;
    if (i >= m.rows.kernel || h < 0 || h >= m.rows.input || w < 0 || w >= m.columns.input) continue;
    if constexpr (Winners) {
      static_assert(V == 1);
      if (is_overwritten(m, item, h, w, packed)) continue;
    }
    result.at[v] = x[m.at_x(item.image, h, w, item.lane + v)];
  }
  store(y + m.at_y(item.image, item.row, item.column, item.lane), result);
}

// 2x2 windows side by side in a plane: 2 x 8 values of x and one byte in, 4 values out.
template <typename T>
__global__ void gather_quads_kernel(Maps m, Items items, int x_unit, int y_unit,
                                    const T* __restrict__ x,             // [outer, H, W]
                                    const uint8_t* __restrict__ packed,  // [outer, Ho, Wp]
                                    T* __restrict__ y) {                 // [outer, Ho, Wo]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const Quads quads(item);
  T seen[2][8];
  quads.load(m, x, x_unit, T(0), seen);
  const int byte = packed[thread];
  T values[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int j = byte >> 2 * k & 1, i = byte >> 2 * k & 2;
    const T top = j ? seen[0][2 * k + 1] : seen[0][2 * k];
    const T bottom = j ? seen[1][2 * k + 1] : seen[1][2 * k];
    values[k] = i ? bottom : top;
  }
  store_row(y + m.at_y(item.image, item.row, quads.window, 0), y_unit,
            m.columns.output - quads.window, values);
}

// The same for V channels of one window.
template <typename T, int V>
__global__ void gather_quad_lanes_kernel(
    Maps m, Items items,
    const T* __restrict__ x,             // [outer, H, W, inner]
    const uint8_t* __restrict__ packed,  // [outer, Ho, Wp, inner]
    T* __restrict__ y) {                 // [outer, Ho, Wo, inner]
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const auto bytes = load<V>(packed + m.at_packed(item.image, item.row, item.column, item.lane));
  const int shift = m.shift(item.column);
  Lanes<T, V> result = {};
#pragma unroll
  for (int offset = 0; offset < 4; ++offset) {
    const int64_t row = 2 * item.row + offset / 2, column = 2 * item.column + offset % 2;
    if (row >= m.rows.input || column >= m.columns.input) continue;
    const auto seen = load<V>(x + m.at_x(item.image, row, column, item.lane));
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if ((bytes.at[v] >> shift & 3) == offset) result.at[v] = seen.at[v];
    }
  }
  store(y + m.at_y(item.image, item.row, item.column, item.lane), result);
}

template <typename T>
int gather(const Pooling& p, const T* x, const uint8_t* packed, T* y, bool winners,
           CUstream_st* stream) {
  constexpr int V = kLanes<T>;
  if (!p.channels_last && is_two_by_two(p)) {
    return launch_quads(gather_quads_kernel<T>, p, p.rows.output, packed_row(p), x, y, stream, x,
                        packed, y);
  }
  const Maps m(p);
  const auto run = [&](auto kernel, int lanes) {
    const Items items(m.outer, p.rows.output, p.columns.output, m.inner, lanes);
    return launch_items(kernel, items, stream, m, items, x, packed, y);
  };
  const bool vectors = has_vectors<T>(p, x, y, packed);
  if (is_two_by_two(p)) {
    return vectors ? run(gather_quad_lanes_kernel<T, V>, V)
                   : run(gather_quad_lanes_kernel<T, 1>, 1);
  }
  if (winners && !windows_disjoint(p)) return run(gather_kernel<T, 1, true>, 1);
  return vectors ? run(gather_kernel<T, V, false>, V) : run(gather_kernel<T, 1, false>, 1);
}

}  // namespace

int max_gather_cuda(const Pooling& p, const void* x, const uint8_t* packed, void* y, bool winners,
                    CUstream_st* stream) {
  return for_word(p.dtype, [&](auto word) {
    using T = decltype(word);
    return gather(p, static_cast<const T*>(x), packed, static_cast<T*>(y), winners, stream);
  });
}

}  // namespace segfast
