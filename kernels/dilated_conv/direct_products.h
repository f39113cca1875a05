// The weight's gradient from pixels that lie in memory as [rows, columns, channels]: products
// summed in registers over a run of a row.
#pragma once

#include "direct_pixels.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Whose sums, two vectors each, stay in registers.
constexpr int kMostTaps = kVectorRegisters >= 32 ? 9 : 6;

template <typename T>
struct ProductLines {
  Line rows, columns;
  int64_t* offsets;  // [taps]
  T** sums;          // [taps]

  ProductLines(const DilatedConv& p, Arena* arena) {
    const Lines row_lines = LineMaker(arena, p.rows, 1, false).lines();
    const Lines column_lines = LineMaker(arena, p.columns, 1, false).lines();
    offsets = arena->take<int64_t>(taps(p));
    sums = arena->take<T*>(taps(p));
    if (arena->counts()) return;
    rows = *row_lines.line;
    columns = *column_lines.line;
  }
};

// B taps' sums over a run of pixels.
template <int N, int V, int B, typename S, typename T>
SEGFAST_INLINE void products(const S* g, int64_t g_step, const S* x, int64_t x_step, int64_t run,
                             const int64_t* offset, T* const* sums, int64_t channel) {
  using L = Lanes<S, N, V>;
  L sum[B];
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) sum[b] = L::read_sums(sums[b] + channel);
  for (int64_t m = 0; m < run; ++m, g += g_step, x += x_step) {
    const L grad = L::read(g);
#pragma GCC unroll 9
    for (int b = 0; b < B; ++b) {
      const L factor = L::read(x + offset[b]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[b].v[v] += grad.v[v] * factor.v[v];
    }
  }
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) sum[b].write_sums(sums[b] + channel);
}

template <int N, int V, int B, typename S, typename T>
void products_of(int64_t count, const S* g, int64_t g_step, const S* x, int64_t x_step, int64_t run,
                 const int64_t* offset, T* const* sums, int64_t channel) {
  if constexpr (B > 1) {
    if (count < B) {
      return products_of<N, V, B - 1>(count, g, g_step, x, x_step, run, offset, sums, channel);
    }
  }
  products<N, V, B>(g, g_step, x, x_step, run, offset, sums, channel);
}

// One row of g, some channels of it. x: row 0 of the map, or the live rows in scratch.
template <typename S, typename T>
void add_row(const DilatedConv& p, const ProductLines<T>& s, const Span& live, int64_t position,
             bool in_scratch, const S* g, const S* x, int64_t pixel, int64_t channels, T* part) {
  for (int64_t k = 0; k < s.columns.spans; ++k) {
    const Span& span = s.columns.span[k];
    int64_t count = 0;
    for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
      const LineTap& row = s.rows.tap[i];
      const int64_t x_row = in_scratch ? i - live.first_tap : position * s.rows.step + row.first;
      for (int64_t j = span.first_tap; j < span.last_tap; ++j) {
        const LineTap& column = s.columns.tap[j];
        s.offsets[count] = (x_row * p.columns.input + column.first) * pixel;
        s.sums[count++] = part + (row.tap * p.columns.taps + column.tap) * p.groups;
      }
    }
    const S* from = x + span.begin * s.columns.step * pixel;
    for (int64_t t = 0; t < count; t += kMostTaps) {
      const int64_t some = smaller(kMostTaps, count - t);
      for_channels<kLanes<T>, 2>(
          0, channels, [&](int64_t c, auto vectors, auto lanes) __attribute__((always_inline)) {
            constexpr int V = decltype(vectors)::value, N = decltype(lanes)::value;
            products_of<N, V, kMostTaps>(some, g + span.begin * pixel + c, pixel, from + c,
                                         s.columns.step * pixel, span.end - span.begin,
                                         s.offsets + t, s.sums + t, c);
          });
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
