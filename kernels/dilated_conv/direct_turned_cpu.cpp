// Direct depthwise convolution of narrow maps [N, C, H, W], and its input's gradient: some planes
// at a time are turned into pixels [H, W, channels] in scratch, and their results back.
#include "direct_correlate.h"
#include "direct_products.h"
#include "direct_turned.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kItems = 32;  // to share among threads, where there is work for them

template <typename T>
constexpr int64_t kPlanes = 2 * kLanes<T>;  // that are turned together

template <int N, typename S>
SEGFAST_INLINE auto read_line(const S* from) {
  if constexpr (kSameType<S, F16>) {
    Vec<float, N> line;
    for (int i = 0; i < N; ++i) line[i] = widen(from[i]);
    return line;
  } else {
    return Lanes<S, N, 1>::read(from).v[0];
  }
}
template <int N, typename S, typename T>
SEGFAST_INLINE void write_line(Vec<T, N> line, S* to) {
  if constexpr (kSameType<S, F16>) {
    for (int i = 0; i < N; ++i) narrow(line[i], to + i);
  } else {
    Lanes<S, N, 1>{{line}}.write(to);
  }
}

// to [pixels, kPlanes] = from: `planes` of them, the distance to the next one `size`
template <typename S, typename T>
void turn(const S* from, int64_t size, int64_t planes, int64_t pixels, T* to) {
  constexpr int N = kLanes<T>;
  if (pixels < N) {
    for (int64_t c = 0; c < planes; ++c) {
      for (int64_t m = 0; m < pixels; ++m) to[m * kPlanes<T> + c] = widen(from[c * size + m]);
    }
    return;
  }
  for (int64_t c = 0; c < planes; c += N) {
    const int64_t last = planes - 1 - c;
    for (int64_t m = 0; m < pixels; m += N) {
      const S* source = from + c * size + smaller(m, pixels - N);
      T* target = to + smaller(m, pixels - N) * kPlanes<T> + c;
      transpose<T, N>([&](int i) { return read_line<N>(source + smaller(i, last) * size); },
                      [&](int j, Vec<T, N> pixel) { store<N>(target + j * kPlanes<T>, pixel); });
    }
  }
}

// And back.
template <typename S, typename T>
void turn_back(const T* from, int64_t size, int64_t planes, int64_t pixels, S* to) {
  constexpr int N = kLanes<T>;
  if (pixels < N) {
    for (int64_t c = 0; c < planes; ++c) {
      for (int64_t m = 0; m < pixels; ++m) narrow(from[m * kPlanes<T> + c], to + c * size + m);
    }
    return;
  }
  for (int64_t c = 0; c < planes; c += N) {
    for (int64_t m = 0; m < pixels; m += N) {
      const T* source = from + smaller(m, pixels - N) * kPlanes<T> + c;
      S* target = to + c * size + smaller(m, pixels - N);
      transpose<T, N>([&](int j) { return load<N>(source + j * kPlanes<T>); },
                      [&](int i, Vec<T, N> line) {
                        if (c + i < planes) write_line<N, S, T>(line, target + i * size);
                      });
    }
  }
}

// Target rows (of the result for the weight's gradient), cut by the problem's size alone. Items are
// (map, block of kPlanes, band).
template <typename T>
struct Bands {
  int64_t all, rows, count, blocks;

  Bands(const DilatedConv& p, Direction direction) {
    const bool of_gradient = direction == Direction::grad_input;
    const TurnedRows turned = turned_rows(p, direction);
    all = of_gradient ? p.rows.input : p.rows.output;
    blocks = divide_up(p.groups, kPlanes<T>);
    rows = larger(divide_up(all * p.batch * blocks, kItems), larger(kBand, 2 * turned.reach));
    if (turned.source > turned.most) {
      const int64_t spare = turned.most - turned.reach, stride = p.rows.stride;
      rows = smaller(rows, (of_gradient ? (spare - 1) * stride : spare / stride) + 1);
    }
    count = divide_up(all, rows);
  }
};

struct Item {
  int64_t map, band, channel, first, last;  // rows [first, last)

