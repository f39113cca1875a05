// The table of the Winograd kernels, and the results of tiles: weights transformed, 36 products of
// matrices, transformed back.
#include "dense_tile.h"
#include "winograd.h"
#include "winograd_source.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kBlockTiles = 24;  // whose products are kept in cache
constexpr int64_t kBlockPanels = kBlockTiles / kRows;
constexpr int64_t kTerms = 512;  // of a product, at most
constexpr int64_t kRight = kPanel<float>;
constexpr int64_t kRightPanels = kChannelStep / kRight;
constexpr int64_t kSkew =
    16;  // what lies kPoints times one after another must not meet in the cache

// Products of a block of tiles and a block of channels: [kPoints][right panels][tiles][kRight].
constexpr int64_t kProductPoint = kRightPanels * kBlockTiles * kRight + kSkew;

SEGFAST_INLINE int64_t weight_point(const Winograd& p) {
  return source_channels(p.conv) * kRight + kSkew;
}

int64_t result_scratch(const Winograd& p) {
  const int64_t packed = 9 * source_channels(p.conv) * kRight;
  const int64_t weights = kRightPanels * kPoints * weight_point(p);
  return (packed + weights + kPoints * kProductPoint) * sizeof(float);
}

// packed [9][source channels][width] -> to [kPoints][source channels, width]
void transform_weight(const Winograd& p, int64_t width, const float* packed, float* to) {
  constexpr int W = kLanes<float>;
  const int64_t count = source_channels(p.conv) * width, point = weight_point(p);
  const int64_t tap = p.conv.transposed ? -count : count;
  if (p.conv.transposed) packed += 8 * count;
  for (int64_t n = 0; n < count; n += W) {
    multiply_both(
        kWeightMatrix, [&](int i, int j) { return load<W>(packed + (i * 3 + j) * tap + n); },
        [&](int i, int j, Vec<float, W> y) {
          store<W>(to + (i * kTilePoints + j) * point + n, y);
        });
  }
}

// products += transformed source * transformed weights, at `panels` panels.
void multiply_points(const Winograd& p, int64_t begin, int64_t panels, int64_t slab_panels,
                     const float* source, const float* weights, float* products) {
  const int64_t channels = source_channels(p.conv), panel = panel_size(p);
  int64_t rows[kRows];
  for (int64_t x = 0; x < kPoints; ++x) {
    for (int64_t o = 0; o < kRightPanels; ++o) {
      const int64_t channel = begin + o * kRight;
      if (channel >= result_channels(p.conv)) break;
      const int vectors = panel_vectors<float>(channel, result_channels(p.conv));
      const float* right = weights + (o * kPoints + x) * weight_point(p);
      const float* left = source + x * slab_panels * panel;
      float* to = products + x * kProductPoint + o * kBlockTiles * kRight;
      for (int64_t r = 0; r < kRows; ++r) rows[r] = r * kRight;
      for (int64_t first = 0; first < channels; first += kTerms) {
        const int64_t terms = channels - first < kTerms ? channels - first : kTerms;
        const Run run{first, first};
        for (int64_t q = 0; q < panels; ++q) {
          add_product(vectors, kRows, left + q * panel, 1, right, &run, 1, terms,
                      to + q * kRows * kRight, rows);
        }
      }
    }
  }
}

// The results of one tile, channels [begin, end).
void finish_tile(const Winograd& p, int64_t tile, int64_t begin, int64_t end, const float* products,
                 const float* bias, float* image) {
  constexpr int W = kLanes<float>;
  const Axis &rows = p.conv.conv.rows, &columns = p.conv.conv.columns;
  const int64_t height = result_size(p.conv, rows), width = result_size(p.conv, columns);
  const int64_t row = p.rows[tile / p.column_tiles], column = p.columns[tile % p.column_tiles];
  for (int64_t o = begin; o < end; o += W) {
    const int64_t there = end - o < W ? end - o : W, at = o - begin;
    const float* from = products + at / kRight * kBlockTiles * kRight + at % kRight;
    Vec<float, W> summand{};
    if (bias != nullptr) {
      for (int64_t i = 0; i < there; ++i) summand[i] = bias[o + i];
    }
    float* to = image + o * height * width;
    multiply_both(
        kResultMatrix,
        [&](int i, int j) { return load<W>(from + (i * kTilePoints + j) * kProductPoint); },
        [&](int i, int j, Vec<float, W> y) {
          const int64_t h = row + i * rows.dilation, w = column + j * columns.dilation;
          if (h >= height || w >= width) return;
          float lanes[W];
          store<W>(lanes, y + summand);
          float* out = to + h * width + w;
          if (there == W) {
#pragma GCC unroll 16
            for (int l = 0; l < W; ++l) out[l * height * width] = lanes[l];
          } else {
            for (int64_t l = 0; l < there; ++l) out[l * height * width] = lanes[l];
          }
        });
  }
}

void result(const Winograd& p, Range slab, Range panels, int64_t begin, int64_t end,
            const float* transformed, const float* weight, const float* bias, float* result,
            void* scratch) {
  const int64_t channels = source_channels(p.conv), slab_panels = slab.end - slab.begin;
  const int64_t tiles = p.row_tiles * p.column_tiles, in_image = image_panels(p, kRows);
  const int64_t plane =
      result_size(p.conv, p.conv.conv.rows) * result_size(p.conv, p.conv.conv.columns);
  float* packed = static_cast<float*>(scratch);
  float* weights = packed + 9 * channels * kRight;
  float* products = weights + kRightPanels * kPoints * weight_point(p);
  for (int64_t o = begin; o < end; o += kRight) {
    const int64_t width = panel_vectors<float>(o, result_channels(p.conv)) * kLanes<float>;
    pack_panel(p.conv, weight, o, width, packed);
    transform_weight(p, width, packed, weights + (o - begin) / kRight * kPoints * weight_point(p));
  }
  for (int64_t q = panels.begin; q < panels.end; q += kBlockPanels) {
    const int64_t count = panels.end - q < kBlockPanels ? panels.end - q : kBlockPanels;
    for (int64_t i = 0; i < kPoints * kProductPoint; ++i) products[i] = 0;
    multiply_points(p, begin, count, slab_panels, transformed + (q - slab.begin) * panel_size(p),
                    weights, products);
    for (int64_t i = 0; i < count * kRows; ++i) {
      const int64_t n = (q + i / kRows) / in_image;
      const int64_t tile = (q - n * in_image) * kRows + i;
      if (tile >= tiles) continue;
      finish_tile(p, tile, begin, end, products + i * kRight, bias,
                  result + n * result_channels(p.conv) * plane);
    }
  }
}

int64_t panel_floats(const Winograd& p) { return panel_size(p); }

int64_t source_scratch(const Winograd& p, int64_t panels) {
  // Panels that begin within a row of tiles touch one more.
  const int64_t rows = (panels * kRows - 1) / p.column_tiles + 2;
  const SourceLayout whole = source_layout(p, {0, panels});
  const int64_t lines = ((rows < p.row_tiles ? rows : p.row_tiles) * kTilePoints + 1) * whole.pitch;
  return whole.places * sizeof(int64_t) + lines * sizeof(float);
}

}  // namespace

extern const WinogradKernels winograd_kernels = {kRows,           panel_floats,   source_scratch,
                                                 source_of_tiles, result_scratch, result};

}  // namespace SEGFAST_ISA
}  // namespace segfast
