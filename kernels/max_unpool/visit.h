// Visits the positions of windows in row-major order, a vector of windows at a time: neighbouring
// columns of a plane, or the channels of one pixel.
//
// An Op says what is done with the elements found. Op::State<N> is what N windows keep in
// registers:
//
//   State(op, at)           at: place in the chunk
//   nothing(offset)         before any position is visited; offset: the first one inside x
//   start(values, offset)   the same and a visit to the first position, if that is inside
//   visit(values, offset)
//   finish(op, at)
//
// K and Stride are known to the compiler where they are not 0 (square, dilation 1).
#pragma once

#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Every other lane of a and b is taken where it is cheap, within 16 bytes: lane L of the result is
// window halved_window(L) of the N.
template <typename W, int N>
constexpr int halved_window(int lane) {
  constexpr int kPart = smaller(N, 16 / sizeof(W)), kHalf = kPart / 2;
  const int part = lane / kPart, k = lane % kPart;
  return k / kHalf * (N / 2) + part * kHalf + k % kHalf;
}
template <typename W, int N>
constexpr int halved_lane(int window) {
  int lane = 0;
  while (halved_window<W, N>(lane) != window) ++lane;
  return lane;
}

template <int First, typename W, int N, int... K>
SEGFAST_INLINE Vec<W, N> every_other(const W* p, std::integer_sequence<int, K...>) {
  return pick<(2 * halved_window<W, N>(K) + First)...>(load<N>(p), load<N>(p + N));
}
template <typename W, int N, int... K>
SEGFAST_INLINE Vec<W, N> to_halves(Vec<W, N> v, std::integer_sequence<int, K...>) {
  return pick<halved_window<W, N>(K)...>(v, v);
}
template <typename W, int N, int... K>
SEGFAST_INLINE Vec<W, N> from_halves(Vec<W, N> v, std::integer_sequence<int, K...>) {
  return pick<halved_lane<W, N>(K)...>(v, v);
}

// N windows, one in each lane.
template <typename W, int N, int Stride>
struct Lanes {
  static constexpr bool kHalved = Stride == 2 && N > 1;
  static constexpr auto kAll = std::make_integer_sequence<int, N>{};

  static SEGFAST_INLINE Vec<W, N> in_lanes(Vec<W, N> v) {
    if constexpr (kHalved) return to_halves<W, N>(v, kAll);
    return v;
  }
  static SEGFAST_INLINE Vec<W, N> in_order(Vec<W, N> v) {
    if constexpr (kHalved) return from_halves<W, N>(v, kAll);
    return v;
  }
  static SEGFAST_INLINE Vec<W, N> load_windows(const W* p) { return in_lanes(load<N>(p)); }
  static SEGFAST_INLINE void store_windows(W* p, Vec<W, N> v) { store<N>(p, in_order(v)); }
  // row[column + stride * k] for window k. With stride 2 at least two columns are assumed: nothing
  // outside of the windows is touched.
  static SEGFAST_INLINE Vec<W, N> load_columns(const W* row, int64_t column, int64_t stride) {
    if constexpr (N == 1 || Stride == 1) {
      return load<N>(row + column);
    } else if constexpr (Stride == 2) {
      return column == 0 ? every_other<0, W, N>(row, kAll)
                         : every_other<1, W, N>(row + column - 1, kAll);
    } else {
      Vec<W, N> v;
      for (int k = 0; k < N; ++k) v[k] = row[column + k * stride];
      return v;
    }
  }
};

// Visits the positions i, j of windows; values(a, b) loads those at row a and column b.
template <int K, typename State, typename Values>
SEGFAST_INLINE void visit_window(State& state, int64_t kernel, Range i, Range j,
                                 const Values& values) {
  if constexpr (K > 0) {
    if (i.begin == 0 && i.end == K && j.begin == 0 && j.end == K) {
      state.start(values(0, 0), 0);
#pragma GCC unroll 9
      for (int64_t k = 1; k < K * K; ++k) state.visit(values(k / K, k % K), k);
      return;
    }
  }
  state.nothing(i.begin * kernel + j.begin);
  for (int64_t a = i.begin; a < i.end; ++a) {
    for (int64_t b = j.begin; b < j.end; ++b) state.visit(values(a, b), a * kernel + b);
  }
}