  template <typename T>
  Item(const Bands<T>& bands, int64_t item)
      : map(item / bands.count / bands.blocks),
        band(item % bands.count),
        channel(item / bands.count % bands.blocks * kPlanes<T>),
        first(band * bands.rows),
        last(smaller(first + bands.rows, bands.all)) {}
};

// Source rows that target rows [first, last) read.
Range read_by(const Lines& lines, int64_t first, int64_t last) {
  Range read{0, 0};
  for (int64_t row = first; row < last; ++row) {
    const Line& line = lines.line[row % lines.count];
    const int64_t position = row / lines.count;
    const Span live = live_taps(line, position);
    if (live.first_tap == live.last_tap) continue;
    const int64_t begin = position * line.step + line.tap[live.first_tap].first;
    const int64_t end = position * line.step + line.tap[live.last_tap - 1].first + 1;
    read = read.end == 0 ? Range{begin, end}
                         : Range{smaller(read.begin, begin), larger(read.end, end)};
  }
  return read;
}

// ------------------------------------------------------------------------------ convolution

template <typename S, typename T>
struct Scratch {
  Correlation c;
  T *source, *target;  // [rows, columns, kPlanes]
  T* bias;             // [G]
  Term* terms;

  Scratch(const DilatedConv& p, Direction direction, Arena* arena)
      : c(correlation_of(p, direction == Direction::grad_input, kLanes<T>, arena)) {
    const TurnedRows rows = turned_rows(p, direction);
    source = arena->take<T>(smaller(rows.source, rows.most) * c.source_columns * kPlanes<T>);
    target = arena->take<T>(2 * kBand * c.target_columns * kPlanes<T>);
    bias = arena->take<T>(p.groups);
    terms = arena->take<Term>(taps(p));
  }
};

template <typename S, typename T>
void correlate_turned(const DilatedConv& p, Direction direction, const S* sources, const T* weights,
                      const S* bias, S* targets, int64_t begin, int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, direction, arena);
  const Bands<T> bands(p, direction);
  const Correlation& c = s.c;
  const int64_t source_plane = c.source_rows * c.source_columns;
  const int64_t target_plane = c.target_rows * c.target_columns;
  const int64_t source_row = c.source_columns * kPlanes<T>;
  const int64_t target_row = c.target_columns * kPlanes<T>;
  for (int64_t g = 0; g < p.groups; ++g) s.bias[g] = bias == nullptr ? T(0) : widen(bias[g]);
  for (int64_t k = begin; k < end; ++k) {
    const Item item(bands, k);
    const int64_t at = item.channel, planes = smaller(kPlanes<T>, p.groups - at);
    const S* x = sources + (item.map * p.groups + at) * source_plane;
    S* y = targets + (item.map * p.groups + at) * target_plane;
    const Range read = read_by(c.rows, item.first, item.last);
    turn(x + read.begin * c.source_columns, source_plane, planes,
         (read.end - read.begin) * c.source_columns, s.source);
    const T* row_0 = s.source - read.begin * source_row;  // were it there
    int64_t done = item.first;                            // rows before it are turned back
    for (int64_t row = item.first; row < item.last;) {
      const int64_t position = row / c.rows.count;
      const Line& line = c.rows.line[row % c.rows.count];
      const Span live = live_taps(line, position);
      Walk rows{1, line.step * source_row, target_row};
      if (c.rows.count == 1) {
        rows.count = smaller(smaller(kBand, item.last - row), live.end - position);
      }
      correlate_band(p, c, line, live, position, false, rows, row_0, kPlanes<T>, weights + at,
                     s.bias + at, s.target + (row - done) * target_row, kPlanes<T>, planes,
                     s.terms);
      row += rows.count;
      if (row - done < kBand && row < item.last) continue;
      turn_back(s.target, target_plane, planes, (row - done) * c.target_columns,
                y + done * c.target_columns);
      done = row;
    }
  }
}

// ------------------------------------------------------------------------- the weight's gradient

template <typename S, typename T>
struct WeightScratch {
  ProductLines<T> lines;
  T *x, *g;  // [rows, columns, kPlanes]

