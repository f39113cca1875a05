// What the CPU kernels share: where windows lie, what elements are, how offsets are packed.
#pragma once

#include "integers.h"
#include "max_unpool.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {

void pool(const Pooling&, const void*, void*, uint8_t*, int64_t, int64_t);
void pool_backward(const Pooling&, const void*, const uint8_t*, void*, int64_t, int64_t);
void unpool(const Pooling&, const void*, const uint8_t*, void*, int64_t, int64_t);
void gather(const Pooling&, const void*, const uint8_t*, void*, uint8_t*, int64_t, int64_t);
void unpack(const Pooling&, const uint8_t*, int64_t*, int64_t, int64_t);
int64_t pack(const Pooling&, const int64_t*, uint8_t*, int64_t, int64_t);
int64_t unpool_indices(const Pooling&, const void*, const int64_t*, void*, int64_t, int64_t);
int64_t gather_indices(const Pooling&, const void*, const int64_t*, void*, uint8_t*, int64_t,
                       int64_t);

namespace {

// Outputs handled at once: their offsets, as wide as the elements, stay in the first-level cache.
constexpr int64_t kChunk = 512;

// ------------------------------------------------------------------------------------ geometry

struct Range {
  int64_t begin, end;
};

SEGFAST_INLINE int64_t window_start(const PoolAxis& axis, int64_t output) {
  return output * axis.stride - axis.padding;
}
// The offsets of a window that lie inside the input.
SEGFAST_INLINE Range inside(const PoolAxis& axis, int64_t start) {
  if (start >= 0 && start + window_extent(axis) <= axis.input) return {0, axis.kernel};
  const int64_t begin = start < 0 ? divide_up(-start, axis.dilation) : 0;
  const int64_t end = start < axis.input ? divide_up(axis.input - start, axis.dilation) : 0;
  return {smaller(begin, axis.kernel), smaller(end, axis.kernel)};
}
// The outputs whose windows lie inside the input altogether.
SEGFAST_INLINE Range whole_windows(const PoolAxis& axis) {
  const int64_t begin = smaller(divide_up(axis.padding, axis.stride), axis.output);
  const int64_t room = axis.input + axis.padding - window_extent(axis);
  const int64_t end = room < 0 ? 0 : smaller(room / axis.stride + 1, axis.output);
  return {begin, larger(begin, end)};
}

// ------------------------------------------------------------------------------------ elements

// Elements are moved as integers of their size.
template <Dtype D>
struct ElementOf {
  using Word = int16_t;
  using Real = float;  // what sums are kept in
};
template <>
struct ElementOf<Dtype::f32> {
  using Word = int32_t;
  using Real = float;
};
template <>
struct ElementOf<Dtype::f64> {
  using Word = int64_t;
  using Real = double;
};
template <Dtype D>
using WordOf = typename ElementOf<D>::Word;
template <Dtype D>
using RealOf = typename ElementOf<D>::Real;
template <Dtype D>
constexpr bool kIsHalf = D == Dtype::f16 || D == Dtype::bf16;
template <Dtype D>
constexpr int kHalfInfinity = D == Dtype::f16 ? 0x7c00 : 0x7f80;

template <Dtype D>
struct DtypeTag {
  static constexpr Dtype value = D;
};

template <typename F>
SEGFAST_INLINE void for_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(DtypeTag<Dtype::f32>{});
    case Dtype::f64:
      return f(DtypeTag<Dtype::f64>{});
    case Dtype::f16:
      return f(DtypeTag<Dtype::f16>{});
    case Dtype::bf16:
      return f(DtypeTag<Dtype::bf16>{});
  }
}
// f(a word as wide as the elements).
template <typename F>
SEGFAST_INLINE void for_word(Dtype dtype, const F& f) {
  if (dtype == Dtype::f32) return f(int32_t{});
  if (dtype == Dtype::f64) return f(int64_t{});
  f(int16_t{});
}

// f(first, width tag) over [begin, end): whole vectors, the last of which may overlap the one
// before; narrower ones where not even one fits.
template <typename W, int N = kLanes<W>, typename F>
SEGFAST_INLINE void for_each_group(int64_t begin, int64_t end, const F& f) {
  if (end - begin >= N) {
    int64_t i = begin;
    for (; i + N <= end; i += N) f(i, Width<N>{});
    if (i < end) f(end - N, Width<N>{});
  } else if constexpr (N > 1) {
    for_each_group<W, (N == kLanes<W> && N >= 4 ? N / 2 : 1)>(begin, end, f);
  }
}

