// Feature maps of linear attention and their slopes, for a block of positions. Constants:
// README.md.
#pragma once

#include "linear_attention.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr double kSmallestNorm = 1e-6;  // taylor: shorter vectors are divided by this

// sum_k c[kTerms - 1 - k] x^k by Estrin's scheme, log2(kTerms) deep: a processor overlaps few of
// Horner's long chains.
template <int kTerms, typename T, typename V>
SEGFAST_INLINE V polynomial(const T (&c)[kTerms], V x) {
  V sums[(kTerms + 1) / 2];  // of pairs, then of pairs of those
#pragma GCC unroll 16
  for (int k = 0; k < kTerms / 2; ++k) sums[k] = x * c[kTerms - 2 - 2 * k] + c[kTerms - 1 - 2 * k];
  if constexpr (kTerms % 2 == 1) sums[kTerms / 2] = V{} + c[0];
#pragma GCC unroll 8
  for (int count = (kTerms + 1) / 2; count > 1; count = (count + 1) / 2) {
    x *= x;
#pragma GCC unroll 16
    for (int k = 0; k < count / 2; ++k) sums[k] = x * sums[2 * k + 1] + sums[2 * k];
    if (count % 2 == 1) sums[count / 2] = sums[count - 1];
  }
  return sums[0];
}

// e^x for x <= 0, 0 below the smallest normal result, relative error 2e-7; NaN propagates.
//   x = n log 2 + r, |r| <= log(2) / 2;   e^x = 2^n e^r
template <int N>
SEGFAST_INLINE Vec<float, N> exp_relative(Vec<float, N> x) {
  using U = Vec<uint32_t, N>;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kPolynomial[] = {1.3941108434e-3f,
                                   8.3751263982e-3f,
                                   4.1666352897e-2f,
                                   1.6666415515e-1f,
                                   0.50000000471f,
                                   1.0f,
                                   1.0f};
  const Vec<float, N> shifted = x * 1.44269504f + kRound;  // n in its low bits
  const Vec<float, N> n = shifted - kRound;
  const Vec<float, N> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  const U power = ((U)shifted << 23) + 0x3f800000u;
  return x < -87.33654f ? Vec<float, N>{} : polynomial(kPolynomial, r) * (Vec<float, N>)power;
}
template <int N>
SEGFAST_INLINE Vec<double, N> exp_relative(Vec<double, N> x) {
  return exp_nonpositive<N>(x);
}

// log(1 + t) / t for 0 <= t <= 1: relative error 5e-9 (float), 1e-17 (double) before rounding.
template <typename T>
struct Log1pOverT;
template <>
struct Log1pOverT<float> {
  static constexpr float kPolynomial[] = {
      -3.1760570184e-3f, 1.9542527261e-2f, -5.637361283e-2f, 0.10543623795f,  -0.15269667074f,
      0.19663274257f,    -0.24951616263f,  0.33329710499f,   -0.49999892648f, 0.99999999466f};
};
template <>
struct Log1pOverT<double> {
  static constexpr double kPolynomial[] = {
      0.0000244379739485809471, -0.000282742113937410716, 0.00155352440343343336,
      -0.00542173399100160966,  0.0135987780906172537,    -0.0263987794807432172,
      0.0419257098539041573,    -0.0571897853419390586,   0.0701529623652647141,
      -0.0807095457843020583,   0.0900909581519863245,    -0.0997976809658656833,
      0.111072115852995379,     -0.124994270635143811,    0.142856519752759262,
      -0.166666618482485386,    0.199999997498565228,     -0.249999999920095234,
      0.333333333331975252,     -0.49999999999999079,     1.0};
};
template <typename T, int N>
SEGFAST_INLINE Vec<T, N> log1p_over(Vec<T, N> t) {
  return polynomial(Log1pOverT<T>::kPolynomial, t);
}

// -|x|: no comparison, whose way to a mask and back is long.
template <typename T, int N>
SEGFAST_INLINE Vec<T, N> minus_magnitude(Vec<T, N> x) {
  using I = Vec<IntOf<T>, N>;
  return (Vec<T, N>)((I)x | (I)broadcast<T, N>(T(-0.0)));
}

