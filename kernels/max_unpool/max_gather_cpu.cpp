// y[o] = x[position chosen by o], one copy per instruction set: the gradient of unpooling and the
// second one of pooling. The contract is in max_unpool.h.
#include "two_by_two.h"
#include "visit.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int64_t kMostVisited = 16;  // positions of a window that are looked at one and all

template <typename W_>
struct Select {
  using W = W_;
  W* y;
  const W* offsets;

  template <typename L>
  struct State {
    using V = decltype(L::load_windows(nullptr));
    V value{}, offset;

    SEGFAST_INLINE State(const Select& op, int64_t at) : offset(L::load_windows(op.offsets + at)) {}
    SEGFAST_INLINE void nothing(int64_t) {}
    SEGFAST_INLINE void start(V v, int64_t at) { visit(v, at); }
    SEGFAST_INLINE void visit(V v, int64_t at) {
      value = (V)(offset == (static_cast<W>(at) - V{})) ? v : value;
    }
    SEGFAST_INLINE void finish(const Select& op, int64_t at) const {
      L::store_windows(op.y + at, value);
    }
  };
};

// Row and column of every offset in a window.
struct OffsetTable {
  int size;
  uint8_t row[kMostPositions], column[kMostPositions];

  explicit OffsetTable(const Pooling& p) : size(static_cast<int>(positions(p))) {
    for (int k = 0; k < size; ++k) {
      row[k] = static_cast<uint8_t>(k / p.columns.kernel);
      column[k] = static_cast<uint8_t>(k % p.columns.kernel);
    }
  }
};

// The positions of x that neighbouring outputs chose, where they lie inside: f(k, row of the
// window, row, column), in reverse order. Neighbours are the columns of a plane, or the channels of
// one pixel.
template <typename W, typename F>
SEGFAST_INLINE void for_each_choice(const Pooling& p, const OffsetTable& table, int64_t ho,
                                    int64_t wo, const W* offsets, int64_t count, const F& f) {
  const int64_t step = p.channels_last ? 0 : p.columns.stride;
  const int64_t top = window_start(p.rows, ho), left = window_start(p.columns, wo);
  for (int64_t k = count - 1; k >= 0; --k) {
    if (offsets[k] >= table.size) continue;
    const int64_t h = top + table.row[offsets[k]] * p.rows.dilation;
    const int64_t w = left + k * step + table.column[offsets[k]] * p.columns.dilation;
    if (h >= 0 && h < p.rows.input && w >= 0 && w < p.columns.input)
      f(k, table.row[offsets[k]], h, w);
  }
}

// f(map, rows) for the maps that the rows [begin, end) of y belong to.
template <typename F>
SEGFAST_INLINE void for_each_map(const Pooling& p, int64_t begin, int64_t end, const F& f) {
  while (begin < end) {
    const int64_t map = begin / p.rows.output, first = begin - map * p.rows.output;
    const int64_t last = smaller(p.rows.output, first + end - begin);
    f(map, Range{first, last});
    begin += last - first;
  }
}

template <bool Last, int K, int Stride, typename W>
void select_rows(const Pooling& p, const W* x, const uint8_t* packed, W* y, Range rows) {
  const int bits = offset_bits(p);
  const Range whole = whole_windows(p.columns);
  W offsets[kChunk];
  for_each_place<Last, false>(p, rows, [&](const Place& at) {
    unpack_place<Last>(at, packed, bits, offsets);
    const Select<W> op{y + at.first, offsets};
    visit_place<Last, K, Stride>(p, map_of_x(p, x, at.map), at, whole, op);
  });
}

// A row y [Wo] of 2 x 2 windows, at least eight, from two rows of x, top [W] and the one below.
// kStream: past the caches, which takes whole cache lines and no group of windows twice.
template <bool kStream, typename W>
void gather_row(const W* top, const uint8_t* packed, const PoolAxis& columns, W* y) {
  using L = Lanes<W, kWindows, 2>;
  const W* const bottom = top + columns.input;
  const W* const next = bottom + columns.input;  // rows end before the processor sees that others
  const bool wide = columns.input * sizeof(W) >= 256;  // follow, unless they share cache lines
  for_each_eight<W>(packed, columns.output, [&](int64_t first, Eight<W> in_order) {
    if (wide) {
      __builtin_prefetch(next + 2 * first);
      __builtin_prefetch(next + columns.input + 2 * first);
    }
    const Eight<W> offset = L::in_lanes(in_order);
    const Eight<W> beside = (Eight<W>)((offset & 1) != 0);
    const auto chosen = [&](const W* row) __attribute__((always_inline)) {
      return beside ? L::load_columns(row + 2 * first, 1, 2)
                    : L::load_columns(row + 2 * first, 0, 2);
    };
    const Eight<W> upper = chosen(top), lower = chosen(bottom);
    const Eight<W> value = L::in_order(offset > 1 ? lower : upper);
    kStream ? stream<kWindows>(y + first, value) : store<kWindows>(y + first, value);
  });
}

