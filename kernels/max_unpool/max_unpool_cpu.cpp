// Max-unpooling and the gradient of max-pooling, one copy per instruction set. The contract is in
// max_unpool.h. Every row of x is gathered from the windows that reach it and written once.
#include "spread.h"
#include "two_by_two.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// One row x [W] of a plane, any geometry: window by window, in pieces that stay in registers'
// reach.
template <typename M, typename W>
void scatter_row(const Pooling& p, const W* y, const uint8_t* packed, const Reach* rows, int count,
                 W* x) {
  const PoolAxis& columns = p.columns;
  const int bits = offset_bits(p);
  const int64_t bytes = packed_row(p);
  const int64_t extent = window_extent(columns);
  constexpr int64_t kSpare = 8;  // what falls elsewhere goes there, which needs no branch
  typename M::Sink sink[kChunk + kSpare] = {};
  W offsets[kChunk];
  for (int64_t left = 0; left < columns.input; left += kChunk) {
    const int64_t width = smaller(kChunk, columns.input - left);
    for (int64_t w = 0; w < width; ++w) sink[w] = 0;
    // Windows that begin after `left - extent` and before `left + width`.
    const int64_t low = larger(0, left + columns.padding - extent + 1);
    const int64_t from = divide_up(low, columns.stride) / 8 * 8;
    const int64_t to =
        smaller(columns.output, (left + width - 1 + columns.padding) / columns.stride + 1);
    for (int n = 0; n < count; ++n) {
      const int64_t first = rows[n].offset * columns.kernel;
      for (int64_t begin = from; begin < to; begin += kChunk) {
        const int64_t end = smaller(begin + kChunk, to);
        unpack_row(packed + rows[n].output * bytes + begin * bits / 8, end - begin, bits, offsets);
        for (int64_t wo = begin; wo < end; ++wo) {
          const int64_t j = offsets[wo - begin] - first;
          const int64_t w = window_start(columns, wo) + j * columns.dilation - left;
          const bool here = j >= 0 && j < columns.kernel && w >= 0 && w < width;
          const int64_t at = here ? w : kChunk + wo % kSpare;
          sink[at] = M::one(sink[at], y[rows[n].output * columns.output + wo], true);
        }
      }
    }
    for (int64_t w = 0; w < width; ++w) x[left + w] = M::finish(sink[w]);
  }
}

// f(plane y [Ho, Wo], its bytes, the windows that reach the row, how many, row x [W]) for rows of
// x.
template <typename W, typename F>
SEGFAST_INLINE void for_each_row(const Pooling& p, const W* y, const uint8_t* packed, W* x,
                                 int64_t begin, int64_t end, const F& f) {
  const int64_t bytes = packed_row(p);
  int64_t plane = begin / p.rows.input, h = begin % p.rows.input;
  Reach rows[kMostPositions];
  while (begin < end) {
    Reaches reaches(p.rows, h);
    const int64_t stop = smaller(end, begin + p.rows.input - h), line = plane * p.rows.output;
    for (; begin < stop; ++begin, reaches.next()) {
      f(y + line * p.columns.output, packed + line * bytes, rows, reaches.list(rows),
        x + begin * p.columns.input);
    }
    h = 0;
    ++plane;
  }
}

template <typename M, int Stride, int Kernel, typename W>
void spread_planes(const Pooling& p, const W* y, const uint8_t* packed, W* x, int64_t begin,
                   int64_t end) {
  Spread<M, Stride, Kernel> spread(p, is_past_caches(p));
  for_each_row(p, y, packed, x, begin, end,
               [&](const W* from, const uint8_t* bytes, const Reach* rows, int count, W* to) {
                 spread.row(from, bytes, rows, count, to);
               });
  end_of_stream();
}

template <typename M, typename W>
void unpool_planes(const Pooling& p, const W* y, const uint8_t* packed, W* x, int64_t begin,
                   int64_t end) {
  if constexpr (M::kInPlace) {
    if (Spread<M, 0, 0>::serves(p)) {
      const int64_t stride = p.columns.stride, kernel = p.columns.kernel;
      if constexpr (!M::kSum) {
        if (stride == 2 && kernel == 2) return spread_planes<M, 2, 2>(p, y, packed, x, begin, end);
      }
      if constexpr (!M::kOnly) {
        if (stride == 2 && kernel == 3) return spread_planes<M, 2, 3>(p, y, packed, x, begin, end);
        if (stride == 1) return spread_planes<M, 1, 0>(p, y, packed, x, begin, end);
      }
      return spread_planes<M, 0, 0>(p, y, packed, x, begin, end);
    }
  }
  for_each_row(p, y, packed, x, begin, end,
               [&](const W* from, const uint8_t* bytes, const Reach* rows, int count, W* to) {
                 scatter_row<M>(p, from, bytes, rows, count, to);
               });
}

// One window's part in `count` channels of a position.
template <typename M, bool First, typename W>
SEGFAST_INLINE void merge_channels(const W* __restrict y, const uint8_t* __restrict packed,
                                   int mask, int wanted, int64_t count,
                                   typename M::Sink* __restrict sink) {
  for (int64_t c = 0; c < count; ++c) {
    sink[c] = M::one(First ? 0 : sink[c], y[c], (packed[c] & mask) == wanted);
  }
}

