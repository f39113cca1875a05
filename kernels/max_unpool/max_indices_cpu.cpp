// PyTorch's int64 indices, h * W + w in the plane of x: to packed offsets and back, and unpooling
// by arbitrary ones. One copy per instruction set. The contract is in max_unpool.h.
#include "windows.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr uint64_t kZeroedAhead = 512;  // pixels

// Channels of an image that are handled together: its pixels lie `pitch` elements apart.
struct Slice {
  int64_t image, channel, channels, pitch;
};

// f(slice) for the slices [begin, end), neighbouring ones of an image at once when they may merge.
template <typename F>
SEGFAST_INLINE void for_each_slice(const Pooling& p, int64_t begin, int64_t end, bool merge,
                                   const F& f) {
  if (!p.channels_last) {
    for (int64_t plane = begin; plane < end; ++plane) f(Slice{plane, 0, 1, 1});
    return;
  }
  const int64_t per_image = pool_slices_per_image(p);
  while (begin < end) {
    const int64_t image = begin / per_image, first = begin % per_image;
    const int64_t last = merge ? smaller(end - image * per_image, per_image) : first + 1;
    const int64_t channel = first * kSliceChannels;
    f(Slice{image, channel, smaller(last * kSliceChannels, p.channels) - channel, p.channels});
    begin += last - first;
  }
}

template <bool Last>
void unpack_rows(const Pooling& p, const uint8_t* packed, int64_t* indices, Range rows) {
  const int bits = offset_bits(p);
  int64_t position[kMostPositions];  // of offsets in x, from the first one of the window
  for (int64_t k = 0; k < kMostPositions; ++k) {
    position[k] = k / p.columns.kernel * p.rows.dilation * p.columns.input +
                  k % p.columns.kernel * p.columns.dilation;
  }
  int64_t offsets[kChunk];
  const int64_t step = Last ? 0 : p.columns.stride;
  for_each_place<Last, false>(p, rows, [&](const Place& at) {
    unpack_place<Last>(at, packed, bits, offsets);
    const int64_t start =
        window_start(p.rows, at.ho) * p.columns.input + window_start(p.columns, at.wo);
    for (int64_t k = 0; k < at.count; ++k) {
      indices[at.first + k] = start + k * step + position[offsets[k]];
    }
  });
}

template <bool Last>
int64_t pack_rows(const Pooling& p, const int64_t* indices, uint8_t* packed, Range range) {
  const int bits = offset_bits(p);
  const PoolAxis &rows = p.rows, &columns = p.columns;
  int64_t offsets[kChunk], outside = 0;
  const int64_t step = Last ? 0 : columns.stride;
  for_each_place<Last, false>(p, range, [&](const Place& at) {
    const int64_t top = window_start(rows, at.ho), left = window_start(columns, at.wo);
    for (int64_t k = 0; k < at.count; ++k) {
      const int64_t index = indices[at.first + k];
      const int64_t h = index / columns.input, w = index % columns.input;
      const int64_t down = h - top, right = w - left - k * step;
      const int64_t i = down / rows.dilation, j = right / columns.dilation;
      const bool fits = index >= 0 && h < rows.input && down >= 0 && right >= 0 &&
                        i * rows.dilation == down && j * columns.dilation == right &&
                        i < rows.kernel && j < columns.kernel;
      offsets[k] = fits ? i * columns.kernel + j : 0;
      outside += !fits;
    }
    pack_place<Last>(at, offsets, bits, packed);
  });
  return outside;
}

}  // namespace

void unpack(const Pooling& p, const uint8_t* packed, int64_t* indices, int64_t begin, int64_t end) {
  p.channels_last ? unpack_rows<true>(p, packed, indices, {begin, end})
                  : unpack_rows<false>(p, packed, indices, {begin, end});
}

int64_t pack(const Pooling& p, const int64_t* indices, uint8_t* packed, int64_t begin,
             int64_t end) {
  return p.channels_last ? pack_rows<true>(p, indices, packed, {begin, end})
                         : pack_rows<false>(p, indices, packed, {begin, end});
}

int64_t unpool_indices(const Pooling& p, const void* y, const int64_t* indices, void* x,
                       int64_t begin, int64_t end) {
  const int64_t outputs = p.rows.output * p.columns.output;
  const uint64_t pixels = p.rows.input * p.columns.input;
  int64_t outside = 0;
  for_word(p.dtype, [&](auto word) {
    using W = decltype(word);
    for_each_slice(p, begin, end, true, [&](const Slice& s) {
      const int64_t channels = s.channels, pitch = s.pitch;
      const W* from = static_cast<const W*>(y) + s.image * outputs * pitch + s.channel;
      const int64_t* index = indices + s.image * outputs * pitch + s.channel;
      W* to = static_cast<W*>(x) + s.image * pixels * pitch + s.channel;
      // Zeros go only a little ahead: indices made by pooling then find them in the cache.
      uint64_t zeroed = 0;
      const auto zero_to = [&](uint64_t pixel) {
        const uint64_t stop = pixel < pixels ? pixel : pixels;
        if (channels == pitch) {
          __builtin_memset(to + zeroed * pitch, 0, (stop - zeroed) * pitch * sizeof(W));
          zeroed = stop;
        }
        for (; zeroed < stop; ++zeroed) {
          __builtin_memset(to + zeroed * pitch, 0, channels * sizeof(W));
        }
      };
      int64_t missed = 0;
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t c = 0; c < channels; ++c) {
          const uint64_t at = index[o * pitch + c];
          missed += at >= pixels;
          if (at >= pixels) continue;
          if (at >= zeroed) zero_to(at + kZeroedAhead);
          to[at * pitch + c] = from[o * pitch + c];
        }
      }
      zero_to(pixels);
      outside += missed;
    });
  });
  return outside;
}

int64_t gather_indices(const Pooling& p, const void* x, const int64_t* indices, void* y,
                       uint8_t* taken, int64_t begin, int64_t end) {
  const int64_t outputs = p.rows.output * p.columns.output;
  const uint64_t pixels = p.rows.input * p.columns.input;
  int64_t outside = 0;
  for_word(p.dtype, [&](auto word) {
    using W = decltype(word);
    for_each_slice(p, begin, end, false, [&](const Slice& s) {
      const int64_t channels = s.channels, pitch = s.pitch;
      const W* from = static_cast<const W*>(x) + s.image * pixels * pitch + s.channel;
      const int64_t* index = indices + s.image * outputs * pitch + s.channel;
      W* to = static_cast<W*>(y) + s.image * outputs * pitch + s.channel;
      if (taken != nullptr) __builtin_memset(taken, 0, pixels * channels);
      int64_t missed = 0;
      // In reverse order the first to name a position wins.
      for (int64_t o = outputs - 1; o >= 0; --o) {
        for (int64_t c = 0; c < channels; ++c) {
          const uint64_t at = index[o * pitch + c];
          const bool fits = at < pixels;
          const bool wins = fits && (taken == nullptr || !taken[at * channels + c]);
          to[o * pitch + c] = wins ? from[at * pitch + c] : W{0};
          if (taken != nullptr && fits) taken[at * channels + c] = 1;
          missed += !fits;
        }
      }
      outside += missed;
    });
  });
  return outside;
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
