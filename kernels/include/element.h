// Elements of a tensor as they lie in memory, and the type their sums have.
#pragma once

#include "dtype.h"
#include "half.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

struct F16 {
  int16_t bits;
};
struct BF16 {
  int16_t bits;
};
SEGFAST_INLINE float widen(float x) { return x; }
SEGFAST_INLINE double widen(double x) { return x; }
SEGFAST_INLINE float widen(F16 x) { return f16_to_float(x.bits); }
SEGFAST_INLINE float widen(BF16 x) { return bf16_to_float(x.bits); }
SEGFAST_INLINE void narrow(float x, float* to) { *to = x; }
SEGFAST_INLINE void narrow(double x, double* to) { *to = x; }
SEGFAST_INLINE void narrow(float x, F16* to) { to->bits = float_to_f16(x); }
SEGFAST_INLINE void narrow(float x, BF16* to) { to->bits = float_to_bf16(x); }

template <int N>
SEGFAST_INLINE Vec<float, N> widen_f16_vector(Vec<int16_t, N> half) {
#ifdef __AVX512F__
  if constexpr (N == 16) return (Vec<float, N>)_mm512_cvtph_ps((__m256i)half);
#endif
  return widen_f16<Vec<float, N>, Vec<int32_t, N>>(zero_extended<N>(half));
}

// N V elements of S that lie beside each other, as V vectors of sums. NaNs among the sums that are
// written have to come from elements of S: see round_to_bf16.
template <typename S, int N, int V>
struct Lanes {
  Vec<S, N> v[V];

  static SEGFAST_INLINE Lanes read(const S* p) {
    Lanes lanes;
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) lanes.v[k] = load<N>(p + k * N);
    return lanes;
  }
  SEGFAST_INLINE void write(S* p) const {
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) store<N>(p + k * N, v[k]);
  }
  // Of sums, and to sums, in the same order of lanes.
  static SEGFAST_INLINE Lanes read_sums(const S* p) { return read(p); }
  SEGFAST_INLINE void write_sums(S* p) const { write(p); }
};

template <int N, int V>
struct Lanes<F16, N, V> {
  Vec<float, N> v[V];

  static SEGFAST_INLINE Lanes read(const F16* p) {
    Lanes lanes;
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) lanes.v[k] = widen_f16_vector<N>(load<N>(&p[k * N].bits));
    return lanes;
  }
  SEGFAST_INLINE void write(F16* p) const {
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) {
      const auto bits = narrow_to_f16<Vec<float, N>>((Vec<uint32_t, N>)v[k]);
      store<N>(&p[k * N].bits, __builtin_convertvector(bits, Vec<int16_t, N>));
    }
  }
  static SEGFAST_INLINE Lanes read_sums(const float* p) {
    Lanes lanes;
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) lanes.v[k] = load<N>(p + k * N);
    return lanes;
  }
  SEGFAST_INLINE void write_sums(float* p) const {
#pragma GCC unroll 2
    for (int k = 0; k < V; ++k) store<N>(p + k * N, v[k]);
  }
};

template <int N>
struct Lanes<BF16, N, 1> {
  Vec<float, N> v[1];

  static SEGFAST_INLINE Lanes read(const BF16* p) {
    return {{(Vec<float, N>)(zero_extended<N>(load<N>(&p->bits)) << 16)}};
  }
  SEGFAST_INLINE void write(BF16* p) const {
    const auto bits = round_to_bf16((Vec<uint32_t, N>)v[0]) >> 16;
    store<N>(&p->bits, __builtin_convertvector(bits, Vec<int16_t, N>));
  }
  static SEGFAST_INLINE Lanes read_sums(const float* p) { return {{load<N>(p)}}; }
  SEGFAST_INLINE void write_sums(float* p) const { store<N>(p, v[0]); }
};

// The even and the odd ones, since a shift and a mask make both of the words that hold them.
template <int N>
struct Lanes<BF16, N, 2> {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the even one is the lower half");
  Vec<float, N> v[2];

  static SEGFAST_INLINE Lanes read(const BF16* p) {
    const auto words = (Vec<uint32_t, N>)load<2 * N>(&p->bits);
    return {{(Vec<float, N>)(words << 16), (Vec<float, N>)(words & 0xffff0000u)}};
  }
  SEGFAST_INLINE void write(BF16* p) const {
    const auto even = round_to_bf16((Vec<uint32_t, N>)v[0]) >> 16;
    const auto odd = round_to_bf16((Vec<uint32_t, N>)v[1]) & 0xffff0000u;
    store<2 * N>(&p->bits, (Vec<int16_t, 2 * N>)(even | odd));
  }
  static SEGFAST_INLINE Lanes read_sums(const float* p) {
    const Vec<float, N> a = load<N>(p), b = load<N>(p + N);
    return {{every_second<0>(a, b, kAll), every_second<1>(a, b, kAll)}};
  }
  SEGFAST_INLINE void write_sums(float* p) const {
    store<N>(p, alternate<0>(v[0], v[1], kAll));
    store<N>(p + N, alternate<N / 2>(v[0], v[1], kAll));
  }

 private:
  static constexpr auto kAll = std::make_integer_sequence<int, N>{};
};

template <typename S, int N, int V>
SEGFAST_INLINE void multiply_add(const Lanes<S, N, V>& a, const Lanes<S, N, V>& b,
                                 Lanes<S, N, V>* sum) {
#pragma GCC unroll 4
  for (int k = 0; k < V; ++k) sum->v[k] += a.v[k] * b.v[k];
}

// f(element type, type of sums)
template <typename F>
void by_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{}, float{});
    case Dtype::f64:
      return f(double{}, double{});
    case Dtype::f16:
      return f(F16{}, float{});
    case Dtype::bf16:
      return f(BF16{}, float{});
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