// phi(x) e^{-shift}; shift <= 0, and x <= shift wherever shift is not 0.
template <typename T, int N>
struct Softplus {
  static SEGFAST_INLINE Vec<T, N> value(Vec<T, N> x, Vec<T, N> shift) {
    const Vec<T, N> t = exp_relative<N>(minus_magnitude<T, N>(x)), g = log1p_over<T, N>(t);
    return x > 0 ? x + t * g : exp_relative<N>(x - shift) * g;
  }
  static SEGFAST_INLINE Vec<T, N> value(Vec<T, N> x) {
    const Vec<T, N> t = exp_relative<N>(minus_magnitude<T, N>(x)), log = t * log1p_over<T, N>(t);
    return x > 0 ? x + log : log;
  }
  static SEGFAST_INLINE Vec<T, N> slope(Vec<T, N> x, Vec<T, N> shift) {
    const Vec<T, N> t = exp_relative<N>(minus_magnitude<T, N>(x));
    const Vec<T, N> scale = x > 0 ? broadcast<T, N>(1) : exp_relative<N>(x - shift);
    return scale / (T(1) + t);
  }
};
template <typename T, int N>
struct Elu {
  static SEGFAST_INLINE Vec<T, N> value(Vec<T, N> x, Vec<T, N> shift) {
    return x > 0 ? x + T(1) : exp_relative<N>((x > 0 ? Vec<T, N>{} : x) - shift);
  }
  static SEGFAST_INLINE Vec<T, N> value(Vec<T, N> x) { return value(x, Vec<T, N>{}); }
  static SEGFAST_INLINE Vec<T, N> slope(Vec<T, N> x, Vec<T, N> shift) {
    return x > 0 ? broadcast<T, N>(1) : exp_relative<N>((x > 0 ? Vec<T, N>{} : x) - shift);
  }
};

// A block of one input: D rows of x, R of phi.
template <typename T>
struct Features {
  FeatureMap map;
  int64_t rows;  // D
  int64_t pitch;
  int64_t width;  // positions, a multiple of the lanes; zeros from `count` on
  int64_t count;
  T* x;        // [rows, pitch]
  T* phi;      // [R, pitch]
  T* shift;    // [pitch] 0 or, for queries that underflow, their largest feature
  T* inverse;  // [pitch] taylor: 1 / |x|; -1 where |x| is too short for a gradient
  bool shifted;

  SEGFAST_INLINE T* x_row(int64_t d) const { return x + d * pitch; }
  SEGFAST_INLINE T* phi_row(int64_t d) const { return phi + d * pitch; }
};

template <typename T, typename F>
SEGFAST_INLINE void for_each_element(const Features<T>& b, const F& f) {
  constexpr int W = kLanes<T>;
  for (int64_t d = 0; d < b.rows; ++d) {
    for (int64_t n = 0; n < b.width; n += W) f(d * b.pitch + n, n);
  }
}

// Positions from `count` on, of rows that are summed over the whole width.
template <typename T>
SEGFAST_INLINE void clear_beyond(const Features<T>& b, int64_t rows, T* x) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = b.count; n < b.width; ++n) x[r * b.pitch + n] = 0;
  }
}

// shift = min(0, max_d x_d), where that is finite.
template <typename T>
void shift_queries(Features<T>* b) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  b->shifted = false;
  for (int64_t n = 0; n < b->width; n += W) {
    V top = load<W>(b->x + n);
    for (int64_t d = 1; d < b->rows; ++d) top = maximum(load<W>(b->x_row(d) + n), top);
    const V finite = top - top;  // 0, NaN for NaN and infinities
    top = top < 0 && finite == 0 ? top : V{};
    store<W>(b->shift + n, top);
    for (int w = 0; w < W; ++w) b->shifted |= top[w] < 0;
  }
}

template <typename T, template <typename, int> typename Map>
void map_elements(const Features<T>& b) {
  constexpr int W = kLanes<T>;
  if (b.shifted) {
    for_each_element(b, [&](int64_t at, int64_t n) __attribute__((always_inline)) {
      store<W>(b.phi + at, Map<T, W>::value(load<W>(b.x + at), load<W>(b.shift + n)));
    });
  } else {
    for_each_element(b, [&](int64_t at, int64_t) __attribute__((always_inline)) {
      store<W>(b.phi + at, Map<T, W>::value(load<W>(b.x + at)));
    });
  }
}

