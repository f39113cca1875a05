// The one product of matrices of the dense kernels, over packed panels.
#pragma once

#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// A tile of sums is kRows x kVectors vectors: 12 of 16 registers, or 24 of 32. Panels hold, one
// after another for every term of the sum, what meets in a tile: [terms][kRows] on the left,
// [terms][kVectors vectors] on the right. The last right panel has one vector where that is enough.
constexpr int kRows = kVectorRegisters >= 32 ? 12 : 6;
constexpr int kVectors = 2;
constexpr int kRowStep = kVectorRegisters >= 32 ? 4 : 3;  // of tiles for what is left of the rows
template <typename T>
constexpr int64_t kPanel = kVectors * kLanes<T>;

// Terms that lie next to each other in both panels, from these on.
struct Run {
  int64_t left, right;
};

//   c[rows[r] + n] += sum_{runs, k} left[(run.left + k step), r] right[(run.right + k), n]
//
// Not linear attention's `tile`, which has all terms of a sum at once, evenly spaced, and leaves
// its sums in registers for the caller to finish. Here the terms come in runs, some live taps and
// channels at a time, so sums wait in memory, in the rows of the positions that are live.
template <int kCount, int kUsed, typename T>
__attribute__((noinline)) void add_tile(const T* left, int64_t step, const T* right,
                                        const Run* runs, int64_t run_count, int64_t terms, T* c,
                                        const int64_t* rows) {
  constexpr int W = kLanes<T>;
  // Enough sums to hide the latency of an addition.
  constexpr int kSplit = kCount == 1 ? 2 : 1;
  Vec<T, W> sum[kSplit][kUsed][kCount] = {};
  const auto add = [&](const T* a, const T* b, int half) __attribute__((always_inline)) {
    Vec<T, W> x[kCount];
#pragma GCC unroll 2
    for (int j = 0; j < kCount; ++j) x[j] = load<W>(b + j * W);
#pragma GCC unroll 12
    for (int r = 0; r < kUsed; ++r) {
      const Vec<T, W> w = broadcast<T, W>(a[r]);
#pragma GCC unroll 2
      for (int j = 0; j < kCount; ++j) sum[half][r][j] += w * x[j];
    }
  };
  for (int64_t i = 0; i < run_count; ++i) {
    const T *a = left + runs[i].left * kRows, *b = right + runs[i].right * (kCount * W);
    int64_t k = 0;
    for (; k + kSplit <= terms; k += kSplit) {
#pragma GCC unroll 2
      for (int half = 0; half < kSplit; ++half, a += step * kRows, b += kCount * W) add(a, b, half);
    }
    if (k < terms) add(a, b, 0);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kUsed; ++r) {
    T* to = c + rows[r];
#pragma GCC unroll 2
    for (int j = 0; j < kCount; ++j) {
      Vec<T, W> total = sum[0][r][j];
      if constexpr (kSplit == 2) total += sum[1][r][j];
      store<W>(to + j * W, load<W>(to + j * W) + total);
    }
  }
}

// Vectors of the right panel that begins at `channel`.
template <typename T>
SEGFAST_INLINE int panel_vectors(int64_t channel, int64_t channels) {
  return channels - channel > kLanes<T> ? kVectors : 1;
}

// add_tile for a right panel of `vectors`, and for the first `used` rows of the left one or more.
template <int kUsed = kRowStep, typename T>
SEGFAST_INLINE void add_product(int vectors, int64_t used, const T* left, int64_t step,
                                const T* right, const Run* runs, int64_t run_count, int64_t terms,
                                T* c, const int64_t* rows) {
  if constexpr (kUsed < kRows) {
    if (used > kUsed) {
      constexpr int kMore = kUsed + kRowStep;
      return add_product<kMore>(vectors, used, left, step, right, runs, run_count, terms, c, rows);
    }
  }
  if (vectors == kVectors) {
    add_tile<kVectors, kUsed>(left, step, right, runs, run_count, terms, c, rows);
  } else {
    add_tile<1, kUsed>(left, step, right, runs, run_count, terms, c, rows);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
