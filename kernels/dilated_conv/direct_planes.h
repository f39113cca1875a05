// Maps [N, C, H, W]: how planes lie in scratch, and the sums over live taps in registers.
#pragma once

#include "direct.h"
#include "direct_lines.h"

namespace segfast {
namespace SEGFAST_ISA {

int64_t planes_grad_weight_scratch(const DilatedConv&);
void planes_grad_weight(const DilatedConv&, const void*, const void*, void*, int64_t, int64_t,
                        void*);

namespace {

// A plane's rows as they are read or written. With phases > 1, positions of one phase of the stride
// lie next to each other: rows are [phases, length].
struct Plane {
  int64_t rows, columns, phases, length;
  int64_t pitch() const { return phases * length; }
  int64_t size() const { return rows * pitch(); }
};
SEGFAST_INLINE Plane plane_of(int64_t rows, int64_t columns, int64_t phases) {
  return {rows, columns, phases, divide_up(columns, phases)};
}
// The input, as a stride walks it. A stride beyond the map meets it once per tap: see first_column.
SEGFAST_INLINE Plane strided_input(const DilatedConv& p) {
  const Axis& c = p.columns;
  return plane_of(p.rows.input, c.input, c.stride < c.input ? c.stride : 1);
}

// What position 0 would read, so that position m reads m further on.
SEGFAST_INLINE int64_t first_column(const Line& line, const LineTap& t, const Plane& source) {
  if (source.phases == 1) return t.first + t.begin * (line.step - 1);
  const int64_t m = floor_divide(t.first, source.phases);
  return (t.first - m * source.phases) * source.length + m;
}

template <typename S, typename T>
SEGFAST_INLINE bool staged(const Plane& plane) {
  return plane.phases > 1 || !kSameType<S, T>;
}
template <typename S, typename T>
SEGFAST_INLINE void stage(const S* from, const Plane& plane, T* to) {
  for (int64_t r = 0; r < plane.rows; ++r) {
    split_row(from + r * plane.columns, plane.columns, plane.phases, to + r * plane.pitch());
  }
}
template <typename S, typename T>
SEGFAST_INLINE void unstage(const T* from, const Plane& plane, S* to) {
  for (int64_t r = 0; r < plane.rows; ++r) {
    join_row(from + r * plane.pitch(), plane.columns, plane.phases, to + r * plane.columns);
  }
}

// A product of the sum: weight * x[position + offset].
template <typename T>
struct Term {
  int64_t offset;
  T weight;
};

// R rows of V vectors: y = bias + sum of terms.
template <int N, int V, int R, typename T>
SEGFAST_INLINE void tile(const Term<T>* term, int64_t terms, T bias, const T* x, int64_t x_pitch,
                         T* y, int64_t y_pitch, int64_t last) {
  Vec<T, N> sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = broadcast<T, N>(bias);
  }
  for (int64_t t = 0; t < terms; ++t) {
    const T* from = x + term[t].offset;
    const Vec<T, N> weight = broadcast<T, N>(term[t].weight);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sum[r][v] += weight * load<N>(from + r * x_pitch + (v == V - 1 ? last : v * N));
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store<N>(y + r * y_pitch + (v == V - 1 ? last : v * N), sum[r][v]);
    }
  }
}

// R rows of a piece.
template <int N, int R, typename T>
SEGFAST_INLINE void piece_rows(const Piece& piece, const Term<T>* term, int64_t terms, T bias,
                               const T* x, int64_t x_pitch, T* y, int64_t y_pitch) {
  x += piece.begin;
  y += piece.begin;
  int64_t last = piece.last - piece.begin, left = piece.vectors;
  for (; left > 4; left -= 4, last -= 4 * N, x += 4 * N, y += 4 * N) {
    tile<N, 4, R>(term, terms, bias, x, x_pitch, y, y_pitch, 3 * N);
  }
  switch (left) {
    case 4:
      return tile<N, 4, R>(term, terms, bias, x, x_pitch, y, y_pitch, last);
    case 3:
      return tile<N, 3, R>(term, terms, bias, x, x_pitch, y, y_pitch, last);
    case 2:
      return tile<N, 2, R>(term, terms, bias, x, x_pitch, y, y_pitch, last);
    default:
      return tile<N, 1, R>(term, terms, bias, x, x_pitch, y, y_pitch, last);
  }
}

// f(width tag): that of the piece, N or a fraction of it.
template <int N, typename F>
SEGFAST_INLINE void for_width(int width, const F& f) {
  if constexpr (N > 1) {
    if (width < N) return for_width<N / 2>(width, f);
  }
  f(Width<N>{});
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
