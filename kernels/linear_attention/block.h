// A block of positions: how it comes from memory and goes back, and the memory it is worked on in.
#pragma once

#include "element.h"
#include "feature_maps.h"
#include "linear_attention.h"
#include "products.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// A part holds the state transposed, [E + 1, R], its rows padded to vectors.
template <typename T>
int64_t part_pitch(const LinearAttention& p) {
  return round_up(state_rows(p), kLanes<T>);
}

// Rows of v, or of grad o, that are worked on together; whole tiles of either product.
constexpr int64_t kValues = 96;
int64_t value_rows(const LinearAttention& p) { return p.values < kValues ? p.values : kValues; }

// Of a state: packed to contract R, and to contract E (pack_weights).
int64_t feature_weights(const LinearAttention& p) {
  return round_up(p.values, kTileRows<kNarrow>) * state_rows(p);
}
int64_t value_weights(const LinearAttention& p) {
  return round_up(state_rows(p), kTileRows<kWide>) * p.values;
}
int64_t weights(const LinearAttention& p) {
  return feature_weights(p) + value_weights(p) + state_rows(p);
}

template <typename T>
struct Weights {
  T *features, *values;
  T* totals;  // [R], the state's last column + eps

  Weights(const LinearAttention& p, T* memory)
      : features(memory),
        values(features + feature_weights(p)),
        totals(values + value_weights(p)) {}
};

// Positions that are cut into whole tiles of either product.
template <typename T>
constexpr int64_t kWholeTiles = kLanes<T> * (kWide == kNarrow ? kWide : kWide * kNarrow);

// Positions of a block: so many that the sums of `gram` are seldom stored. The panels of phi have
// 512 KB at most, and backward all rows 320 KB, of a second-level cache of often 512 KB or 1 MB.
enum class Direction { forward, backward };

template <typename T>
int64_t block_width(const LinearAttention& p, Direction direction) {
  constexpr int64_t kTiles = kWholeTiles<T>, kMost = 2112 / sizeof(T), kLeast = 1152 / sizeof(T);
  static_assert(kMost % kTiles == 0 && kLeast % kTiles == 0);
  const int64_t rows = state_rows(p), forward = (512 << 10) / sizeof(T) / rows;
  const int64_t all = (320 << 10) / sizeof(T) / (value_rows(p) + 4 * rows);
  int64_t width = direction == Direction::forward || forward < all ? forward : all;
  width = width / kTiles * kTiles;
  return width < kLeast ? kLeast : width > kMost ? kMost : width;
}

// An odd number of cache lines: rows spread over all sets of the caches.
template <typename T>
int64_t row_pitch(int64_t width) {
  constexpr int64_t kLine = kLineBytes / sizeof(T);
  return ((width + kLine - 1) / kLine | 1) * kLine;
}

template <typename T>
struct Scratch {
  int64_t width;                                            // positions of a block
  int64_t pitch;                                            // from row to row
  T *x, *phi;                                               // [D], [R] rows
  T* grad;                                                  // [R]
  T* values;                                                // [value_rows]
  T *shift, *inverse, *ones, *denominator, *scale, *slope;  // one row each
  T* panels;                                                // phi, see pack_positions

  static int64_t count(const LinearAttention& p) {
    const int64_t pitch = row_pitch<T>(block_width<T>(p, Direction::forward));
    const int64_t rows = state_rows(p);
    return (p.features + 2 * rows + value_rows(p) + 6 + part_pitch<T>(p)) * pitch;
  }

  Scratch(const LinearAttention& p, Direction direction, void* memory)
      : width(block_width<T>(p, direction)), pitch(row_pitch<T>(width)) {
    const int64_t rows = state_rows(p);
    T* at = static_cast<T*>(memory);
    const auto take = [&](int64_t count) {
      T* taken = at;
      at += count;
      return taken;
    };
    x = take(p.features * pitch);
    phi = take(rows * pitch);
    grad = take(rows * pitch);
    values = take(value_rows(p) * pitch);
    shift = take(pitch);
    inverse = take(pitch);
    ones = take(pitch);
    denominator = take(pitch);
    scale = take(pitch);
    slope = take(pitch);
    panels = take(part_pitch<T>(p) * pitch);
    for (int64_t n = 0; n < pitch; ++n) ones[n] = 1;
  }

  Features<T> block(const LinearAttention& p, int64_t count) const {
    constexpr int W = kLanes<T>;
    return {p.map, p.features, pitch, round_up(count, W), count, x, phi, shift, inverse, false};
  }
};

int64_t part(const LinearAttention& p) {
  int64_t elements = 0;
  by_dtype(p.dtype,
           [&](auto, auto sum) { elements = (p.values + 1) * part_pitch<decltype(sum)>(p); });
  return elements;
}

int64_t scratch(const LinearAttention& p) {
  int64_t bytes = 0;
  by_dtype(p.dtype, [&](auto, auto sum) {
    using T = decltype(sum);
    bytes = Scratch<T>::count(p) * static_cast<int64_t>(sizeof(T));
  });
  return bytes;
}

