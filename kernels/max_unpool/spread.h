// Unpooling one row of a plane in registers: every vector of x gathers from the few windows that
// may have chosen its positions.
//
// With dilation 1, position S m + r - padding (r < S, the stride) is column j = r + S t of window
// m - t. N windows make S vectors of x; lane k of vector q belongs to window (q N + k) / S and to
// r = (q N + k) % S.
#pragma once

#include "merge.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kMostStride = 16;   // and columns of a kernel
constexpr int kMostRows = 8;      // rows of windows that reach one row
constexpr int kMostWindows = 16;  // that reach one position
constexpr int64_t kBefore = 24;   // offsets unpacked before a chunk: up to 16, from a whole byte on

// v[index[k]]
template <typename V>
SEGFAST_INLINE V permute(V v, V index) {
#if defined(__clang__)
  V found;
  for (unsigned k = 0; k < sizeof(V) / sizeof(v[0]); ++k) found[k] = v[index[k]];
  return found;
#else
  return __builtin_shuffle(v, index);
#endif
}

template <int S, int N, int Q, typename V, int... K>
SEGFAST_INLINE V stretch(V v, std::integer_sequence<int, K...>) {
  return pick<((Q * N + K) / S)...>(v, v);
}

template <typename W, int S>
class Spread {
 public:
  static constexpr int N = kLanes<W>;
  using V = Vec<W, N>;

  static bool serves(const Pooling& p) {
    const PoolAxis &rows = p.rows, &columns = p.columns;
    const int64_t high = divide_up(rows.kernel, rows.stride);
    const int64_t wide = divide_up(columns.kernel, columns.stride);
    return columns.dilation == 1 && columns.stride <= kMostStride &&
           columns.kernel <= kMostStride && high <= kMostRows && high * wide <= kMostWindows &&
           (rows.dilation == 1 || rows.kernel <= kMostRows);
  }

  explicit Spread(const Pooling& p)
      : p_(p),
        stride_(S ? S : p.columns.stride),
        taps_(divide_up(p.columns.kernel, stride_)),
        bits_(offset_bits(positions(p))) {
    for (int64_t q = 0; q < stride_; ++q) {
      for (int k = 0; k < N; ++k) {
        const int64_t lane = q * N + k;
        window_[q][k] = static_cast<W>(lane / stride_);
        for (int64_t t = 0; t < taps_; ++t) {
          const int64_t j = lane % stride_ + t * stride_;
          column_[t * stride_ + q][k] = static_cast<W>(j < p.columns.kernel ? j : kNone);
        }
      }
    }
    const PoolAxis& columns = p.columns;
    whole_ = {larger(taps_ - 1, divide_up(columns.padding, stride_)),
              smaller(columns.output, (columns.input + columns.padding) / stride_)};
    if (whole_.end < whole_.begin) whole_.end = whole_.begin;
  }

  // Row x [W] from `count` rows of y [Ho, Wo] and packed, those of rows[0..count).
  template <typename M>
  SEGFAST_INLINE void row(const W* y, const uint8_t* packed, const Reach* rows, int count, W* x) {
    const PoolAxis& columns = p_.columns;
    if (count == 0) {
      for (int64_t w = 0; w < columns.input; ++w) x[w] = 0;
      return;
    }
    const int64_t pitch = kChunk / count, step = (pitch - kBefore) / 8 * 8;
    const int64_t bytes = packed_width(columns.output, bits_);
    const int64_t left = smaller(columns.input, whole_.begin * stride_ - columns.padding);
    const int64_t right = larger(left, whole_.end * stride_ - columns.padding);
    for (int64_t w = 0; w < left; ++w) x[w] = one<M>(y, packed, rows, count, w);
    for (int64_t begin = whole_.begin; begin < whole_.end; begin += step) {
      const int64_t end = smaller(begin + step, whole_.end);
      const int64_t first = larger(0, begin - taps_ + 1) / 8 * 8;
      for (int n = 0; n < count; ++n) {
        unpack_row(packed + rows[n].output * bytes + first * bits_ / 8, end - first, bits_,
                   offsets_ + n * pitch);
      }
      int64_t m = begin;
      for (; m + N <= end; m += N) group<M>(y, rows, count, m, first, pitch, x);
      if (m < end && end - N >= begin) {
        group<M>(y, rows, count, end - N, first, pitch, x);
      } else {
        for (int64_t w = m * stride_ - columns.padding; w < end * stride_ - columns.padding; ++w) {
          x[w] = one<M>(y, packed, rows, count, w);
        }
      }
    }
    for (int64_t w = right; w < columns.input; ++w) x[w] = one<M>(y, packed, rows, count, w);
  }

 private:
  static constexpr int kNone = -(1 << 14);  // with any offset added, the offset of no position

  template <int Q>
  SEGFAST_INLINE V stretched(V v, int64_t q) const {
    if constexpr (S == 0) return permute(v, window_[q]);
    return stretch<S ? S : 1, N, Q>(v, std::make_integer_sequence<int, N>{});
  }

  template <typename M, int Q>
  SEGFAST_INLINE void vector(const W* y, const Reach* rows, int count, int64_t m, int64_t first,
                             int64_t pitch, int64_t q, W* x) const {
    V sink{};
    for (int n = 0; n < count; ++n) {
      for (int64_t t = taps_ - 1; t >= 0; --t) {
        const int64_t at = m - t;
        const V value = load<N>(y + rows[n].output * p_.columns.output + at);
        const V offset = load<N>(offsets_ + n * pitch + at - first);
        const V wanted =
            column_[t * stride_ + q] + static_cast<W>(rows[n].offset * p_.columns.kernel);
        const V chosen = (V)(stretched<Q>(offset, q) == wanted);
        sink = M::template many<N>(sink, stretched<Q>(value, q), chosen);
      }
    }
    store<N>(x + m * stride_ - p_.columns.padding + q * N, sink);
  }

  template <typename M>
  SEGFAST_INLINE void group(const W* y, const Reach* rows, int count, int64_t m, int64_t first,
                            int64_t pitch, W* x) const {
    if constexpr (S == 2) {
      vector<M, 0>(y, rows, count, m, first, pitch, 0, x);
      vector<M, 1>(y, rows, count, m, first, pitch, 1, x);
    } else {
      for (int64_t q = 0; q < stride_; ++q) vector<M, 0>(y, rows, count, m, first, pitch, q, x);
    }
  }

  // The same for one position: the ends of a row.
  template <typename M>
  W one(const W* y, const uint8_t* packed, const Reach* rows, int count, int64_t w) const {
    Reach columns[kMostStride];
    const int wide = windows_at(p_.columns, w, columns);
    const int64_t bytes = packed_width(p_.columns.output, bits_);
    W sink = 0;
    for (int n = 0; n < count; ++n) {
      for (int k = 0; k < wide; ++k) {
        const int64_t bit = columns[k].output * bits_;
        const int byte = packed[rows[n].output * bytes + bit / 8];
        const int64_t wanted = rows[n].offset * p_.columns.kernel + columns[k].offset;
        sink = M::one(sink, y[rows[n].output * p_.columns.output + columns[k].output],
                      (byte >> bit % 8 & ((1 << bits_) - 1)) == wanted);
      }
    }
    return sink;
  }

  const Pooling& p_;
  int64_t stride_, taps_;
  int bits_;
  Range whole_;  // groups of S positions that read and write inside their rows
  V window_[S ? S : kMostStride];
  V column_[2 * kMostStride];
  W offsets_[kChunk];
};

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
