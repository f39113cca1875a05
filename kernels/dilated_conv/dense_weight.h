// The weight gradient: products of x and the output's gradient over the positions that a tap is
// live for, row of positions by row.
#pragma once

#include "dense_pack.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// One right panel of an image's gradient, to [positions][width]; grad: its first channel.
template <typename S, typename T>
void pack_positions(const S* grad, int64_t plane, int64_t channels, int64_t width, T* to) {
  constexpr int W = kLanes<T>;
  for (int64_t lane = 0; lane < width; lane += W) {
    const int64_t there = channels - lane;
    const S* from = grad + lane * plane;
    int64_t n = 0;
    for (; n + W <= plane; n += W) {
      transpose<T, W>(
          [&](int i) {
            return i < there ? load_widened<S, T, W>(from + i * plane + n) : Vec<T, W>{};
          },
          [&](int j, Vec<T, W> column) { store<W>(to + (n + j) * width + lane, column); });
    }
    for (; n < plane; ++n) {
      for (int64_t i = 0; i < W; ++i) {
        to[n * width + lane + i] = i < there ? widen(from[i * plane + n]) : T(0);
      }
    }
  }
}

template <typename S, typename T>
void pack_grad_of(const DenseConv& p, const S* grad, int64_t begin, int64_t end, T* packed) {
  const int64_t plane = p.conv.rows.output * p.conv.columns.output;
  for (int64_t first = begin; first < end; first += kPanel<T>) {
    const int64_t width = panel_vectors<T>(first, p.conv.out_channels) * kLanes<T>;
    pack_positions(grad + first * plane, plane, p.conv.out_channels - first, width,
                   packed + first * plane);
  }
}

// A row of a left panel: to [positions][kRows] = x [kRows, positions], zeros beyond `channels`.
template <typename S, typename T>
void pack_line(const S* x, int64_t plane, int64_t channels, int64_t positions, T* to) {
  constexpr int W = kLanes<T>;
  constexpr int kGroups = kCopied<T> / W;
  int64_t n = 0;
  for (; n + W <= positions; n += W) {
    Vec<T, W> columns[kGroups][W];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      transpose<T, W>(
          [&](int i) {
            const int r = g * W + i;
            return r < kRows && r < channels ? load_widened<S, T, W>(x + r * plane + n)
                                             : Vec<T, W>{};
          },
          [&](int j, Vec<T, W> column) { columns[g][j] = column; });
    }
    for (int j = 0; j < W; ++j) {  // in order: what is too much of a row, the next overwrites
      for (int g = 0; g < kGroups; ++g) store<W>(to + (n + j) * kRows + g * W, columns[g][j]);
    }
  }
  for (; n < positions; ++n) {
    for (int r = 0; r < kRows; ++r)
      to[n * kRows + r] = r < channels ? widen(x[r * plane + n]) : T(0);
  }
}

// sums [taps, in, out] += the products over rows `outputs` of an image.
template <typename S, typename T>
void add_weight_of(const DenseConv& p, const WeightBlock& b, Range outputs, const S* x,
                   const T* grad, T* sums, T* lines) {
  const Axis &rows = p.conv.rows, &columns = p.conv.columns;
  const int64_t in = b.in.end - b.in.begin, pitch = weight_pitch(b);
  const int64_t plane = rows.input * columns.input, grad_plane = rows.output * columns.output;
  const int64_t panel = (outputs.end - outputs.begin) * columns.input * kRows + kPanelSlack;
  int64_t offsets[kRows];
  for (int r = 0; r < kRows; ++r) offsets[r] = r * pitch;
  Run runs[kWeightPositions];
  for (int64_t i = 0; i < rows.taps; ++i) {
    const Range alive = live(rows, i);
    const int64_t top = alive.begin > outputs.begin ? alive.begin : outputs.begin;
    const int64_t bottom = alive.end < outputs.end ? alive.end : outputs.end;
    if (top >= bottom) continue;
    for (int64_t c = 0; c < in; c += kRows) {
      for (int64_t r = top; r < bottom; ++r) {
        pack_line(x + (b.in.begin + c) * plane + input_of(rows, i, r) * columns.input, plane,
                  in - c, columns.input,
                  lines + c / kRows * panel + (r - top) * columns.input * kRows);
      }
    }
    for (int64_t j = 0; j < columns.taps; ++j) {
      const Range across = live(columns, j);
      if (across.begin == across.end) continue;
      const int64_t left = input_of(columns, j, across.begin);
      for (int64_t r = top; r < bottom; ++r) {
        runs[r - top] = {(r - top) * columns.input + left, r * columns.output + across.begin};
      }
      T* tap = sums + (i * columns.taps + j) * weight_rows(b) * pitch;
      for (int64_t o = b.out.begin; o < b.out.end; o += kPanel<T>) {
        const int vectors = panel_vectors<T>(o, p.conv.out_channels);
        for (int64_t c = 0; c < in; c += kRows) {
          add_product(vectors, in - c, lines + c / kRows * panel, columns.stride,
                      grad + o * grad_plane, runs, bottom - top, across.end - across.begin,
                      tap + c * pitch + o - b.out.begin, offsets);
        }
      }
    }
  }
}

// weight [out, in, taps] = parts [parts][taps, in, out] of a block, added in order.
template <typename S, typename T>
void merge_weight_of(const DenseConv& p, const WeightBlock& b, const T* parts, int64_t count,
                     S* weight) {
  const int64_t all = taps(p.conv), pitch = weight_pitch(b), size = all * weight_rows(b) * pitch;
  for (int64_t o = b.out.begin; o < b.out.end; ++o) {
    S* to = weight + (o * p.conv.in_channels + b.in.begin) * all;
    for (int64_t c = 0; c < b.in.end - b.in.begin; ++c) {
      for (int64_t t = 0; t < all; ++t) {
        const T* from = parts + (t * weight_rows(b) + c) * pitch + o - b.out.begin;
        T sum = from[0];
        for (int64_t i = 1; i < count; ++i) sum += from[i * size];
        narrow(sum, to + c * all + t);
      }
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
