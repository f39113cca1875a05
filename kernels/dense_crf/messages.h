// Between the pixels of a line and the terms: what they receive, mix and send. Shared by the
// updates of mean field and of its gradient.
#pragma once

#include "dense_crf.h"
#include "simd.h"
#include "splat_slice.h"
#include "window.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kChunk = 64;  // pixels that stay in cache from slice to splat

// Labels of a pixel, padded to whole vectors so that they transpose.
template <typename T>
SEGFAST_INLINE int64_t padded(int labels) {
  constexpr int W = kLanes<T>;
  return (labels + W - 1) / W * W;
}

// The row convolution runs ahead by its radius, and by the pixels that padding spills into: what a
// chunk sends replaces what later ones read.
template <typename T>
int64_t chunks_held(const Update<T>& m) {
  const int64_t spilled = (m.row - 1) / m.labels;  // pixels after the last one that is sent
  int64_t depth = 1;
  for (int t = 0; t < m.conv_count; ++t) {
    const int64_t needed = (m.conv[t].radius_x + spilled + kChunk - 1) / kChunk + 1;
    depth = depth < needed ? needed : depth;
  }
  return depth;
}

template <typename T>
SEGFAST_INLINE void clear(T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

template <typename T>
SEGFAST_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// message[p] += M single[p], rows of [row]; those of single are `stride` apart
template <typename T>
SEGFAST_INLINE void mix(const Mixing<T>& mixing, const T* single, int64_t stride, int labels,
                        int row, int64_t count, T* message) {
  for (int64_t p = 0; p < count; ++p) {
    const T* from = single + p * stride;
    T* to = message + p * row;
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      Vec<T, N> sum = load<N>(to + l);
      if (mixing.kind == MixingKind::scalar) {
        sum += load<N>(from + l) * mixing.scalar;
      } else if (mixing.kind == MixingKind::vector) {
        sum += load<N>(from + l) * load<N>(mixing.values + l);
      } else {
        for (int64_t k = 0; k < labels; ++k) {
          sum += load<N>(mixing.values + k * row + l) * from[k];
        }
      }
      store<N>(to + l, sum);
    });
  }
}

// to[b] (+)= scale[b] (convolution at position b). Not inlined: its caller's variables would take
// the registers it needs.
template <int N, bool kAdd, typename T>
__attribute__((noinline)) void conv_row(const T* in, int64_t stride, const T* taps, int64_t radius,
                                        int count, const T* scale, int64_t row, T* to) {
  symmetric_window<N>(in, stride, taps, radius, count, [&](int b, Vec<T, N> sum) {
    T* at = to + b * row;
    sum *= scale[b];
    store<N>(at, kAdd ? load<N>(at) + sum : sum);
  });
}

// to[p] += what the lattice holds for pixel first + p
template <typename T>
SEGFAST_INLINE void slice_message(const LatticeTerm<T>& term, int band, int64_t first, int count,
                                  int row, T* to) {
  const auto run = term.corners == 6   ? &slice<T, 6>
                   : term.corners == 3 ? &slice<T, 3>
                                       : &slice<T, 0>;
  run(term, term.received + term.local_start[band] * row, first, count, row, to);
}

// to[p] (+)= gain times the convolution along row y, on what conv_columns left
template <typename T>
void conv_message(const ConvTerm<T>& term, int labels, int row, int64_t y, int64_t x, int count,
                  T gain, bool add, T* to) {
  const T* in = term.lines + y * term.pitch + (term.radius_x + x) * labels;
  for (int p = 0; p < count; p += kWindow) {
    const int outputs = count - p < kWindow ? count - p : kWindow;
    prefetch(in + (p + kChunk + term.radius_x) * labels, kWindow * labels);
    T scale[kWindow];
    for (int b = 0; b < outputs; ++b) {
      scale[b] = term.out_y[y] * term.out_x[x + p + b] * gain;
    }
    // (the last vector reaches into the next pixel: those lanes are labels that do not exist)
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      const auto run = add ? &conv_row<N, true, T> : &conv_row<N, false, T>;
      run(in + p * labels + l, labels, term.taps_x, term.radius_x, outputs, scale, row,
          to + p * row + l);
    });
  }
}

template <typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> load_pixels(const T* from, int count) {
  constexpr int W = kLanes<T>;
  if (count == W) return load<W>(from);
  Vec<T, W> v{};
  for (int w = 0; w < count; ++w) v[w] = from[w];
  return v;
}

template <typename T>
SEGFAST_INLINE void store_pixels(T* to, Vec<T, kLanes<T>> v, int count) {
  if (count == kLanes<T>) return store<kLanes<T>>(to, v);
  for (int w = 0; w < count; ++w) to[w] = v[w];
}

// tile[l] = exp(tile[l] - top); returns 1 / sum: together the softmax of W pixels at once.
template <typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> exponentials(Vec<T, kLanes<T>>* tile, Vec<T, kLanes<T>> top,
                                              int labels) {
  constexpr int W = kLanes<T>;
  Vec<T, W> sum{};
  for (int l = 0; l < labels; ++l) {
    tile[l] = exp_nonpositive<W>(tile[l] - top);
    sum += tile[l];
  }
  return T(1) / sum;
}

template <typename T>
SEGFAST_INLINE void send_to_lattice(const LatticeTerm<T>& term, int band, int64_t first, int count,
                                    int row, int64_t pitch, const T* values) {
  const auto run = term.corners == 6   ? &splat<T, 6>
                   : term.corners == 3 ? &splat<T, 3>
                                       : &splat<T, 0>;
  run(term, term.sent + term.local_start[band] * row, first, count, row, pitch, values);
}

template <typename T>
SEGFAST_INLINE void send_to_conv(const ConvTerm<T>& term, int labels, int row, int64_t y, int64_t x,
                                 int count, int64_t pitch, const T* values) {
  T* to = term.lines + y * term.pitch + (term.radius_x + x) * labels;
  for (int p = 0; p < count; ++p) {
    const T scale = term.in_y[y] * term.in_x[x + p];
    // Padding zeros spill into the next pixel, which is written after this one.
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      store<N>(to + p * labels + l, load<N>(values + p * pitch + l) * scale);
    });
  }
}

// Sends values [count, pitch] of the pixels from `first` = y * width + x on to every term.
template <typename T>
void send_to_terms(const Update<T>& u, int band, int64_t first, int64_t y, int64_t x, int count,
                   int64_t pitch, const T* values) {
  for (int t = 0; t < u.lattice_count; ++t) {
    send_to_lattice(u.lattice[t], band, first, count, u.row, pitch, values);
  }
  for (int t = 0; t < u.conv_count; ++t) {
    send_to_conv(u.conv[t], u.labels, u.row, y, x, count, pitch, values);
  }
}

// Empties what the band will splat into.
template <typename T>
void clear_sent(const Update<T>& u, int band) {
  for (int t = 0; t < u.lattice_count; ++t) {
    const LatticeTerm<T>& term = u.lattice[t];
    clear(term.sent + term.local_start[band] * u.row,
          (term.local_start[band + 1] - term.local_start[band]) * u.row);
  }
}

// The pixels [begin, end) of a band, line by line: line(first pixel, how many).
template <typename T, typename Line>
SEGFAST_INLINE void for_each_line(const Update<T>& u, int band, int64_t begin, int64_t end,
                                  const Line& line) {
  if (u.send) clear_sent(u, band);
  for (int64_t first = begin; first < end; first += u.width) {
    line(first, end - first < u.width ? end - first : u.width);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
