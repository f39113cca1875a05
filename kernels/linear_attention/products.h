// The two matrix products of linear attention, for a block of positions that fits in cache. What a
// tile reads again and again lies in panels, in the order in which it is read.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// A tile is twelve sums in sixteen registers, twenty-four in thirty-two: kVectors across.
template <int kVectors>
constexpr int kTileRows = (kVectorRegisters >= 32 ? 24 : 12) / kVectors;

constexpr int kWide = 3;    // vectors across, for results that stay in cache
constexpr int kNarrow = 2;  // for results that go to memory: whole cache lines

SEGFAST_INLINE constexpr int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

// sums[i, j] = sum_k weight(i, k) x[k, j-th vector]
template <int kRows, int kVectors, typename T, typename Weight>
SEGFAST_INLINE void tile(const Weight& weight, const T* x, int64_t x_pitch, int64_t terms,
                         Vec<T, kLanes<T>> (&sums)[kRows][kVectors]) {
  constexpr int W = kLanes<T>;
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Vec<T, W>{};
  }
  for (int64_t k = 0; k < terms; ++k, x += x_pitch) {
    Vec<T, W> b[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) b[j] = load<W>(x + j * W);
#pragma GCC unroll 24
    for (int i = 0; i < kRows; ++i) {
      const Vec<T, W> a = broadcast<T, W>(weight(i, k));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += a * b[j];
    }
  }
}

// Weights for `project`, in panels [rows / kRows][terms][kRows] with zeros beyond the rows:
// w[row * row_step + term * term_step]. Here for the terms [begin, end) of all.
template <int kVectors, typename T>
void pack_weights(const T* w, int64_t row_step, int64_t term_step, int64_t rows, int64_t begin,
                  int64_t end, int64_t terms, T* panels) {
  constexpr int kRows = kTileRows<kVectors>;
  for (int64_t first = 0; first < rows; first += kRows, panels += terms * kRows) {
    for (int64_t k = begin; k < end; ++k) {
      const T* from = w + first * row_step + k * term_step;
      for (int i = 0; i < kRows; ++i) {
        panels[k * kRows + i] = first + i < rows ? from[i * row_step] : T(0);
      }
    }
  }
}

// f(i, j) for the sums of a tile in the first `used` rows: without a branch where they are all.
template <int kRows, int kVectors, typename F>
SEGFAST_INLINE void for_each_sum(int64_t used, const F& f) {
  if (used >= kRows) {
#pragma GCC unroll 24
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) f(i, j);
    }
  } else {
#pragma GCC unroll 24
    for (int i = 0; i < kRows; ++i) {
      if (i >= used) break;
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) f(i, j);
    }
  }
}

// Not inlined: its caller's variables would take the registers it needs.
template <int kRows, int kVectors, typename T, typename Emit>
__attribute__((noinline)) void project_panel(const T* w, int64_t first, int64_t rows, const T* x,
                                             int64_t x_pitch, int64_t terms, int64_t begin,
                                             int64_t end, const Emit& emit) {
  constexpr int W = kLanes<T>;
  const auto weight = [=](int i, int64_t k)
                          __attribute__((always_inline)) { return w[k * kRows + i]; };
  int64_t n = begin;
  for (; n + kVectors * W <= end; n += kVectors * W) {
    Vec<T, W> sums[kRows][kVectors];
    tile<kRows, kVectors>(weight, x + n, x_pitch, terms, sums);
    emit(first, rows - first, n, sums);
  }
  if constexpr (kVectors > 1) {
    project_panel<kRows, 1>(w, first, rows, x, x_pitch, terms, n, end, emit);
  }
}

//   y[i, n] = sum_k w[k, i] x[k, n],   emit(i, rows from i on, n, y[i ..][n ..]) for tiles of it
// w: packed, panels panel_size apart; x [terms, count], count a multiple of the lanes.
template <int kVectors, typename T, typename Emit>
void project(const T* w, int64_t panel_size, int64_t rows, const T* x, int64_t x_pitch,
             int64_t terms, int64_t count, const Emit& emit) {
  constexpr int kRows = kTileRows<kVectors>;
  for (int64_t first = 0; first < rows; first += kRows, w += panel_size) {
    project_panel<kRows, kVectors>(w, first, rows, x, x_pitch, terms, 0, count, emit);
  }
}

// One row beyond whole vectors (the ones of taylor) is in no panel of `gram`.
template <typename T>
SEGFAST_INLINE bool stands_alone(int64_t rows) {
  return rows > 1 && rows % kLanes<T> == 1;
}

