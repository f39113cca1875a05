// The two matrix products of linear attention, for a block of positions that fits in cache.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kQuad = 4;  // rows of features that are taken together; blocks are padded to it

// sums[i] += the lanes of v[i].
template <int kColumns, typename T, int N>
SEGFAST_INLINE void add_lanes(const Vec<T, N> (&v)[kColumns], T* sums) {
  T lanes[kColumns][N];
  for (int i = 0; i < kColumns; ++i) store<N>(lanes[i], v[i]);
  if constexpr (kColumns == kQuad && N >= kQuad) {
    Vec<T, kQuad> rows[kQuad];
#pragma GCC unroll 4
    for (int i = 0; i < kQuad; ++i) {
      rows[i] = load<kQuad>(lanes[i]);
#pragma GCC unroll 4
      for (int n = kQuad; n < N; n += kQuad) rows[i] += load<kQuad>(lanes[i] + n);
    }
    const auto add = [](Vec<T, kQuad> a, Vec<T, kQuad> b) { return a + b; };
    store<kQuad>(sums, load<kQuad>(sums) + reduce_rows<T, kQuad>(rows, add));
  } else {
    for (int i = 0; i < kColumns; ++i) {
      T sum = 0;
      for (int n = 0; n < N; ++n) sum += lanes[i][n];
      sums[i] += sum;
    }
  }
}

// out[b, a] += sum_n x[a, n] y[b, n] for kColumns rows of x and kRows of y, n in [0, count).
template <int kColumns, int kRows, typename T>
SEGFAST_INLINE void gram_tile(const T* x, int64_t x_pitch, const T* y, int64_t y_pitch,
                              int64_t count, T* out, int64_t out_pitch) {
  constexpr int W = kLanes<T>;
  Vec<T, W> sum[kRows][kColumns] = {};
  for (int64_t n = 0; n < count; n += W) {
    Vec<T, W> b[kRows];
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) b[j] = load<W>(y + j * y_pitch + n);
#pragma GCC unroll 4
    for (int i = 0; i < kColumns; ++i) {
      const Vec<T, W> a = load<W>(x + i * x_pitch + n);
#pragma GCC unroll 8
      for (int j = 0; j < kRows; ++j) sum[j][i] += a * b[j];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) add_lanes<kColumns, T, W>(sum[j], out + j * out_pitch);
}

// (Taylor's last row of features, all ones, often stands alone: D is a multiple of kQuad.)
template <int kRows, typename T>
__attribute__((noinline)) void gram_rows(const T* x, int64_t x_pitch, int64_t x_rows, const T* y,
                                         int64_t y_pitch, int64_t count, T* out,
                                         int64_t out_pitch) {
  int64_t a = 0;
  for (; a + kQuad <= x_rows; a += kQuad) {
    gram_tile<kQuad, kRows>(x + a * x_pitch, x_pitch, y, y_pitch, count, out + a, out_pitch);
  }
  for (; a < x_rows; ++a) {
    gram_tile<1, kRows>(x + a * x_pitch, x_pitch, y, y_pitch, count, out + a, out_pitch);
  }
}

//   out[b, a] += sum_n x[a, n] y[b, n]
// x [x_rows, count], y [y_rows, count]; count a multiple of the lanes.
template <typename T>
void gram(const T* x, int64_t x_pitch, int64_t x_rows, const T* y, int64_t y_pitch, int64_t y_rows,
          int64_t count, T* out, int64_t out_pitch) {
  constexpr int kRows = kVectorRegisters >= 32 ? 6 : 3;
  int64_t b = 0;
  for (; b + kRows <= y_rows; b += kRows) {
    gram_rows<kRows>(x, x_pitch, x_rows, y + b * y_pitch, y_pitch, count, out + b * out_pitch,
                     out_pitch);
  }
  for (; b < y_rows; ++b) {
    gram_rows<1>(x, x_pitch, x_rows, y + b * y_pitch, y_pitch, count, out + b * out_pitch,
                 out_pitch);
  }
}

// Tiles of `project`: twelve sums in sixteen registers, twenty-four in thirty-two.
constexpr int kWide = 3;    // vectors, for results that stay in cache
constexpr int kNarrow = 2;  // for results that go to memory: whole cache lines

// emit(i, n, sum_k w[k, i] x[k, n .. n + W)) for kRows columns of w and kCount vectors of x.
template <int kRows, int kCount, typename T, typename Emit>
SEGFAST_INLINE void project_tile(const T* w, int64_t w_pitch, const T* x, int64_t x_pitch,
                                 int64_t terms, const Emit& emit) {
  constexpr int W = kLanes<T>;
  Vec<T, W> sum[kRows][kCount] = {};
  for (int64_t k = 0; k < terms; ++k, w += w_pitch, x += x_pitch) {
    Vec<T, W> b[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) b[j] = load<W>(x + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T, W> a = broadcast<T, W>(w[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) sum[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) emit(i, j * W, sum[i][j]);
  }
}

// Not inlined: its caller's variables would take the registers it needs.
template <int kRows, int kVectors, typename T, typename Emit>
__attribute__((noinline)) void project_rows(const T* w, int64_t w_pitch, const T* x,
                                            int64_t x_pitch, int64_t terms, int64_t count,
                                            const Emit& emit) {
  constexpr int W = kLanes<T>;
  int64_t n = 0;
  const auto at = [&](int i, int64_t offset, Vec<T, W> sum)
                      __attribute__((always_inline)) { emit(i, n + offset, sum); };
  for (; n + kVectors * W <= count; n += kVectors * W) {
    project_tile<kRows, kVectors>(w, w_pitch, x + n, x_pitch, terms, at);
  }
  for (; n < count; n += W) project_tile<kRows, 1>(w, w_pitch, x + n, x_pitch, terms, at);
}

//   emit(i, n, y[i, n .. n + W)),   y[i, n] = sum_k w[k, i] x[k, n]
// w [terms, rows], x [terms, count], count a multiple of the lanes.
template <int kVectors, typename T, typename Emit>
void project(const T* w, int64_t w_pitch, int64_t rows, const T* x, int64_t x_pitch, int64_t terms,
             int64_t count, const Emit& emit) {
  constexpr int kRows = (kVectorRegisters >= 32 ? 24 : 12) / kVectors;
  int64_t first = 0;
  const auto at = [&](int i, int64_t n, auto sum)
                      __attribute__((always_inline)) { emit(first + i, n, sum); };
  for (; first + kRows <= rows; first += kRows) {
    project_rows<kRows, kVectors>(w + first, w_pitch, x, x_pitch, terms, count, at);
  }
  for (; first < rows; ++first) {
    project_rows<1, kVectors>(w + first, w_pitch, x, x_pitch, terms, count, at);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
