// What two tiles do to each other's features. With A_ji = K_ij G_i . V_j and B_ji = K_ij V_i . G_j,
//   rho_i = sum_j A_ji,   kappa_i = sum_j B_ji,   df_i = sum_j (A_ji + B_ji) (f_j - f_i),
// and for the pixels j the same of the transposes, with A and B exchanged.
#pragma once

#include "exact.h"
#include "exact_block.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// out [32 pixels j, 32 pixels i] = block * sum_c x[c, i] y[c, j], rows of [channels, 32].
template <typename T>
__attribute__((noinline)) void weighted_products(const T* x, const T* y, int64_t channels,
                                                 const T* block, T* out) {
  constexpr int W = kLanes<T>;
  for (int j = 0; j < kTile; j += kRows) {
    for (int i = 0; i < kTile; i += 2 * W) {
      Vec<T, W> sum[kRows][2] = {};
      const T *at = x + i, *with = y + j;
      for (int64_t c = 0; c < channels; ++c, at += kTile, with += kTile) {
        const Vec<T, W> x0 = load<W>(at), x1 = load<W>(at + W);
#pragma GCC unroll 4
        for (int k = 0; k < kRows; ++k) {
          sum[k][0] += x0 * with[k];
          sum[k][1] += x1 * with[k];
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        const T* weight = block + (j + k) * kTile + i;
        sum[k][0] *= load<W>(weight);
        sum[k][1] *= load<W>(weight + W);
      }
      store_rows<T>(sum, out + j * kTile + i);
    }
  }
}

// Adds to sums [F + 2, 32] of the pixels i, from a and b [32 pixels j, 32 pixels i].
template <typename T>
__attribute__((noinline)) void add_moments(const T* a, const T* b, const T* fi, const T* fj,
                                           int64_t dims, T* sums) {
  constexpr int W = kLanes<T>;
  const auto add = [](T* to, Vec<T, W> x) { store<W>(to, load<W>(to) + x); };
  for (int i = 0; i < kTile; i += W) {
    Vec<T, W> both[kTile], rho{}, kappa{};
    for (int j = 0; j < kTile; ++j) {
      const Vec<T, W> forth = load<W>(a + j * kTile + i), back = load<W>(b + j * kTile + i);
      rho += forth;
      kappa += back;
      both[j] = forth + back;
    }
    for (int64_t f = 0; f < dims; ++f) {
      const Vec<T, W> own = load<W>(fi + f * kTile + i);
      Vec<T, W> sum{};
      for (int j = 0; j < kTile; ++j) sum += both[j] * (fj[f * kTile + j] - own);
      add(sums + f * kTile + i, sum);
    }
    add(sums + dims * kTile + i, rho);
    add(sums + (dims + 1) * kTile + i, kappa);
  }
}

// Tiles i and j; sums_j is null where they are one and the same.
template <typename T>
void gradient_pair(const ExactProblem<T>& p, int64_t i, int64_t j, T* scratch, T* sums_i,
                   T* sums_j) {
  alignas(kExactAlign) T block[kTile * kTile], a[kTile * kTile], b[kTile * kTile];
  kernel_block(p, i, j, scratch, block);
  const int64_t half = p.channels / 2;
  const T *gi = p.tile_values + i * kTile * p.channels, *vi = gi + half * kTile;
  const T *gj = p.tile_values + j * kTile * p.channels, *vj = gj + half * kTile;
  weighted_products(gi, vj, half, block, a);
  weighted_products(vi, gj, half, block, b);
  const T *fi = p.tile_features + i * kTile * p.dims, *fj = p.tile_features + j * kTile * p.dims;
  add_moments(a, b, fi, fj, p.dims, sums_i);
  if (sums_j == nullptr) return;
  transpose_block(a, block);
  transpose_block(b, a);
  add_moments(a, block, fj, fi, p.dims, sums_j);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
