// Between pixels and the lattice: splat adds a pixel's values to the rows of its simplex's corners,
// slice reads them back.
#pragma once

#include "dense_crf.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// A pixel's corners: their rows in the table and their weights. The weights are copied because any
// store of a T could change the originals, so that they would be read again and again.
template <typename T, int kCorners, typename Table>
struct Corners {
  static constexpr int kCount = kCorners ? kCorners : kMaxFeatures + 1;
  Table* rows[kCount];
  T weights[kCount];

  SEGFAST_INLINE Corners(Table* table, const int32_t* vertex, const T* weight, int count, int row) {
    for (int k = 0; k < count; ++k) {
      rows[k] = table + int64_t{vertex[k]} * row;
      weights[k] = weight[k];
    }
  }
};

// to[p] += sum_k weight_k received[vertex_k]
template <typename T, int kCorners>
void slice(const LatticeTerm<T>& term, const T* received, int64_t first, int count, int row,
           T* to) {
  const int corners = kCorners ? kCorners : term.corners;
  const int32_t* vertex = term.vertex + first * corners;
  const T* weight = term.out_weight + first * corners;
  for (int p = 0; p < count; ++p, vertex += corners, weight += corners, to += row) {
    // The next call's: calls are too short for the hardware to see that they continue each other.
    __builtin_prefetch(vertex + count * corners);
    __builtin_prefetch(weight + count * corners);
    const Corners<T, kCorners, const T> from(received, vertex, weight, corners, row);
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      Vec<T, N> sum = load<N>(to + l);
      for (int k = 0; k < corners; ++k) sum += load<N>(from.rows[k] + l) * from.weights[k];
      store<N>(to + l, sum);
    });
  }
}

// sent[vertex_k] += weight_k belief[p]
template <typename T, int kCorners>
void splat(const LatticeTerm<T>& term, T* sent, int64_t first, int count, int row, int64_t pitch,
           const T* belief) {
  const int corners = kCorners ? kCorners : term.corners;
  const int32_t* vertex = term.vertex + first * corners;
  const T* weight = term.in_weight + first * corners;
  for (int p = 0; p < count; ++p, vertex += corners, weight += corners, belief += pitch) {
    const Corners<T, kCorners, T> at(sent, vertex, weight, corners, row);
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      const Vec<T, N> q = load<N>(belief + l);
      for (int k = 0; k < corners; ++k) {
        store<N>(at.rows[k] + l, load<N>(at.rows[k] + l) + q * at.weights[k]);
      }
    });
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
