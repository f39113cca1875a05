// Direct convolution of planes [N, C, H, W], and its input's gradient: both are sums over the taps
// that are live for a rectangle of positions.
#include "direct_planes.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Target planes from the source planes of their group.
struct Correlation {
  Plane source, target;
  int64_t sources, targets;                      // planes of a group
  int64_t next_source, next_target, next_group;  // steps in the weights
  Lines rows, columns;
};

Correlation correlation_of(const DilatedConv& p, bool of_gradient, int lanes, Arena* arena) {
  const int64_t out = p.in_channels * taps(p);  // weights of one output channel
  const Plane y = plane_of(p.rows.output, p.columns.output, 1);
  const Lines rows = LineMaker(arena, p.rows, lanes, of_gradient).lines();
  const Lines columns = LineMaker(arena, p.columns, lanes, of_gradient).lines();
  if (of_gradient) {
    return {.source = y,
            .target = plane_of(p.rows.input, p.columns.input, columns.count),
            .sources = p.out_channels,
            .targets = p.in_channels,
            .next_source = out,
            .next_target = taps(p),
            .next_group = p.out_channels * out,
            .rows = rows,
            .columns = columns};
  }
  return {.source = strided_input(p),
          .target = y,
          .sources = p.in_channels,
          .targets = p.out_channels,
          .next_source = taps(p),
          .next_target = out,
          .next_group = p.out_channels * out,
          .rows = rows,
          .columns = columns};
}

template <typename S, typename T>
struct Scratch {
  Correlation c;
  T *sources, *target;  // staged planes, where they are not read and written in place
  Term<T>* terms;

  Scratch(const DilatedConv& p, bool of_gradient, Arena* arena)
      : c(correlation_of(p, of_gradient, kLanes<T>, arena)) {
    sources = staged<S, T>(c.source) ? arena->take<T>(c.sources * c.source.size()) : nullptr;
    target = staged<S, T>(c.target) ? arena->take<T>(c.target.size()) : nullptr;
    terms = arena->take<Term<T>>(c.sources * taps(p));
  }
};

// The terms of a span of rows, column tap by column tap: those of a piece are next to each other.
template <typename T>
int64_t make_terms(const Correlation& c, const Line& rows, const Span& span, const Line& columns,
                   int64_t kernel_width, int64_t kernel, const T* weights, Term<T>* term) {
  const int64_t plane = c.source.size(), pitch = c.source.pitch();
  const Term<T>* begin = term;
  for (int64_t j = 0; j < columns.taps; ++j) {
    const int64_t column = first_column(columns, columns.tap[j], c.source);
    for (int64_t i = span.first_tap; i < span.last_tap; ++i) {
      const LineTap& row = rows.tap[i];
      const T* weight = weights + row.tap * kernel_width + columns.tap[j].tap;
      for (int64_t s = 0; s < c.sources; ++s) {
        *term++ = {s * plane + row.first * pitch + column, weight[s * c.next_source]};
      }
    }
  }
  return columns.taps == 0 ? 0 : (term - begin) / columns.taps;
}

template <typename T>
void correlate(const DilatedConv& p, const Correlation& c, const T* x, const T* weights, T bias,
               T* y, Term<T>* terms) {
  constexpr int N = kLanes<T>, R = 2;
  const int64_t width = p.columns.taps;
  for (int64_t row_phase = 0; row_phase < c.rows.count; ++row_phase) {
    const Line& rows = c.rows.line[row_phase];
    const int64_t x_pitch = rows.step * c.source.pitch(), y_pitch = c.rows.count * c.target.pitch();
    for (int64_t column_phase = 0; column_phase < c.columns.count; ++column_phase) {
      const Line& columns = c.columns.line[column_phase];
      T* to = y + row_phase * c.target.pitch() + column_phase * c.target.length;
      for (int64_t k = 0; k < rows.spans; ++k) {
        const Span& span = rows.span[k];
        const int64_t per_tap = make_terms(c, rows, span, columns, width, taps(p), weights, terms);
        for (int64_t r = span.begin; r < span.end; r += R) {
          const T* from = x + r * x_pitch;
          for (int64_t q = 0; q < columns.pieces; ++q) {
            const Piece& piece = columns.piece[q];
            const Term<T>* term = terms + piece.first_tap * per_tap;
            const int64_t count = (piece.last_tap - piece.first_tap) * per_tap;
            for_width<N>(piece.width, [&](auto lanes) __attribute__((always_inline)) {
              constexpr int W = decltype(lanes)::value;
              if (r + R <= span.end) {
                piece_rows<W, R>(piece, term, count, bias, from, x_pitch, to + r * y_pitch,
                                 y_pitch);
              } else {
                piece_rows<W, 1>(piece, term, count, bias, from, x_pitch, to + r * y_pitch,
                                 y_pitch);
              }
            });
          }
        }
      }
    }
  }
}

