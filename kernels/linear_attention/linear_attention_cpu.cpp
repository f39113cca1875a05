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

// part (+)= phi [v, ones]^T for a block and the values [begin, end). v is `loaded` in s.values, or
// taken as it lies in memory where its type allows that.
template <typename S, typename T>
void add_products(const LinearAttention& p, Map v, int64_t first, bool loaded, const Features<T>& b,
                  const T* ones, int64_t begin, int64_t end, const Scratch<T>& s, bool add,
                  T* part_) {
  const int64_t rows = state_rows(p), pitch = part_pitch<T>(p);
  pack_positions(b.phi, b.pitch, rows, b.width, s.panels);
  for_each_block(begin, end, kValues, [&](int64_t e, int64_t count) {
    const Map from = from_row<S>(v, e);
    const T* values = s.values;
    int64_t values_pitch = s.pitch;
    if (sizeof(S) == sizeof(T) && b.width == b.count && !loaded) {
      values = static_cast<const T*>(from.data) + first;
      values_pitch = v.pitch;
    } else if (!loaded) {
      load_block<S>(from, count, first, b, s.values);
    }
    const auto row = [&](int64_t i) { return i < count ? values + i * values_pitch : ones; };
    gram(b.phi, b.pitch, s.panels, rows, row, count + (e + count == p.values), b.width, add,
         part_ + e * pitch, pitch);
  });
}

template <typename S, typename T>
void state_of(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end,
              int64_t begin_value, int64_t end_value, T* part_, const Scratch<T>& s) {
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(k, p.features, first, b, b.x);
    compute_features(&b, false);
    add_products<S>(p, v, first, false, b, s.ones, begin_value, end_value, s, first > begin, part_);
  });
}

template <typename T>
void merge_parts(const LinearAttention& p, const T* parts, int64_t count, int64_t begin,
                 int64_t end, T* state) {
  constexpr int W = kLanes<T>;
  const int64_t pitch = part_pitch<T>(p), size = (p.values + 1) * pitch, rows = state_rows(p);
  for_each_block(begin, end, W, [&](int64_t first, int64_t columns) {
    for (int64_t r = 0; r < rows; r += W) {
      const auto sum_of_row = [&](int i) {
        Vec<T, W> sum{};
        const T* part = parts + (first + i) * pitch + r;
        for (int64_t c = 0; i < columns && c < count; ++c) sum += load<W>(part + c * size);
        return sum;
      };
      transpose<T, W>(sum_of_row, [&](int j, Vec<T, W> row) {
        T* to = state + (r + j) * (p.values + 1) + first;
        if (r + j < rows) store_narrow<T, T, W>(to, row, columns);
      });
    }
  });
}

// Values [begin, end) of a state [R, E + 1] as weights.
template <typename T>
void pack_values(const LinearAttention& p, const T* state, int64_t begin, int64_t end,
                 bool features, bool values, const Weights<T>& w) {
  static_assert(kPackedValues % kTileRows<kNarrow> == 0);
  const int64_t rows = state_rows(p), pitch = p.values + 1;
  if (features) {
    pack_weights<kNarrow>(state + begin, 1, pitch, end - begin, 0, rows, rows,
                          w.features + begin * rows);
  }
  if (values) pack_weights<kWide>(state, pitch, 1, rows, begin, end, p.values, w.values);
  if (begin > 0) return;
  for (int64_t r = 0; r < rows; ++r) {
    const T ones = state[r * pitch + p.values];
    w.totals[r] = r < p.features ? ones + static_cast<T>(p.eps) : ones;
  }
}

// denominator = phi(q) . totals; scale = its inverse, 0 for 0.
template <typename T>
void divide(const LinearAttention& p, const Features<T>& b, const T* totals, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  for (int64_t n = 0; n < b.width; n += W) {
    V sum{};
    for (int64_t r = 0; r < state_rows(p); ++r) sum += load<W>(b.phi_row(r) + n) * totals[r];
    store<W>(s.denominator + n, sum);
    if (p.map == FeatureMap::taylor) {
      const T least = static_cast<T>(p.eps);
      sum = sum < least ? broadcast<T, W>(least) : sum;
    }
    store<W>(s.scale + n, sum == 0 ? V{} : T(1) / sum);
  }
}

