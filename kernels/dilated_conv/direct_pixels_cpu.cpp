// Direct depthwise convolution of maps [N, H, W, C], and its input's gradient: a pixel's sum over
// its live taps, for vectors of channels.
#include "direct_pixels.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Target rows from source rows.
struct Correlation {
  int64_t source_rows, source_columns, target_rows, target_columns;
  Lines rows, columns;
};

Correlation correlation_of(const DilatedConv& p, bool of_gradient, int lanes, Arena* arena) {
  const Axis &r = p.rows, &c = p.columns;
  return {of_gradient ? r.output : r.input,
          of_gradient ? c.output : c.input,
          of_gradient ? r.input : r.output,
          of_gradient ? c.input : c.output,
          LineMaker(arena, r, lanes, of_gradient).lines(),
          LineMaker(arena, c, lanes, of_gradient).lines()};
}

// A product of the sum: weights[weight] * x[position + offset].
struct Term {
  int64_t offset, weight;
};

template <typename S, typename T>
struct Scratch {
  Correlation c;
  T *source, *target;  // [live rows, columns, channels], [columns, channels]; null: used in place
  T* bias;             // [G]
  Term* terms;

  Scratch(const DilatedConv& p, bool of_gradient, Arena* arena)
      : c(correlation_of(p, of_gradient, kLanes<T>, arena)) {
    constexpr bool kInPlace = kSameType<S, T>;
    source = kInPlace ? nullptr : arena->take<T>(p.rows.taps * c.source_columns * kChannels);
    target = kInPlace ? nullptr : arena->take<T>(c.target_columns * kChannels);
    bias = arena->take<T>(p.groups);
    terms = arena->take<Term>(taps(p));
  }
};

// P pixels of V vectors: y = bias + sum of terms.
template <int N, int V, int P, typename T>
SEGFAST_INLINE void tile(const Term* term, int64_t terms, const T* weights, const T* bias,
                         const T* x, int64_t x_step, T* y, int64_t y_step) {
  Vec<T, N> sum[P][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const Vec<T, N> start = load<N>(bias + v * N);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p][v] = start;
  }
  for (int64_t t = 0; t < terms; ++t) {
    const T* from = x + term[t].offset;
    const T* w = weights + term[t].weight;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T, N> weight = load<N>(w + v * N);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][v] += weight * load<N>(from + p * x_step + v * N);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<N>(y + p * y_step + v * N, sum[p][v]);
  }
}

// Positions [begin, end) of a row with one set of taps, P of them at a time. x, y: position 0.
template <int P = kVectorRegisters >= 32 ? 8 : 4, typename T>
SEGFAST_INLINE void pixels(int64_t begin, int64_t end, int64_t channels, const Term* term,
                           int64_t terms, const T* weights, const T* bias, const T* x,
                           int64_t x_step, T* y, int64_t y_step) {
  if constexpr (P > 1) {
    if (end - begin < P) {
      return pixels<P / 2>(begin, end, channels, term, terms, weights, bias, x, x_step, y, y_step);
    }
  }
  for (int64_t m = begin; m < end; m += P) {
    if (end - m < P) m = end - P;  // some of them once more
    const T* from = x + m * x_step;
    T* to = y + m * y_step;
    for_channels<kLanes<T>>(
        0, channels, [&](int64_t c, auto vectors, auto lanes) __attribute__((always_inline)) {
          constexpr int V = decltype(vectors)::value, N = decltype(lanes)::value;
          tile<N, V, P>(term, terms, weights + c, bias + c, from + c, x_step, to + c, y_step);
        });
  }
}

