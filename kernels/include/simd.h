// Short vectors of the instruction set this file is compiled for (GCC and Clang vector extensions).
//
// A kernel source is compiled once per instruction set with -DSEGFAST_ISA=<name>; everything lands
// in namespace segfast::<name>. Nothing here may become a weak symbol: the linker would be free to
// pick the AVX-512 copy of an inline function for every caller. Hence templates and inline
// functions live in an anonymous namespace and no standard-library function is instantiated.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <utility>  // integer_sequence: a type, it emits no code

#ifndef SEGFAST_ISA
#define SEGFAST_ISA baseline
#endif

namespace segfast {
namespace SEGFAST_ISA {
namespace {

#define SEGFAST_INLINE inline __attribute__((always_inline))

// Emulated: what is written for AVX-512, in vectors that the compiler splits (CONTRIBUTING.md).
#if defined(__AVX512F__) || defined(SEGFAST_EMULATE_AVX512)
#define SEGFAST_AVX512
#endif

#if defined(SEGFAST_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T, int N>
struct VecType {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N>
using Vec = typename VecType<T, N>::type;
// In memory: at any T's address, aliasing nothing but Ts (a memcpy would alias every T, and make
// the compiler load loop bounds and pointers again after each store).
template <typename T, int N>
struct VecInMemory {
  typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(alignof(T))));
};

template <typename T>
struct IntOfType;
template <>
struct IntOfType<float> {
  using type = int32_t;
};
template <>
struct IntOfType<double> {
  using type = int64_t;
};
template <typename T>
using IntOf = typename IntOfType<T>::type;

template <int N, typename T>
SEGFAST_INLINE Vec<T, N> load(const T* p) {
  return *reinterpret_cast<const typename VecInMemory<T, N>::type*>(p);
}

template <int N, typename T>
SEGFAST_INLINE void store(T* p, Vec<T, N> v) {
  *reinterpret_cast<typename VecInMemory<T, N>::type*>(p) = v;
}

// A store past the caches, for outputs that no cache holds: it saves reading what is overwritten.
// Only for whole cache lines (streams_well), written once and in order: a line left in parts costs
// far more than is saved. Call end_of_stream before other threads may read.
template <int N, typename T>
SEGFAST_INLINE void stream(T* p, Vec<T, N> v) {
  constexpr int kBytes = N * sizeof(T);
  if constexpr (N > kLanes<T>) {
    Vec<T, N / 2> half[2];
    __builtin_memcpy(half, &v, kBytes);
    stream<N / 2>(p, half[0]);
    stream<N / 2>(p + N / 2, half[1]);
  }
#if defined(__AVX512F__)
  else if constexpr (kBytes == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
  }
#endif
#if defined(__AVX2__) && !defined(SEGFAST_EMULATE_AVX512)
  else if constexpr (kBytes == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
  }
#endif
#if defined(__SSE2__)
  else if constexpr (kBytes == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
  }
#endif
  else {
    store<N>(p, v);
  }
}
template <typename T>
SEGFAST_INLINE bool streams_well(const T* p, int64_t count) {
  constexpr int64_t kLine = 64;
  return reinterpret_cast<uintptr_t>(p) % kLine == 0 && count * sizeof(T) % kLine == 0;
}
SEGFAST_INLINE void end_of_stream() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

template <typename T, int N>
SEGFAST_INLINE Vec<T, N> broadcast(T x) {
  return x - Vec<T, N>{};
}

// v, loaded once: where several products take it, the compiler would load it for each of them.
template <typename V>
SEGFAST_INLINE V in_register(V v) {
#ifdef __AVX512F__
  asm("" : "+v"(v));
#elif defined(__SSE2__) && !defined(SEGFAST_EMULATE_AVX512)
  asm("" : "+x"(v));
#endif
  return v;
}

// Each lane widened by zeros: one instruction, of which the compiler makes several.
template <int N>
SEGFAST_INLINE Vec<uint32_t, N> zero_extended(Vec<int16_t, N> v) {
#ifdef __AVX512F__
  if constexpr (N == 16) return (Vec<uint32_t, N>)_mm512_cvtepu16_epi32((__m256i)v);
#endif
#ifdef __AVX2__
  if constexpr (N == 8) return (Vec<uint32_t, N>)_mm256_cvtepu16_epi32((__m128i)v);
#endif
  return __builtin_convertvector((Vec<uint16_t, N>)v, Vec<uint32_t, N>);
}

template <int N>
struct Width {
  static constexpr int value = N;
};
template <typename T>
constexpr int kRowMultiple = 16 / sizeof(T);

// Calls f(offset, width tag) over [0, count): full vectors, then one half, then one quarter vector.
// count must be a multiple of kRowMultiple<T>.
template <typename T, typename F>
SEGFAST_INLINE void for_each_vector(int64_t count, const F& f) {
  constexpr int kFull = kLanes<T>;
  int64_t i = 0;
  for (; i + kFull <= count; i += kFull) f(i, Width<kFull>{});
  if constexpr (kFull / 2 >= kRowMultiple<T>) {
    if (i + kFull / 2 <= count) {
      f(i, Width<kFull / 2>{});
      i += kFull / 2;
    }
  }
  if constexpr (kFull / 4 >= kRowMultiple<T>) {
    if (i + kFull / 4 <= count) f(i, Width<kFull / 4>{});
  }
}

template <typename V>
SEGFAST_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}

// Lane by lane, rounded as the scalar root is.
template <typename T, int N>
SEGFAST_INLINE Vec<T, N> square_root(Vec<T, N> x) {
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr int kBytes = N * sizeof(T);
#if defined(__AVX512F__)
  if constexpr (kBytes == 64 && kSingle) return (Vec<T, N>)_mm512_sqrt_ps((__m512)x);
  if constexpr (kBytes == 64 && !kSingle) return (Vec<T, N>)_mm512_sqrt_pd((__m512d)x);
#endif
#if defined(__AVX2__)
  if constexpr (kBytes == 32 && kSingle) return (Vec<T, N>)_mm256_sqrt_ps((__m256)x);
  if constexpr (kBytes == 32 && !kSingle) return (Vec<T, N>)_mm256_sqrt_pd((__m256d)x);
#endif
#if defined(__SSE2__)
  if constexpr (kBytes == 16 && kSingle) return (Vec<T, N>)_mm_sqrt_ps((__m128)x);
  if constexpr (kBytes == 16 && !kSingle) return (Vec<T, N>)_mm_sqrt_pd((__m128d)x);
#endif
  Vec<T, N> root;
  for (int i = 0; i < N; ++i) root[i] = __builtin_sqrt(x[i]);
  return root;
}

// 2^r for |r| <= 1/2, highest power first: minimax with value 1 at 0, relative error 2e-9.
constexpr float kExp2Polynomial[] = {1.535384993e-4f,
                                     1.339887872e-3f,
                                     9.618435485e-3f,
                                     5.5503324615e-2f,
                                     2.40226479303e-1f,
                                     6.93147202857e-1f,
                                     1.0f};

// exp(x) for x <= 0 (0 below the smallest normal result); NaN propagates.
// Absolute error below 1e-7; relative too for x > -5.
//   x log2(e) = n + r, |r| <= 1/2;   exp(x) = 2^n 2^r
template <int N>
SEGFAST_INLINE Vec<float, N> exp_nonpositive(Vec<float, N> x) {
  using U = Vec<uint32_t, N>;
  constexpr float kLog2E = 1.44269504088896341f;      // its float is 1.3e-8 off
  constexpr float kRound = 12582912.0f;               // 1.5 * 2^23: adding it rounds to an integer
  constexpr uint32_t kOne = 0x3f800000;               // 1.0f
  const Vec<float, N> shifted = x * kLog2E + kRound;  // n in its low bits
  const Vec<float, N> r = x * kLog2E - (shifted - kRound);
  Vec<float, N> p = broadcast<float, N>(kExp2Polynomial[0]);
  for (int k = 1; k < 7; ++k) p = p * r + kExp2Polynomial[k];
  const U power = ((U)shifted << 23) + kOne;
  return x < -87.0f ? Vec<float, N>{} : p * (Vec<float, N>)power;
}

template <int N>
SEGFAST_INLINE Vec<double, N> exp_nonpositive(Vec<double, N> x) {
  using I = Vec<int64_t, N>;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const Vec<double, N> shifted = x * 1.4426950408889634074 + kRound;
  const Vec<double, N> n = shifted - kRound;
  const Vec<double, N> r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Vec<double, N> p = broadcast<double, N>(1.0 / 6227020800.0);
  constexpr double kInverseFactorial[] = {1.0 / 479001600,
                                          1.0 / 39916800,
                                          1.0 / 3628800,
                                          1.0 / 362880,
                                          1.0 / 40320,
                                          1.0 / 5040,
                                          1.0 / 720,
                                          1.0 / 120,
                                          1.0 / 24,
                                          1.0 / 6,
                                          0.5,
                                          1.0,
                                          1.0};
  for (double c : kInverseFactorial) p = p * r + c;
  const I exponent = (((I)shifted - (I)broadcast<double, N>(kRound)) + 1023) << 52;
  return x < -708.39641 ? Vec<double, N>{} : p * (Vec<double, N>)exponent;
}

template <int N>
constexpr int from_pair(int lane, int step, bool high) {
  if (high) return (lane & step) ? N + lane : lane + step;
  return (lane & step) ? N + lane - step : lane;
}

// The lanes K... of a and b, those of b counted on from those of a.
template <int... K, typename V>
SEGFAST_INLINE V pick(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, K...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){K...});
#endif
}