// to [E] = finish(e, n, sum of phi times a state's values)
template <typename S, typename T, typename Finish>
void along_features(const LinearAttention& p, int64_t first, const Features<T>& b,
                    const Weights<const T>& weights, MutableMap to, const Finish& finish) {
  constexpr int W = kLanes<T>;
  const int64_t rows = state_rows(p);
  project<kNarrow>(weights.features, kTileRows<kNarrow> * rows, p.values, b.phi, b.pitch, rows,
                   b.width,
                   [&](int64_t e, int64_t n, Vec<T, W> sum) __attribute__((always_inline)) {
                     S* row = static_cast<S*>(to.data) + e * to.pitch + first;
                     store_narrow<S, T, W>(row + n, finish(e, n, sum), b.count - n);
                   });
}

// s.grad [R] += a state's values times v [E]; up to kValues rows of v stay in s.values
template <typename S, typename T>
void along_values(const LinearAttention& p, Map v, int64_t first, const Features<T>& b,
                  const Weights<const T>& weights, const Scratch<T>& s) {
  constexpr int W = kLanes<T>, kRows = kTileRows<kWide>;
  for_each_block(0, p.values, kValues, [&](int64_t e, int64_t count) {
    load_block<S>(from_row<S>(v, e), count, first, b, s.values);
    project<kWide>(weights.values + e * kRows, p.values * kRows, state_rows(p), s.values, s.pitch,
                   count, b.width,
                   [&](int64_t r, int64_t n, Vec<T, W> sum) __attribute__((always_inline)) {
                     T* to = s.grad + r * s.pitch + n;
                     store<W>(to, load<W>(to) + sum);
                   });
  });
}

template <typename S, typename T>
void read_of(const LinearAttention& p, Map q, const Weights<const T>& w, const T* gamma,
             Map residual, MutableMap o, int64_t begin, int64_t end, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(q, p.features, first, b, b.x);
    compute_features(&b, true);
    divide(p, b, w.totals, s);
    if (gamma != nullptr) {
      for (int64_t n = 0; n < b.width; ++n) s.scale[n] *= *gamma;
    }
    const S* add = static_cast<const S*>(residual.data);
    along_features<S>(p, first, b, w, o,
                      [&](int64_t e, int64_t n, Vec<T, W> sum) __attribute__((always_inline)) {
                        sum *= load<W>(s.scale + n);
                        if (add != nullptr) {
                          const S* from = add + e * residual.pitch + first + n;
                          for (int i = 0; i < W && i < count - n; ++i) sum[i] += widen(from[i]);
                        }
                        return sum;
                      });
  });
}

template <typename S, typename T>
void state_backward_of(const LinearAttention& p, const Weights<const T>& w, Map k, Map v,
                       MutableMap grad_k, MutableMap grad_v, int64_t begin, int64_t end,
                       const Scratch<T>& s) {
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(k, p.features, first, b, b.x);
    compute_features(&b, false);
    for (int64_t r = 0; r < state_rows(p); ++r) {
      for (int64_t n = 0; n < b.width; ++n) s.grad[r * s.pitch + n] = w.totals[r];
    }
    along_values<S>(p, v, first, b, w, s);
    features_backward(b, s.grad);
    store_block<S>(grad_k, p.features, first, b, s.grad);
    along_features<S>(p, first, b, w, grad_v,
                      [](int64_t, int64_t, auto sum)
                          __attribute__((always_inline)) { return sum; });
  });
}

