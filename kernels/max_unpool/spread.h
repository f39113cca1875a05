// Unpooling one row of a plane in registers: every vector of x gathers from the few windows that
// may have chosen its positions.
//
// With dilation 1, position S m + r - padding (r < S, the stride) is column j = r + S t of window
// m - t. N windows make S vectors of x. A stride known to the compiler: sums for each r, then
// interleaved. Any other: windows are spread first; lane k of vector q belongs to window
// (q N + k) / S and to r = (q N + k) % S.
#pragma once

#include "merge.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kMostColumns = 16;  // of a kernel; its stride, too
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

// a[first], b[first], a[first + 1], b[first + 1], ...
template <int First, typename V, int... K>
SEGFAST_INLINE V interleave(V a, V b, std::integer_sequence<int, K...>) {
  return pick<(First + K / 2 + K % 2 * static_cast<int>(sizeof...(K)))...>(a, b);
}

// Stride and Kernel (columns): 0 when not known to the compiler; with a stride of 1 or 2.
template <typename M, int Stride, int Kernel>
class Spread {
  using W = typename M::W;
  static constexpr int N = kLanes<W>;
  using V = Vec<W, N>;

 public:
  static bool serves(const Pooling& p) {
    const PoolAxis &rows = p.rows, &columns = p.columns;
    const int64_t high = divide_up(rows.kernel, rows.stride);
    const int64_t wide = divide_up(columns.kernel, columns.stride);
    return columns.dilation == 1 && columns.stride <= kMostColumns &&
           columns.kernel <= kMostColumns && high <= kMostRows && high * wide <= kMostWindows &&
           (rows.dilation == 1 || rows.kernel <= kMostRows);
  }

  Spread(const Pooling& p, bool past_caches)
      : columns_(p.columns),
        past_caches_(past_caches),
        bits_(offset_bits(p)),
        bytes_(packed_row(p)),
        stride_(Stride ? Stride : columns_.stride),
        kernel_(Kernel ? Kernel : columns_.kernel),
        reach_(divide_up(kernel_, stride_)) {
    for (int64_t q = 0; Stride == 0 && q < stride_; ++q) {
      for (int k = 0; k < N; ++k) {
        const int64_t lane = q * N + k;
        window_[q][k] = static_cast<W>(lane / stride_);
        for (int64_t t = 0; t < reach_; ++t) {
          const int64_t j = lane % stride_ + t * stride_;
          column_[t * stride_ + q][k] = static_cast<W>(j < kernel_ ? j : kNone);
        }
      }
    }
    whole_ = {larger(reach_ - 1, divide_up(columns_.padding, stride_)),
              smaller(columns_.output, (columns_.input + columns_.padding) / stride_)};
    whole_.end = larger(whole_.begin, whole_.end);
  }

  // Row x [W] from y [Ho, Wo] and packed [Ho, Wp], of which rows[0..count) are read.
  SEGFAST_INLINE void row(const W* y, const uint8_t* packed, const Reach* rows, int count, W* x) {
    if (count == 0) {
      for (int64_t w = 0; w < columns_.input; ++w) x[w] = 0;
      return;
    }
    const int64_t pitch = kChunk / count, step = (pitch - kBefore) / 16 * 16;
    const int64_t left = smaller(columns_.input, whole_.begin * stride_ - columns_.padding);
    const int64_t right = larger(left, whole_.end * stride_ - columns_.padding);
    one_by_one(y, packed, rows, count, {0, left}, x);
    for (int64_t begin = whole_.begin; begin < whole_.end; begin += step) {
      const int64_t end = smaller(begin + step, whole_.end);
      const int64_t first = larger(0, begin - reach_ + 1) / 8 * 8;
      const W *values[kMostRows], *offsets[kMostRows];
      for (int n = 0; n < count; ++n) {
        W* to = offsets_ + n * pitch;
        unpack_row(packed + rows[n].output * bytes_ + first * bits_ / 8, end - first, bits_, to,
                   static_cast<int>(rows[n].offset * kernel_));
        offsets[n] = to - first;
        values[n] = y + rows[n].output * columns_.output;
      }
      const int64_t done = count == 1 ? groups<1>(values, offsets, count, {begin, end}, x)
                                      : groups<0>(values, offsets, count, {begin, end}, x);
      one_by_one(y, packed, rows, count,
                 {done * stride_ - columns_.padding, end * stride_ - columns_.padding}, x);
    }
    one_by_one(y, packed, rows, count, {right, columns_.input}, x);
  }

