// A block of a convolution's (or its transpose's) result: gathered positions times packed weights,
// summed in cache over taps and channels in a fixed order.
#pragma once

#include "dense_pack.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kTerms = kSourceChannels;  // of a product, at most
constexpr int64_t kMostPanels = divide_up(kBlockPositions, kRows);
constexpr int64_t kMostPitch = kBlockChannels + 16;

// What a block is computed in.
template <typename T>
struct ConvScratch {
  T* sums;        // [positions, pitch]; the last row is for nobody
  int64_t pitch;  // channels and a gap: rows must not meet in the cache
  T panels[kMostPanels * (kTerms * kRows + kPanelSlack)];
  int64_t row[kBlockPositions], column[kBlockPositions];  // of every position of the block
  int64_t results[kBlockPositions];                       // their places in a plane of the result
  // Of the positions that are live in a product, padded to whole panels:
  int64_t sources[kMostPanels * kRows];  // places in a plane of the source
  int64_t targets[kMostPanels * kRows];  // places in sums
  bool together[kMostPanels];
  int64_t live;
  // Taps of a product: how far they read from `sources`.
  Run runs[kTerms];
  int64_t tap[kTerms], shift[kTerms];
  int64_t tap_count;
};

constexpr int64_t sums_pitch(int64_t channels) { return round_up(channels, kChannelStep) + 16; }

template <typename T>
void locate(const DenseConv& p, const DenseBlock& b, int64_t channels, ConvScratch<T>* s) {
  s->pitch = sums_pitch(channels);
  const int64_t width = b.columns.end - b.columns.begin;
  int64_t row = b.rows.begin + b.first / width, column = b.columns.begin + b.first % width;
  for (int64_t n = 0; n < b.count; ++n) {
    s->row[n] = row;
    s->column[n] = column;
    s->results[n] = row * result_size(p, p.conv.columns) + column;
    if (++column == b.columns.end) column = b.columns.begin, ++row;
  }
}

// The place that tap (i, j) of position n reads in a plane of the source, or -1.
template <typename T>
SEGFAST_INLINE int64_t source_of(const DenseConv& p, const ConvScratch<T>& s, int64_t i, int64_t j,
                                 int64_t n) {
  const int64_t row = place(p, p.conv.rows, i, s.row[n]);
  const int64_t column = place(p, p.conv.columns, j, s.column[n]);
  return row < 0 || column < 0 ? -1 : row * source_size(p, p.conv.columns) + column;
}

// The positions that tap (i, j) is live for.
template <typename T>
void choose_positions(const DenseConv& p, const DenseBlock& b, int64_t i, int64_t j,
                      ConvScratch<T>* s) {
  int64_t live = 0;
  for (int64_t n = 0; n < b.count; ++n) {
    const int64_t source = source_of(p, *s, i, j, n);
    if (source < 0) continue;
    s->sources[live] = source;
    s->targets[live++] = n * s->pitch;
  }
  s->live = live;
  for (; live % kRows != 0; ++live) {
    s->sources[live] = s->sources[live - 1];
    s->targets[live] = b.count * s->pitch;
  }
  for (int64_t q = 0; q * kRows < live; ++q) {
    const int64_t first = q * kRows, left = s->live - first;
    const int64_t last = first + (left < kRows ? left : kRows) - 1;
    s->together[q] = true;
    for (int64_t n = first; n < last; ++n) {
      s->together[q] &= s->sources[n + 1] == s->sources[n] + 1;
    }
  }
}

// sums += channels [first, first + terms) of the taps chosen, over the positions chosen.
template <typename S, typename T>
void add_taps(const DenseConv& p, int64_t begin, int64_t end, int64_t first, int64_t terms,
              const S* source, const T* packed, ConvScratch<T>* s) {
  const int64_t channels = source_channels(p), panel_terms = taps(p.conv) * channels;
  const int64_t plane = source_size(p, p.conv.rows) * source_size(p, p.conv.columns);
  const int64_t panels = divide_up(s->live, kRows);
  const int64_t pitch = s->tap_count * terms * kRows + kPanelSlack;
  for (int64_t u = 0; u < s->tap_count; ++u) {
    s->runs[u] = {u * terms, s->tap[u] * channels + first};
    gather_panels(source + first * plane, source + channels * plane, plane, terms, s->sources,
                  s->together, panels, s->shift[u], s->panels + u * terms * kRows, pitch);
  }
  for (int64_t o = begin; o < end; o += kPanel<T>) {
    const int vectors = panel_vectors<T>(o, result_channels(p));
    const T* right = packed + o * panel_terms;
    for (int64_t q = 0; q < panels; ++q) {
      add_product(vectors, s->live - q * kRows, s->panels + q * pitch, 1, right, s->runs,
                  s->tap_count, terms, s->sums + o - begin, s->targets + q * kRows);
    }
  }
  s->tap_count = 0;
}

