// Exact Gaussian filter: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j over every pair of pixels.
//
// Six steps, in this order, each over a range [begin, end) of independent work that the caller may
// split among threads as it likes; the result does not depend on how:
//
//   start   pixels                      the order begins as 0..N-1
//   split   1 << level ranges           for level = 0 .. exact_levels - 1: halves at the median of
//                                       the widest feature, until every range is one tile
//   pack    tiles                       features, values, bounding boxes and centres in tile order
//   reach   tiles                       how far each must see; its sums begin as 0
//   filter  pairs of groups of tiles    what the two groups a <= b send each other; b = a included
//   unpack  tiles                       y for the pixels of these tiles
//
// K is symmetric, so that a pair of tiles shares its kernel block: a pair of groups adds to the
// sums of both. Pairs that share a group must not run at the same time, and must run in a fixed
// order for the result to have the same bits.
//
// With `gradient` in place of `filter`, and [G, V] for values, the sums are what moves the
// features:
//
//   df_i = sum_j K_ij (G_i . V_j + V_i . G_j) (f_j - f_i)                 rows 0 .. F-1
//   rho_i = sum_j K_ij G_i . V_j,  kappa_i = sum_j K_ij V_i . G_j         rows F, F + 1
//
// Tile pairs so far apart that together they cannot change a row by more than
// tolerance * max|v| are left out: |y_i - exact_i| <= tolerance * max|v| besides rounding. Of the
// gradient, tolerance * max|G_i . V_j + V_i . G_j|, for sum_j K_ij and sum_j K_ij |f_i - f_j|
// alike.
#pragma once

#include <cstdint>

namespace segfast {

constexpr int64_t kExactTile = 32;   // pixels per tile
constexpr int64_t kExactGroup = 16;  // tiles per group, at most
constexpr int64_t kExactAlign = 64;

template <typename T>
struct ExactProblem {
  int64_t pixels, channels, dims;  // N, C, F; all at least 1
  int64_t tiles;                   // exact_tiles(N)
  double tolerance;                // 0: no pair is left out
  bool gradient;                   // C counts G and V: it is even
  int64_t rows;                    // of the result: C, or F + 2
  const T* values;                 // [C, N]
  const T* features;               // [F, N]
  T* out;                          // [rows, N]
  int64_t* order;                  // [N]: the pixel in each slot
  int64_t* spare;                  // [N]: scratch of split
  void* keys;                      // [N] integers as wide as T: scratch of split
  T* tile_features;                // [tiles, F, kExactTile]
  T* tile_values;                  // [tiles, kExactTile, C]; gradient: [tiles, C, kExactTile]
  T* boxes;                        // [2, F, exact_box_stride]: lower and upper corners
  T* centres;                      // [tiles, F]: of small tiles, else a NaN (float32 only)
  T* centred;                      // [tiles, F + 1, kExactTile]: see exact_block.h (float32 only)
  T* reach;      // [tiles]: half the squared distance from which on they see nothing
  double* sums;  // [tiles, rows, kExactTile]: the result in tile order
};

template <typename T>
struct ExactKernels {
  void (*start)(const ExactProblem<T>&, int64_t begin, int64_t end);
  void (*split)(const ExactProblem<T>&, int64_t level, int64_t begin, int64_t end);
  void (*pack)(const ExactProblem<T>&, int64_t begin, int64_t end);
  void (*reach)(const ExactProblem<T>&, int64_t begin, int64_t end);
  // scratch: exact_scratch_bytes, kExactAlign-aligned, one per thread
  void (*filter)(const ExactProblem<T>&, int64_t a, int64_t b, void* scratch);
  void (*gradient)(const ExactProblem<T>&, int64_t a, int64_t b, void* scratch);
  void (*unpack)(const ExactProblem<T>&, int64_t begin, int64_t end);
};

#define SEGFAST_DECLARE_KERNELS(isa)                   \
  namespace isa {                                      \
  extern const ExactKernels<float> exact_kernels_f32;  \
  extern const ExactKernels<double> exact_kernels_f64; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

// static: an inline function would be a weak symbol in every per-instruction-set object.
static constexpr int64_t exact_tiles(int64_t pixels) {
  return (pixels + kExactTile - 1) / kExactTile;
}
static constexpr int64_t exact_levels(int64_t tiles) {
  int64_t levels = 0;
  while ((int64_t{1} << levels) < tiles) ++levels;
  return levels;
}
static constexpr int64_t exact_box_stride(int64_t tiles) {
  return (tiles + kExactAlign - 1) / kExactAlign * kExactAlign;
}
// Large groups move fewer sums, many groups keep many threads busy.
static constexpr int64_t exact_group(int64_t tiles) {
  int64_t group = 4;
  while (group < kExactGroup && tiles >= 64 * group) group *= 2;
  return group;
}
static constexpr int64_t exact_groups(int64_t tiles) {
  return (tiles + exact_group(tiles) - 1) / exact_group(tiles);
}
// Sums of two groups and one tile's centred features.
static constexpr int64_t exact_scratch_bytes(int64_t tiles, int64_t rows, int64_t dims) {
  return (2 * exact_group(tiles) * rows + dims + 1) * kExactTile * 8;
}

}  // namespace segfast