template <bool kStream, typename W>
void gather_tiles(const Pooling& p, const W* x, const uint8_t* packed, W* y, Range rows) {
  const int64_t bytes = packed_row(p);
  for_each_pair(p, rows, [&](int64_t row, int64_t h) {
    gather_row<kStream>(x + h * p.columns.input, packed + row * bytes, p.columns,
                        y + row * p.columns.output);
  });
  end_of_stream();
}

template <bool Last, typename W>
void look_up_rows(const Pooling& p, const W* x, const uint8_t* packed, W* y, Range rows) {
  const OffsetTable table(p);
  const int bits = offset_bits(p);
  W offsets[kChunk];
  for_each_place<Last, false>(p, rows, [&](const Place& at) {
    unpack_place<Last>(at, packed, bits, offsets);
    W* to = y + at.first;
    const W* from = map_of_x(p, x, at.map) + at.channel;
    const auto put = [&](int64_t k, int64_t, int64_t h, int64_t w) {
      to[k] = from[(h * p.columns.input + w) * inner(p) + (Last ? k : 0)];
    };
    for (int64_t k = 0; k < at.count; ++k) to[k] = 0;
    for_each_choice(p, table, at.ho, at.wo, offsets, at.count, put);
  });
}

// Winners among overlapping windows. In reverse order the first window that names a position wins:
// `taken` remembers which were named, for the rows that one window spans, in a ring.
template <bool Last, typename W>
void winners_of_rows(const Pooling& p, const W* x, const uint8_t* packed, W* y, uint8_t* taken,
                     int64_t begin, int64_t end) {
  const OffsetTable table(p);
  const int bits = offset_bits(p);
  const int64_t unit = Last ? p.channels : 1;
  W offsets[kChunk];
  const int64_t span = window_extent(p.rows), line = p.columns.input * unit;
  const int64_t later = (span - 1) / p.rows.stride;  // rows of windows that reach into one above
  for_each_map(p, begin, end, [&](int64_t map, Range rows) {
    const int64_t last = smaller(rows.end + later, p.rows.output);  // they only name positions
    __builtin_memset(taken, 0, span * line);
    for (int64_t ho = last - 1; ho >= rows.begin; --ho) {
      uint8_t* ring[kMostPositions];  // for the rows of the window
      const int64_t top = ho * p.rows.stride;
      for (int64_t h = top; ho < last - 1 && h < top + smaller(span, p.rows.stride); ++h) {
        __builtin_memset(taken + h % span * line, 0, line);
      }
      for (int64_t i = 0; i < p.rows.kernel; ++i) {
        ring[i] = taken + (top + i * p.rows.dilation) % span * line;
      }
      const bool wanted = ho < rows.end;
      const auto win = [&](const Place& at) {
        unpack_place<Last>(at, packed, bits, offsets);
        W* to = y + at.first;
        const W* from = map_of_x(p, x, map) + at.channel;
        const auto put = [&](int64_t k, int64_t i, int64_t h, int64_t w) {
          const int64_t element = w * unit + (Last ? k : 0);
          uint8_t& named = ring[i][element + at.channel];
          const W value = from[h * line + element];
          if (wanted) to[k] = named ? W{0} : value;
          named = 1;
        };
        for (int64_t k = 0; wanted && k < at.count; ++k) to[k] = 0;
        for_each_choice(p, table, ho, at.wo, offsets, at.count, put);
      };
      const int64_t row = map * p.rows.output + ho;
      for_each_place<Last, true>(p, {row, row + 1}, win);
    }
  });
}

template <bool Last, typename W>
void gather_rows(const Pooling& p, const W* x, const uint8_t* packed, W* y, uint8_t* scratch,
                 int64_t begin, int64_t end) {
  if (scratch != nullptr && !windows_disjoint(p)) {
    return winners_of_rows<Last>(p, x, packed, y, scratch, begin, end);
  }
  if constexpr (!Last) {
    if (is_tiled(p) && p.columns.output >= kWindows) {
      return streams_tiles(p, y, p.columns.output)
                 ? gather_tiles<true>(p, x, packed, y, {begin, end})
                 : gather_tiles<false>(p, x, packed, y, {begin, end});
    }
  }
  if (positions(p) > kMostVisited) return look_up_rows<Last>(p, x, packed, y, {begin, end});
  for_geometry(p, [&](auto kernel, auto stride) {
    constexpr int K = decltype(kernel)::value, S = Last ? 0 : decltype(stride)::value;
    select_rows<Last, K, S>(p, x, packed, y, {begin, end});
  });
}

}  // namespace

void gather(const Pooling& p, const void* x, const uint8_t* packed, void* y, uint8_t* scratch,
            int64_t begin, int64_t end) {
  for_word(p.dtype, [&](auto word) {
    using W = decltype(word);
    const W* from = static_cast<const W*>(x);
    W* to = static_cast<W*>(y);
    p.channels_last ? gather_rows<true>(p, from, packed, to, scratch, begin, end)
                    : gather_rows<false>(p, from, packed, to, scratch, begin, end);
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
