// The sources of tiles, transformed, in panels: along the rows whole lines at a time, whatever the
// phase; along the columns the tiles of a panel, a lane each.
#pragma once

#include "dense_pack.h"
#include "winograd_transform.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

SEGFAST_INLINE int64_t panel_size(const Winograd& p) {
  return source_channels(p.conv) * kRows + kPanelSlack;
}

// The source that point 0 of a tile reads, along an axis; point k reads k rates further on.
SEGFAST_INLINE int64_t first_source(const Winograd& p, const Axis& axis, int64_t result) {
  // Transposed is a convolution with its taps mirrored.
  return result - (p.conv.transposed ? 2 * axis.dilation - axis.padding : axis.padding);
}

// Tiles along the rows that the panels touch.
SEGFAST_INLINE Range tile_rows(const Winograd& p, Range panels) {
  const int64_t all = p.row_tiles, last = (panels.end * kRows - 1) / p.column_tiles + 1;
  return {panels.begin * kRows / p.column_tiles, last < all ? last : all};
}

// Of `source`: lines [tile_rows][kTilePoints][pitch], each with a zero behind it, one line of
// zeros, and where the points of a panel's tiles are along a line, [panels][kTilePoints][kRows].
struct SourceLayout {
  Range rows;
  int64_t width, pitch;
  int64_t lines, places;  // how many floats, how many int64
};
SEGFAST_INLINE SourceLayout source_layout(const Winograd& p, Range panels) {
  const int64_t width = source_size(p.conv, p.conv.conv.columns);
  const int64_t pitch = round_up(width + 1, 16);
  const Range rows = tile_rows(p, panels);
  const int64_t lines = ((rows.end - rows.begin) * kTilePoints + 1) * pitch;
  return {rows, width, pitch, lines, (panels.end - panels.begin) * kTilePoints * kRows};
}

void locate_tiles(const Winograd& p, Range panels, const SourceLayout& s, int64_t* places) {
  const Axis& axis = p.conv.conv.columns;
  const int64_t tiles = p.row_tiles * p.column_tiles;
  for (int64_t q = panels.begin; q < panels.end; ++q, places += kTilePoints * kRows) {
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t tile = q * kRows + r, i = tile / p.column_tiles, j = tile % p.column_tiles;
      const int64_t line = tile < tiles ? (i - s.rows.begin) * kTilePoints * s.pitch : 0;
      for (int64_t k = 0; k < kTilePoints; ++k) {
        const int64_t at =
            tile < tiles ? first_source(p, axis, p.columns[j]) + k * axis.dilation : -1;
        places[k * kRows + r] = line + (at < 0 || at >= s.width ? s.width : at);
      }
    }
  }
}

template <int N>
SEGFAST_INLINE void transform_lines(const float* const (&source)[kTilePoints], int64_t at,
                                    int64_t pitch, float* to) {
  Vec<float, N> x[kTilePoints], y[kTilePoints];
#pragma GCC unroll 6
  for (int k = 0; k < kTilePoints; ++k) x[k] = load<N>(source[k] + at);
  multiply(kSourceMatrix, x, y);
#pragma GCC unroll 6
  for (int k = 0; k < kTilePoints; ++k) store<N>(to + k * pitch + at, y[k]);
}

// The lines of a row of tiles.
void transform_rows(const Winograd& p, int64_t i, const SourceLayout& s, const float* plane,
                    const float* zeros, float* to) {
  constexpr int W = kLanes<float>;
  const Axis& axis = p.conv.conv.rows;
  const float* source[kTilePoints];
  for (int64_t k = 0; k < kTilePoints; ++k) {
    const int64_t at = first_source(p, axis, p.rows[i]) + k * axis.dilation;
    source[k] = at < 0 || at >= source_size(p.conv, axis) ? zeros : plane + at * s.width;
  }
  if (s.width < W) {
    for (int64_t x = 0; x < s.width; ++x) transform_lines<1>(source, x, s.pitch, to);
    return;
  }
  for (int64_t x = 0; x < s.width; x += W) {
    transform_lines<W>(source, x + W <= s.width ? x : s.width - W, s.pitch, to);
  }
}

void source_of_tiles(const Winograd& p, Range panels, Range channels, const float* image,
                     int64_t slab_panels, float* to, void* scratch) {
  constexpr int N = kCopied<float>;
  const SourceLayout s = source_layout(p, panels);
  int64_t* places = static_cast<int64_t*>(scratch);
  float* lines = reinterpret_cast<float*>(places + s.places);
  for (int64_t i = 0; i < s.lines; ++i) lines[i] = 0;
  const float* zeros = lines + s.lines - s.pitch;
  locate_tiles(p, panels, s, places);
  const int64_t plane = source_size(p.conv, p.conv.conv.rows) * s.width;
  const int64_t panel = panel_size(p), point = slab_panels * panel;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    for (int64_t i = s.rows.begin; i < s.rows.end; ++i) {
      transform_rows(p, i, s, image + c * plane, zeros,
                     lines + (i - s.rows.begin) * kTilePoints * s.pitch);
    }
    for (int64_t q = 0; q < panels.end - panels.begin; ++q) {
      const int64_t* at = places + q * kTilePoints * kRows;
      for (int64_t k = 0; k < kTilePoints; ++k) {
        Vec<float, N> x[kTilePoints], y[kTilePoints];
#pragma GCC unroll 6
        for (int m = 0; m < kTilePoints; ++m) {
          x[m] = Vec<float, N>{};
#pragma GCC unroll 12
          for (int r = 0; r < kRows; ++r) x[m][r] = lines[k * s.pitch + at[m * kRows + r]];
        }
        multiply(kSourceMatrix, x, y);
        float* panel_to = to + k * kTilePoints * point + q * panel + c * kRows;
#pragma GCC unroll 6
        for (int m = 0; m < kTilePoints; ++m) {
          float* out = panel_to + m * point;
          if (c + 1 < channels.end) {
            store<N>(out, y[m]);  // what is too much, the next channel overwrites
          } else {
#pragma GCC unroll 12
            for (int r = 0; r < kRows; ++r) out[r] = y[m][r];
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