 private:
  static constexpr int kNone = -(1 << 14);  // less any base: the offset of no position
  static constexpr auto kAll = std::make_integer_sequence<int, N>{};

  // Windows of a chunk, N at a time, the last ones perhaps again; returns where it stopped: before
  // the end only when there are fewer than N. Count: 0 when not known to the compiler.
  template <int Count>
  SEGFAST_INLINE int64_t groups(const W* const* values, const W* const* offsets, int count,
                                Range chunk, W* x) const {
    const int rows = Count ? Count : count;
    const int64_t stride = Stride ? Stride : stride_, kernel = Kernel ? Kernel : kernel_;
    const int64_t reach = Kernel ? (Kernel + Stride - 1) / (Stride ? Stride : 1) : reach_;
    W* out = x - columns_.padding;
    if (chunk.end - chunk.begin < N) return chunk.begin;
    const int64_t windows = chunk.end - chunk.begin;
    const bool streams = past_caches_ && windows % N == 0 &&
                         streams_well(out + chunk.begin * stride, windows * stride);
    for (int64_t next = chunk.begin; next < chunk.end; next += N) {
      const int64_t m = smaller(next, chunk.end - N);
      const auto put = [&](int64_t q, V v) __attribute__((always_inline)) {
        W* to = out + m * stride + q * N;
        streams ? stream<N>(to, v) : store<N>(to, v);
      };
      if constexpr (Stride == 0) {
        for (int64_t q = 0; q < stride; ++q) put(q, permuted(values, offsets, rows, m, q));
        continue;
      }
      V sink[Stride ? Stride : 1] = {};
      for (int n = 0; n < rows; ++n) {
#pragma GCC unroll 2
        for (int64_t t = reach - 1; t >= 0; --t) {
          const V value = load<N>(values[n] + m - t), offset = load<N>(offsets[n] + m - t);
#pragma GCC unroll 2
          for (int r = 0; r < Stride; ++r) {
            const int64_t j = r + t * Stride;
            if (j >= kernel) continue;
            const V wanted = static_cast<W>(j) - V{};
            sink[r] = M::template many<N>(sink[r], value, (V)(offset == wanted));
          }
        }
      }
      if constexpr (Stride == 2) {
        put(0, interleave<0>(sink[0], sink[1], kAll));
        put(1, interleave<N / 2>(sink[0], sink[1], kAll));
      } else {
        put(0, sink[0]);
      }
    }
    return chunk.end;
  }

  // Vector q of the group m of windows, any stride.
  SEGFAST_INLINE V permuted(const W* const* values, const W* const* offsets, int rows, int64_t m,
                            int64_t q) const {
    V sink{};
    for (int n = 0; n < rows; ++n) {
      for (int64_t t = reach_ - 1; t >= 0; --t) {
        const V value = permute(load<N>(values[n] + m - t), window_[q]);
        const V offset = permute(load<N>(offsets[n] + m - t), window_[q]);
        sink = M::template many<N>(sink, value, (V)(offset == column_[t * stride_ + q]));
      }
    }
    return sink;
  }

  // The same position by position.
  void one_by_one(const W* y, const uint8_t* packed, const Reach* rows, int count, Range positions,
                  W* x) const {
    Reaches reaches(columns_, positions.begin);
    for (int64_t w = positions.begin; w < positions.end; ++w, reaches.next()) {
      Reach columns[kMostColumns];
      const int wide = reaches.list(columns);
      typename M::Sink sink = 0;
      for (int n = 0; n < count; ++n) {
        for (int k = 0; k < wide; ++k) {
          const int64_t bit = columns[k].output * bits_;
          const int byte = packed[rows[n].output * bytes_ + bit / 8];
          sink = M::one(sink, y[rows[n].output * columns_.output + columns[k].output],
                        (byte >> bit % 8 & ((1 << bits_) - 1)) ==
                            rows[n].offset * kernel_ + columns[k].offset);
        }
      }
      x[w] = M::finish(sink);
    }
  }

  const PoolAxis columns_;
  bool past_caches_;  // x is written by streaming stores where they are aligned
  int bits_;
  int64_t bytes_, stride_, kernel_;
  int64_t reach_;  // windows of a row that may look at a column
  Range whole_;    // groups of S positions that read and write inside their rows
  V window_[kMostColumns];
  V column_[2 * kMostColumns];
  W offsets_[kChunk];
};

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
