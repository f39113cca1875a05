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

// part (+)= s.panels [values, ones]^T for a block, its values [e, e + count), and `ones` or not.
template <typename T>
void add_products(const LinearAttention& p, const T* values, int64_t values_pitch, int64_t e,
                  int64_t count, bool ones, int64_t width, const Scratch<T>& s, bool add, T* part_,
                  const Ahead& ahead) {
  const int64_t pitch = part_pitch<T>(p);
  const auto row = [&](int64_t i) { return i < count ? values + i * values_pitch : s.ones; };
  gram(s.panels, state_rows(p), row, count + ones, width, add, part_ + e * pitch, pitch, ahead);
}

template <typename S, typename T>
void state_of(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end,
              int64_t begin_value, int64_t end_value, T* part_, const Scratch<T>& s) {
  const bool ones = end_value == p.values;
  for_each_block(
      begin, end, even_width<T>(end - begin, s.width), [&](int64_t first, int64_t count) {
        Features<T> b = s.block(p, count);
        load_block<S>(k, p.features, first, b, b.x);
        compute_features(&b, false);
        pack_positions(b.phi, b.pitch, state_rows(p), s.ones, b.width, s.panels);
        const bool add = first > begin;
        if constexpr (sizeof(S) == sizeof(T)) {
          if (b.width == b.count) {  // v is taken as it lies in memory
            const S* from = static_cast<const S*>(from_row<S>(v, begin_value).data) + first;
            return add_products(
                p, reinterpret_cast<const T*>(from), v.pitch, begin_value, end_value - begin_value,
                ones, b.width, s, add, part_,
                rows_ahead<S>(v, begin_value + rows_of_gram<T>(state_rows(p)), end_value, first));
          }
        }
        for_each_block(begin_value, end_value, kValues, [&](int64_t e, int64_t of) {
          load_block<S>(from_row<S>(v, e), of, first, b, s.values);
          add_products(p, s.values, s.pitch, e, of, ones && e + of == end_value, b.width, s, add,
                       part_, next_values<S>(p, v, e + of, b, first, end));
        });
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
  constexpr int W = kLanes<T>, kVectors = 4;  // as many sums as hide an addition's latency
  using V = Vec<T, W>;
  const T least = static_cast<T>(p.eps);
  const auto emit = [&](int64_t r, int64_t used, int64_t n, const auto& sums)
                        __attribute__((always_inline)) {
                          constexpr int kCount = sizeof(sums[0]) / sizeof(sums[0][0]);
                          for (int j = 0; j < kCount; ++j, n += W) {
                            V sum = sums[0][j];
                            store<W>(s.denominator + n, sum);
                            if (p.map == FeatureMap::taylor)
                              sum = sum < least ? broadcast<T, W>(least) : sum;
                            store<W>(s.scale + n, sum == 0 ? V{} : T(1) / sum);
                          }
                        };
  project_panel<1, kVectors, 1>(totals, 0, 1, b.phi, b.pitch, state_rows(p), 0, b.width, emit);
  clear_beyond(b, 1, s.scale);  // 0 times an infinite total
}

// to [E] = residual + sum of phi times a state's values; residual.data may be null
template <typename S, typename T>
void along_features(const LinearAttention& p, int64_t first, const Features<T>& b,
                    const Weights<const T>& weights, Map residual, MutableMap to) {
  constexpr int W = kLanes<T>;
  const int64_t rows = state_rows(p), count = b.count;
  S* const out = static_cast<S*>(to.data) + first;
  const S* const add = residual.data ? static_cast<const S*>(residual.data) + first : nullptr;
  const auto emit = [&](int64_t e, int64_t used, int64_t n,
                        const auto& sums) __attribute__((always_inline)) {
    constexpr int kRows = sizeof(sums) / sizeof(sums[0]);
    constexpr int kVectors = sizeof(sums[0]) / sizeof(sums[0][0]);
    S* const row = out + e * to.pitch + n;
    if constexpr (sizeof(S) == sizeof(T)) {
      if (add == nullptr && count - n >= kVectors * W) {
        // The tile after the next is fetched: here, in the rows below, or in the next block.
        S* const later = row + 2 * kNarrow * W;
        S* const lower =
            e + kRows < p.values ? later + kRows * to.pitch - b.width : later - e * to.pitch;
        for_each_sum<kRows, kVectors>(used, [&](int i, int j) __attribute__((always_inline)) {
          store<W>(reinterpret_cast<T*>(row + i * to.pitch + j * W), sums[i][j]);
          if (j * W * sizeof(S) % kLineBytes != 0) return;
          S* const next = n + (2 * kNarrow + j) * W < b.width ? later : lower;
          __builtin_prefetch(next + i * to.pitch + j * W, 1);
        });
        return;
      }
    }
    for_each_sum<kRows, kVectors>(used, [&](int i, int j) __attribute__((always_inline)) {
      const int64_t at = n + j * W;
      Vec<T, W> sum = sums[i][j];
      if (add != nullptr) {
        sum += load_wide<S, T>(add + (e + i) * residual.pitch + at, count - at);
      }
      store_narrow<S, T, W>(row + i * to.pitch + j * W, sum, count - at);
    });
  };
  project<kNarrow>(weights.features, kTileRows<kNarrow> * rows, p.values, b.phi, b.pitch, rows,
                   b.width, emit);
}

// s.grad [rows] += a state's values [e, e + count) times s.values
template <typename T>
void along_values(const LinearAttention& p, int64_t rows, int64_t e, int64_t count, int64_t width,
                  const Weights<const T>& weights, const Scratch<T>& s, const Ahead& ahead = {}) {
  constexpr int W = kLanes<T>, kPanel = kTileRows<kWide>;
  const auto emit = [&](int64_t r, int64_t used, int64_t n,
                        const auto& sums) __attribute__((always_inline)) {
    constexpr int kRows = sizeof(sums) / sizeof(sums[0]);
    constexpr int kVectors = sizeof(sums[0]) / sizeof(sums[0][0]);
    T* const row = s.grad + r * s.pitch + n;
    for_each_sum<kRows, kVectors>(used, [&](int i, int j) __attribute__((always_inline)) {
      T* to = row + i * s.pitch + j * W;
      store<W>(to, load<W>(to) + sums[i][j]);
    });
  };
  project<kWide>(weights.values + e * kPanel, p.values * kPanel, rows, s.values, s.pitch, count,
                 width, emit, ahead);
}

template <typename S, typename T>
void read_of(const LinearAttention& p, Map q, const Weights<const T>& w, const T* gamma,
             Map residual, MutableMap o, int64_t begin, int64_t end, const Scratch<T>& s) {
  for_each_block(
      begin, end, even_width<T>(end - begin, s.width), [&](int64_t first, int64_t count) {
        Features<T> b = s.block(p, count);
        load_block<S>(q, p.features, first, b, b.x);
        compute_features(&b, true);
        divide(p, b, w.totals, s);
        const T factor = gamma != nullptr ? *gamma : T(1);
        for (int64_t n = 0; n < b.width; ++n) s.scale[n] *= factor;
        for (int64_t r = 0; r < state_rows(p); ++r) {  // most often fewer than the values of o
          for (int64_t n = 0; n < b.width; ++n) b.phi_row(r)[n] *= s.scale[n];
        }
        along_features<S>(p, first, b, w, residual, o);
      });
}

template <typename S, typename T>
void state_backward_of(const LinearAttention& p, const Weights<const T>& w, Map k, Map v,
                       MutableMap grad_k, MutableMap grad_v, int64_t begin, int64_t end,
                       const Scratch<T>& s) {
  for_each_block(begin, end, even_width<T>(end - begin, s.width),
                 [&](int64_t first, int64_t count) {
                   Features<T> b = s.block(p, count);
                   load_block<S>(k, p.features, first, b, b.x);
                   compute_features(&b, false);
                   for (int64_t r = 0; r < p.features; ++r) {  // that of taylor's ones goes nowhere
                     for (int64_t n = 0; n < b.width; ++n) s.grad[r * s.pitch + n] = w.totals[r];
                   }
                   for_each_block(0, p.values, kValues, [&](int64_t e, int64_t values) {
                     load_block<S>(from_row<S>(v, e), values, first, b, s.values);
                     along_values(p, p.features, e, values, b.width, w, s,
                                  next_values<S>(p, v, e + values, b, first, end));
                   });
                   features_backward(b, s.grad);
                   store_block<S>(grad_k, p.features, first, b, s.grad);
                   along_features<S>(p, first, b, w, {nullptr, 0}, grad_v);
                 });
}

template <typename S, typename T>
void read_backward_of(const LinearAttention& p, Map grad_o, Map q, const Weights<const T>& w,
                      const T* gamma, MutableMap grad_q, T* part_, T* grad_gamma, int64_t begin,
                      int64_t end, const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  const T factor = gamma != nullptr ? *gamma : T(1);
  const int64_t rows = state_rows(p), pitch = part_pitch<T>(p);
  T total = 0;
  for_each_block(
      begin, end, even_width<T>(end - begin, s.width), [&](int64_t first, int64_t count) {
        Features<T> b = s.block(p, count);
        load_block<S>(q, p.features, first, b, b.x);
        compute_features(&b, true);
        divide(p, b, w.totals, s);
        for (int64_t n = 0; n < b.width; ++n) s.slope[n] = s.scale[n] * factor;
        pack_positions(b.phi, b.pitch, rows, s.slope, b.width, s.panels);
        clear(s.grad, rows * s.pitch);
        const bool add = first > begin;
        const bool fetched =
            !few_rows<T>(rows);  // `dots` would fetch them into the first-level cache
        for_each_block(0, p.values, kValues, [&](int64_t e, int64_t of) {
          load_block<S>(from_row<S>(grad_o, e), of, first, b, s.values);
          along_values(p, rows, e, of, b.width, w, s);
          add_products(p, s.values, s.pitch, e, of, false, b.width, s, add, part_,
                       fetched ? next_values<S>(p, grad_o, e + of, b, first, end) : Ahead{});
        });
        clear_beyond(b, rows, s.grad);
        V dots{};
        for (int64_t n = 0; n < b.width; n += W) {
          V numerator{};
          for (int64_t r = 0; r < rows; ++r) {
            numerator += load<W>(b.phi_row(r) + n) * load<W>(s.grad + r * s.pitch + n);
          }
          const V inverse = load<W>(s.scale + n);
          dots += numerator * inverse;
          V slope = -(numerator * inverse);  // of log denominator
          const V below = load<W>(s.denominator + n);
          slope = below == 0 ? V{} : slope;
          if (p.map == FeatureMap::taylor) slope = below < static_cast<T>(p.eps) ? V{} : slope;
          slope *= inverse;
          store<W>(s.slope + n, slope * factor);
          for (int64_t r = 0; r < rows; ++r) {
            T* g = s.grad + r * s.pitch + n;
            store<W>(g, (load<W>(g) * inverse + slope * w.totals[r]) * factor);
          }
        }
        for (int i = 0; i < W; ++i) total += dots[i];
        T* ones = part_ + p.values * pitch;
        for (int64_t r = 0; r < rows; ++r) {
          ones[r] = (add ? ones[r] : T(0)) + dot(b.phi_row(r), s.slope, b.width);
        }
        features_backward(b, s.grad);
        store_block<S>(grad_q, p.features, first, b, s.grad);
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