// Lanes First, First + 2, ... of a, then of b.
template <int First, typename V, int... K>
SEGFAST_INLINE V every_second(V a, V b, std::integer_sequence<int, K...>) {
  return pick<(First + 2 * K)...>(a, b);
}

// Lanes First, First + 1, ... of a and b by turns.
template <int First, typename V, int... K>
SEGFAST_INLINE V alternate(V a, V b, std::integer_sequence<int, K...>) {
  return pick<(First + K / 2 + K % 2 * int{sizeof...(K)})...>(a, b);
}

template <int Step, bool High, typename V, int... K>
SEGFAST_INLINE V exchange(V a, V b, std::integer_sequence<int, K...>) {
  return pick<from_pair<int{sizeof...(K)}>(K, Step, High)...>(a, b);
}

template <typename T, int N, int Step>
SEGFAST_INLINE void exchange_halves(Vec<T, N> (&rows)[N]) {
  if constexpr (Step >= 1) {
    constexpr auto lanes = std::make_integer_sequence<int, N>{};
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (i & Step) continue;
      const Vec<T, N> a = rows[i], b = rows[i + Step];
      rows[i] = exchange<Step, false>(a, b, lanes);
      rows[i + Step] = exchange<Step, true>(a, b, lanes);
    }
    exchange_halves<T, N, Step / 2>(rows);
  }
}

// Lane i: op over all lanes of rows[i], for a commutative op. Overwrites the rows.
template <typename T, int N, int Step = N / 2, typename Op>
SEGFAST_INLINE Vec<T, N> reduce_rows(Vec<T, N> (&rows)[N], const Op& op) {
  if constexpr (Step >= 1) {
    constexpr auto lanes = std::make_integer_sequence<int, N>{};
#pragma GCC unroll 8
    for (int i = 0; i < Step; ++i) {
      const Vec<T, N> a = rows[i], b = rows[i + Step];
      rows[i] = op(exchange<Step, false>(a, b, lanes), exchange<Step, true>(a, b, lanes));
    }
    return reduce_rows<T, N, Step / 2>(rows, op);
  } else {
    return rows[0];
  }
}

// Transposes an N x N block in registers: row i comes from load_row(i); column j, a vector, goes to
// store_column(j, column).
template <typename T, int N, typename Load, typename Store>
SEGFAST_INLINE void transpose(const Load& load_row, const Store& store_column) {
  Vec<T, N> rows[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) rows[i] = load_row(i);
  exchange_halves<T, N, N / 2>(rows);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) store_column(j, rows[j]);
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
