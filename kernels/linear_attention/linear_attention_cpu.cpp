// Linear attention, forward and backward, block of positions by block: phi is computed into cache
// and never written to memory. Formulas: reference.py.
#include "block.h"
#include "feature_maps.h"
#include "linear_attention.h"
#include "products.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename S, typename T>
void state_of(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end, T* part_,
              const Scratch<T>& s) {
  const int64_t rows = padded_rows(p), columns = gram_columns(p);
  clear(part_, part(p));
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(k, p.features, first, b, b.x);
    compute_features(&b, false);
    const T* values = s.values;
    int64_t pitch = s.pitch;
    if constexpr (sizeof(S) == sizeof(T)) {  // as they lie in memory
      if (b.width == count) {
        values = static_cast<const T*>(v.data) + first;
        pitch = v.pitch;
      }
    }
    if (values == s.values) load_block<S>(v, p.values, first, b, s.values);
    gram(b.phi, s.pitch, columns, values, pitch, p.values, b.width, part_, rows);
    gram(b.phi, s.pitch, columns, s.ones, 0, 1, b.width, part_ + p.values * rows, rows);
  });
}

constexpr int64_t kTile = 16;  // columns that are transposed together: their lines stay in cache

template <typename T>
void merge_parts(const LinearAttention& p, const T* parts, int64_t count, int64_t begin,
                 int64_t end, T* state) {
  const int64_t rows = padded_rows(p), size = part(p);
  for_each_block(begin, end, kTile, [&](int64_t first, int64_t columns) {
    for (int64_t r = 0; r < state_rows(p); ++r) {
      for (int64_t e = first; e < first + columns; ++e) {
        T sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += parts[i * size + e * rows + r];
        state[r * (p.values + 1) + e] = sum;
      }
    }
  });
}

// totals = S_1 + eps
template <typename T>
void add_eps(const LinearAttention& p, const T* state, const Scratch<T>& s) {
  for (int64_t r = 0; r < state_rows(p); ++r) {
    const T ones = state[r * (p.values + 1) + p.values];
    s.totals[r] = r < p.features ? ones + static_cast<T>(p.eps) : ones;
  }
}

// denominator = phi(q) . totals; scale = its inverse, 0 for 0.
template <typename T>
void divide(const LinearAttention& p, const Features<T>& b, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  for (int64_t n = 0; n < b.width; n += W) {
    V sum{};
    for (int64_t r = 0; r < state_rows(p); ++r) sum += load<W>(b.phi_row(r) + n) * s.totals[r];
    store<W>(s.denominator + n, sum);
    if (p.map == FeatureMap::taylor) {
      const T least = static_cast<T>(p.eps);
      sum = sum < least ? broadcast<T, W>(least) : sum;
    }
    store<W>(s.scale + n, sum == 0 ? V{} : T(1) / sum);
  }
}

template <typename S, typename T>
void read_of(const LinearAttention& p, Map q, const T* state, const T* gamma, Map residual,
             MutableMap o, int64_t begin, int64_t end, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  add_eps(p, state, s);
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(q, p.features, first, b, b.x);
    compute_features(&b, true);
    divide(p, b, s);
    if (gamma != nullptr) {
      for (int64_t n = 0; n < b.width; ++n) s.scale[n] *= *gamma;
    }
    const S* add = static_cast<const S*>(residual.data);
    project<kNarrow>(state, p.values + 1, p.values, b.phi, s.pitch, state_rows(p), b.width,
                     [&](int64_t e, int64_t n, Vec<T, W> sum) __attribute__((always_inline)) {
                       sum *= load<W>(s.scale + n);
                       const int64_t left = count - n;
                       if (add != nullptr) {
                         const S* from = add + e * residual.pitch + first + n;
                         for (int w = 0; w < W && w < left; ++w) sum[w] += widen(from[w]);
                       }
                       S* to = static_cast<S*>(o.data) + e * o.pitch + first + n;
                       store_narrow<S, T, W>(to, sum, left);
                     });
  });
}

// weights [E, padded R] = the values' part of a state [R, E + 1]
template <typename T>
void transpose_values(const LinearAttention& p, const T* state, const Scratch<T>& s) {
  const int64_t rows = padded_rows(p);
  for_each_block(0, p.values, kTile, [&](int64_t first, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t e = first; e < first + columns; ++e) {
        s.weights[e * rows + r] = r < state_rows(p) ? state[r * (p.values + 1) + e] : 0;
      }
    }
  });
}

// grad [R] = state's values times s.values [E]
template <typename T>
void along_values(const LinearAttention& p, const Features<T>& b, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  project<kWide>(s.weights, padded_rows(p), padded_rows(p), s.values, s.pitch, p.values, b.width,
                 [&](int64_t r, int64_t n, Vec<T, W> sum)
                     __attribute__((always_inline)) { store<W>(s.grad + r * s.pitch + n, sum); });
}