// Row `row` of a map, some channels of it. x: row 0 of the map, or the live rows in scratch.
template <typename T>
void correlate_row(const DilatedConv& p, const Correlation& c, const Line& rows, const Span& live,
                   int64_t position, bool in_scratch, const T* x, int64_t x_pixel, const T* weights,
                   const T* bias, T* y, int64_t y_pixel, int64_t channels, Term* terms) {
  for (int64_t phase = 0; phase < c.columns.count; ++phase) {
    const Line& columns = c.columns.line[phase];
    for (int64_t k = 0; k < columns.spans; ++k) {
      const Span& span = columns.span[k];
      int64_t count = 0;
      for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
        const LineTap& row = rows.tap[i];
        const int64_t source_row =
            in_scratch ? i - live.first_tap : position * rows.step + row.first;
        for (int64_t j = span.first_tap; j < span.last_tap; ++j) {
          const LineTap& column = columns.tap[j];
          terms[count++] = {(source_row * c.source_columns + column.first) * x_pixel,
                            (row.tap * p.columns.taps + column.tap) * p.groups};
        }
      }
      pixels(span.begin, span.end, channels, terms, count, weights, bias, x, columns.step * x_pixel,
             y + phase * y_pixel, c.columns.count * y_pixel);
    }
  }
}

// Items are (map, block of channels, target row).
template <typename S, typename T>
void correlate_rows(const DilatedConv& p, bool of_gradient, const S* sources, const T* weights,
                    const S* bias, S* targets, int64_t begin, int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, of_gradient, arena);
  const Correlation& c = s.c;
  const int64_t blocks = channel_blocks(p);
  const int64_t source_row = c.source_columns * p.groups, target_row = c.target_columns * p.groups;
  for (int64_t g = 0; g < p.groups; ++g) s.bias[g] = bias == nullptr ? T(0) : widen(bias[g]);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item % c.target_rows;
    const int64_t map = item / c.target_rows / blocks, position = row / c.rows.count;
    const Channels channels = channels_of(p, item / c.target_rows % blocks);
    const int64_t at = channels.begin, count = channels.count;
    const Line& rows = c.rows.line[row % c.rows.count];
    const Span live = live_taps(rows, position);
    const S* x = sources + map * c.source_rows * source_row + at;
    S* y = targets + (map * c.target_rows + row) * target_row + at;
    if constexpr (kSameType<S, T>) {
      correlate_row(p, c, rows, live, position, false, x, p.groups, weights + at, s.bias + at, y,
                    p.groups, count, s.terms);
    } else {
      for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
        stage_pixels(x + (position * rows.step + rows.tap[i].first) * source_row, c.source_columns,
                     p.groups, count, s.source + (i - live.first_tap) * c.source_columns * count);
      }
      correlate_row(p, c, rows, live, position, true, s.source, count, weights + at, s.bias + at,
                    s.target, count, count, s.terms);
      unstage_pixels(s.target, c.target_columns, p.groups, count, y);
    }
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return pixels_grad_weight_items(p);
  const int64_t rows = direction == Direction::forward ? p.rows.output : p.rows.input;
  return p.batch * channel_blocks(p) * rows;
}

int64_t scratch(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return pixels_grad_weight_scratch(p);
  return bytes_of<Scratch>(p, direction == Direction::grad_input);
}

// [kh kw, G]
void arrange(const DilatedConv& p, const void* weight, void* arranged) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    const auto* from = static_cast<const decltype(element)*>(weight);
    auto* to = static_cast<decltype(sum)*>(arranged);
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t g = 0; g < p.groups; ++g) to[t * p.groups + g] = widen(from[g * taps(p) + t]);
    }
  });
}

void forward(const DilatedConv& p, const void* x, const void* weights, const void* bias, void* y,
             int64_t begin, int64_t end, void* memory) {
  with_maps(p.dtype, x, weights, bias, y, [&](auto x, auto weights, auto bias, auto y) {
    Arena arena(memory);
    correlate_rows(p, false, x, weights, bias, y, begin, end, &arena);
  });
}

void grad_input(const DilatedConv& p, const void* grad, const void* weights, void* x, int64_t begin,
                int64_t end, void* memory) {
  with_maps(p.dtype, grad, weights, nullptr, x, [&](auto grad, auto weights, auto none, auto x) {
    Arena arena(memory);
    correlate_rows(p, true, grad, weights, none, x, begin, end, &arena);
  });
}

}  // namespace

extern const DirectKernels direct_pixels = {
    items, scratch, arrange, forward, grad_input, pixels_parts, pixels_grad_weight, pixels_merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
