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

// A row y [Wo] of 2 x 2 windows, at least eight, from two rows of x, top [W] and the one below: the
// better half of each row of a window, then the better of the two, which is the first maximum or
// the last NaN, too.
template <Dtype D>
void pool_tiles_row(const WordOf<D>* top, const PoolAxis& columns, WordOf<D>* y, uint8_t* packed) {
  using W = WordOf<D>;
  using L = Lanes<W, kWindows, 2>;
  using V = Eight<W>;
  const auto later_wins = [](V earlier, V later) __attribute__((always_inline)) {
    const auto a = order<D, kWindows>(earlier), b = order<D, kWindows>(later);
    return (V)(b > a) | (V)is_nan<D>(b);
  };
  const W* const bottom = top + columns.input;
  const W* const next = bottom + columns.input;
  const bool wide = columns.input * sizeof(W) >= 256;  // as in gather_row
  for_each_eight_windows(columns.output, [&](int64_t first) __attribute__((always_inline)) {
    if (wide) {
      __builtin_prefetch(next + 2 * first);
      __builtin_prefetch(next + columns.input + 2 * first);
    }
    const auto better = [&](const W* row, V* right) __attribute__((always_inline)) {
      const V a = L::load_columns(row + 2 * first, 0, 2),
              b = L::load_columns(row + 2 * first, 1, 2);
      *right = later_wins(a, b);
      return *right ? b : a;
    };
    V upper_right, lower_right;
    const V upper = better(top, &upper_right), lower = better(bottom, &lower_right);
    const V below = later_wins(upper, lower);
    L::store_windows(y + first, below ? lower : upper);
    if (packed == nullptr) return;
    const V beside = below ? lower_right : upper_right;
    put_eight(packed, first, signs<W>(L::in_order(below)), signs<W>(L::in_order(beside)));
  });
}

template <Dtype D>
void pool_tiles(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed, Range rows) {
  const int64_t bytes = packed_row(p);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t map = row / p.rows.output, ho = row % p.rows.output;
    pool_tiles_row<D>(map_of_x(p, x, map) + 2 * ho * p.columns.input, p.columns,
                      y + row * p.columns.output,
                      packed == nullptr ? nullptr : packed + row * bytes);
  }
}

template <Dtype D, bool Last, int K, int Stride>
void pool_rows(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed, Range rows) {
  if constexpr (!Last && K == 2) {
    if (is_tiled(p) && p.columns.output >= kWindows) return pool_tiles<D>(p, x, y, packed, rows);
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
