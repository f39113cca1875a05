// Windows of 2 x 2, one beside the other, as SegNet and DeconvNet have them: each owns four
// elements of x, its quarters, which are written, or gathered from, without looking at another
// window.
#pragma once

#include "merge.h"
#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kWindows = 8;  // of a plane at once: the last ones perhaps again

// None of them reaches beyond x.
SEGFAST_INLINE bool is_tiled(const Pooling& p) {
  return is_two_by_two(p) && p.rows.output == p.rows.input / 2 &&
         p.columns.output == p.columns.input / 2;
}

// f(row of y, the first of its two rows of x) for rows of y, of which there are some.
template <typename F>
SEGFAST_INLINE void for_each_pair(const Pooling& p, Range rows, const F& f) {
  int64_t ho = rows.begin % p.rows.output;
  int64_t h = rows.begin / p.rows.output * p.rows.input + 2 * ho;
  for (int64_t row = rows.begin; row < rows.end; ++row, h += 2) {
    f(row, h);
    if (++ho == p.rows.output) ho = 0, h += p.rows.input % 2;
  }
}

// Whether rows of a map, x or y, are written past the caches: pixels, or rows and groups of
// windows, that are whole cache lines.
template <typename W>
SEGFAST_INLINE bool streams_tiles(const Pooling& p, const W* map, int64_t width) {
  if (!is_past_caches(p)) return false;
  if (p.channels_last) return streams_well(map, p.channels);
  return streams_well(map, width) && p.columns.output % kWindows == 0;
}

// ---------------------------------------------------------------------------------------- planes

template <typename W>
using Eight = Vec<W, kWindows>;

// f(first of eight windows) for a row of at least eight.
template <typename F>
SEGFAST_INLINE void for_each_eight_windows(int64_t windows, const F& f) {
  for (int64_t next = 0; next < windows; next += kWindows) f(smaller(next, windows - kWindows));
}
// f(first of eight windows, their offsets).
template <typename W, typename F>
SEGFAST_INLINE void for_each_eight(const uint8_t* packed, int64_t windows, const F& f) {
  for_each_eight_windows(windows, [&](int64_t first) __attribute__((always_inline)) {
    const uint8_t* const from = packed + (first >> 2);
    uint16_t low;
    __builtin_memcpy(&low, from, 2);
    uint32_t bits = low;
    // The last eight, some of them again, may begin within a byte: then there is a third one.
    if (const int64_t before = first & 3) bits = (bits | uint32_t{from[2]} << 16) >> 2 * before;
    f(first, unsqueeze<2, W>(bits));
  });
}
// The highest bit of every lane of a mask, the first lane's lowest.
template <typename W>
SEGFAST_INLINE uint32_t signs(Eight<W> mask) {
  uint32_t bits = 0;
#if defined(__AVX2__)
  if constexpr (sizeof(W) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#endif
#ifdef __SSE2__
  constexpr int kParts = sizeof(mask) / 16;
  __m128i part[kParts];
  __builtin_memcpy(part, &mask, sizeof(mask));
  if constexpr (sizeof(W) == 8) {
    for (int k = 0; k < kParts; ++k) {
      bits |= static_cast<uint32_t>(_mm_movemask_pd((__m128d)part[k])) << 2 * k;
    }
    return bits;
  }
  if constexpr (sizeof(W) == 4) part[0] = _mm_packs_epi32(part[0], part[1]);
  bits = static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(part[0], __m128i{})));
#else
  for (int k = 0; k < kWindows; ++k) bits |= static_cast<uint32_t>(mask[k] < 0) << k;
