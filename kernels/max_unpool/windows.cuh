// What the CUDA kernels share: elements, vectors, where windows lie, which thread does what.
//
// Maps are x [outer, H, W, inner], y [outer, Ho, Wo, inner], packed [outer, Ho, Wp, inner]:
// channels_last is outer = N, inner = C, and NCHW is outer = N C, inner = 1. A thread serves V
// neighbours of the inner dimension.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "divide.cuh"
#include "lanes.cuh"
#include "launch.cuh"
#include "max_unpool_cuda.h"

namespace segfast {
namespace {

constexpr int kBlock = 256;

// ------------------------------------------------------------------------------------ elements

// What sums and comparisons are made in.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <int V, typename T, int N>
__device__ void load_by(const T* from, T (&to)[N]) {
#pragma unroll
  for (int n = 0; n < N; n += V) {
    const Lanes<T, V> part = load<V>(from + n);
#pragma unroll
    for (int v = 0; v < V; ++v) to[n + v] = part.at[v];
  }
}
template <int V, typename T, int N>
__device__ void store_by(T* to, const T (&from)[N]) {
#pragma unroll
  for (int n = 0; n < N; n += V) {
    Lanes<T, V> part;
#pragma unroll
    for (int v = 0; v < V; ++v) part.at[v] = from[n + v];
    store<V>(to + n, part);
  }
}

// f(V tag) for the widest access of up to N elements that `unit` bytes allow.
template <typename T, int N, typename F>
__device__ void by_unit(int unit, const F& f) {
  constexpr int V = N < kLanes<T> ? N : kLanes<T>;
  if (unit >= V * static_cast<int>(sizeof(T))) return f(std::integral_constant<int, V>{});
  if constexpr (V > 1) by_unit<T, V / 2>(unit, f);
}
template <typename T, int N>
__device__ void load_all(const T* from, int unit, T (&to)[N]) {
  by_unit<T, N>(unit, [&](auto v) { load_by<decltype(v)::value>(from, to); });
}
template <typename T, int N>
__device__ void store_all(T* to, int unit, const T (&from)[N]) {
  by_unit<T, N>(unit, [&](auto v) { store_by<decltype(v)::value>(to, from); });
}

// N neighbours of a row of which `valid` are there: `fill` in place of the others.
template <typename T, int N>
__device__ void load_row(const T* from, int unit, int64_t valid, T fill, T (&to)[N]) {
  if (valid >= N) return load_all(from, unit, to);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] = n < valid ? from[n] : fill;
}
template <typename T, int N>
__device__ void store_row(T* to, int unit, int64_t valid, const T (&from)[N]) {
  if (valid >= N) return store_all(to, unit, from);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n < valid) to[n] = from[n];
  }
}

// Bytes, a power of two up to kUnit, that divide the address of every row.
inline int row_unit(const void* map, int64_t row_bytes) {
  const uint64_t both = reinterpret_cast<uintptr_t>(map) | static_cast<uint64_t>(row_bytes);
  int unit = kUnit;
  while (both % unit != 0) unit /= 2;
  return unit;
}
inline bool is_aligned(const void* map, int bytes) {
  return reinterpret_cast<uintptr_t>(map) % bytes == 0;
}

// ------------------------------------------------------------------------------------ geometry

struct Range {
  int64_t begin, end;
};

__device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Axis : PoolAxis {
  int64_t extent;
  Divider by_stride, by_dilation;

  explicit Axis(const PoolAxis& axis)
      : PoolAxis(axis),
        extent(window_extent(axis)),
        by_stride(axis.stride),
        by_dilation(axis.dilation) {}

  __device__ int64_t start(int64_t window) const { return window * stride - padding; }
  // The offsets of a window, along this axis, that lie inside the map.
  __device__ Range inside(int64_t start) const {
    const int64_t begin = start < 0 ? by_dilation(dilation - 1 - start) : 0;
    const int64_t end = start < input ? by_dilation(input - start + dilation - 1) : 0;
    return {smaller(begin, kernel), smaller(end, kernel)};
  }
  // The windows that reach over a position.
  __device__ Range windows(int64_t position) const {
    const int64_t t = position + padding;
    return {t < extent ? 0 : by_stride(t - extent) + 1, smaller(by_stride(t) + 1, output)};
  }
  // The offset, along this axis, by which a window looks at a position; -1: none.
  __device__ int64_t offset(int64_t position, int64_t window) const {
    const int64_t distance = position - start(window);
    if (distance < 0 || distance >= extent) return -1;
    const int64_t offset = by_dilation(distance);
    return offset * dilation == distance ? offset : -1;
  }
};

struct Maps {
  int64_t outer, inner;
  Axis rows, columns;
  int bits;       // of an offset
  int64_t bytes;  // of a packed row
  Divider by_kernel;

  explicit Maps(const Pooling& p)
      : outer(segfast::maps(p)),
        inner(segfast::inner(p)),
        rows(p.rows),
        columns(p.columns),
        bits(offset_bits(p)),
        bytes(packed_row(p)),
        by_kernel(p.columns.kernel) {}

