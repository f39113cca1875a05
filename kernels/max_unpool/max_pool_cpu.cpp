// Max-pooling, one copy per instruction set. The contract is in max_unpool.h.
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

template <Dtype D, int K, int Stride>
void pool_planes(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed, int64_t begin,
                 int64_t end) {
  using W = WordOf<D>;
  const int bits = offset_bits(p);
  const int64_t width = p.columns.output, bytes = packed_row(p);
  const Range whole = whole_windows(p.columns);
  W offsets[kChunk];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.rows.output, ho = row % p.rows.output;
    const W* from = x + plane * p.rows.input * p.columns.input;
    for_each_chunk(width, [&](Range chunk) {
      Maximum<D> op{y + row * width + chunk.begin, offsets};
      visit_columns<K, Stride>(p, from, ho, chunk, whole, op);
      if (packed == nullptr) return;
      uint8_t* to = packed + row * bytes + chunk.begin * bits / 8;
      pack_row(offsets, chunk.end - chunk.begin, bits, to);
    });
  }
}

template <Dtype D, int K>
void pool_channels(const Pooling& p, const WordOf<D>* x, WordOf<D>* y, uint8_t* packed,
                   int64_t begin, int64_t end) {
  using W = WordOf<D>;
  const int bits = offset_bits(p);
  const int64_t width = p.columns.output, bytes = packed_row(p);
  W offsets[kChunk];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.rows.output, ho = row % p.rows.output;
    const W* from = x + image * p.rows.input * p.columns.input * p.channels;
    for (int64_t wo = 0; wo < width; ++wo) {
      for_each_chunk(p.channels, [&](Range chunk) {
        Maximum<D> op{y + (row * width + wo) * p.channels + chunk.begin, offsets};
        visit_channels<K>(p, from, ho, wo, chunk, op);
        if (packed == nullptr) return;
        uint8_t* to = packed + (row * bytes + wo * bits / 8) * p.channels + chunk.begin;
        pack_channels(offsets, chunk.end - chunk.begin, wo * bits % 8, to);
      });
    }
  }
}

}  // namespace

void pool(const Pooling& p, const void* x, void* y, uint8_t* packed, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto dtype) {
    constexpr Dtype D = decltype(dtype)::value;
    const auto* from = static_cast<const WordOf<D>*>(x);
    auto* to = static_cast<WordOf<D>*>(y);
    for_geometry(p, [&](auto kernel, auto stride) {
      constexpr int K = decltype(kernel)::value, S = decltype(stride)::value;
      p.channels_last ? pool_channels<D, K>(p, from, to, packed, begin, end)
                      : pool_planes<D, K, S>(p, from, to, packed, begin, end);
    });
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