// f(first row, vectors across) for the panels of `gram`.
template <typename T, typename F>
SEGFAST_INLINE void for_each_panel(int64_t rows, const F& f) {
  constexpr int W = kLanes<T>;
  int64_t a = 0;
  for (; rows - a > W + 1; a += 2 * W) f(a, Width<2>{});
  if (rows - a > 1 || rows == 1) f(a, Width<1>{});
}

// x [rows, count] times scale [count] -> panels [count][vectors across]; last, a row that stands
// alone.
template <typename T>
void pack_positions(const T* x, int64_t x_pitch, int64_t rows, const T* scale, int64_t count,
                    T* panels) {
  constexpr int W = kLanes<T>;
  for_each_panel<T>(rows, [&](int64_t first, auto vectors) {
    constexpr int kPitch = decltype(vectors)::value * W;
    for (int64_t a = first; a < first + kPitch; a += W) {
      T* to = panels + first * count + (a - first);
      for (int64_t n = 0; n < count; n += W) {
        const Vec<T, W> factor = load<W>(scale + n);
        transpose<T, W>(
            [&](int i) {
              return a + i < rows ? load<W>(x + (a + i) * x_pitch + n) * factor : Vec<T, W>{};
            },
            [&](int j, Vec<T, W> column) { store<W>(to + (n + j) * kPitch, column); });
      }
    }
  });
  if (!stands_alone<T>(rows)) return;
  const T* from = x + (rows - 1) * x_pitch;
  for (int64_t n = 0; n < count; ++n) panels[(rows - 1) * count + n] = from[n] * scale[n];
}

// out[b, a .. ) (+)= sum_n x[n, a .. ) rows[b][n] for kRows rows, of which `used` are wanted.
template <int kVectors, int kRows, typename T>
__attribute__((noinline)) void gram_tile(const T* x, const T* const* rows, int64_t used,
                                         int64_t count, bool add, T* out, int64_t out_pitch) {
  constexpr int W = kLanes<T>;
  const T* row[kRows];
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) row[i] = rows[i];
  const auto weight = [&](int i, int64_t n) __attribute__((always_inline)) { return row[i][n]; };
  Vec<T, W> sums[kRows][kVectors];
  tile<kRows, kVectors>(weight, x, kVectors * W, count, sums);
  if (add) {
    for_each_sum<kRows, kVectors>(used, [&](int i, int j) __attribute__((always_inline)) {
      T* to = out + i * out_pitch + j * W;
      store<W>(to, load<W>(to) + sums[i][j]);
    });
  } else {
    for_each_sum<kRows, kVectors>(used, [&](int i, int j) __attribute__((always_inline)) {
      store<W>(out + i * out_pitch + j * W, sums[i][j]);
    });
  }
}

template <typename T>
SEGFAST_INLINE T dot(const T* x, const T* y, int64_t count) {
  constexpr int W = kLanes<T>;
  Vec<T, W> sums[4] = {};  // as many as hide the latency of an addition
  int64_t n = 0;
  for (; n + 4 * W <= count; n += 4 * W) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] += load<W>(x + n + j * W) * load<W>(y + n + j * W);
  }
  for (; n < count; n += W) sums[0] += load<W>(x + n) * load<W>(y + n);
  const Vec<T, W> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T sum = 0;
  for (int w = 0; w < W; ++w) sum += all[w];
  return sum;
}

//   out[b, a] (+)= sum_n x[a, n] y(b)[n],   b in [0, y_rows)
// x [x_rows, count] in panels; count a multiple of the lanes, out_pitch too.
template <typename T, typename Row>
void gram(const T* panels, int64_t x_rows, const Row& y, int64_t y_rows, int64_t count, bool add,
          T* out, int64_t out_pitch) {
  constexpr int kRows = kTileRows<2>;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t b = 0; b < y_rows; b += kRows, out += kRows * out_pitch) {
    const T* rows[kRows];
    const int64_t used = y_rows - b < kRows ? y_rows - b : kRows;
    for (int i = 0; i < kRows; ++i) rows[i] = y(i < used ? b + i : b);
    for (int64_t i = b + kRows; i < y_rows && i < b + 2 * kRows; ++i) {  // in pages of their own
      __builtin_prefetch(y(i));
      __builtin_prefetch(y(i) + kLine);
    }
    for_each_panel<T>(x_rows, [&](int64_t a, auto vectors) __attribute__((always_inline)) {
      constexpr int kVectors = decltype(vectors)::value;
      gram_tile<kVectors, kRows>(panels + a * count, rows, used, count, add, out + a, out_pitch);
    });
    if (stands_alone<T>(x_rows)) {
      for (int i = 0; i < used; ++i) {
        T* to = out + i * out_pitch + x_rows - 1;
        *to = (add ? *to : T(0)) + dot(panels + (x_rows - 1) * count, rows[i], count);
      }
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