template <typename M, typename W>
void write_channels(const typename M::Sink* sink, int64_t count, bool past_caches, W* to) {
  int64_t c = 0;
  if constexpr (M::kInPlace) {
    constexpr int N = kLanes<W>;
    if (past_caches && streams_well(to, count)) {
      for (; c + N <= count; c += N) stream<N>(to + c, (Vec<W, N>)load<N>(sink + c));
    }
  }
  for (; c < count; ++c) to[c] = M::finish(sink[c]);
}

template <typename M, typename W>
void unpool_channels(const Pooling& p, const W* y, const uint8_t* packed, W* x, int64_t begin,
                     int64_t end) {
  const PoolAxis& across = p.columns;
  const int bits = offset_bits(p);
  const int64_t bytes = packed_row(p), channels = p.channels;
  const bool past_caches = is_past_caches(p);
  typename M::Sink sink[kChunk];
  Reach rows[kMostPositions], columns[kMostPositions];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.rows.input * p.rows.output;
    const int high = Reaches(p.rows, row % p.rows.input).list(rows);
    Reaches reaches(across, 0);
    for (int64_t w = 0; w < across.input; ++w, reaches.next()) {
      const int wide = reaches.list(columns);
      W* to = x + (row * across.input + w) * channels;
      for (int64_t c = 0; c < channels; c += kChunk) {
        const int64_t count = smaller(kChunk, channels - c);
        for (int64_t k = 0; high * wide == 0 && k < count; ++k) sink[k] = 0;
        for (int a = 0; a < high; ++a) {
          const int64_t line = image + rows[a].output;
          for (int b = 0; b < wide; ++b) {
            const Reach& s = columns[b];
            const int shift = static_cast<int>(s.output * bits % 8);
            const int mask = ((1 << bits) - 1) << shift;
            const int wanted = static_cast<int>(rows[a].offset * across.kernel + s.offset) << shift;
            const W* value = y + (line * across.output + s.output) * channels + c;
            const uint8_t* offset = packed + (line * bytes + s.output * bits / 8) * channels + c;
            a + b == 0 ? merge_channels<M, true>(value, offset, mask, wanted, count, sink)
                       : merge_channels<M, false>(value, offset, mask, wanted, count, sink);
          }
        }
        write_channels<M>(sink, count, past_caches, to + c);
      }
    }
  }
  end_of_stream();
}

// Rows of windows of 2 x 2 whose two rows of x are both asked for; f does a single row of x.
template <typename M, bool kStream, typename W, typename F>
void unpool_tiles(const Pooling& p, const W* y, const uint8_t* packed, W* x, int64_t begin,
                  int64_t end, const F& one_row) {
  const int64_t line = p.columns.input * inner(p), bytes = packed_row(p) * inner(p);
  int64_t first = begin / p.rows.input * p.rows.output;  // row of y of this map
  int64_t h = begin % p.rows.input;
  for (int64_t step; begin < end; begin += step) {
    const bool both = h % 2 == 0 && begin + 1 < end && h / 2 < p.rows.output;
    if (both) {
      const W* from = y + (first + h / 2) * p.columns.output * inner(p);
      const uint8_t* offsets = packed + (first + h / 2) * bytes;
      W* to = x + begin * line;
      p.channels_last ? spread_pixels<M, kStream>(from, offsets, p, to)
                      : spread_row<M, kStream>(from, offsets, p.columns, to);
    } else {
      one_row(begin);
    }
    step = both ? 2 : 1;
    h += step;
    if (h == p.rows.input) h = 0, first += p.rows.output;
  }
  end_of_stream();
}

template <typename M, typename W>
void unpool_any(const Pooling& p, const W* y, const uint8_t* packed, W* x, int64_t begin,
                int64_t end) {
  p.channels_last ? unpool_channels<M>(p, y, packed, x, begin, end)
                  : unpool_planes<M>(p, y, packed, x, begin, end);
}

template <typename M>
void run(const Pooling& p, const void* y, const uint8_t* packed, void* x, int64_t begin,
         int64_t end) {
  using W = typename M::W;
  const W* from = static_cast<const W*>(y);
  W* to = static_cast<W*>(x);
  if constexpr (!M::kSum) {
    if (is_tiled(p) && (p.channels_last || p.columns.output >= kWindows)) {
      const auto one_row = [&](int64_t row) { unpool_any<M>(p, from, packed, to, row, row + 1); };
      return streams_tiles(p, to, p.columns.input)
                 ? unpool_tiles<M, true>(p, from, packed, to, begin, end, one_row)
                 : unpool_tiles<M, false>(p, from, packed, to, begin, end, one_row);
    }
  }
  unpool_any<M>(p, from, packed, to, begin, end);
}

}  // namespace

void unpool(const Pooling& p, const void* y, const uint8_t* packed, void* x, int64_t begin,
            int64_t end) {
  for_word(p.dtype,
           [&](auto word) { run<Moved<decltype(word), false>>(p, y, packed, x, begin, end); });
}

void pool_backward(const Pooling& p, const void* y, const uint8_t* packed, void* x, int64_t begin,
                   int64_t end) {
  if (windows_disjoint(p)) {
    return for_word(
        p.dtype, [&](auto word) { run<Moved<decltype(word), true>>(p, y, packed, x, begin, end); });
  }
  for_dtype(p.dtype,
            [&](auto dtype) { run<Summed<decltype(dtype)::value>>(p, y, packed, x, begin, end); });
}

constexpr MaxUnpoolKernels max_unpool_kernels = {
    pool, pool_backward, unpool, gather, unpack, pack, unpool_indices, gather_indices};

}  // namespace SEGFAST_ISA
}  // namespace segfast
