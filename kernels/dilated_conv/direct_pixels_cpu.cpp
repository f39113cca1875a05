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
  T* bias;  // [kChannels]
  Term* terms;

  Scratch(const DilatedConv& p, bool of_gradient, Arena* arena)
      : c(correlation_of(p, of_gradient, arena)) {
    bias = arena->take<T>(kChannels);
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
  for (int64_t item = begin; item < end;) {
    const int64_t row = item % c.target_rows, position = row / c.rows.count;
    const int64_t map = item / c.target_rows / blocks;
    const Channels channels = channels_of(p, item / c.target_rows % blocks);
    const int64_t at = channels.begin;
    widen_bias(bias, at, channels.count, s.bias);
    const Line& line = c.rows.line[row % c.rows.count];
    const Walk rows{band_of(c.rows, line, position, end - item), line.step * source_row,
                    target_row};
    correlate_band<S, T>(
        p, c, line, position, rows,
        {sources + map * c.source_rows * source_row + at, 0, p.groups, weights + at, s.bias,
         targets + (map * c.target_rows + row) * target_row + at, p.groups, channels.count},
        s.terms);
    item += rows.count;
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return pixels_grad_weight_items(p);
  const int64_t rows = direction == Direction::forward ? p.rows.output : p.rows.input;
  return p.batch * channel_blocks(p) * rows;
}

// About a band; the channels of some rows.
int64_t together(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return channel_blocks(p);
  constexpr int64_t kFewest = 8;  // turns for threads to share
  return larger(1, smaller(kBand, items(p, direction) / kFewest));
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
void pixels_arrange(const DilatedConv& p, const void* weight, void* arranged) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    const auto* from = static_cast<const decltype(element)*>(weight);
    auto* to = static_cast<decltype(sum)*>(arranged);
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t g = 0; g < p.groups; ++g) to[t * p.groups + g] = widen(from[g * taps(p) + t]);
    }
  });
}

extern const DirectKernels direct_pixels = {
    items,        together,           scratch,     pixels_arrange, forward, grad_input,
    pixels_parts, pixels_grad_weight, pixels_merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
