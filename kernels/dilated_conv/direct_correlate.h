// Sums over live taps of pixels that lie in memory as [rows, columns, channels]: tiles of pixels in
// registers, bands of rows.
#pragma once

#include "direct_pixels.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kBand = 8;         // rows that are computed together
constexpr int64_t kCacheWay = 4096;  // bytes; pixels that far apart take each other's cache lines
constexpr int kPixels = kVectorRegisters >= 32 ? 8 : 4;  // whose sums stay in registers

// Target rows from source rows.
struct Correlation {
  int64_t source_rows, source_columns, target_rows, target_columns;
  Lines rows, columns;
};

Correlation correlation_of(const DilatedConv& p, bool of_gradient, Arena* arena) {
  const Axis &r = p.rows, &c = p.columns;
  return {of_gradient ? r.output : r.input,
          of_gradient ? c.output : c.input,
          of_gradient ? r.input : r.output,
          of_gradient ? c.input : c.output,
          LineMaker(arena, r, 1, of_gradient).lines(),
          LineMaker(arena, c, 1, of_gradient).lines()};
}

// to [count]: of channels from `at` on
template <typename S, typename T>
void widen_bias(const S* bias, int64_t at, int64_t count, T* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = bias == nullptr ? T(0) : widen(bias[at + c]);
}

// A product of the sum: weights[weight] * x[position + offset].
struct Term {
  int64_t offset, weight;
};

// The terms of some pixels. Runs of `row` consecutive ones are taps of a row, whose sources are
// those of neighbouring pixels, too; 0: of which this is not known.
struct Terms {
  const Term* term;
  int64_t count, row;
};

// sums += terms in their order, for P pixels.
template <int P, typename L, typename S, typename T>
SEGFAST_INLINE void add_terms(const Terms& terms, const T* weights, const S* x, int64_t x_step,
                              L (&sum)[P]) {
  for (int64_t t = 0; t < terms.count; ++t) {
    const S* from = x + terms.term[t].offset;
    const L weight = L::read_sums(weights + terms.term[t].weight);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) multiply_add(weight, L::read(from + p * x_step), &sum[p]);
  }
}

// The same for rows of K taps: each source is read once, for all pixels that take it.
template <int K, int P, typename L, typename S, typename T>
SEGFAST_INLINE void add_rows(const Terms& terms, const T* weights, const S* x, int64_t x_step,
                             L (&sum)[P]) {
  for (int64_t t = 0; t < terms.count; t += K) {
    const S* from = x + terms.term[t].offset;
    L weight[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) weight[k] = L::read_sums(weights + terms.term[t + k].weight);
#pragma GCC unroll 16
    for (int q = 0; q < P + K - 1; ++q) {
      const L source = L::read(from + q * x_step);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        if (q - k >= 0 && q - k < P) multiply_add(weight[k], source, &sum[q - k]);
      }
    }
  }
}

// P pixels of V vectors: y = bias + sum of terms.
template <int N, int V, int P, typename S, typename T>
SEGFAST_INLINE void tile(const Terms& terms, const T* weights, const T* bias, const S* x,
                         int64_t x_step, S* y, int64_t y_step) {
  using L = Lanes<S, N, V>;
  L sum[P];
  const L start = L::read_sums(bias);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) sum[p] = start;
  if constexpr (P == kPixels && V == 2 && N == kLanes<T>) {
    switch (terms.row) {
      case 3:
        add_rows<3>(terms, weights, x, x_step, sum);
        break;
      case 5:
        add_rows<5>(terms, weights, x, x_step, sum);
        break;
      case 7:
        add_rows<7>(terms, weights, x, x_step, sum);
        break;
      default:
        add_terms(terms, weights, x, x_step, sum);
    }
  } else {
    add_terms(terms, weights, x, x_step, sum);
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) sum[p].write(y + p * y_step);
}

