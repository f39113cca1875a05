// Visits the positions of windows in row-major order, a vector of windows at a time: neighbouring
// columns of a plane, or the channels of one pixel.
//
// An Op says what is done with the elements found. Op::State<N> is what N windows keep in
// registers:
//
//   State(op, at, first)   at: place in the chunk; first: the first offset inside the input
//   visit(values, offset)
//   finish(op, at)
//
// K and Stride are known to the compiler where they are not 0 (square, dilation 1).
#pragma once

#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <int N, int First, typename V, int... K>
SEGFAST_INLINE V every_other(V a, V b, std::integer_sequence<int, K...>) {
  return pick<(2 * K + First)...>(a, b);
}

// Elements row[column + stride * k], k in [0, N). With stride 2, windows of at least two columns
// are assumed: nothing outside of them is touched.
template <int N, int Stride, typename W>
SEGFAST_INLINE Vec<W, N> load_columns(const W* row, int64_t column, int64_t stride) {
  if constexpr (N == 1 || Stride == 1) {
    return load<N>(row + column);
  } else if constexpr (Stride == 2) {
    constexpr auto lanes = std::make_integer_sequence<int, N>{};
    if (column == 0) return every_other<N, 0>(load<N>(row), load<N>(row + N), lanes);
    const W* p = row + column - 1;
    return every_other<N, 1>(load<N>(p), load<N>(p + N), lanes);
  } else {
    Vec<W, N> v;
    for (int k = 0; k < N; ++k) v[k] = row[column + k * stride];
    return v;
  }
}

// Windows [begin, end) of output row `ho` in a plane x [H, W].
template <int K, int Stride, typename W, typename Op>
SEGFAST_INLINE void visit_columns(const Pooling& p, const W* x, int64_t ho, Range chunk, Op& op) {
  const PoolAxis &rows = p.rows, &columns = p.columns;
  const int64_t kernel = K ? K : columns.kernel;
  const int64_t dilation = K ? 1 : columns.dilation, stride = Stride ? Stride : columns.stride;
  const int64_t top = window_start(rows, ho);
  const Range i = inside(rows, top);

  const auto visit = [&](int64_t wo, auto width, Range j) __attribute__((always_inline)) {
    constexpr int N = decltype(width)::value;
    const W* row = x + (top + i.begin * rows.dilation) * columns.input + window_start(columns, wo);
    typename Op::template State<N> state(op, wo - chunk.begin, i.begin * kernel + j.begin);
    for (int64_t a = i.begin; a < i.end; ++a, row += rows.dilation * columns.input) {
#pragma GCC unroll 4
      for (int64_t b = j.begin; b < j.end; ++b) {
        state.visit(load_columns<N, Stride>(row, b * dilation, stride), a * kernel + b);
      }
    }
    state.finish(op, wo - chunk.begin);
  };
  const auto visit_clipped = [&](int64_t wo) {
    visit(wo, Width<1>{}, inside(columns, window_start(columns, wo)));
  };

  const Range whole = whole_windows(columns);
  const int64_t from = larger(whole.begin, chunk.begin), to = smaller(whole.end, chunk.end);
  for (int64_t wo = chunk.begin; wo < smaller(from, chunk.end); ++wo) visit_clipped(wo);
  for_each_group<W>(from, to, [&](int64_t wo, auto width) __attribute__((always_inline)) {
    visit(wo, width, {0, kernel});
  });
  for (int64_t wo = larger(to, from); wo < chunk.end; ++wo) visit_clipped(wo);
}

// Channels [begin, end) of the window of output (ho, wo) in an image x [H, W, C].
template <int K, typename W, typename Op>
SEGFAST_INLINE void visit_channels(const Pooling& p, const W* x, int64_t ho, int64_t wo,
                                   Range chunk, Op& op) {
  const PoolAxis &rows = p.rows, &columns = p.columns;
  const int64_t kernel = K ? K : columns.kernel, dilation = K ? 1 : columns.dilation;
  const int64_t top = window_start(rows, ho), left = window_start(columns, wo);
  const Range i = inside(rows, top), j = inside(columns, left);
  const int64_t line = rows.dilation * columns.input * p.channels;
  const W* first = x + ((top + i.begin * rows.dilation) * columns.input + left) * p.channels;

  const auto visit = [&](Range j) __attribute__((always_inline)) {
    for_each_group<W>(
        chunk.begin, chunk.end, [&](int64_t c, auto width) __attribute__((always_inline)) {
          constexpr int N = decltype(width)::value;
          typename Op::template State<N> state(op, c - chunk.begin, i.begin * kernel + j.begin);
          const W* row = first + c;
          for (int64_t a = i.begin; a < i.end; ++a, row += line) {
#pragma GCC unroll 4
            for (int64_t b = j.begin; b < j.end; ++b) {
              state.visit(load<N>(row + b * dilation * p.channels), a * kernel + b);
            }
          }
          state.finish(op, c - chunk.begin);
        });
  };
  j.end - j.begin == kernel ? visit({0, kernel}) : visit(j);
}

template <typename F>
SEGFAST_INLINE void for_each_chunk(int64_t count, const F& f) {
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    f(Range{begin, smaller(begin + kChunk, count)});
  }
}

// f(K tag, stride tag) with what the compiler should know of the geometry.
template <typename F>
SEGFAST_INLINE void for_geometry(const Pooling& p, const F& f) {
  const PoolAxis &r = p.rows, &c = p.columns;
  const bool square = r.kernel == c.kernel && c.dilation == 1;
  if (square && c.kernel == 2 && c.stride == 2) return f(Width<2>{}, Width<2>{});
  if (square && c.kernel == 3 && c.stride == 2) return f(Width<3>{}, Width<2>{});
  if (c.stride == 1) return f(Width<0>{}, Width<1>{});
  if (c.stride == 2 && c.kernel >= 2) return f(Width<0>{}, Width<2>{});
  f(Width<0>{}, Width<0>{});
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