template <typename S, typename T>
void state_backward_of(const LinearAttention& p, const T* grad_state, Map k, Map v,
                       MutableMap grad_k, MutableMap grad_v, int64_t begin, int64_t end,
                       const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  transpose_values(p, grad_state, s);
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(k, p.features, first, b, b.x);
    load_block<S>(v, p.values, first, b, s.values);
    compute_features(&b, false);
    along_values(p, b, s);
    for (int64_t r = 0; r < state_rows(p); ++r) {
      const T ones = grad_state[r * (p.values + 1) + p.values];
      for (int64_t n = 0; n < b.width; ++n) s.grad[r * s.pitch + n] += ones;
    }
    features_backward(b, s.grad);
    store_block<S>(grad_k, p.features, first, b, s.grad);
    project<kNarrow>(grad_state, p.values + 1, p.values, b.phi, s.pitch, state_rows(p), b.width,
                     [&](int64_t e, int64_t n, Vec<T, W> sum) __attribute__((always_inline)) {
                       S* to = static_cast<S*>(grad_v.data) + e * grad_v.pitch + first + n;
                       store_narrow<S, T, W>(to, sum, count - n);
                     });
  });
}

template <typename S, typename T>
void read_backward_of(const LinearAttention& p, Map grad_o, Map q, const T* state, const T* gamma,
                      MutableMap grad_q, T* part_, T* grad_gamma, int64_t begin, int64_t end,
                      const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  const int64_t rows = padded_rows(p), columns = gram_columns(p);
  const T factor = gamma != nullptr ? *gamma : T(1);
  transpose_values(p, state, s);
  add_eps(p, state, s);
  clear(part_, part(p));
  T total = 0;
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(q, p.features, first, b, b.x);
    load_block<S>(grad_o, p.values, first, b, s.values);
    compute_features(&b, true);
    divide(p, b, s);
    along_values(p, b, s);
    V dots{};
    for (int64_t n = 0; n < b.width; n += W) {
      V numerator{};
      for (int64_t r = 0; r < state_rows(p); ++r) {
        numerator += load<W>(b.phi_row(r) + n) * load<W>(s.grad + r * s.pitch + n);
      }
      const V inverse = load<W>(s.scale + n);
      dots += numerator * inverse;
      V slope = -(numerator * inverse) * inverse;  // of the denominator
      if (p.map == FeatureMap::taylor) {
        slope = load<W>(s.denominator + n) < static_cast<T>(p.eps) ? V{} : slope;
      }
      store<W>(s.denominator + n, slope * factor);
      store<W>(s.scale + n, inverse * factor);
      for (int64_t r = 0; r < state_rows(p); ++r) {
        T* g = s.grad + r * s.pitch + n;
        store<W>(g, (load<W>(g) * inverse + slope * s.totals[r]) * factor);
      }
    }
    for (int w = 0; w < W; ++w) total += dots[w];
    features_backward(b, s.grad);
    store_block<S>(grad_q, p.features, first, b, s.grad);
    gram(b.phi, s.pitch, columns, s.denominator, 0, 1, b.width, part_ + p.values * rows, rows);
    for (int64_t r = 0; r < state_rows(p); ++r) {
      for (int64_t n = 0; n < b.width; ++n) b.phi_row(r)[n] *= s.scale[n];
    }
    gram(b.phi, s.pitch, columns, s.values, s.pitch, p.values, b.width, part_, rows);
  });
  *grad_gamma = total;
}

// What the table holds: void pointers in, types out.
void state(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end, void* part_,
           void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    state_of<decltype(element), T>(p, k, v, begin, end, static_cast<T*>(part_),
                                   Scratch<T>(p, Direction::forward, memory));
  });
}

void merge(const LinearAttention& p, const void* parts, int64_t count, int64_t begin, int64_t end,
           void* state_) {
  by_dtype(p.dtype, [&](auto, auto sum) {
    using T = decltype(sum);
    merge_parts(p, static_cast<const T*>(parts), count, begin, end, static_cast<T*>(state_));
  });
}

void read(const LinearAttention& p, Map q, const void* state_, const void* gamma, Map residual,
          MutableMap o, int64_t begin, int64_t end, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    read_of<decltype(element), T>(p, q, static_cast<const T*>(state_), static_cast<const T*>(gamma),
                                  residual, o, begin, end,
                                  Scratch<T>(p, Direction::forward, memory));
  });
}

void state_backward(const LinearAttention& p, const void* grad_state, Map k, Map v,
                    MutableMap grad_k, MutableMap grad_v, int64_t begin, int64_t end,
                    void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    state_backward_of<decltype(element), T>(p, static_cast<const T*>(grad_state), k, v, grad_k,
                                            grad_v, begin, end,
                                            Scratch<T>(p, Direction::backward, memory));
  });
}

void read_backward(const LinearAttention& p, Map grad_o, Map q, const void* state_,
                   const void* gamma, MutableMap grad_q, void* part_, void* grad_gamma,
                   int64_t begin, int64_t end, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    read_backward_of<decltype(element), T>(p, grad_o, q, static_cast<const T*>(state_),
                                           static_cast<const T*>(gamma), grad_q,
                                           static_cast<T*>(part_), static_cast<T*>(grad_gamma),
                                           begin, end, Scratch<T>(p, Direction::backward, memory));
  });
}

void merge_gamma(const LinearAttention& p, const void* shares, int64_t batch, int64_t count,
                 void* grad_gamma) {
  by_dtype(p.dtype, [&](auto, auto sum) {
    using T = decltype(sum);
    const T* from = static_cast<const T*>(shares);
    for (int64_t b = 0; b < batch; ++b) {
      T total = 0;
      for (int64_t i = 0; i < count; ++i) total += from[b * count + i];
      static_cast<T*>(grad_gamma)[b] = total;
    }
  });
}

}  // namespace

extern const LinearAttentionKernels linear_attention_kernels = {
    scratch, part, state, merge, read, state_backward, read_backward, merge_gamma};

}  // namespace SEGFAST_ISA
}  // namespace segfast
