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
  Lines rows, columns;  // a line each
  int64_t* offsets;     // [taps]
  T** sums;             // [taps]

  ProductLines(const DilatedConv& p, Arena* arena)
      : rows(LineMaker(arena, p.rows, 1, false).lines()),
        columns(LineMaker(arena, p.columns, 1, false).lines()) {
    offsets = arena->take<int64_t>(taps(p));
    sums = arena->take<T*>(taps(p));
  }
};

// part [kh kw, G]: some channels
template <typename T>
void clear(const DilatedConv& p, int64_t channels, T* part) {
  for (int64_t t = 0; t < taps(p); ++t) {
    for (int64_t c = 0; c < channels; ++c) part[t * p.groups + c] = 0;
  }
}

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
    for (int b = 0; b < B; ++b) multiply_add(grad, L::read(x + offset[b]), &sum[b]);
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

// One row of g, some channels of it. x: from row `first_row` of the map on.
template <typename S, typename T>
void add_row(const DilatedConv& p, const ProductLines<T>& s, int64_t position, const S* g,
             const S* x, int64_t first_row, int64_t pixel, int64_t channels, T* part) {
  const Line &rows = *s.rows.line, &columns = *s.columns.line;
  const Span live = live_taps(rows, position);
  for (int64_t k = 0; k < columns.spans; ++k) {
    const Span& span = columns.span[k];
    int64_t count = 0;
    for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
      const LineTap& row = rows.tap[i];
      const int64_t x_row = position * rows.step + row.first - first_row;
      for (int64_t j = span.first_tap; j < span.last_tap; ++j) {
        const LineTap& column = columns.tap[j];
        s.offsets[count] = (x_row * p.columns.input + column.first) * pixel;
        s.sums[count++] = part + (row.tap * p.columns.taps + column.tap) * p.groups;
      }
    }
    const S* from = x + span.begin * columns.step * pixel;
    for (int64_t t = 0; t < count; t += kMostTaps) {
      const int64_t some = smaller(kMostTaps, count - t);
      for_channels<kLanes<T>, 2>(
          0, channels, [&](int64_t c, auto vectors, auto lanes) __attribute__((always_inline)) {
            constexpr int V = decltype(vectors)::value, N = decltype(lanes)::value;
            products_of<N, V, kMostTaps>(some, g + span.begin * pixel + c, pixel, from + c,
                                         columns.step * pixel, span.end - span.begin, s.offsets + t,
                                         s.sums + t, c);
          });
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
