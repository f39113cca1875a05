// A block of positions: how it comes from memory and goes back, and the memory it is worked on in.
#pragma once

#include "feature_maps.h"
#include "half.h"
#include "linear_attention.h"
#include "products.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Elements as they lie in memory.
struct F16 {
  int16_t bits;
};
struct BF16 {
  int16_t bits;
};
SEGFAST_INLINE float widen(float x) { return x; }
SEGFAST_INLINE double widen(double x) { return x; }
SEGFAST_INLINE float widen(F16 x) { return f16_to_float(x.bits); }
SEGFAST_INLINE float widen(BF16 x) { return bf16_to_float(x.bits); }
SEGFAST_INLINE void narrow(float x, float* to) { *to = x; }
SEGFAST_INLINE void narrow(double x, double* to) { *to = x; }
SEGFAST_INLINE void narrow(float x, F16* to) { to->bits = float_to_f16(x); }
SEGFAST_INLINE void narrow(float x, BF16* to) { to->bits = float_to_bf16(x); }

// f(element type, type of sums)
template <typename F>
void by_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{}, float{});
    case Dtype::f64:
      return f(double{}, double{});
    case Dtype::f16:
      return f(F16{}, float{});
    case Dtype::bf16:
      return f(BF16{}, float{});
  }
}

int64_t state_rows(const LinearAttention& p) { return p.features + (p.map == FeatureMap::taylor); }
int64_t padded_rows(const LinearAttention& p) {
  return (state_rows(p) + kQuad - 1) / kQuad * kQuad;
}

// Rows of phi to multiply: a row or two beyond whole quads cost less by themselves than as a quad.
SEGFAST_INLINE int64_t gram_columns(const LinearAttention& p) {
  return state_rows(p) % kQuad <= 2 ? state_rows(p) : padded_rows(p);
}

// A part holds the state transposed, [E + 1, padded R].
int64_t part(const LinearAttention& p) { return (p.values + 1) * padded_rows(p); }

// Positions of a block. Forward, phi fits the first-level cache or nearly so; backward, all rows
// fit the second.
enum class Direction { forward, backward };

template <typename T>
int64_t block_width(const LinearAttention& p, Direction direction) {
  constexpr int64_t kFirst = (48 << 10) / sizeof(T), kSecond = (320 << 10) / sizeof(T);
  constexpr int64_t kStep = kWide * kNarrow * 64 / sizeof(T);  // whole tiles on any machine
  const int64_t rows = padded_rows(p), forward = kFirst / rows;
  const int64_t all = kSecond / (p.values + 3 * rows);
  int64_t width = direction == Direction::forward || forward < all ? forward : all;
  width = width / kStep * kStep;
  return width < kStep ? kStep : width > 960 ? 960 : width;
}

template <typename T>
struct Scratch {
  int64_t width;  // positions of a block
  int64_t pitch;  // from row to row: not a power of two, rows must not meet in the cache
  T *x, *phi;     // [D], [padded R] rows
  T* grad;        // [padded R]
  T* values;      // [E]
  T *shift, *inverse, *ones, *denominator, *scale;  // one row each
  T* weights;  // [E, padded R] the values' part of a state, transposed
  T* totals;   // [padded R] its last column + eps

  static int64_t count(const LinearAttention& p) {
    const int64_t pitch = block_width<T>(p, Direction::forward) + 64 / sizeof(T);
    return (p.features + 2 * padded_rows(p) + p.values + 5) * pitch +
           (p.values + 1) * padded_rows(p);
  }

  Scratch(const LinearAttention& p, Direction direction, void* memory)
      : width(block_width<T>(p, direction)), pitch(width + 64 / sizeof(T)) {
    const int64_t rows = padded_rows(p);
    T* at = static_cast<T*>(memory);
    const auto take = [&](int64_t count) {
      T* taken = at;
      at += count;
      return taken;
    };
    x = take(p.features * pitch);
    phi = take(rows * pitch);
    grad = take(rows * pitch);
    values = take(p.values * pitch);
    shift = take(pitch);
    inverse = take(pitch);
    ones = take(pitch);
    denominator = take(pitch);
    scale = take(pitch);
    weights = take(p.values * rows);
    totals = take(rows);
    for (int64_t n = 0; n < pitch; ++n) ones[n] = 1;
  }

  Features<T> block(const LinearAttention& p, int64_t count) const {
    constexpr int W = kLanes<T>;
    const int64_t whole = (count + W - 1) / W * W;
    return {p.map, p.features, padded_rows(p), pitch, whole, count, x, phi, shift, inverse, false};
  }
};

int64_t scratch(const LinearAttention& p) {
  int64_t bytes = 0;
  by_dtype(p.dtype, [&](auto, auto sum) {
    using T = decltype(sum);
    bytes = Scratch<T>::count(p) * static_cast<int64_t>(sizeof(T));
  });
  return bytes;
}

// to [rows, width] = rows of positions [first, first + count), zeros beyond.
template <typename S, typename T>
void load_block(Map map, int64_t rows, int64_t first, const Features<T>& b, T* to) {
  for (int64_t r = 0; r < rows; ++r, to += b.pitch) {
    const S* from = static_cast<const S*>(map.data) + r * map.pitch + first;
    for (int64_t n = 0; n < b.count; ++n) to[n] = widen(from[n]);
    for (int64_t n = b.count; n < b.width; ++n) to[n] = 0;
  }
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

// f(first position, how many) for the blocks of [begin, end).
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