  __device__ int64_t at_x(int64_t image, int64_t row, int64_t column, int64_t lane) const {
    return ((image * rows.input + row) * columns.input + column) * inner + lane;
  }
  __device__ int64_t at_y(int64_t image, int64_t row, int64_t column, int64_t lane) const {
    return ((image * rows.output + row) * columns.output + column) * inner + lane;
  }
  // Of the byte that holds the offset of a column, which begins at bit shift().
  __device__ int64_t at_packed(int64_t image, int64_t row, int64_t column, int64_t lane) const {
    return ((image * rows.output + row) * bytes + (column * bits >> 3)) * inner + lane;
  }
  __device__ int shift(int64_t column) const { return static_cast<int>(column * bits & 7); }
  __device__ int offset(uint8_t byte, int64_t column) const {
    return byte >> shift(column) & ((1 << bits) - 1);
  }
};

// Where vectors of V channels can be loaded and stored.
template <typename T>
bool has_vectors(const Pooling& p, const void* x, const void* y, const uint8_t* packed) {
  return p.channels_last && p.channels % kLanes<T> == 0 && is_aligned(x, kUnit) &&
         is_aligned(y, kUnit) && is_aligned(packed, kLanes<T>);
}

// ------------------------------------------------------------------------------------- threads

struct Item {
  int64_t image, row, column, lane;
};

// One thread for each (image, row, column, group of lanes); the last varies fastest.
struct Items {
  int64_t count, lanes;
  Divider by_groups, by_columns, by_rows;

  Items(int64_t images, int64_t rows, int64_t columns, int64_t inner, int64_t lanes)
      : count(images * rows * columns * (inner / lanes)),
        lanes(lanes),
        by_groups(count > 0 ? inner / lanes : 1),
        by_columns(count > 0 ? columns : 1),
        by_rows(count > 0 ? rows : 1) {}

  __device__ Item at(int64_t thread) const {
    const int64_t pixel = by_groups(thread);
    const int64_t line = by_columns(pixel);
    const int64_t image = by_rows(line);
    return {image, line - image * by_rows.divisor, pixel - line * by_columns.divisor,
            (thread - pixel * by_groups.divisor) * lanes};
  }
};

template <typename... Params, typename... Args>
int launch_items(void (*kernel)(Params...), const Items& items, CUstream_st* stream,
                 Args&&... args) {
  return launch(kernel, Grid{ceil_div(items.count, kBlock)}, dim3(kBlock), 0, stream,
                std::forward<Args>(args)...);
}

// 2x2 windows side by side in a plane: a thread has the four of a packed byte, and the 2 x 8
// elements of x [rows, columns] below them.
struct Quads {
  int64_t image, row, column, window;  // the first row and column of x; the first window

  __device__ explicit Quads(const Item& item)
      : image(item.image), row(2 * item.row), column(8 * item.column), window(4 * item.column) {}

  // `fill` where x ends before.
  template <typename T>
  __device__ void load(const Maps& m, const T* x, int unit, T fill, T (&seen)[2][8]) const {
    const int64_t width = m.columns.input, valid = width - column;
    const T* from = x + m.at_x(image, row, column, 0);
    load_row(from, unit, row < m.rows.input ? valid : 0, fill, seen[0]);
    load_row(from + width, unit, row + 1 < m.rows.input ? valid : 0, fill, seen[1]);
  }
  template <typename T>
  __device__ void store(const Maps& m, T* x, int unit, const T (&values)[2][8]) const {
    const int64_t width = m.columns.input, valid = width - column;
    T* to = x + m.at_x(image, row, column, 0);
    store_row(to, unit, valid, values[0]);
    if (row + 1 < m.rows.input) store_row(to + width, unit, valid, values[1]);
  }
};

// kernel(maps, items, units of x and y, args...) for `rows` rows of `bytes` packed bytes in planes.
template <typename T, typename... Params, typename... Args>
int launch_quads(void (*kernel)(Params...), const Pooling& p, int64_t rows, int64_t bytes,
                 const T* x, const T* y, CUstream_st* stream, Args&&... args) {
  const Maps m(p);
  const Items items(m.outer, rows, bytes, 1, 1);
  const int64_t size = sizeof(T);
  return launch_items(kernel, items, stream, m, items, row_unit(x, p.columns.input * size),
                      row_unit(y, p.columns.output * size), std::forward<Args>(args)...);
}

// f(an element) as wide as those of the maps, where they are moved and not computed with.
template <typename F>
int for_word(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f64:
      return f(uint64_t{});
    case Dtype::f32:
      return f(uint32_t{});
    default:
      return f(uint16_t{});
  }
}
template <typename F>
int for_element(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f64:
      return f(double{});
    case Dtype::f32:
      return f(float{});
    case Dtype::f16:
      return f(__half{});
    default:
      return f(__nv_bfloat16{});
  }
}

}  // namespace
}  // namespace segfast
