// Permutohedral lattice: embedding, neighbours, gather, blur. Constants: README.md, "The lattice".
#include "dense_crf.h"
#include "lattice_keys.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename T>
void range(const T* x, int64_t count, T* low, T* high) {
  constexpr int W = kLanes<T>;
  Vec<T, W> lo = broadcast<T, W>(x[0]), hi = lo, poison{};
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const Vec<T, W> v = load<W>(x + i);
    lo = v < lo ? v : lo;
    hi = maximum(v, hi);
    poison += v * T(0);  // NaN for NaN and infinities
  }
  for (; i < count; ++i) {
    lo[0] = x[i] < lo[0] ? x[i] : lo[0];
    hi[0] = x[i] > hi[0] ? x[i] : hi[0];
    poison[0] += x[i] * T(0);
  }
  *low = lo[0];
  *high = hi[0];
  for (int w = 0; w < W; ++w) {
    *low = (lo[w] < *low ? lo[w] : *low) + poison[w];
    *high = (hi[w] > *high ? hi[w] : *high) + poison[w];
  }
}

// The simplices that enclose kLanes consecutive pixels.
template <typename T>
struct Simplices {
  static constexpr int W = kLanes<T>;
  T offset[kMaxFeatures + 1][W];       // (e - rem0) / (d + 1), e the elevated position
  IntOf<T> rank[kMaxFeatures + 1][W];  // 0 = largest offset
  IntOf<T> rem0[kMaxFeatures + 1][W];  // the nearest vertex of remainder 0
};

//   e_j = sum_{k > j} c_k - j c_j,  c_k = f_{k-1} scale_{k-1};   rem0 = (d + 1) round(e / (d + 1))
template <typename T>
SEGFAST_INLINE void enclose(const T* features, int64_t pixels, int64_t first, int d, const T* scale,
                            Simplices<T>* out) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  using Int = IntOf<T>;
  using I = Vec<Int, W>;
  constexpr T kRound = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa

  V offset[kMaxFeatures + 1], sum{};
  for (int j = d; j > 0; --j) {
    const T* f = features + (j - 1) * pixels + first;
    V c{};
    if (first + W <= pixels) {
      c = load<W>(f);
    } else {
      for (int w = 0; first + w < pixels; ++w) c[w] = f[w];
    }
    c *= scale[j - 1];
    offset[j] = sum - c * T(j);
    sum += c;
  }
  offset[0] = sum;

  const T down = T(1) / T(d + 1);
  I rem0[kMaxFeatures + 1], rank[kMaxFeatures + 1], total{};
  for (int i = 0; i <= d; ++i) {
    const V nearest = (offset[i] * down + kRound) - kRound;
    const I n = __builtin_convertvector(nearest, I);
    offset[i] -= nearest * T(d + 1);
    rem0[i] = n * Int(d + 1);
    total += n;
    rank[i] = I{};
  }
  for (int i = 0; i < d; ++i) {
    for (int j = i + 1; j <= d; ++j) {
      const I less = offset[i] < offset[j];  // -1 where true; a tie ranks the later axis lower
      rank[i] -= less;
      rank[j] += less + 1;
    }
  }
  // The rounded point may lie off the plane sum = 0: the most wrongly rounded coordinates go back.
  // (The clamp keeps ranks in range whatever rounding, or NaN, made of the sum.)
  total = total > Int(d) ? I{} + Int(d) : total;
  total = total < Int(-d) ? I{} - Int(d) : total;
  for (int i = 0; i <= d; ++i) {
    const I r = rank[i] + total;
    const I wrap = ((r < 0) & Int(d + 1)) - ((r > Int(d)) & Int(d + 1));
    store<W>(out->rank[i], r + wrap);
    store<W>(out->rem0[i], rem0[i] + wrap);
    store<W>(out->offset[i], (offset[i] - __builtin_convertvector(wrap, V)) * down);
  }
}

// What one vertex step means for a packed key: +1 on every stored coordinate, -(d + 1) on one.
struct KeySteps {
  uint64_t ones[kMaxWords];
  uint64_t wrap[kMaxFeatures + 1];  // (d + 1) << shift; the last axis is not stored
  int word[kMaxFeatures + 1];
};

SEGFAST_INLINE KeySteps key_steps(const KeyLayout& layout) {
  KeySteps steps{};
  for (int i = 0; i < layout.dims; ++i) {
    steps.ones[layout.word[i]] += uint64_t{1} << layout.shift[i];
    steps.wrap[i] = uint64_t(layout.dims + 1) << layout.shift[i];
    steps.word[i] = layout.word[i];
  }
  return steps;
}

// The K vertices of a simplex, remainder 0 to d, and the barycentric weights:
// vertex k + 1 is vertex k plus 1 everywhere, less d + 1 on the axis of rank d - k.
template <typename T, int kDims, int kWords>  // 0: as many as the layout says
SEGFAST_INLINE void embed_pixel(const Simplices<T>& simplices, int lane, const KeyLayout& layout,
                                const KeySteps& steps, VertexTable* table, int32_t* vertex,
                                T* weight) {
  const int d = kDims ? kDims : layout.dims, words = kWords ? kWords : layout.words;
  int axis[kMaxFeatures + 1];
  T offset[kMaxFeatures + 1];
  uint64_t key[(kMaxFeatures + 1) * (kWords ? kWords : kMaxWords)];
  for (int i = 0; i <= d; ++i) {
    const int rank = static_cast<int>(simplices.rank[i][lane]);
    axis[rank] = i;
    offset[rank] = simplices.offset[i][lane];
  }
  for (int w = 0; w < words; ++w) key[w] = 0;
  for (int i = 0; i < d; ++i) {
    key[kWords == 1 ? 0 : layout.word[i]] +=
        static_cast<uint64_t>(simplices.rem0[i][lane] - layout.origin[i]) << layout.shift[i];
  }
  for (int k = 0; k < d; ++k) {
    uint64_t* next = key + (k + 1) * words;
    for (int w = 0; w < words; ++w) next[w] = key[k * words + w] + steps.ones[w];
    const int a = axis[d - k];
    next[kWords == 1 ? 0 : steps.word[a]] -= steps.wrap[a];
  }
  weight[0] = 1 + offset[d] - offset[0];
  for (int k = 1; k <= d; ++k) weight[k] = offset[d - k] - offset[d - k + 1];
  for (int k = 0; k <= d; ++k) vertex[k] = find_or_insert(table, key + k * words, words);
}