// Windows `chunk` of output row `ho` in a plane x [H, W]; whole: whole_windows(p.columns).
template <int K, int Stride, typename W, typename Op>
SEGFAST_INLINE void visit_columns(const Pooling& p, const W* x, int64_t ho, Range chunk,
                                  Range whole, Op op) {
  const PoolAxis rows = p.rows, columns = p.columns;
  const int64_t kernel = K ? K : columns.kernel;
  const int64_t dilation = K ? 1 : columns.dilation, stride = Stride ? Stride : columns.stride;
  const int64_t left = -columns.padding, line = rows.dilation * columns.input;
  const int64_t top = window_start(rows, ho);
  const W* corner = x + top * columns.input + left;
  const Range i = inside(rows, top);

  const auto visit = [=](int64_t wo, auto width, Range j) __attribute__((always_inline)) {
    using L = Lanes<W, decltype(width)::value, Stride>;
    typename Op::template State<L> state(op, wo - chunk.begin);
    const W* from = corner + wo * stride;
    visit_window<K>(state, kernel, i, j, [=](int64_t a, int64_t b) __attribute__((always_inline)) {
      return L::load_columns(from + a * line, b * dilation, stride);
    });
    state.finish(op, wo - chunk.begin);
  };
  const int64_t from = larger(whole.begin, chunk.begin), to = smaller(whole.end, chunk.end);
  for (int64_t wo = chunk.begin; wo < smaller(from, chunk.end); ++wo) {
    visit(wo, Width<1>{}, inside(columns, window_start(columns, wo)));
  }
  // Rows end before the processor sees that the next ones follow, unless they share cache lines.
  constexpr int64_t kShort = 256 / sizeof(W);
  const W* next = corner + rows.stride * columns.input;
  const int64_t fresh = columns.input < kShort ? 0 : smaller(rows.stride, rows.kernel);
  for_each_group<W>(from, to, [=](int64_t wo, auto width) __attribute__((always_inline)) {
    for (int64_t a = 0; a < fresh; ++a) {
      __builtin_prefetch(next + a * columns.input + wo * stride);
    }
    visit(wo, width, {0, kernel});
  });
  for (int64_t wo = larger(to, from); wo < chunk.end; ++wo) {
    visit(wo, Width<1>{}, inside(columns, window_start(columns, wo)));
  }
}

// Channels `chunk` of the window of output (ho, wo) in an image x [H, W, C].
template <int K, typename W, typename Op>
SEGFAST_INLINE void visit_channels(const Pooling& p, const W* x, int64_t ho, int64_t wo,
                                   Range chunk, Op op) {
  const PoolAxis &rows = p.rows, &columns = p.columns;
  const int64_t kernel = K ? K : columns.kernel;
  const int64_t next = (K ? 1 : columns.dilation) * p.channels;
  const int64_t line = rows.dilation * columns.input * p.channels;
  const int64_t top = window_start(rows, ho), left = window_start(columns, wo);
  const Range i = inside(rows, top), j = inside(columns, left);
  const W* corner = x + (top * columns.input + left) * p.channels;

  for_each_group<W>(chunk.begin, chunk.end,
                    [=](int64_t c, auto width) __attribute__((always_inline)) {
                      using L = Lanes<W, decltype(width)::value, 1>;
                      typename Op::template State<L> state(op, c - chunk.begin);
                      visit_window<K>(state, kernel, i, j,
                                      [=](int64_t a, int64_t b) __attribute__((always_inline)) {
                                        return L::load_columns(corner + a * line + c, b * next, 1);
                                      });
                      state.finish(op, c - chunk.begin);
                    });
}

// The windows of a place; x: its map.
template <bool Last, int K, int Stride, typename W, typename Op>
SEGFAST_INLINE void visit_place(const Pooling& p, const W* x, const Place& at, Range whole, Op op) {
  if constexpr (Last) {
    visit_channels<K>(p, x, at.ho, at.wo, {at.channel, at.channel + at.count}, op);
  } else {
    visit_columns<K, Stride>(p, x, at.ho, {at.wo, at.wo + at.count}, whole, op);
  }
}

// f(K tag, stride tag) with what the compiler should know of the geometry.
template <typename F>
SEGFAST_INLINE void for_geometry(const Pooling& p, const F& f) {
  const PoolAxis &r = p.rows, &c = p.columns;
  const bool square = r.kernel == c.kernel && c.dilation == 1;
  if (square && c.kernel == 2 && c.stride == 2) return f(Width<2>{}, Width<2>{});
  if (square && c.kernel == 3 && c.stride == 2) return f(Width<3>{}, Width<2>{});
  if (c.stride == 1) return f(Width<0>{}, Width<1>{});
  if (c.stride == 2 && c.kernel >= 2) return f(Width<0>{}, Width<2>{});
  f(Width<0>{}, Width<0>{});
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
