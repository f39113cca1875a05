// Maps [N, H, W, C] with one channel per group: vectors over channels, some channels at a time.
#pragma once

#include "direct.h"
#include "direct_lines.h"

namespace segfast {
namespace SEGFAST_ISA {

void pixels_arrange(const DilatedConv&, const void*, void*);
int64_t pixels_parts(const DilatedConv&);
int64_t pixels_grad_weight_items(const DilatedConv&);
int64_t pixels_grad_weight_scratch(const DilatedConv&);
void pixels_grad_weight(const DilatedConv&, const void*, const void*, void*, int64_t, int64_t,
                        void*);
void pixels_merge(const DilatedConv&, void*, void*);
// weight = `parts` sums [kh kw, G], added up in their order
void merge_parts(const DilatedConv&, int64_t parts, void* sums, void* weight);

namespace {

constexpr int64_t kItems = 32;           // to share among threads, where there is work for them
constexpr int64_t kMostAdded = 1 << 12;  // positions summed one after the other, or one row
constexpr int64_t kChannels = 256;       // of a block: a few rows of it fit the second-level cache

SEGFAST_INLINE int64_t channel_blocks(const DilatedConv& p) {
  return divide_up(p.groups, kChannels);
}

// Channels [begin, begin + count).
struct Channels {
  int64_t begin, count;
};
SEGFAST_INLINE Channels channels_of(const DilatedConv& p, int64_t block) {
  const int64_t begin = block * kChannels;
  return {begin, smaller(kChannels, p.groups - begin)};
}

// The taps of a line that are live for one position: [first_tap, last_tap).
SEGFAST_INLINE Span live_taps(const Line& line, int64_t position) {
  for (int64_t k = 0; k < line.spans; ++k) {
    if (position < line.span[k].end) return line.span[k];
  }
  return {};
}

// f(first channel, vectors tag, width tag) over `count` channels: V vectors at a time, then fewer,
// and for the rest narrower ones; no channel twice.
template <int N, int V, typename F>
SEGFAST_INLINE void for_channels(int64_t first, int64_t count, const F& f) {
  for (; first + V * N <= count; first += V * N) f(first, Width<V>{}, Width<N>{});
  if constexpr (V > 1) {
    if (first < count) for_channels<N, V / 2>(first, count, f);
  } else if constexpr (N > 1) {
    if (first < count) for_channels<N / 2, 1>(first, count, f);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
