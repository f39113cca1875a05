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

constexpr int kWide = 3;  // vectors across, for results that stay in cache
constexpr int kNarrow = kVectorBytes == 64 ? 3 : 2;  // for those that go to memory

SEGFAST_INLINE constexpr int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

template <int kRows, int kVectors, typename T>
SEGFAST_INLINE void clear(Vec<T, kLanes<T>> (&sums)[kRows][kVectors]) {
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Vec<T, kLanes<T>>{};
  }
}

// Rows of a map that are worked on later, and are fetched while a product is computed: every row is
// a page of its own, where no prefetcher of the processor's looks ahead.
struct Ahead {
  const char* data = nullptr;
  int64_t rows = 0;   // none: nothing is fetched
  int64_t pitch = 0;  // bytes
  int64_t size = 1;   // bytes of an element

  const char* row(int64_t i) const { return data + i * pitch; }
  // `count` of them from `first` on, at the end the last ones again.
  Ahead some(int64_t first, int64_t count) const {
    if (first >= rows || count > rows) return {};
    return {row(first + count > rows ? rows - count : first), count, pitch, size};
  }
};
constexpr int64_t kLineBytes = 64;
constexpr int kSecondLevel = 2;  // of caches, as __builtin_prefetch counts them

// sums[i, j] += sum_k weight(i, k) x[k, j-th vector],   k in [begin, end);   and meanwhile(k)
template <int kRows, int kVectors, typename T, typename Weight, typename Meanwhile>
SEGFAST_INLINE void tile(const Weight& weight, const T* x, int64_t x_pitch, int64_t begin,
                         int64_t end, Vec<T, kLanes<T>> (&sums)[kRows][kVectors],
                         const Meanwhile& meanwhile) {
  constexpr int W = kLanes<T>;
  x += begin * x_pitch;
  for (int64_t k = begin; k < end; ++k, x += x_pitch) {
    meanwhile(k);
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

// The first kRows of a panel of kPitch. Not inlined: its caller's variables would take the
// registers it needs.
template <int kRows, int kVectors, int kPitch, typename T, typename Emit>
__attribute__((noinline)) void project_panel(const T* w, int64_t first, int64_t rows, const T* x,
                                             int64_t x_pitch, int64_t terms, int64_t begin,
                                             int64_t end, const Emit& emit,
                                             const Ahead& ahead = {}) {
  constexpr int W = kLanes<T>;
  const auto weight = [=](int i, int64_t k)
                          __attribute__((always_inline)) { return w[k * kPitch + i]; };
  // The panels share the lines that are fetched.
  const int64_t line = first / kPitch * kLineBytes;
  const int64_t step = (rows + kPitch - 1) / kPitch * kLineBytes;
  int64_t n = begin;
  for (; n + kVectors * W <= end; n += kVectors * W) {
    Vec<T, W> sums[kRows][kVectors];
    clear<kRows, kVectors, T>(sums);
    const auto fetch_lines = [&](int64_t k) __attribute__((always_inline)) {
      if (k >= ahead.rows) return;
      const char* row = ahead.row(k) + n * ahead.size;
      for (int64_t at = line; at < kVectors * W * ahead.size; at += step) {
        __builtin_prefetch(row + at, 0, kSecondLevel);
      }
    };
    if (ahead.rows == 0) {
      tile<kRows, kVectors>(weight, x + n, x_pitch, 0, terms, sums, [](int64_t) {});
    } else {
      tile<kRows, kVectors>(weight, x + n, x_pitch, 0, terms, sums, fetch_lines);
    }
    emit(first, rows - first, n, sums);
  }
  if constexpr (kVectors > 1) {
    project_panel<kRows, 1, kPitch>(w, first, rows, x, x_pitch, terms, n, end, emit, ahead);
  }
}

//   y[i, n] = sum_k w[k, i] x[k, n],   emit(i, rows from i on, n, y[i ..][n ..]) for tiles of it
// w: packed, panels panel_size apart; x [terms, count], count a multiple of the lanes. ahead
// [terms, count].
template <int kVectors, typename T, typename Emit>
void project(const T* w, int64_t panel_size, int64_t rows, const T* x, int64_t x_pitch,
             int64_t terms, int64_t count, const Emit& emit, const Ahead& ahead = {}) {
  constexpr int kRows = kTileRows<kVectors>;
  // Of one row (the ones of taylor): as many sums as hide an addition's latency.
  constexpr int kAlone = 4;
  for (int64_t first = 0; first < rows; first += kRows, w += panel_size) {
    if (rows - first == 1) {
      project_panel<1, kAlone, kRows>(w, first, rows, x, x_pitch, terms, 0, count, emit, ahead);
    } else {
      project_panel<kRows, kVectors, kRows>(w, first, rows, x, x_pitch, terms, 0, count, emit,
                                            ahead);
    }
  }
}

// Fewer rows than lanes fill no panel: their sums are kept lane by lane, and added across at the
// end. kDotsX rows of x by three of y take the registers.
constexpr int kDotsY = 3, kDotsX = kVectorRegisters >= 32 ? 9 : 3;

template <typename T>
SEGFAST_INLINE bool few_rows(int64_t rows) {
  return rows < kLanes<T> && rows <= 2 * kDotsX;
}

// Rows of y that `gram` takes at once.
template <typename T>
SEGFAST_INLINE int64_t rows_of_gram(int64_t x_rows) {
  return few_rows<T>(x_rows) ? kDotsY : kTileRows<2>;
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
  if (few_rows<T>(rows)) {  // for `dots`: [count / lanes][rows][lanes]
    for (int64_t n = 0; n < count; n += W) {
      const Vec<T, W> factor = load<W>(scale + n);
      for (int64_t r = 0; r < rows; ++r) {
        store<W>(panels + n * rows + r * W, load<W>(x + r * x_pitch + n) * factor);
      }
    }
    return;
  }
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
__attribute__((noinline)) void gram_tile(const T* x, const T* const* rows, const Ahead& ahead,
                                         int64_t used, int64_t count, bool add, T* out,
                                         int64_t out_pitch) {
  constexpr int W = kLanes<T>;
  const T* row[kRows];
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) row[i] = rows[i];
  const auto weight = [&](int i, int64_t n) __attribute__((always_inline)) { return row[i][n]; };
  Vec<T, W> sums[kRows][kVectors];
  clear<kRows, kVectors, T>(sums);
  const auto nothing = [](int64_t) {};
  if (ahead.rows == 0) {
    tile<kRows, kVectors>(weight, x, kVectors * W, 0, count, sums, nothing);
  } else {
    const int64_t line = kLineBytes / ahead.size;
    for (int64_t n = 0; n < count; n += line) {
      for (int i = 0; i < kRows; ++i) {
        __builtin_prefetch(ahead.row(i) + n * ahead.size, 0, kSecondLevel);
      }
      tile<kRows, kVectors>(weight, x, kVectors * W, n, count < n + line ? count : n + line, sums,
                            nothing);
    }
  }
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

// out[b, a] (+)= sum_n x[a, n] y[b][n] for kX rows of x, of x_rows in all, and the first `used` of
// y.
template <int kX, typename T>
__attribute__((noinline)) void dots_tile(const T* x, int64_t x_rows, const T* const* y,
                                         const Ahead& ahead, int64_t used, int64_t count, bool add,
                                         T* out, int64_t out_pitch) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  const T* row[kDotsY];
  V sums[kDotsY][kX];
#pragma GCC unroll 3
  for (int b = 0; b < kDotsY; ++b) row[b] = y[b];
  clear<kDotsY, kX, T>(sums);
  const char* next = ahead.data;
  for (int64_t n = 0; n < count; n += W, x += W * x_rows) {
    if (ahead.rows > 0) {  // needed by the next tile: into the first-level cache
#pragma GCC unroll 3
      for (int b = 0; b < kDotsY; ++b) __builtin_prefetch(next + b * ahead.pitch);
      next += W * ahead.size;
    }
    V values[kDotsY];
#pragma GCC unroll 3
    for (int b = 0; b < kDotsY; ++b) values[b] = load<W>(row[b] + n);
#pragma GCC unroll 16
    for (int a = 0; a < kX; ++a) {
      const V f = in_register(load<W>(x + a * W));
#pragma GCC unroll 3
      for (int b = 0; b < kDotsY; ++b) sums[b][a] += f * values[b];
    }
  }
  const auto plus = [](V p, V q) __attribute__((always_inline)) { return p + q; };
#pragma GCC unroll 3
  for (int b = 0; b < kDotsY; ++b) {
    if (b >= used) break;
    V rows[W];
#pragma GCC unroll 16
    for (int a = 0; a < W; ++a) rows[a] = a < kX ? sums[b][a] : V{};
    const V across = reduce_rows<T, W>(rows, plus);
    T* to = out + b * out_pitch;
    for (int a = 0; a < kX; ++a) to[a] = (add ? to[a] : T(0)) + across[a];
  }
}

template <typename T, int kX = 1>
SEGFAST_INLINE void dots_of(int64_t rows, const T* x, int64_t x_rows, const T* const* y,
                            const Ahead& ahead, int64_t used, int64_t count, bool add, T* out,
                            int64_t out_pitch) {
  if constexpr (kX < kDotsX && kX < kLanes<T>) {
    if (rows > kX) {
      return dots_of<T, kX + 1>(rows, x, x_rows, y, ahead, used, count, add, out, out_pitch);
    }
  }
  dots_tile<kX>(x, x_rows, y, ahead, used, count, add, out, out_pitch);
}

//   out[b, a] (+)= sum_n x[a, n] y(b)[n],   few rows of x
template <typename T, typename Row>
void dots(const T* x, int64_t x_rows, const Row& y, int64_t y_rows, int64_t count, bool add, T* out,
          int64_t out_pitch, const Ahead& ahead) {
  const int64_t groups = (x_rows + kDotsX - 1) / kDotsX;
  for (int64_t b = 0; b < y_rows; b += kDotsY, out += kDotsY * out_pitch) {
    const T* rows[kDotsY];
    const int64_t used = y_rows - b < kDotsY ? y_rows - b : kDotsY;
    for (int i = 0; i < kDotsY; ++i) rows[i] = y(i < used ? b + i : b);
    const Ahead next = ahead.some(b, kDotsY);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t a = x_rows * g / groups, end = x_rows * (g + 1) / groups;
      dots_of(end - a, x + a * kLanes<T>, x_rows, rows, g == 0 ? next : Ahead{}, used, count, add,
              out + a, out_pitch);
    }
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
// x [x_rows, count] as pack_positions left it; count a multiple of the lanes, out_pitch too. While
// row b of y is summed, row b of `ahead` is fetched.
template <typename T, typename Row>
void gram(const T* panels, int64_t x_rows, const Row& y, int64_t y_rows, int64_t count, bool add,
          T* out, int64_t out_pitch, const Ahead& ahead) {
  if (few_rows<T>(x_rows)) {
    return dots(panels, x_rows, y, y_rows, count, add, out, out_pitch, ahead);
  }
  constexpr int kRows = kTileRows<2>;
  for (int64_t b = 0; b < y_rows; b += kRows, out += kRows * out_pitch) {
    const T* rows[kRows];
    const int64_t used = y_rows - b < kRows ? y_rows - b : kRows;
    for (int i = 0; i < kRows; ++i) rows[i] = y(i < used ? b + i : b);
    const Ahead next = ahead.some(b, kRows);
    for_each_panel<T>(x_rows, [&](int64_t a, auto vectors) __attribute__((always_inline)) {
      constexpr int kVectors = decltype(vectors)::value;
      gram_tile<kVectors, kRows>(panels + a * count, rows, a == 0 ? next : Ahead{}, used, count,
                                 add, out + a, out_pitch);
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