// What is written while a larger x passes by is not in any cache when it is read next.
constexpr int64_t kCaches = int64_t{32} << 20;

SEGFAST_INLINE bool is_past_caches(const Pooling& p) {
  const int64_t bytes = p.dtype == Dtype::f64 ? 8 : p.dtype == Dtype::f32 ? 4 : 2;
  return p.batch * p.channels * p.rows.input * p.columns.input * bytes > kCaches;
}

// ------------------------------------------------------------------------------ packed offsets

// Eight offsets, one in each byte, to 8 * bits bits.
SEGFAST_INLINE uint64_t squeeze(uint64_t v, int bits) {
  if (bits == 2) {
    v = (v | v >> 6) & 0x000f000f000f000f;
    v = (v | v >> 12) & 0x000000ff000000ff;
    return v | v >> 24;
  }
  v = (v | v >> 4) & 0x00ff00ff00ff00ff;
  v = (v | v >> 8) & 0x0000ffff0000ffff;
  return v | v >> 16;
}
// And back, as words.
template <int Bits, typename W>
SEGFAST_INLINE Vec<W, 8> unsqueeze(uint32_t v) {
  constexpr int B = Bits, kTop = 16 - B;
  if constexpr (sizeof(W) == 2) {  // there is no shift by lanes: up by multiplying, then down
    const uint16_t a = static_cast<uint16_t>(v), b = static_cast<uint16_t>(B == 4 ? v >> 16 : v);
    const Vec<uint16_t, 8> half{a, a, a, a, b, b, b, b};
    constexpr int kNext = B == 4 ? kTop : kTop - 4 * B;  // of the fifth offset
    constexpr Vec<uint16_t, 8> kUp{
        1 << kTop,  1 << (kTop - B),  1 << (kTop - 2 * B),  1 << (kTop - 3 * B),
        1 << kNext, 1 << (kNext - B), 1 << (kNext - 2 * B), 1 << (kNext - 3 * B)};
    return (Vec<W, 8>)((half * kUp) >> kTop);
  } else {
    using U = Vec<std::make_unsigned_t<W>, 8>;
    constexpr U kDown{0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B};
    return (Vec<W, 8>)(((v - U{}) >> kDown) & ((1u << B) - 1));
  }
}

// The same for a row: 8 * `groups` bytes, of which the last packed ones may be fewer.
template <int Bits>
SEGFAST_INLINE void squeeze_all(const uint8_t* bytes, int64_t groups, int64_t size,
                                uint8_t* packed) {
  const int64_t whole = size / Bits;
  for (int64_t i = 0; i < groups; ++i) {
    uint64_t v;
    __builtin_memcpy(&v, bytes + 8 * i, 8);
    v = squeeze(v, Bits);
    if (i < whole) {
      __builtin_memcpy(packed + Bits * i, &v, Bits);
    } else {
      for (int64_t k = Bits * i; k < size; ++k, v >>= 8) packed[k] = static_cast<uint8_t>(v);
    }
  }
}
template <int Bits, typename W>
SEGFAST_INLINE void unsqueeze_all(const uint8_t* packed, int64_t size, int64_t groups, W base,
                                  W* offsets) {
  const int64_t whole = size / Bits;
  for (int64_t i = 0; i < groups; ++i) {
    uint32_t v = 0;
    if (i < whole) {
      __builtin_memcpy(&v, packed + Bits * i, Bits);
    } else {
      for (int64_t k = size - 1; k >= Bits * i; --k) v = v << 8 | packed[k];
    }
    store<8>(offsets + 8 * i, unsqueeze<Bits, W>(v) - base);
  }
}

