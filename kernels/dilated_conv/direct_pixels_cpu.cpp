// Direct depthwise convolution of maps [N, H, W, C], and its input's gradient: a pixel's sum over
// its live taps, for vectors of channels.
#include "direct_correlate.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename S, typename T>
struct Scratch {
  Correlation c;
  T *source, *target;  // [live rows, columns, channels], [columns, channels]; null: used in place
  T* bias;             // [G]
  Term* terms;

  Scratch(const DilatedConv& p, bool of_gradient, Arena* arena)
      : c(correlation_of(p, of_gradient, kLanes<T>, arena)) {
    source = kInPlace<S> ? nullptr : arena->take<T>(p.rows.taps * c.source_columns * kChannels);
    target = kInPlace<S> ? nullptr : arena->take<T>(c.target_columns * kChannels);
    bias = arena->take<T>(p.groups);
    terms = arena->take<Term>(taps(p));
  }
};

// Items are (map, block of channels, target row).
template <typename S, typename T>
void correlate_rows(const DilatedConv& p, bool of_gradient, const S* sources, const T* weights,
                    const S* bias, S* targets, int64_t begin, int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, of_gradient, arena);
  const Correlation& c = s.c;
  const int64_t blocks = channel_blocks(p);
  const int64_t source_row = c.source_columns * p.groups, target_row = c.target_columns * p.groups;
  for (int64_t g = 0; g < p.groups; ++g) s.bias[g] = bias == nullptr ? T(0) : widen(bias[g]);
  for (int64_t item = begin; item < end;) {
    const int64_t row = item % c.target_rows;
    const int64_t map = item / c.target_rows / blocks, position = row / c.rows.count;
    const Channels channels = channels_of(p, item / c.target_rows % blocks);
    const int64_t at = channels.begin, count = channels.count;
    const Line& line = c.rows.line[row % c.rows.count];
    const Span live = live_taps(line, position);
    const S* x = sources + map * c.source_rows * source_row + at;
    S* y = targets + (map * c.target_rows + row) * target_row + at;
    Walk rows{1, line.step * source_row, target_row};
    if constexpr (kInPlace<S>) {
      if (c.rows.count == 1) rows.count = smaller(smaller(kBand, end - item), live.end - position);
      correlate_band(p, c, line, live, position, false, rows, x, p.groups, weights + at,
                     s.bias + at, y, p.groups, count, s.terms);
    } else {
      for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
        stage_pixels(x + (position * line.step + line.tap[i].first) * source_row, c.source_columns,
                     p.groups, count, s.source + (i - live.first_tap) * c.source_columns * count);
      }
      correlate_band(p, c, line, live, position, true, rows, s.source, count, weights + at,
                     s.bias + at, s.target, count, count, s.terms);
      unstage_pixels(s.target, c.target_columns, p.groups, count, y);
    }
    item += rows.count;
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return pixels_grad_weight_items(p);
  const int64_t rows = direction == Direction::forward ? p.rows.output : p.rows.input;
  return p.batch * channel_blocks(p) * rows;
}

// A band; the channels of some rows.
int64_t together(const DilatedConv& p, Direction direction) {
  return direction == Direction::grad_weight ? channel_blocks(p) : kBand;
}

int64_t scratch(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return pixels_grad_weight_scratch(p);
  return bytes_of<Scratch>(p, direction == Direction::grad_input);
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

// [kh kw, G]
void arrange_pixels(const DilatedConv& p, const void* weight, void* arranged) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    const auto* from = static_cast<const decltype(element)*>(weight);
    auto* to = static_cast<decltype(sum)*>(arranged);
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t g = 0; g < p.groups; ++g) to[t * p.groups + g] = widen(from[g * taps(p) + t]);
    }
  });
}

extern const DirectKernels direct_pixels = {
    items,        together,           scratch,     arrange_pixels, forward, grad_input,
    pixels_parts, pixels_grad_weight, pixels_merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