template <typename T, int kDims, int kWords>
int64_t embed_range(const T* features, int64_t pixels, int64_t begin, int64_t end,
                    const KeyLayout& layout, VertexTable* table, int32_t* vertex, T* weight) {
  const int d = layout.dims;
  const KeySteps steps = key_steps(layout);
  T scale[kMaxFeatures];
  for (int i = 0; i < d; ++i) scale[i] = lattice_scale<T>(d, i);
  Simplices<T> simplices;
  for (int64_t first = begin; first < end; first += kLanes<T>) {
    const int count = static_cast<int>(end - first < kLanes<T> ? end - first : kLanes<T>);
    if ((table->count + count * (d + 1)) * 2 > table->capacity) return first;
    enclose(features, pixels, first, d, scale, &simplices);
    for (int lane = 0; lane < count; ++lane) {
      const int64_t at = (first + lane) * (d + 1);
      embed_pixel<T, kDims, kWords>(simplices, lane, layout, steps, table, vertex + at,
                                    weight + at);
    }
  }
  return end;
}

template <typename T>
int64_t embed(const T* features, int64_t pixels, int64_t begin, int64_t end,
              const KeyLayout& layout, VertexTable* table, int32_t* vertex, T* weight) {
  const bool one_word = layout.words == 1;
  const auto run = one_word && layout.dims == 5   ? &embed_range<T, 5, 1>
                   : one_word && layout.dims == 2 ? &embed_range<T, 2, 1>
                   : one_word                     ? &embed_range<T, 0, 1>
                                                  : &embed_range<T, 0, 0>;
  return run(features, pixels, begin, end, layout, table, vertex, weight);
}

void neighbours(const KeyLayout& layout, const VertexTable& table, int64_t begin, int64_t end,
                int32_t* out) {
  const KeySteps steps = key_steps(layout);
  const int words = layout.words;
  const int64_t vertices = table.count;
  uint64_t key[kMaxWords];
  for (int axis = 0; axis <= layout.dims; ++axis) {
    int32_t* n1 = out + 2 * axis * vertices;
    int32_t* n2 = n1 + vertices;
    for (int64_t v = begin; v < end; ++v) {
      for (int w = 0; w < words; ++w) key[w] = table.keys[v * words + w] - steps.ones[w];
      key[steps.word[axis]] += steps.wrap[axis];
      const int32_t found = table.slots[find_slot(table, key, words)];
      n1[v] = found < 0 ? static_cast<int32_t>(vertices) : found;
      if (found >= 0) n2[found] = static_cast<int32_t>(v);
    }
  }
}

template <typename T>
void gather(const T* sent, const MergeTable& merge, T gain, int64_t begin, int64_t end, int row,
            T* table) {
  for (int64_t v = begin; v < end; ++v) {
    T* out = table + v * row;
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      Vec<T, N> sum{};
      for (int64_t i = merge.start[v]; i < merge.start[v + 1]; ++i) {
        sum += load<N>(sent + int64_t{merge.local[i]} * row + l);
      }
      store<N>(out + l, sum * gain);
    });
  }
}

// emit(v, l, row of the blurred vertex at label l)
template <typename T, typename Emit>
SEGFAST_INLINE void blur_rows(const T* in, const int32_t* n1, const int32_t* n2, int64_t begin,
                              int64_t end, int row, const Emit& emit) {
  for (int64_t v = begin; v < end; ++v) {
    const T *a = in + int64_t{n1[v]} * row, *b = in + int64_t{n2[v]} * row;
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      const Vec<T, N> around = load<N>(a + l) + load<N>(b + l);
      emit(v, l, load<N>(in + v * row + l) + around * T(0.5), width);
    });
  }
}

template <typename T>
void blur(const T* in, const int32_t* n1, const int32_t* n2, int64_t begin, int64_t end, int row,
          T* out) {
  blur_rows(in, n1, n2, begin, end, row, [&](int64_t v, int64_t l, auto sum, auto width) {
    store<decltype(width)::value>(out + v * row + l, sum);
  });
}

template <typename T>
void blur_scatter(const T* in, const int32_t* n1, const int32_t* n2, const MergeTable& merge,
                  int64_t begin, int64_t end, int row, T* received) {
  blur_rows(in, n1, n2, begin, end, row, [&](int64_t v, int64_t l, auto sum, auto width) {
    for (int64_t i = merge.start[v]; i < merge.start[v + 1]; ++i) {
      store<decltype(width)::value>(received + int64_t{merge.local[i]} * row + l, sum);
    }
  });
}

}  // namespace

extern const LatticeKernels<float> lattice_kernels_f32 = {
    range<float>, embed<float>, neighbours, gather<float>, blur<float>, blur_scatter<float>};
extern const LatticeKernels<double> lattice_kernels_f64 = {
    range<double>, embed<double>, neighbours, gather<double>, blur<double>, blur_scatter<double>};

}  // namespace SEGFAST_ISA
}  // namespace segfast