// phi = [x / max(|x|, kSmallestNorm), 1]
template <typename T>
void normalize(const Features<T>& b) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  constexpr T kLeast = T(kSmallestNorm * kSmallestNorm);
  for (int64_t n = 0; n < b.width; n += W) {
    V squares{};
    for (int64_t d = 0; d < b.rows; ++d) {
      const V x = load<W>(b.x_row(d) + n);
      squares += x * x;
    }
    const V inverse = T(1) / square_root<T, W>(squares);
    store<W>(b.inverse + n, squares < kLeast ? broadcast<T, W>(-1) : inverse);
    const V scale = squares < kLeast ? broadcast<T, W>(T(1 / kSmallestNorm)) : inverse;
    for (int64_t d = 0; d < b.rows; ++d) {
      store<W>(b.phi_row(d) + n, load<W>(b.x_row(d) + n) * scale);
    }
    store<W>(b.phi_row(b.rows) + n, broadcast<T, W>(1));
  }
}

// phi of x; of queries: times a positive number each, see shift_queries.
template <typename T>
void compute_features(Features<T>* b, bool queries) {
  b->shifted = false;
  const bool exponential = b->map == FeatureMap::softplus || b->map == FeatureMap::elu;
  if (queries && exponential) shift_queries(b);
  if (!b->shifted) {
    for (int64_t n = 0; n < b->width; ++n) b->shift[n] = 0;
  }
  switch (b->map) {
    case FeatureMap::softplus:
      map_elements<T, Softplus>(*b);
      break;
    case FeatureMap::elu:
      map_elements<T, Elu>(*b);
      break;
    case FeatureMap::relu:
      for_each_element(*b, [&](int64_t at, int64_t) {
        constexpr int W = kLanes<T>;
        const Vec<T, W> x = load<W>(b->x + at);
        store<W>(b->phi + at, x < 0 ? Vec<T, W>{} : x);
      });
      break;
    case FeatureMap::taylor:
      normalize(*b);
      break;
    case FeatureMap::identity:
      for_each_element(*b, [&](int64_t at, int64_t) {
        constexpr int W = kLanes<T>;
        store<W>(b->phi + at, load<W>(b->x + at));
      });
      break;
  }
  clear_beyond(*b, b->rows + (b->map == FeatureMap::taylor), b->phi);
}

template <typename T, template <typename, int> typename Map>
void slope_elements(const Features<T>& b, T* grad) {
  constexpr int W = kLanes<T>;
  for_each_element(b, [&](int64_t at, int64_t n) __attribute__((always_inline)) {
    const auto slope = Map<T, W>::slope(load<W>(b.x + at), load<W>(b.shift + n));
    store<W>(grad + at, load<W>(grad + at) * slope);
  });
}

// Gradient of phi [R, pitch] -> that of x [D, pitch], in place.
template <typename T>
void features_backward(const Features<T>& b, T* grad) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  switch (b.map) {
    case FeatureMap::softplus:
      return slope_elements<T, Softplus>(b, grad);
    case FeatureMap::elu:
      return slope_elements<T, Elu>(b, grad);
    case FeatureMap::relu:
      return for_each_element(b, [&](int64_t at, int64_t) {  // no product: 0 even beside a NaN
        const V g = load<W>(grad + at);
        store<W>(grad + at, load<W>(b.x + at) <= 0 ? V{} : g);
      });
    case FeatureMap::identity:
      return;
    case FeatureMap::taylor:
      break;
  }
  // (g - u (u . g)) / |x|, u = x / |x|
  for (int64_t n = 0; n < b.width; n += W) {
    V along{};
    for (int64_t d = 0; d < b.rows; ++d) {
      along += load<W>(grad + d * b.pitch + n) * load<W>(b.phi_row(d) + n);
    }
    const V inverse = load<W>(b.inverse + n);
    for (int64_t d = 0; d < b.rows; ++d) {
      T* g = grad + d * b.pitch + n;
      const V value = (load<W>(g) - load<W>(b.phi_row(d) + n) * along) * inverse;
      store<W>(g, inverse < 0 ? V{} : value);
    }
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