// The first `count` elements of a vector, zeros beyond.
template <typename S, typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> load_wide(const S* from, int64_t count) {
  constexpr int W = kLanes<T>;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (count >= W) return load<W>(reinterpret_cast<const T*>(from));
  }
  Vec<T, W> v{};
  for (int i = 0; i < W && i < count; ++i) v[i] = widen(from[i]);
  return v;
}

// to [kRows, width] = kRows rows of positions, zeros beyond the count; `ahead` rows on are fetched.
template <int kRows, typename S, typename T>
SEGFAST_INLINE void load_rows(const S* from, int64_t from_pitch, int64_t ahead,
                              const Features<T>& b, T* to) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kLine = kLineBytes / sizeof(S);
  int64_t n = 0;
  for (; n + kLine <= b.count; n += kLine) {
    for (int r = 0; r < kRows; ++r) {
      const S* row = from + r * from_pitch + n;
      if (ahead > 0) __builtin_prefetch(row + ahead * from_pitch);
      T* copy = to + r * b.pitch + n;
      if constexpr (sizeof(S) == sizeof(T)) {
        for (int64_t i = 0; i < kLine; i += W) store<W>(copy + i, load_wide<S, T>(row + i, W));
      } else {
        for (int64_t i = 0; i < kLine; ++i) copy[i] = widen(row[i]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int64_t i = n; i < b.width; ++i) {
      to[r * b.pitch + i] = i < b.count ? widen(from[r * from_pitch + i]) : T(0);
    }
  }
}

// to [rows, width] = rows of positions [first, first + count), zeros beyond. Every row is a page of
// its own, where no prefetcher of the processor's looks ahead: four are read side by side while the
// next four are fetched.
template <typename S, typename T>
void load_block(Map map, int64_t rows, int64_t first, const Features<T>& b, T* to) {
  constexpr int kRows = 4;
  const S* from = static_cast<const S*>(map.data) + first;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    const int64_t ahead = r + 2 * kRows <= rows ? kRows : 0;
    load_rows<kRows>(from + r * map.pitch, map.pitch, ahead, b, to + r * b.pitch);
  }
  for (; r < rows; ++r) load_rows<1>(from + r * map.pitch, map.pitch, 0, b, to + r * b.pitch);
}

template <typename S, typename T, int N>
SEGFAST_INLINE void store_narrow(S* to, Vec<T, N> v, int64_t count) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (count >= N) return store<N>(reinterpret_cast<T*>(to), v);
  }
  if (count > N) count = N;
  for (int64_t n = 0; n < count; ++n) narrow(v[n], to + n);
}

template <typename S, typename T>
void store_block(MutableMap map, int64_t rows, int64_t first, const Features<T>& b, const T* from) {
  for (int64_t r = 0; r < rows; ++r, from += b.pitch) {
    S* to = static_cast<S*>(map.data) + r * map.pitch + first;
    for (int64_t n = 0; n < b.count; ++n) narrow(from[n], to + n);
  }
}

template <typename S>
Map from_row(Map map, int64_t row) {
  return {static_cast<const S*>(map.data) + row * map.pitch, map.pitch};
}

// Rows [row, end_row) of a map from position `first` on.
template <typename S>
Ahead rows_ahead(Map map, int64_t row, int64_t end_row, int64_t first) {
  if (row >= end_row) return {};
  const S* at = static_cast<const S*>(from_row<S>(map, row).data) + first;
  return {reinterpret_cast<const char*>(at), end_row - row, map.pitch * int64_t{sizeof(S)},
          sizeof(S)};
}
// At most kValues rows from `row` on; where there are none, the first of the next block before
// `end`.
template <typename S, typename T>
Ahead next_values(const LinearAttention& p, Map map, int64_t row, const Features<T>& b,
                  int64_t first, int64_t end) {
  if (row < p.values) {
    return rows_ahead<S>(map, row, p.values < row + kValues ? p.values : row + kValues, first);
  }
  return first + b.count < end ? rows_ahead<S>(map, 0, value_rows(p), first + b.count) : Ahead{};
}

// At most `width`, so that the blocks of a range are of nearly one length.
template <typename T>
int64_t even_width(int64_t range, int64_t width) {
  const int64_t blocks = (range + width - 1) / width;
  if (blocks < 2) return width;
  const int64_t even = round_up((range + blocks - 1) / blocks, kWholeTiles<T>);
  return even < width ? even : width;  // which memory was taken for
}

// f(first, how many) for the blocks of [begin, end).
template <typename F>
SEGFAST_INLINE void for_each_block(int64_t begin, int64_t end, int64_t width, const F& f) {
  for (int64_t n = begin; n < end; n += width) f(n, end - n < width ? end - n : width);
}

template <typename T>
SEGFAST_INLINE void clear(T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
