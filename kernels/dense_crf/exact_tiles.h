// Pixels into tiles: their order, and what the filter reads of each tile.
#pragma once

#include "exact.h"
#include "exact_block.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename T>
using KeyOf = std::make_unsigned_t<IntOf<T>>;

// An integer that orders as x does.
template <typename T>
SEGFAST_INLINE KeyOf<T> order_key(T x) {
  using U = KeyOf<T>;
  U bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  constexpr U kSign = U{1} << (8 * sizeof(U) - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

// Splits the slots [begin, end) at middle: smaller keys on the widest axis left, stable, ties in
// order.
template <typename T>
void split_range(const ExactProblem<T>& p, int64_t begin, int64_t middle, int64_t end) {
  using U = KeyOf<T>;
  const T* features = p.features;
  U* keys = static_cast<U*>(p.keys);
  int64_t* order = p.order;

  // The axis only decides how well the tiles fit: a sample is enough to choose it.
  const int64_t sample = (end - begin + 255) / 256;
  const T* axis = features;
  T widest = -1;
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* x = features + f * p.pixels;
    T low = x[order[begin]], high = low;
    for (int64_t s = begin; s < end; s += sample) {
      const T v = x[order[s]];
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    if (high - low > widest) {
      widest = high - low;
      axis = x;
    }
  }

  for (int64_t s = begin; s < end; ++s) keys[s] = order_key(axis[order[s]]);
  // The key of rank middle - begin, bit by bit: the largest pivot with at most that many below it.
  constexpr int64_t kCounted = 1 << 16;  // counted in a key's own width, which is faster
  const int64_t rank = middle - begin;
  int64_t below = 0;
  U pivot = 0;
  for (U bit = U{1} << (8 * sizeof(U) - 1); bit; bit >>= 1) {
    const U candidate = pivot | bit;
    int64_t count = 0;
    for (int64_t s = begin; s < end;) {
      const int64_t stop = end - s < kCounted ? end : s + kCounted;
      U in_part = 0;
      for (; s < stop; ++s) in_part += keys[s] < candidate;
      count += in_part;
    }
    if (count <= rank) {
      pivot = candidate;
      below = count;
    }
  }

  int64_t ties_left = rank - below, left = begin, right = middle;
  for (int64_t s = begin; s < end; ++s) {
    const bool tie = keys[s] == pivot;
    const bool goes_left = keys[s] < pivot || (tie && ties_left > 0);
    ties_left -= tie;
    p.spare[goes_left ? left : right] = order[s];
    left += goes_left;
    right += !goes_left;
  }
  __builtin_memcpy(order + begin, p.spare + begin, (end - begin) * sizeof(int64_t));
}

template <typename T>
constexpr T kInfinity = __builtin_inf();

// The tile's centre, the middle of its box, and what product form needs of its pixels. A tile too
// large for it, or unbounded, has a NaN for a centre.
template <typename T>
void pack_centred(const ExactProblem<T>& p, int64_t tile) {
  constexpr T kLowest = -kSmallRadius * kSmallRadius * 1.4426950408889634 / 2;
  const int64_t stride = exact_box_stride(p.tiles);
  T* centre = p.centres + tile * p.dims;
  T* centred = p.centred + tile * kTile * (p.dims + 1);
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* box = p.boxes + f * stride + tile;
    centre[f] = box[0] + (box[p.dims * stride] - box[0]) / 2;
  }
  centre_tile(p.tile_features + tile * kTile * p.dims, centre, p.dims, centred);
  bool small = true;
  for (int i = 0; i < kTile; ++i) small &= centred[p.dims * kTile + i] >= kLowest;
  if (!small) centre[0] = static_cast<T>(__builtin_nan(""));
}

// One tile: rows of features [F, 32] and of values ([32, C], for the gradient [C, 32]), and the
// box around its pixels.
// A last tile that is not full repeats its last pixel with value 0. NaN features lose their payload
// (gaussian.h shifts it into the result); a tile with NaN or infinite content gets an unbounded
// box, so that no bound can leave out what the full sum would turn into NaN.
template <typename T>
void pack_tile(const ExactProblem<T>& p, int64_t tile) {
  const int64_t first = tile * kTile;
  const int64_t count = p.pixels - first < kTile ? p.pixels - first : kTile;
  const int64_t* order = p.order + first;
  const int64_t stride = exact_box_stride(p.tiles);
  T* lower = p.boxes + tile;
  T* upper = lower + p.dims * stride;
  bool finite = true;

  T* rows = p.tile_values + first * p.channels;
  const int64_t pixel = p.gradient ? 1 : p.channels, channel = p.gradient ? kTile : 1;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* values = p.values + c * p.pixels;
    for (int64_t s = 0; s < kTile; ++s) {
      const T v = s < count ? values[order[s]] : T(0);
      finite &= v - v == 0;
      rows[s * pixel + c * channel] = v;
    }
  }

  T* packed = p.tile_features + first * p.dims;
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* x = p.features + f * p.pixels;
    T low = kInfinity<T>, high = -kInfinity<T>;
    for (int64_t s = 0; s < kTile; ++s) {
      T v = x[order[s < count ? s : count - 1]];
      finite &= v - v == 0;
      if (v != v) v = static_cast<T>(__builtin_nan(""));
      packed[f * kTile + s] = v;
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    lower[f * stride] = low;
    upper[f * stride] = high;
  }
  if (finite) return;
  for (int64_t f = 0; f < p.dims; ++f) {
    lower[f * stride] = -kInfinity<T>;
    upper[f * stride] = kInfinity<T>;
  }
}

template <typename T>
void start(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) p.order[s] = s;
}

template <typename T>
void split(const ExactProblem<T>& p, int64_t level, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    // Children of a range are the ranges 2k and 2k + 1 of the next level: the same formula.
    const int64_t first = k * p.tiles >> level;
    const int64_t middle = (2 * k + 1) * p.tiles >> (level + 1);
    const int64_t last = (k + 1) * p.tiles >> level;
    if (middle == first || middle == last) continue;
    const int64_t stop = last * kTile < p.pixels ? last * kTile : p.pixels;
    split_range(p, first * kTile, middle * kTile, stop);
  }
}

template <typename T>
void pack(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    pack_tile(p, tile);
    if constexpr (kProductForm<T>) pack_centred(p, tile);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