template <typename S, typename T>
void read_backward_of(const LinearAttention& p, Map grad_o, Map q, const Weights<const T>& w,
                      const T* gamma, MutableMap grad_q, T* part_, T* grad_gamma, int64_t begin,
                      int64_t end, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  const T factor = gamma != nullptr ? *gamma : T(1);
  T total = 0;
  for_each_block(begin, end, s.width, [&](int64_t first, int64_t count) {
    Features<T> b = s.block(p, count);
    load_block<S>(q, p.features, first, b, b.x);
    compute_features(&b, true);
    divide(p, b, w.totals, s);
    clear(s.grad, state_rows(p) * s.pitch);
    along_values<S>(p, grad_o, first, b, w, s);
    V dots{};
    for (int64_t n = 0; n < b.width; n += W) {
      V numerator{};
      for (int64_t r = 0; r < state_rows(p); ++r) {
        numerator += load<W>(b.phi_row(r) + n) * load<W>(s.grad + r * s.pitch + n);
      }
      const V inverse = load<W>(s.scale + n);
      dots += numerator * inverse;
      V slope = -(numerator * inverse);  // of log denominator
      if (p.map == FeatureMap::taylor) {
        slope = load<W>(s.denominator + n) < static_cast<T>(p.eps) ? V{} : slope;
      }
      store<W>(s.denominator + n, slope);
      store<W>(s.scale + n, inverse * factor);
      slope *= inverse;
      for (int64_t r = 0; r < state_rows(p); ++r) {
        T* g = s.grad + r * s.pitch + n;
        store<W>(g, (load<W>(g) * inverse + slope * w.totals[r]) * factor);
      }
    }
    for (int i = 0; i < W; ++i) total += dots[i];
    features_backward(b, s.grad);
    store_block<S>(grad_q, p.features, first, b, s.grad);
    for (int64_t r = 0; r < state_rows(p); ++r) {
      for (int64_t n = 0; n < b.width; ++n) b.phi_row(r)[n] *= s.scale[n];
    }
    add_products<S>(p, grad_o, first, p.values <= kValues, b, s.denominator, 0, p.values, s,
                    first > begin, part_);
  });
  *grad_gamma = total;
}

// What the table holds: void pointers in, types out.
void state(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end, int64_t begin_value,
           int64_t end_value, void* part_, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    state_of<decltype(element), T>(p, k, v, begin, end, begin_value, end_value,
                                   static_cast<T*>(part_),
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

void pack(const LinearAttention& p, const void* state_, int64_t begin, int64_t end, bool features,
          bool values, void* weights_) {
  by_dtype(p.dtype, [&](auto, auto sum) {
    using T = decltype(sum);
    pack_values(p, static_cast<const T*>(state_), begin, end, features, values,
                Weights<T>(p, static_cast<T*>(weights_)));
  });
}

void read(const LinearAttention& p, Map q, const void* weights_, const void* gamma, Map residual,
          MutableMap o, int64_t begin, int64_t end, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    read_of<decltype(element), T>(p, q, Weights<const T>(p, static_cast<const T*>(weights_)),
                                  static_cast<const T*>(gamma), residual, o, begin, end,
                                  Scratch<T>(p, Direction::forward, memory));
  });
}

void state_backward(const LinearAttention& p, const void* weights_, Map k, Map v, MutableMap grad_k,
                    MutableMap grad_v, int64_t begin, int64_t end, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    state_backward_of<decltype(element), T>(p, Weights<const T>(p, static_cast<const T*>(weights_)),
                                            k, v, grad_k, grad_v, begin, end,
                                            Scratch<T>(p, Direction::backward, memory));
  });
}

void read_backward(const LinearAttention& p, Map grad_o, Map q, const void* weights_,
                   const void* gamma, MutableMap grad_q, void* part_, void* grad_gamma,
                   int64_t begin, int64_t end, void* memory) {
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    read_backward_of<decltype(element), T>(
        p, grad_o, q, Weights<const T>(p, static_cast<const T*>(weights_)),
        static_cast<const T*>(gamma), grad_q, static_cast<T*>(part_), static_cast<T*>(grad_gamma),
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
    scratch, part, weights, state, merge, pack, read, state_backward, read_backward, merge_gamma};

}  // namespace SEGFAST_ISA
}  // namespace segfast