// Target planes [begin, end) of all.
template <typename S, typename T>
void correlate_planes(const DilatedConv& p, bool of_gradient, const S* sources, const T* weights,
                      const S* bias, S* targets, int64_t begin, int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, of_gradient, arena);
  const Correlation& c = s.c;
  const int64_t source = c.source.rows * c.source.columns;
  const int64_t target = c.target.rows * c.target.columns;
  int64_t in_scratch = -1;  // whose planes
  for (int64_t item = begin; item < end; ++item) {
    const int64_t map = item / c.targets, group = map % p.groups, channel = item % c.targets;
    const S* x = sources + map * c.sources * source;
    S* y = targets + item * target;
    if (s.sources != nullptr && in_scratch != map) {
      for (int64_t k = 0; k < c.sources; ++k) {
        stage(x + k * source, c.source, s.sources + k * c.source.size());
      }
      in_scratch = map;
    }
    const T* w = weights + group * c.next_group + channel * c.next_target;
    const T constant = bias == nullptr ? T(0) : widen(bias[group * c.targets + channel]);
    const T* from = s.sources;
    T* to = s.target;
    if constexpr (kSameType<S, T>) {
      if (from == nullptr) from = x;
      if (to == nullptr) to = y;
    }
    correlate(p, c, from, w, constant, to, s.terms);
    if (s.target != nullptr) unstage(s.target, c.target, y);
  }
}

// ------------------------------------------------------------------------------ the table

int64_t items(const DilatedConv& p, Direction direction) {
  const int64_t pairs = p.groups * p.in_channels * p.out_channels;
  if (direction == Direction::grad_weight) return pairs;
  return p.batch * p.groups * (direction == Direction::forward ? p.out_channels : p.in_channels);
}

int64_t scratch(const DilatedConv& p, Direction direction) {
  if (direction == Direction::grad_weight) return planes_grad_weight_scratch(p);
  return bytes_of<Scratch>(p, direction == Direction::grad_input);
}

void arrange(const DilatedConv& p, const void* weight, void* arranged) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    const auto* from = static_cast<const decltype(element)*>(weight);
    auto* to = static_cast<decltype(sum)*>(arranged);
    for (int64_t k = 0; k < weights_of(p); ++k) to[k] = widen(from[k]);
  });
}

void forward(const DilatedConv& p, const void* x, const void* weights, const void* bias, void* y,
             int64_t begin, int64_t end, void* memory) {
  with_maps(p.dtype, x, weights, bias, y, [&](auto x, auto weights, auto bias, auto y) {
    Arena arena(memory);
    correlate_planes(p, false, x, weights, bias, y, begin, end, &arena);
  });
}

void grad_input(const DilatedConv& p, const void* grad, const void* weights, void* x, int64_t begin,
                int64_t end, void* memory) {
  with_maps(p.dtype, grad, weights, nullptr, x, [&](auto grad, auto weights, auto none, auto x) {
    Arena arena(memory);
    correlate_planes(p, true, grad, weights, none, x, begin, end, &arena);
  });
}

int64_t parts(const DilatedConv&) { return 1; }

void merge(const DilatedConv& p, void* sums, void* weight) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    const auto* from = static_cast<const decltype(sum)*>(sums);
    auto* to = static_cast<decltype(element)*>(weight);
    for (int64_t k = 0; k < weights_of(p); ++k) narrow(from[k], to + k);
  });
}

}  // namespace

extern const DirectKernels direct_planes = {
    items, one_item, scratch, arrange, forward, grad_input, parts, planes_grad_weight, merge};

}  // namespace SEGFAST_ISA
}  // namespace segfast