// Offsets of neighbouring columns, the first at a byte's lowest bits, as words; unpacked less
// `base`. count <= kChunk; the words up to the next multiple of 8 are overwritten, so that no loop
// has a remainder.
template <typename W>
void pack_row(W* offsets, int64_t count, int bits, uint8_t* packed) {
  const int64_t groups = divide_up(count, 8), size = packed_width(count, bits);
  uint8_t bytes[kChunk];
  for (int64_t i = count; i < 8 * groups; ++i) offsets[i] = 0;
  for (int64_t i = 0; i < 8 * groups; ++i) bytes[i] = static_cast<uint8_t>(offsets[i]);
  if (bits == 2) squeeze_all<2>(bytes, groups, size, packed);
  if (bits == 4) squeeze_all<4>(bytes, groups, size, packed);
  if (bits == 8) __builtin_memcpy(packed, bytes, size);
}
template <typename W>
void unpack_row(const uint8_t* packed, int64_t count, int bits, W* offsets, int base = 0) {
  const int64_t groups = divide_up(count, 8), size = packed_width(count, bits);
  if (bits == 2) return unsqueeze_all<2>(packed, size, groups, static_cast<W>(base), offsets);
  if (bits == 4) return unsqueeze_all<4>(packed, size, groups, static_cast<W>(base), offsets);
  for (int64_t i = 0; i < count; ++i) offsets[i] = static_cast<W>(packed[i] - base);
}

// Offsets of neighbouring channels, one in each byte at `shift`. The first column of a byte
// overwrites what was there.
template <typename W>
void pack_channels(const W* offsets, int64_t count, int shift, uint8_t* packed) {
  if (shift == 0) {
    for (int64_t c = 0; c < count; ++c) packed[c] = static_cast<uint8_t>(offsets[c]);
  } else {
    for (int64_t c = 0; c < count; ++c) packed[c] |= static_cast<uint8_t>(offsets[c] << shift);
  }
}
template <typename W>
void unpack_channels(const uint8_t* packed, int64_t count, int bits, int shift, W* offsets) {
  const int mask = (1 << bits) - 1;
  for (int64_t c = 0; c < count; ++c) offsets[c] = (packed[c] >> shift) & mask;
}

// ---------------------------------------------------------------------------------- rows of y

// Neighbouring outputs that are handled together: columns of a row of a plane, or channels of one
// pixel (Last).
struct Place {
  int64_t map;                  // plane or image
  int64_t ho, wo, channel;      // of the first output
  int64_t count;                // at most kChunk
  int64_t first, first_packed;  // the first output in y, the byte of its offset in packed
  int shift;                    // of the offset in that byte
};

// f(place) for all of the rows of y, the last first when Reverse.
template <bool Last, bool Reverse, typename F>
SEGFAST_INLINE void for_each_place(const Pooling& p, Range rows, const F& f) {
  constexpr int64_t kStep = Last ? 1 : kChunk;  // columns
  const int bits = offset_bits(p);
  const int64_t width = p.columns.output, bytes = packed_row(p), channels = Last ? p.channels : 1;
  const int64_t steps = divide_up(width, kStep);
  for (int64_t n = 0; n < rows.end - rows.begin; ++n) {
    const int64_t row = Reverse ? rows.end - 1 - n : rows.begin + n;
    const int64_t map = row / p.rows.output, ho = row % p.rows.output;
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t wo = (Reverse ? steps - 1 - k : k) * kStep;
      const int64_t first = (row * width + wo) * channels;
      const int64_t byte = (row * bytes + wo * bits / 8) * channels;
      const int shift = Last ? static_cast<int>(wo * bits % 8) : 0;
      for (int64_t c = 0; c < channels; c += kChunk) {
        const int64_t count = smaller(kChunk, Last ? channels - c : width - wo);
        f(Place{map, ho, wo, c, count, first + c, byte + c, shift});
      }
    }
  }
}

template <bool Last, typename W>
SEGFAST_INLINE void pack_place(const Place& at, W* offsets, int bits, uint8_t* packed) {
  if constexpr (Last) {
    pack_channels(offsets, at.count, at.shift, packed + at.first_packed);
  } else {
    pack_row(offsets, at.count, bits, packed + at.first_packed);
  }
}
template <bool Last, typename W>
SEGFAST_INLINE void unpack_place(const Place& at, const uint8_t* packed, int bits, W* offsets) {
  if constexpr (Last) {
    unpack_channels(packed + at.first_packed, at.count, bits, at.shift, offsets);
  } else {
    unpack_row(packed + at.first_packed, at.count, bits, offsets);
  }
}

template <typename W>
SEGFAST_INLINE const W* map_of_x(const Pooling& p, const W* x, int64_t map) {
  return x + map * p.rows.input * p.columns.input * inner(p);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
