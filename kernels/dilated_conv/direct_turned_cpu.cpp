// Direct depthwise convolution of narrow maps [N, C, H, W], and its input's gradient: some planes
// at a time are turned into pixels [H, W, channels] in scratch, and their results back.
#include "direct_correlate.h"
#include "direct_products.h"
#include "direct_turned.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename T>
constexpr int64_t kPlanes = 2 * kLanes<T>;  // that are turned together

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
      transpose<T, N>(
          [&](int i) { return Lanes<S, N, 1>::read(source + smaller(i, last) * size).v[0]; },
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
                        if (c + i < planes) Lanes<S, N, 1>{{line}}.write(target + i * size);
                      });
    }
  }
}

// How the work is cut, by the problem's size alone. Items are (run of maps, block of planes, band
// of target rows); target rows are those of the result for the weight's gradient, too.
struct Cut {
  int64_t target_rows, planes;  // planes: of a block
  int64_t maps, rows;           // of a run; of a band
  int64_t runs, blocks, bands;

  Cut(const DilatedConv& p, Direction direction) {
    const bool of_gradient = direction == Direction::grad_input;
    const TurnedRows turned = turned_rows(p, direction);
    target_rows = of_gradient ? p.rows.input : p.rows.output;
    planes = p.dtype == Dtype::f64 ? kPlanes<double> : kPlanes<float>;
    blocks = divide_up(p.groups, planes);
    const int64_t wanted = divide_up(target_rows * p.batch * blocks, kItems);
    rows = smaller(target_rows, larger(wanted, larger(kBand, turned.overlap)));
    if (turned.source > turned.most) {
      const int64_t spare = turned.most - turned.reach, stride = p.rows.stride;
      rows = smaller(rows, (of_gradient ? (spare - 1) * stride : spare / stride) + 1);
    }
    bands = divide_up(target_rows, rows);
    const int64_t spare = p.batch * blocks * bands / kItems;
    const int64_t few = kMostAdded / (rows * p.columns.output);
    maps = direction == Direction::grad_weight ? larger(1, smaller(spare, few)) : 1;
    runs = divide_up(p.batch, maps);
  }

  int64_t items() const { return runs * blocks * bands; }
};

struct Item {
  int64_t first_map, last_map, channel, planes, part, first, last;  // rows [first, last)
};

Item item_of(const DilatedConv& p, const Cut& cut, int64_t item) {
  const int64_t band = item % cut.bands, run = item / cut.bands / cut.blocks;
  const int64_t channel = item / cut.bands % cut.blocks * cut.planes;
  return {run * cut.maps,
          smaller((run + 1) * cut.maps, p.batch),
          channel,
          smaller(cut.planes, p.groups - channel),
          run * cut.bands + band,
          band * cut.rows,
          smaller((band + 1) * cut.rows, cut.target_rows)};
}

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
  T* bias;             // [kPlanes]
  Term* terms;

  Scratch(const DilatedConv& p, Direction direction, Arena* arena)
      : c(correlation_of(p, direction == Direction::grad_input, arena)) {
    const TurnedRows rows = turned_rows(p, direction);
    source = arena->take<T>(smaller(rows.source, rows.most) * c.source_columns * kPlanes<T>);
    target = arena->take<T>(2 * kBand * c.target_columns * kPlanes<T>);
    bias = arena->take<T>(kPlanes<T>);
    terms = arena->take<Term>(taps(p));
  }
};

template <typename S, typename T>
void correlate_turned(const DilatedConv& p, Direction direction, const S* sources, const T* weights,
                      const S* bias, S* targets, int64_t begin, int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, direction, arena);
  const Correlation& c = s.c;
  const Cut cut(p, direction);
  const int64_t source_plane = c.source_rows * c.source_columns;
  const int64_t target_plane = c.target_rows * c.target_columns;
  const int64_t target_row = c.target_columns * kPlanes<T>;
  for (int64_t k = begin; k < end; ++k) {
    const Item item = item_of(p, cut, k);
    const int64_t plane = item.first_map * p.groups + item.channel;
    S* y = targets + plane * target_plane;
    const Range read = read_by(c.rows, item.first, item.last);
    turn(sources + plane * source_plane + read.begin * c.source_columns, source_plane, item.planes,
         (read.end - read.begin) * c.source_columns, s.source);
    widen_bias(bias, item.channel, item.planes, s.bias);
    int64_t done = item.first;  // rows before it are turned back
    for (int64_t row = item.first; row < item.last;) {
      const int64_t position = row / c.rows.count;
      const Line& line = c.rows.line[row % c.rows.count];
      const Walk rows{band_of(c.rows, line, position, item.last - row),
                      line.step * c.source_columns * kPlanes<T>, target_row};
      correlate_band<T, T>(p, c, line, position, rows,
                           {s.source, read.begin, kPlanes<T>, weights + item.channel, s.bias,
                            s.target + (row - done) * target_row, kPlanes<T>, item.planes},
                           s.terms);
      row += rows.count;
      if (row - done < kBand && row < item.last) continue;
      turn_back(s.target, target_plane, item.planes, (row - done) * c.target_columns,
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
    const Cut cut(p, Direction::grad_weight);
    x = arena->take<T>(smaller(rows.source, rows.most) * p.columns.input * kPlanes<T>);
    g = arena->take<T>(cut.rows * p.columns.output * kPlanes<T>);
  }
};

template <typename S, typename T>
void grad_weight_turned(const DilatedConv& p, const S* grads, const S* maps, T* parts,
                        int64_t begin, int64_t end, Arena* arena) {
  const WeightScratch<S, T> s(p, arena);
  const Cut cut(p, Direction::grad_weight);
  const int64_t x_plane = p.rows.input * p.columns.input;
  const int64_t g_plane = p.rows.output * p.columns.output;
  const int64_t g_row = p.columns.output * kPlanes<T>;
  for (int64_t k = begin; k < end; ++k) {
    const Item item = item_of(p, cut, k);
    T* part = parts + item.part * taps(p) * p.groups + item.channel;
    clear(p, item.planes, part);
    const Range read = read_by(s.lines.rows, item.first, item.last);
    for (int64_t map = item.first_map; map < item.last_map; ++map) {
      const int64_t plane = map * p.groups + item.channel;
      turn(grads + plane * g_plane + item.first * p.columns.output, g_plane, item.planes,
           (item.last - item.first) * p.columns.output, s.g);
      turn(maps + plane * x_plane + read.begin * p.columns.input, x_plane, item.planes,
           (read.end - read.begin) * p.columns.input, s.x);
      for (int64_t row = item.first; row < item.last; ++row) {
        add_row(p, s.lines, row, s.g + (row - item.first) * g_row, s.x, read.begin, kPlanes<T>,
                item.planes, part);
      }
    }
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) { return Cut(p, direction).items(); }

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
  const Cut cut(p, Direction::grad_weight);
  return cut.runs * cut.bands;
}

void grad_weight(const DilatedConv& p, const void* grad, const void* x, void* sums, int64_t begin,
                 int64_t end, void* memory) {
  with_sums(p.dtype, grad, x, sums, [&](auto grad, auto x, auto sums) {
    Arena arena(memory);
    grad_weight_turned(p, grad, x, sums, begin, end, &arena);
  });
}

void merge(const DilatedConv& p, void* sums, void* weight) {
  merge_parts(p, parts(p), sums, weight);
}

}  // namespace

extern const DirectKernels direct_turned = {
    items, one_item, scratch, pixels_arrange, forward, grad_input, parts, grad_weight, merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
