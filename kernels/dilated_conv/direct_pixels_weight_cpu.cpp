// The weight's gradient for maps [N, H, W, C], one channel per group: products of pixels, summed in
// registers over a run of a row, then over the rows of a chunk; chunks are merged in their order.
#include "direct_pixels.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Whose sums, two vectors each, stay in registers.
constexpr int kMostTaps = kVectorRegisters >= 32 ? 9 : 6;
constexpr int64_t kItems = 32;           // to share among threads, where there is work for them
constexpr int64_t kMostAdded = 1 << 14;  // positions summed one after the other, or one row

// Rows of all maps, cut by the problem's size alone.
struct Chunks {
  int64_t rows, count;

  explicit Chunks(const DilatedConv& p) {
    const int64_t all = p.batch * p.rows.output;
    const int64_t wanted =
        larger(divide_up(kItems, channel_blocks(p)), divide_up(all * p.columns.output, kMostAdded));
    rows = larger(1, divide_up(all, wanted));
    count = larger(1, divide_up(all, rows));
  }
};

template <typename S, typename T>
struct Scratch {
  Line rows, columns;
  T *x, *g;          // [live rows, columns, channels], [columns, channels]; null: used in place
  int64_t* offsets;  // [taps]
  T** sums;          // [taps]

  Scratch(const DilatedConv& p, Arena* arena) {
    const Lines row_lines = LineMaker(arena, p.rows, 1, false).lines();
    const Lines column_lines = LineMaker(arena, p.columns, 1, false).lines();
    x = kInPlace<S> ? nullptr : arena->take<T>(p.rows.taps * p.columns.input * kChannels);
    g = kInPlace<S> ? nullptr : arena->take<T>(p.columns.output * kChannels);
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
template <typename S, typename E, typename T>
void add_row(const DilatedConv& p, const Scratch<S, T>& s, const Span& live, int64_t position,
             bool in_scratch, const E* g, const E* x, int64_t pixel, int64_t channels, T* part) {
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
    const E* from = x + span.begin * s.columns.step * pixel;
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

// Items are (chunk of rows, block of channels).
template <typename S, typename T>
void grad_weight_of(const DilatedConv& p, const S* grads, const S* maps, T* parts, int64_t begin,
                    int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, arena);
  const Chunks chunks(p);
  const int64_t blocks = channel_blocks(p), x_row = p.columns.input * p.groups;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / blocks;
    const Channels channels = channels_of(p, item % blocks);
    const int64_t at = channels.begin, count = channels.count;
    T* part = parts + chunk * taps(p) * p.groups + at;
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t c = 0; c < count; ++c) part[t * p.groups + c] = 0;
    }
    const int64_t last = smaller(p.batch * p.rows.output, (chunk + 1) * chunks.rows);
    for (int64_t k = chunk * chunks.rows; k < last; ++k) {
      const int64_t map = k / p.rows.output;
      const int64_t position = k % p.rows.output;
      const Span live = live_taps(s.rows, position);
      const S* x = maps + map * p.rows.input * x_row + at;
      const S* g = grads + (map * p.rows.output + position) * p.columns.output * p.groups + at;
      if constexpr (kInPlace<S>) {
        add_row(p, s, live, position, false, g, x, p.groups, count, part);
      } else {
        stage_pixels(g, p.columns.output, p.groups, count, s.g);
        for (int64_t i = live.first_tap; i < live.last_tap; ++i) {
          stage_pixels(x + (position * s.rows.step + s.rows.tap[i].first) * x_row, p.columns.input,
                       p.groups, count, s.x + (i - live.first_tap) * p.columns.input * count);
        }
        add_row(p, s, live, position, true, s.g, s.x, count, count, part);
      }
    }
  }
}

}  // namespace

int64_t pixels_parts(const DilatedConv& p) { return Chunks(p).count; }

int64_t pixels_grad_weight_items(const DilatedConv& p) {
  return Chunks(p).count * channel_blocks(p);
}

int64_t pixels_grad_weight_scratch(const DilatedConv& p) { return bytes_of<Scratch>(p); }

void pixels_grad_weight(const DilatedConv& p, const void* grad, const void* x, void* sums,
                        int64_t begin, int64_t end, void* memory) {
  with_sums(p.dtype, grad, x, sums, [&](auto grad, auto x, auto sums) {
    Arena arena(memory);
    grad_weight_of(p, grad, x, sums, begin, end, &arena);
  });
}

void pixels_merge(const DilatedConv& p, void* sums, void* weight) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    T* total = static_cast<T*>(sums);  // [kh kw, G], as each part
    auto* to = static_cast<decltype(element)*>(weight);
    const int64_t parts = pixels_parts(p), part = taps(p) * p.groups;
    for (int64_t k = 1; k < parts; ++k) {
      for (int64_t i = 0; i < part; ++i) total[i] += total[k * part + i];
    }
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t g = 0; g < p.groups; ++g) narrow(total[t * p.groups + g], to + g * taps(p) + t);
    }
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
