// Winograd's minimal filtering F(4x4, 3x3),
//
//   y = A^T [(G w G^T) * (B^T x B)] A          * by elements
//
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016), as products of
// polynomials at the points 0, a, -a, b, -b and infinity. Not at their points 0, 1, -1, 2,
// -2: with those the errors are two to four times as large (README.md).
#pragma once

#include "simd.h"
#include "winograd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// a, b, their squares, and the products of a point's distances from the others:
constexpr double kA = 5.0 / 8, kB = 3.0 / 2, kAA = kA * kA, kBB = kB * kB;
constexpr double kFromA = 2 * kAA * (kAA - kBB), kFromB = 2 * kBB * (kBB - kAA);

// B^T and A^T are exact in float32.
constexpr float kSourceMatrix[kTilePoints][kTilePoints] = {
    {kAA * kBB, 0, -kAA - kBB, 0, 1, 0}, {0, -kA * kBB, -kBB, kA, 1, 0},
    {0, kA * kBB, -kBB, -kA, 1, 0},      {0, -kB * kAA, -kAA, kB, 1, 0},
    {0, kB * kAA, -kAA, -kB, 1, 0},      {0, kAA * kBB, 0, -kAA - kBB, 0, 1}};
// G
constexpr float kWeightMatrix[kTilePoints][3] = {
    {float(1 / (kAA * kBB)), 0, 0},
    {float(1 / kFromA), float(kA / kFromA), float(kAA / kFromA)},
    {float(1 / kFromA), float(-kA / kFromA), float(kAA / kFromA)},
    {float(1 / kFromB), float(kB / kFromB), float(kBB / kFromB)},
    {float(1 / kFromB), float(-kB / kFromB), float(kBB / kFromB)},
    {0, 0, 1}};
// A^T
constexpr float kResultMatrix[kTile][kTilePoints] = {
    {1, 1, 1, 1, 1, 0},
    {0, kA, -kA, kB, -kB, 0},
    {0, kAA, kAA, kBB, kBB, 0},
    {0, kA * kAA, -kA * kAA, kB * kBB, -kB * kBB, 1}};

// y = matrix x: products with 0 are none.
template <int kOut, int kIn, typename V>
SEGFAST_INLINE void multiply(const float (&matrix)[kOut][kIn], const V (&x)[kIn], V (&y)[kOut]) {
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) {
    V sum{};
#pragma GCC unroll 6
    for (int k = 0; k < kIn; ++k) {
      if (matrix[i][k] != 0) sum += matrix[i][k] * x[k];
    }
    y[i] = sum;
  }
}

// matrix x matrix^T: x(i, j) gives the element (i, j), what comes out goes to y(i, j, element).
template <int kOut, int kIn, typename X, typename Y>
SEGFAST_INLINE void multiply_both(const float (&matrix)[kOut][kIn], const X& x, const Y& y) {
  using V = decltype(x(0, 0));
  V half[kIn][kOut];  // of every column of x, transposed
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = x(i, j);
    multiply(matrix, column, half[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) {
    V row[kIn], out[kOut];
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
    multiply(matrix, row, out);
#pragma GCC unroll 6
    for (int j = 0; j < kOut; ++j) y(i, j, out[j]);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