// Positions [m, count) of a line with one set of taps, P at a time; some before m perhaps once
// more.
template <int P = kPixels, typename S, typename T>
SEGFAST_INLINE void pixels(int64_t m, int64_t count, int64_t channels, const Terms& terms,
                           const T* weights, const T* bias, const S* x, int64_t x_step, S* y,
                           int64_t y_step) {
  for (; count - m > P / 2 && count >= P; m += P) {
    const int64_t at = smaller(m, count - P);
    const S* from = x + at * x_step;
    S* to = y + at * y_step;
    const S* next = from + P * x_step + (terms.count > 0 ? terms.term[terms.count - 1].offset : 0);
    for_channels<kLanes<T>, 2>(
        0, channels, [&](int64_t c, auto vectors, auto lanes) __attribute__((always_inline)) {
          constexpr int V = decltype(vectors)::value, N = decltype(lanes)::value;
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) __builtin_prefetch(next + c + p * x_step);
          tile<N, V, P>(terms, weights + c, bias + c, from + c, x_step, to + c, y_step);
        });
  }
  if constexpr (P > 1) {
    if (m < count) {
      pixels<P / 2>(m, count, channels, terms, weights, bias, x, x_step, y, y_step);
    }
  }
}

// Positions along a line of a map.
struct Walk {
  int64_t count, x_step, y_step;
};

// How many positions apart pixels share sources: one's tap reads what the other's next tap reads.
// 0: not worth it.
int64_t sharing(const Line& line, const Span& span, const Walk& walk, int64_t bytes) {
  if (span.last_tap - span.first_tap < 2) return 0;
  const LineTap* tap = line.tap + span.first_tap;
  const int64_t distance = tap[1].first - tap[0].first, apart = distance / line.step;
  if (distance % line.step != 0 || walk.count < apart * kPixels) return 0;
  const bool collide = apart > 1 && apart * walk.x_step * bytes % kCacheWay == 0;
  return collide ? 0 : apart;
}

// Some channels of maps.
template <typename S, typename T>
struct Operands {
  const S* x;  // from source row `first_row` on
  int64_t first_row, x_pixel;
  const T *weights, *bias;
  S* y;  // from the first of the target rows on
  int64_t y_pixel, channels;
};

// Target rows [position, position + rows.count) of one line, which have the same live taps.
template <typename S, typename T>
void correlate_band(const DilatedConv& p, const Correlation& c, const Line& line, int64_t position,
                    const Walk& rows, const Operands<S, T>& o, Term* terms) {
  const Span live = live_taps(line, position);
  for (int64_t phase = 0; phase < c.columns.count; ++phase) {
    const Line& columns = c.columns.line[phase];
    for (int64_t k = 0; k < columns.spans; ++k) {
      const Span& span = columns.span[k];
      int64_t count = 0;
      for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
        const LineTap& row = line.tap[i];
        const int64_t source_row = position * line.step + row.first - o.first_row;
        for (int64_t j = span.first_tap; j < span.last_tap; ++j) {
          const LineTap& column = columns.tap[j];
          terms[count++] = {(source_row * c.source_columns + column.first) * o.x_pixel,
                            (row.tap * p.columns.taps + column.tap) * p.groups};
        }
      }
      const Walk row{span.end - span.begin, columns.step * o.x_pixel, c.columns.count * o.y_pixel};
      const S* x = o.x + span.begin * row.x_step;
      S* y = o.y + phase * o.y_pixel + span.begin * row.y_step;
      const bool upright = row.count < rows.count;  // at an edge of the map
      const Walk &along = upright ? rows : row, &across = upright ? row : rows;
      const int64_t apart = upright ? 0 : sharing(columns, span, row, sizeof(S));
      const Terms given{terms, count, apart > 0 ? span.last_tap - span.first_tap : 0};
      const int64_t parts = larger(1, apart);
      for (int64_t i = 0; i < across.count; ++i) {
        for (int64_t part = 0; part < parts; ++part) {
          pixels(0, divide_up(along.count - part, parts), o.channels, given, o.weights, o.bias,
                 x + i * across.x_step + part * along.x_step, parts * along.x_step,
                 y + i * across.y_step + part * along.y_step, parts * along.y_step);
        }
      }
    }
  }
}

// How many rows from `position` on have the same live taps: kBand at most, `most` at most.
int64_t band_of(const Lines& lines, const Line& line, int64_t position, int64_t most) {
  if (lines.count > 1) return 1;
  return smaller(smaller(kBand, most), live_taps(line, position).end - position);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