  WeightScratch(const DilatedConv& p, Arena* arena) : lines(p, arena) {
    const TurnedRows rows = turned_rows(p, Direction::grad_weight);
    const Bands<T> bands(p, Direction::grad_weight);
    x = arena->take<T>(smaller(rows.source, rows.most) * p.columns.input * kPlanes<T>);
    g = arena->take<T>(bands.rows * p.columns.output * kPlanes<T>);
  }
};

template <typename S, typename T>
void grad_weight_turned(const DilatedConv& p, const S* grads, const S* maps, T* parts,
                        int64_t begin, int64_t end, Arena* arena) {
  const WeightScratch<S, T> s(p, arena);
  const Bands<T> bands(p, Direction::grad_weight);
  const int64_t x_plane = p.rows.input * p.columns.input;
  const int64_t g_plane = p.rows.output * p.columns.output;
  const int64_t x_row = p.columns.input * kPlanes<T>, g_row = p.columns.output * kPlanes<T>;
  Line line = s.lines.rows;
  const Lines rows{1, &line};
  for (int64_t k = begin; k < end; ++k) {
    const Item item(bands, k);
    const int64_t at = item.channel, planes = smaller(kPlanes<T>, p.groups - at);
    T* part = parts + (item.map * bands.count + item.band) * taps(p) * p.groups + at;
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t c = 0; c < planes; ++c) part[t * p.groups + c] = 0;
    }
    const S* g = grads + (item.map * p.groups + at) * g_plane + item.first * p.columns.output;
    const S* x = maps + (item.map * p.groups + at) * x_plane;
    const Range read = read_by(rows, item.first, item.last);
    turn(g, g_plane, planes, (item.last - item.first) * p.columns.output, s.g);
    turn(x + read.begin * p.columns.input, x_plane, planes,
         (read.end - read.begin) * p.columns.input, s.x);
    for (int64_t row = item.first; row < item.last; ++row) {
      add_row(p, s.lines, live_taps(line, row), row, false, s.g + (row - item.first) * g_row,
              s.x - read.begin * x_row, kPlanes<T>, planes, part);
    }
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) {
  int64_t count = 0;
  by_dtype(p.dtype, [&](auto, auto sum) {
    const Bands<decltype(sum)> bands(p, direction);
    count = p.batch * bands.blocks * bands.count;
  });
  return count;
}

int64_t together(const DilatedConv&, Direction) { return 1; }

int64_t scratch(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return bytes_of<WeightScratch>(p);
  return bytes_of<Scratch>(p, direction);
}

void forward(const DilatedConv& p, const void* x, const void* weights, const void* bias, void* y,
             int64_t begin, int64_t end, void* memory) {
  with_maps(p.dtype, x, weights, bias, y, [&](auto x, auto weights, auto bias, auto y) {
    Arena arena(memory);
    correlate_turned(p, Direction::forward, x, weights, bias, y, begin, end, &arena);
  });
}

void grad_input(const DilatedConv& p, const void* grad, const void* weights, void* x, int64_t begin,
                int64_t end, void* memory) {
  with_maps(p.dtype, grad, weights, nullptr, x, [&](auto grad, auto weights, auto none, auto x) {
    Arena arena(memory);
    correlate_turned(p, Direction::grad_input, grad, weights, none, x, begin, end, &arena);
  });
}

int64_t parts(const DilatedConv& p) {
  int64_t count = 0;
  by_dtype(p.dtype, [&](auto, auto sum) {
    count = p.batch * Bands<decltype(sum)>(p, Direction::grad_weight).count;
  });
  return count;
}

void grad_weight(const DilatedConv& p, const void* grad, const void* x, void* sums, int64_t begin,
                 int64_t end, void* memory) {
  with_sums(p.dtype, grad, x, sums, [&](auto grad, auto x, auto sums) {
    Arena arena(memory);
    grad_weight_turned(p, grad, x, sums, begin, end, &arena);
  });
}

void merge(const DilatedConv& p, void* sums, void* weight) {
  merge_pixels(p, parts(p), sums, weight);
}

}  // namespace

extern const DirectKernels direct_turned = {
    items, together, scratch, arrange_pixels, forward, grad_input, parts, grad_weight, merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
