// The kernel block of two tiles, P_ji = exp(-|f_i - f_j|^2 / 2), 32 pixels j by 32 pixels i, in two
// passes, so that each keeps its constants in registers: exponents, then exponentials. And its
// transpose.
#pragma once

#include "exact.h"
#include "gaussian.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kTile = kExactTile;
constexpr int kVectors = kVectorRegisters == 32 ? 2 : 4;  // per group of pixels i
template <typename T>
constexpr int kGroup = kVectors * kLanes<T>;
constexpr int kRows = 4;                                 // pixels j beside two vectors of pixels i
constexpr int kAtOnce = kVectorRegisters == 32 ? 8 : 2;  // vectors whose exponentials overlap

// Product form (README.md) in float32, for tiles of at most this radius whose centres are at most
// this far apart. Then the exponent lies above -122, where nothing underflows.
template <typename T>
constexpr bool kProductForm = sizeof(T) == 4;
constexpr double kSmallRadius = 1.75;
constexpr double kNearCentres = 9.5;

// a = sqrt(log2 e) (f - centre) in rows 0..F-1 and -|a|^2 / 2 in row F, for a group of pixels.
template <typename T>
SEGFAST_INLINE void centre_group(const T* features, const T* centre, int64_t dims, T* out) {
  constexpr int W = kLanes<T>;
  constexpr T kRootLog2E = 1.2011224087864498;
  Vec<T, W> sum[kVectors] = {};
  for (int64_t f = 0; f < dims; ++f, features += kTile, out += kTile) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T, W> a = (load<W>(features + v * W) - centre[f]) * kRootLog2E;
      store<W>(out + v * W, a);
      sum[v] += a * a;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store<W>(out + v * W, sum[v] * T(-0.5));
}

template <typename T>
SEGFAST_INLINE void centre_tile(const T* features, const T* centre, int64_t dims, T* out) {
  for (int i = 0; i < kTile; i += kGroup<T>) centre_group(features + i, centre, dims, out + i);
}

template <typename T>
SEGFAST_INLINE void store_rows(const Vec<T, kLanes<T>> (&rows)[kRows][2], T* block) {
  constexpr int W = kLanes<T>;
#pragma GCC unroll 4
  for (int k = 0; k < kRows; ++k) {
    store<W>(block + k * kTile, rows[k][0]);
    store<W>(block + k * kTile + W, rows[k][1]);
  }
}

// Whether two tiles with these centres are near enough for product form: not if one is NaN.
template <typename T>
SEGFAST_INLINE bool near(const T* a, const T* b, int64_t dims) {
  T sum = 0;
  for (int64_t f = 0; f < dims; ++f) sum += (a[f] - b[f]) * (a[f] - b[f]);
  return sum <= T(kNearCentres * kNearCentres);
}

// block [32, 32] = t, from centred features [F + 1, 32] each:
//   t = -|a|^2 / 2 - |b|^2 / 2 + sum_f a_f b_f.
SEGFAST_INLINE void product_exponents(const float* a, const float* b, int64_t dims, float* block) {
  constexpr int W = kLanes<float>;
  for (int j = 0; j < kTile; j += kRows) {
    for (int i = 0; i < kTile; i += 2 * W) {
      Vec<float, W> t[kRows][2];
      const float* x = a + i;
      const float* y = b + j;
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        t[k][0] = load<W>(x + dims * kTile) + y[dims * kTile + k];
        t[k][1] = load<W>(x + dims * kTile + W) + y[dims * kTile + k];
      }
      for (int64_t f = 0; f < dims; ++f, x += kTile, y += kTile) {
        const Vec<float, W> x0 = load<W>(x), x1 = load<W>(x + W);
#pragma GCC unroll 4
        for (int k = 0; k < kRows; ++k) {
          t[k][0] += x0 * y[k];
          t[k][1] += x1 * y[k];
        }
      }
      store_rows<float>(t, block + j * kTile + i);
    }
  }
}

// block [32, kGroup] = |f_i - f_j|^2: 32 pixels j against a group of pixels i, features [F, 32]
// each.
template <typename T>
SEGFAST_INLINE void squared_distances(const T* fi, const T* fj, int64_t dims, T* block) {
  constexpr int W = kLanes<T>;
  for (int j = 0; j < kTile; j += kRows) {
    for (int i = 0; i < kTile; i += 2 * W) {
      Vec<T, W> d[kRows][2] = {};
      const T* x = fi + i;
      const T* y = fj + j;
      for (int64_t f = 0; f < dims; ++f, x += kTile, y += kTile) {
        const Vec<T, W> x0 = load<W>(x), x1 = load<W>(x + W);
#pragma GCC unroll 4
        for (int k = 0; k < kRows; ++k) {
          d[k][0] += (x0 - y[k]) * (x0 - y[k]);
          d[k][1] += (x1 - y[k]) * (x1 - y[k]);
        }
      }
      store_rows<T>(d, block + j * kTile + i);
    }
  }
}

// block [32, 32] = f(block), kAtOnce vectors at a time.
template <typename T, typename F>
SEGFAST_INLINE void apply(const F& f, T* block) {
  constexpr int W = kLanes<T>;
  for (int k = 0; k < kTile * kTile / W; k += kAtOnce, block += kAtOnce * W) {
    Vec<T, W> x[kAtOnce];
#pragma GCC unroll 8
    for (int m = 0; m < kAtOnce; ++m) x[m] = load<W>(block + m * W);
    f(x);
#pragma GCC unroll 8
    for (int m = 0; m < kAtOnce; ++m) store<W>(block + m * W, x[m]);
  }
}

// block [32 pixels j, 32 pixels i] = P. scratch: [F + 1, 32]. Not inlined: its callers' variables
// would take the registers it needs.
template <typename T>
__attribute__((noinline)) void kernel_block(const ExactProblem<T>& p, int64_t i, int64_t j,
                                            T* scratch, T* block) {
  const T* fi = p.tile_features + i * kTile * p.dims;
  if constexpr (kProductForm<T>) {
    const T* centre = p.centres + j * p.dims;
    if (near(p.centres + i * p.dims, centre, p.dims)) {
      centre_tile(fi, centre, p.dims, scratch);
      product_exponents(scratch, p.centred + j * kTile * (p.dims + 1), p.dims, block);
      return apply<T>([](auto* t) { exp2_of<kAtOnce, kLanes<T>>(t); }, block);
    }
  }
  squared_distances(fi, p.tile_features + j * kTile * p.dims, p.dims, block);
  apply<T>([](auto* d) { gaussian_of<kAtOnce, kLanes<T>>(d); }, block);
}

// out [32, 32] = block transposed.
template <typename T>
__attribute__((noinline)) void transpose_block(const T* block, T* out) {
  constexpr int W = kLanes<T>;
  for (int i = 0; i < kTile; i += W) {
    for (int j = 0; j < kTile; j += W) {
      transpose<T, W>([&](int k) { return load<W>(block + (i + k) * kTile + j); },
                      [&](int k, Vec<T, W> v) { store<W>(out + (j + k) * kTile + i, v); });
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