// sums += all that is live, channels [first, first + terms).
template <typename S, typename T>
void add_channels(const DenseConv& p, const DenseBlock& b, int64_t begin, int64_t end,
                  int64_t first, int64_t terms, const S* source, const T* packed,
                  ConvScratch<T>* s) {
  const int64_t most = b.uniform ? kTerms / terms : 1;
  s->tap_count = 0;
  for (int64_t i = 0; i < p.conv.rows.taps; ++i) {
    for (int64_t j = 0; j < p.conv.columns.taps; ++j) {
      const int64_t at = b.uniform ? source_of(p, *s, i, j, 0) : 0;
      if (at < 0) continue;
      if (s->tap_count == 0) choose_positions(p, b, i, j, s);
      if (s->live == 0) continue;
      s->shift[s->tap_count] = b.uniform ? at - s->sources[0] : 0;
      s->tap[s->tap_count] = i * p.conv.columns.taps + j;
      if (++s->tap_count == most) add_taps(p, begin, end, first, terms, source, packed, s);
    }
  }
  if (s->tap_count > 0) add_taps(p, begin, end, first, terms, source, packed, s);
}

template <typename S, typename T>
void add_block(const DenseConv& p, const DenseBlock& b, int64_t begin, int64_t end, Range from,
               const S* source, const T* packed, ConvScratch<T>* s) {
  // Channels outside, taps inside: neighbouring taps read the same lines of the source.
  for (int64_t first = from.begin; first < from.end; first += kTerms) {
    const int64_t terms = from.end - first < kTerms ? from.end - first : kTerms;
    add_channels(p, b, begin, end, first, terms, source, packed, s);
  }
}

template <typename S, typename T>
void begin_sums(const DenseBlock& b, int64_t begin, int64_t end, const S* given,
                const ConvScratch<T>& s) {
  T bias[kMostPitch];
  for (int64_t o = 0; o < s.pitch; ++o) {
    bias[o] = o < end - begin && given != nullptr ? widen(given[begin + o]) : T(0);
  }
  for (int64_t n = 0; n <= b.count; ++n) {
    for (int64_t o = 0; o < s.pitch; ++o) s.sums[n * s.pitch + o] = bias[o];
  }
}

// Vectors of what is added to and multiplied with the sums, per channel.
template <typename T>
struct Factors {
  const T *scale, *shift;
  bool relu;

  template <int N>
  SEGFAST_INLINE Vec<T, N> apply(Vec<T, N> y, int64_t channel) const {
    if (scale != nullptr) y *= load<N>(scale + channel);
    if (shift != nullptr) y += load<N>(shift + channel);
    return relu ? (y < 0 ? Vec<T, N>{} : y) : y;  // NaN stays
  }
};

template <typename S, typename T>
void finish_block(const DenseConv& p, const DenseBlock& b, int64_t begin, int64_t end,
                  const DenseFinish& finish, S* result, ConvScratch<T>* s) {
  constexpr int W = kLanes<T>;
  const int64_t channels = end - begin;
  const int64_t plane = result_size(p, p.conv.rows) * result_size(p, p.conv.columns);
  T scale[kMostPitch], shift[kMostPitch];
  for (int64_t o = 0; o < s->pitch; ++o) {
    const bool there = o < channels;
    if (finish.scale) scale[o] = there ? static_cast<const T*>(finish.scale)[begin + o] : T(0);
    if (finish.shift) shift[o] = there ? static_cast<const T*>(finish.shift)[begin + o] : T(0);
  }
  const Factors<T> factors{finish.scale ? scale : nullptr, finish.shift ? shift : nullptr,
                           finish.relu};
  for (int64_t o = 0; o < channels; o += W) {
    const int64_t there = channels - o < W ? channels - o : W;
    S* to = result + (begin + o) * plane;
    for (int64_t n = 0; n < b.count; n += W) {
      const T* from = s->sums + n * s->pitch + o;
      const int64_t at = s->results[n], left = b.count - n < W ? b.count - n : W;
      if (left == W && s->results[n + W - 1] == at + W - 1) {
        transpose<T, W>(
            [&](int i) { return factors.template apply<W>(load<W>(from + i * s->pitch), o); },
            [&](int j, Vec<T, W> row) {
              if (j >= there) return;
              if constexpr (sizeof(S) == sizeof(T)) {
                store<W>(reinterpret_cast<T*>(to + j * plane + at), row);
              } else {
                for (int i = 0; i < W; ++i) narrow(row[i], to + j * plane + at + i);
              }
            });
        continue;
      }
      for (int64_t i = 0; i < left; ++i) {
        const Vec<T, W> row = factors.template apply<W>(load<W>(from + i * s->pitch), o);
        T lanes[W];
        store<W>(lanes, row);
        for (int64_t j = 0; j < there; ++j) narrow(lanes[j], to + j * plane + s->results[n + i]);
      }
    }
  }
}

template <typename S, typename T>
void add_conv_of(const DenseConv& p, const DenseBlock& b, int64_t begin, int64_t end, Range from,
                 const S* source, const T* packed, const DenseFinish& finish, S* result, T* sums,
                 ConvScratch<T>* s) {
  s->sums = sums;
  locate(p, b, end - begin, s);
  if (from.begin == 0) begin_sums(b, begin, end, static_cast<const S*>(finish.bias), *s);
  add_block(p, b, begin, end, from, source, packed, s);
  if (from.end == source_channels(p)) finish_block(p, b, begin, end, finish, result, s);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
