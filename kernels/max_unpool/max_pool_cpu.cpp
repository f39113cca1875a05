// Max-pooling, one copy per instruction set. The contract is in max_unpool.h.
#include "two_by_two.h"
#include "visit.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// What a maximum compares: floating-point numbers as such, half types by integers of the same
// order, where every NaN is the largest.
template <Dtype D, int N>
SEGFAST_INLINE auto order(Vec<WordOf<D>, N> v) {
  if constexpr (kIsHalf<D>) {
    using V = Vec<int16_t, N>;
    const V sign = v >> 15, magnitude = v & 0x7fff;
    const V ordered = (magnitude ^ sign) - sign;  // both zeros are 0
    return magnitude > static_cast<int16_t>(kHalfInfinity<D>) ? 0x7fff - V{} : ordered;
  } else {
    return (Vec<RealOf<D>, N>)v;
  }
}

template <Dtype D, typename V>
SEGFAST_INLINE auto is_nan(V ordered) {
  if constexpr (kIsHalf<D>) {
    return ordered == (0x7fff - V{});
  } else {
    return ordered != ordered;
  }
}

template <Dtype D>
constexpr RealOf<D> kLowest = -__builtin_inf();

// A later value wins if it is larger or NaN, as in PyTorch: hence the first maximum, the last NaN.
template <Dtype D>
struct Maximum {
  using W = WordOf<D>;
  W* y;
  W* offsets;

  template <typename L>
  struct State {
    using V = decltype(L::load_windows(nullptr));
    static constexpr int N = sizeof(V) / sizeof(W);
    V best, offset;
    decltype(order<D, N>(V{})) best_order;

    SEGFAST_INLINE State(const Maximum&, int64_t) {}
    SEGFAST_INLINE void start(V v, int64_t at) {
      best = v;
      offset = static_cast<W>(at) - V{};
      best_order = order<D, N>(v);
    }
    SEGFAST_INLINE void nothing(int64_t at) {
      if constexpr (kIsHalf<D>) {
        start(static_cast<W>(0x8000 | kHalfInfinity<D>) - V{}, at);
      } else {
        start((V)broadcast<RealOf<D>, N>(kLowest<D>), at);
      }
    }
    SEGFAST_INLINE void visit(V v, int64_t at) {
      const auto v_order = order<D, N>(v);
      const V wins = (V)(v_order > best_order) | (V)is_nan<D>(v_order);
      best = wins ? v : best;
      offset = wins ? static_cast<W>(at) - V{} : offset;
      if constexpr (kIsHalf<D>) {
        best_order = wins ? v_order : best_order;
      } else {
        best_order = order<D, N>(best);
      }
    }
    SEGFAST_INLINE void finish(const Maximum& op, int64_t at) const {
      L::store_windows(op.y + at, best);
      L::store_windows(op.offsets + at, offset);
    }
  };
};

// Of 2 x 2 windows: the maxima, and masks that tell the row and the column of each.
template <typename V>
struct Tiles {
  V best, below, beside;
};

// values(i, j): those at row i and column j. The better half of each row of a window, then the
// better of the two, which is the first maximum or the last NaN, too.
template <Dtype D, typename Values>
SEGFAST_INLINE auto best_of_tiles(const Values& values) {
  using V = decltype(values(0, 0));
  constexpr int N = sizeof(V) / sizeof(WordOf<D>);
  const auto later_wins = [](V earlier, V later) __attribute__((always_inline)) {
    const auto a = order<D, N>(earlier), b = order<D, N>(later);
    return (V)(b > a) | (V)is_nan<D>(b);
  };
  const auto better = [&](int i, V* right) __attribute__((always_inline)) {
    const V a = values(i, 0), b = values(i, 1);
    *right = later_wins(a, b);
    return *right ? b : a;
  };
  V upper_right, lower_right;
  const V upper = better(0, &upper_right), lower = better(1, &lower_right);
  const V below = later_wins(upper, lower);
  return Tiles<V>{below ? lower : upper, below, below ? lower_right : upper_right};
}

// A row y [Wo], at least eight windows, from two rows of x, top [W] and the one below.
template <Dtype D>
void pool_tiles_row(const WordOf<D>* top, const PoolAxis& columns, WordOf<D>* y, uint8_t* packed) {
  using W = WordOf<D>;
  using L = Lanes<W, kWindows, 2>;
  const W* const bottom = top + columns.input;
  const W* const next = bottom + columns.input;
  const bool wide = columns.input * sizeof(W) >= 256;  // as in gather_row
  for_each_eight_windows(columns.output, [&](int64_t first) __attribute__((always_inline)) {
    if (wide) {
      __builtin_prefetch(next + 2 * first);
      __builtin_prefetch(next + columns.input + 2 * first);
    }
    const auto tiles = best_of_tiles<D>([&](int i, int j) __attribute__((always_inline)) {
      return L::load_columns((i == 0 ? top : bottom) + 2 * first, j, 2);
    });
    L::store_windows(y + first, tiles.best);
    if (packed == nullptr) return;
    put_eight(packed, first, signs<W>(L::in_order(tiles.below)),
              signs<W>(L::in_order(tiles.beside)));
  });
}