#endif
  return bits;
}
// Writes the offsets of eight windows, after those of all windows before; below, beside: the row
// and the column that each chose, a bit each.
SEGFAST_INLINE void put_eight(uint8_t* packed, int64_t first, uint32_t below, uint32_t beside) {
  uint32_t v = beside | below << 16;
  v = (v | v << 4) & 0x0f0f0f0f;  // every second bit of each half
  v = (v | v << 2) & 0x33333333;
  v = (v | v << 1) & 0x55555555;
  const uint32_t bits = (v | v >> 15) & 0xffff;
  uint8_t* const to = packed + (first >> 2);
  const int shift = static_cast<int>(first & 3) * 2;
  if (shift == 0) {
    __builtin_memcpy(to, &bits, 2);
    return;
  }
  // The last eight, some of them again: the byte begins with windows before them.
  const uint32_t all = bits << shift | (to[0] & ((1u << shift) - 1));
  for (int k = 0; k < 3; ++k) to[k] = static_cast<uint8_t>(all >> 8 * k);
}

// Two rows of x, top [W] and the one below, from a row y [Wo]. kStream: past the caches, which
// takes whole cache lines and no group of windows twice.
template <typename M, bool kStream, typename W>
void spread_row(const W* y, const uint8_t* packed, const PoolAxis& columns, W* top) {
  W* const bottom = top + columns.input;
  for_each_eight<W>(packed, columns.output, [&](int64_t first, Eight<W> offset) {
    const Eight<W> value = M::template moved<kWindows>(load<kWindows>(y + first));
    const auto quarter = [&](int k) { return value & (Eight<W>)(offset == (W(k) - Eight<W>{})); };
    const auto put = [&](W* to, Eight<W> left, Eight<W> right) {
      const Eight<W> first_half = pick<0, 8, 1, 9, 2, 10, 3, 11>(left, right);
      const Eight<W> second_half = pick<4, 12, 5, 13, 6, 14, 7, 15>(left, right);
      if constexpr (kStream) {
        stream<kWindows>(to, first_half);
        stream<kWindows>(to + kWindows, second_half);
      } else {
        store<kWindows>(to, first_half);
        store<kWindows>(to + kWindows, second_half);
      }
    };
    put(top + 2 * first, quarter(0), quarter(1));
    put(bottom + 2 * first, quarter(2), quarter(3));
  });
  if (columns.input % 2) top[columns.input - 1] = bottom[columns.input - 1] = 0;
}

// -------------------------------------------------------------------------------- channels_last

// One quarter of a window, all its channels: y, packed, x [C].
template <typename M, bool kStream, typename W>
SEGFAST_INLINE void spread_quarter(const W* y, const uint8_t* packed, int mask, int wanted,
                                   int64_t channels, W* x) {
  for_each_group<W>(0, channels, [&](int64_t c, auto width) {
    constexpr int N = decltype(width)::value;
    const Vec<uint8_t, N> masked = load<N>(packed + c) & static_cast<uint8_t>(mask);
    const Vec<W, N> offset = __builtin_convertvector(masked, Vec<W, N>);
    const Vec<W, N> chosen = (Vec<W, N>)(offset == (static_cast<W>(wanted) - Vec<W, N>{}));
    const Vec<W, N> value = M::template moved<N>(load<N>(y + c)) & chosen;
    if constexpr (kStream && N == kLanes<W>) {
      stream<N>(x + c, value);
    } else {
      store<N>(x + c, value);
    }
  });
}

// Two rows x [2, W, C] from a row y [Wo, C], packed [Wp, C].
template <typename M, bool kStream, typename W>
void spread_pixels(const W* y, const uint8_t* packed, const Pooling& p, W* x) {
  const int64_t channels = p.channels, width = p.columns.input, windows = p.columns.output;
  for (int i = 0; i < 2; ++i, x += width * channels) {
    for (int64_t wo = 0; wo < windows; ++wo) {
      const int shift = static_cast<int>(wo % 4 * 2);
      for (int j = 0; j < 2; ++j) {
        spread_quarter<M, kStream>(y + wo * channels, packed + wo / 4 * channels, 3 << shift,
                                   (2 * i + j) << shift, channels, x + (2 * wo + j) * channels);
      }
    }
    if (width % 2) __builtin_memset(x + (width - 1) * channels, 0, channels * sizeof(W));
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
