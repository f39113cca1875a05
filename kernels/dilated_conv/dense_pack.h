// How maps and weights come into panels.
#pragma once

#include "dense.h"
#include "dense_tile.h"
#include "element.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename S, typename T, int N>
SEGFAST_INLINE Vec<T, N> load_widened(const S* from) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<N>(reinterpret_cast<const T*>(from));
  } else {
    Vec<T, N> v;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = widen(from[i]);
    return v;
  }
}

// Packed weights beyond any share of a last-level cache go past it: no line of theirs is read to be
// overwritten. Only where a vector is a whole line.
constexpr int64_t kStreamed = 16 << 20;  // bytes
template <typename T>
SEGFAST_INLINE bool streams_weights(const DenseConv& p, const T* to) {
  const int64_t count = taps(p.conv) * source_channels(p) * result_channels(p);
  return kVectorBytes == 64 && count * static_cast<int64_t>(sizeof(T)) > kStreamed &&
         streams_well(to, kLanes<T>);
}

// Of one right panel of the forward weights: to [taps][in][width], from [out][in][taps].
// A vector's worth of outputs at a time, transposed in registers.
template <typename S, typename T>
void pack_outputs(const DenseConv& p, const S* weight, int64_t first, int64_t width, T* to) {
  constexpr int W = kLanes<T>;
  const int64_t in = p.conv.in_channels, count = taps(p.conv), row = in * count;
  const bool streams = streams_weights(p, to);
  for (int64_t lane = 0; lane < width; lane += W) {
    const int64_t there = p.conv.out_channels - first - lane;
    const S* from = weight + (first + lane) * row;
    int64_t c = 0, t = 0, k = 0;
    const auto next = [&]() __attribute__((always_inline)) {
      T* at = to + (t * in + c) * width + lane;
      if (++t == count) t = 0, ++c;
      return at;
    };
    if (there >= W) {
      for (; k + W <= row; k += W) {
        transpose<T, W>([&](int i) { return load_widened<S, T, W>(from + i * row + k); },
                        [&](int, Vec<T, W> column) {
                          streams ? stream<W>(next(), column) : store<W>(next(), column);
                        });
      }
    }
    for (; k < row; ++k) {
      T* at = next();
      for (int64_t i = 0; i < W; ++i) at[i] = i < there ? widen(from[i * row + k]) : T(0);
    }
  }
}

// Of one right panel of the transposed weights: to [taps][out][width].
template <typename S, typename T>
void pack_inputs(const DenseConv& p, const S* weight, int64_t first, int64_t width, T* to) {
  constexpr int W = kLanes<T>;
  const int64_t in = p.conv.in_channels, out = p.conv.out_channels, count = taps(p.conv);
  const bool streams = streams_weights(p, to);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t lane = 0; lane < width; lane += W) {
      const int64_t there = in - first - lane;
      const S* from = weight + (o * in + first + lane) * count;
      T* at = to + o * width + lane;
      int64_t t = 0;
      for (; there >= W && t + W <= count; t += W) {
        transpose<T, W>([&](int i) { return load_widened<S, T, W>(from + i * count + t); },
                        [&](int j, Vec<T, W> tap) {
                          T* line = at + (t + j) * out * width;
                          streams ? stream<W>(line, tap) : store<W>(line, tap);
                        });
      }
      for (; t < count; ++t) {
        T* tap = at + t * out * width;
        for (int64_t i = 0; i < W; ++i) tap[i] = i < there ? widen(from[i * count + t]) : T(0);
      }
    }
  }
}

template <typename S, typename T>
void pack_panel(const DenseConv& p, const S* weight, int64_t first, int64_t width, T* to) {
  if (p.transposed) {
    pack_inputs(p, weight, first, width, to);
  } else {
    pack_outputs(p, weight, first, width, to);
  }
}

template <typename S, typename T>
void pack_weight_of(const DenseConv& p, const S* weight, int64_t begin, int64_t end, T* packed) {
  const int64_t panel_terms = taps(p.conv) * source_channels(p);
  for (int64_t first = begin; first < end; first += kPanel<T>) {
    const int64_t width = panel_vectors<T>(first, result_channels(p)) * kLanes<T>;
    pack_panel(p, weight, first, width, packed + first * panel_terms);
  }
  end_of_stream();
}

// Whole vectors that a row of a left panel fits into; what is too much, the next row overwrites.
template <typename T>
constexpr int kCopied = round_up(kRows, kLanes<T>);
constexpr int64_t kPanelSlack = 16;  // for the last row; it also keeps panels apart in the cache

constexpr int64_t kAhead = 4;  // channels that are fetched ahead: no prefetcher sees them coming

// Left panels of a map's channels at `count` positions:
//   panel q, row k, r:  map[k, positions[q kRows + r] + shift]
// positions lie a multiple of kRows; together[q]: whether a panel's lie next to each other.
template <typename S, typename T>
void gather_panels(const S* map, const S* map_end, int64_t plane, int64_t channels,
                   const int64_t* positions, const bool* together, int64_t count, int64_t shift,
                   T* to, int64_t pitch) {
  for (int64_t k = 0; k < channels; ++k, map += plane, to += kRows) {
    const S* from = map + shift;
    const int64_t readable = map_end - from - kCopied<T>;
    T* at = to;
    for (int64_t q = 0; q < count; ++q, at += pitch) {
      const int64_t* where = positions + q * kRows;
      __builtin_prefetch(from + kAhead * plane + where[0]);
      if (together[q] && where[0] <= readable) {
#pragma GCC unroll 4
        for (int i = 0; i < kCopied<T>; i += kLanes<T>) {
          store<kLanes<T>>(at + i, load_widened<S, T, kLanes<T>>(from + where[0] + i));
        }
      } else {
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) at[r] = widen(from[where[r]]);
      }
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
