// The contract of the Winograd kernels: 3x3 convolutions without groups and stride, and their input
// gradients, in float32, with a quarter of the products. README.md has the equations.
//
// At rate r a convolution falls apart into those of its phases, the results p with one p mod r,
// each of them an ordinary 3x3 convolution. Tiles of 4x4 results of a phase become 36 products
// each.
#pragma once

#include <vector>

#include "dense.h"

namespace segfast {

constexpr int64_t kTile = 4;                // results of a tile along an axis
constexpr int64_t kTilePoints = kTile + 2;  // its sources, and its products
constexpr int64_t kPoints = kTilePoints * kTilePoints;

struct Winograd {
  DenseConv conv;  // float32, 3x3, stride 1
  // The first result of every tile along each axis: tile (i, j) has the results
  // (rows[i] + u r, columns[j] + v r), 0 <= u, v < kTile, as far as there are any.
  const int64_t *rows, *columns;
  int64_t row_tiles, column_tiles;
};

std::vector<int64_t> winograd_tiles(const DenseConv& p, const Axis& axis);

// A slab: panels [begin, end) of tiles that are transformed together. Panels hold `panel_tiles` of
// one image's tiles and are counted on through the images of the batch.
//
// The transformed source of a slab is [kPoints][panels][panel_floats].
struct WinogradKernels {
  int64_t panel_tiles;
  int64_t (*panel_floats)(const Winograd& p);
  // Bytes of scratch that `source` needs for that many panels of an image.
  int64_t (*source_scratch)(const Winograd& p, int64_t panels);
  // Panels [begin, end) of an image's tiles, source channels `channels`: to `to`, where the first
  // of these panels begins in a transformed slab of `slab_panels`.
  void (*source)(const Winograd& p, Range panels, Range channels, const float* image,
                 int64_t slab_panels, float* to, void* scratch);
  int64_t (*result_scratch)(const Winograd& p);
  // Result channels [begin, end), at most kChannelStep and begin a multiple of it, at the tiles of
  // `panels`, which lie in `slab`. weight [out, in, 3, 3], bias [out] or null, result: all images'.
  void (*result)(const Winograd& p, Range slab, Range panels, int64_t begin, int64_t end,
                 const float* transformed, const float* weight, const float* bias, float* result,
                 void* scratch);
};

static constexpr int64_t image_panels(const Winograd& p, int64_t panel_tiles) {
  return divide_up(p.row_tiles * p.column_tiles, panel_tiles);
}

#define SEGFAST_DECLARE_KERNELS(isa)             \
  namespace isa {                                \
  extern const WinogradKernels winograd_kernels; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