// As many channels as a vector has bytes. Byte k of lane L is channel k * N + L's: in order.
template <typename W, int... K>
SEGFAST_INLINE auto bytes_in_order(Vec<W, kLanes<W>> v, std::integer_sequence<int, K...>) {
  constexpr int kBytes = sizeof(W), N = kLanes<W>;
  const auto bytes = (Vec<uint8_t, kLanes<uint8_t>>)v;
  return pick<(K % N * kBytes + K / N)...>(bytes, bytes);
}

// A row y [Wo, C] from two rows of x, top [W, C] and the one below; channels: at least as many as a
// vector has bytes.
template <Dtype D>
void pool_pixels_row(const WordOf<D>* top, const Pooling& p, WordOf<D>* y, uint8_t* packed) {
  using W = WordOf<D>;
  constexpr int kAtOnce = kLanes<uint8_t>, N = kLanes<W>;
  constexpr int64_t kAhead = 4;  // windows: of more than 64 channels no prefetcher makes a stream
  const int64_t channels = p.channels, line = p.columns.input * channels;
  for (int64_t wo = 0; wo < p.columns.output; ++wo, top += 2 * channels, y += channels) {
    const int shift = static_cast<int>(wo % 4 * 2);
    const auto put = [&](int64_t c) __attribute__((always_inline)) {
      Vec<W, N> offsets{};
#pragma GCC unroll 8
      for (int k = 0; k < kAtOnce / N; ++k) {
        const int64_t first = c + k * N;
        const auto tiles = best_of_tiles<D>([&](int i, int j) __attribute__((always_inline)) {
          const W* from = top + i * line + j * channels + first;
          __builtin_prefetch(from + kAhead * 2 * channels);
          return load<N>(from);
        });
        store<N>(y + first, tiles.best);
        constexpr W kOne = 1;
        offsets |= (tiles.beside & static_cast<W>(kOne << 8 * k)) |
                   (tiles.below & static_cast<W>(kOne << (8 * k + 1)));
      }
      if (packed == nullptr) return;
      auto bytes = bytes_in_order<W>(offsets << shift, std::make_integer_sequence<int, kAtOnce>{});
      uint8_t* const to = packed + wo / 4 * channels + c;
      if (shift > 0) bytes |= load<kAtOnce>(to);  // the windows before
      store<kAtOnce>(to, bytes);
    };
    int64_t c = 0;
    for (; c + kAtOnce <= channels; c += kAtOnce) put(c);
    if (c < channels) put(channels - kAtOnce);
  }
}

template <bool Last>
bool serves_tiles(const Pooling& p) {
  return is_tiled(p) && (Last ? p.channels >= kLanes<uint8_t> : p.columns.output >= kWindows);
}

template <Dtype D, bool Last>
void pool_tiles(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed, Range rows) {
  const int64_t line = p.columns.input * inner(p), bytes = packed_row(p) * inner(p);
  for_each_pair(p, rows, [&](int64_t row, int64_t h) {
    WordOf<D>* const to = y + row * p.columns.output * inner(p);
    uint8_t* const offsets = packed == nullptr ? nullptr : packed + row * bytes;
    if constexpr (Last) {
      pool_pixels_row<D>(x + h * line, p, to, offsets);
    } else {
      pool_tiles_row<D>(x + h * line, p.columns, to, offsets);
    }
  });
}

template <Dtype D, bool Last, int K, int Stride>
void pool_rows(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed, Range rows) {
  if constexpr (K == 2) {
    if (serves_tiles<Last>(p)) return pool_tiles<D, Last>(p, x, y, packed, rows);
  }
  const int bits = offset_bits(p);
  const Range whole = whole_windows(p.columns);
  WordOf<D> offsets[kChunk];
  for_each_place<Last, false>(p, rows, [&](const Place& at) {
    const Maximum<D> op{y + at.first, offsets};
    visit_place<Last, K, Stride>(p, map_of_x(p, x, at.map), at, whole, op);
    if (packed != nullptr) pack_place<Last>(at, offsets, bits, packed);
  });
}

}  // namespace

void pool(const Pooling& p, const void* x, void* y, uint8_t* packed, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto dtype) {
    constexpr Dtype D = decltype(dtype)::value;
    const auto* from = static_cast<const WordOf<D>*>(x);
    auto* to = static_cast<WordOf<D>*>(y);
    for_geometry(p, [&](auto kernel, auto stride) {
      constexpr int K = decltype(kernel)::value, S = decltype(stride)::value;
      p.channels_last ? pool_rows<D, true, K, 0>(p, from, to, packed, {begin, end})
                      : pool_rows<D, false, K, S>(p, from, to, packed, {begin, end});
    });
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
