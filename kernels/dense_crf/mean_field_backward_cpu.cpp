// One step of mean field's gradient, fused like the update it reverses: slice, convolve, reduce,
// mix, softmax, splat while the pixels are cached.
//   R_m = K~_m^T g of the step before;   dM_m += R_m Q^T;   dQ = sum_m M_m^T R_m
//   g = Q (dQ - <dQ, Q>) + upstream;     total += g
#include "messages.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename T>
struct Scratch {
  int64_t pitch;  // padded labels
  int64_t depth;  // chunks whose convolutions are held at once
  T* rows;        // [convolutions, depth, kChunk, pitch] their R, rows of [row]
  T* single;      // [kChunk, pitch] another R
  T* message;     // [kChunk, pitch] dQ
  T* values;      // [kChunk, pitch] Q, then g
  T* tiles;       // [kChunk / W, pitch, W] Q, label by label

  int64_t block() const { return kChunk * pitch; }
  T* row(int term, int64_t chunk) const { return rows + (term * depth + chunk % depth) * block(); }
  Vec<T, kLanes<T>>* tile(int p) const {
    return reinterpret_cast<Vec<T, kLanes<T>>*>(tiles + p * pitch);
  }
};

template <typename T>
int64_t update_scratch(const MeanFieldBackward<T>& m) {
  return padded<T>(m.labels) * kChunk * (m.conv_count * chunks_held(m) + 4);
}

template <typename T>
Scratch<T> carve(const MeanFieldBackward<T>& m, T* memory) {
  const int64_t pitch = padded<T>(m.labels), block = kChunk * pitch, depth = chunks_held(m);
  T* single = memory + m.conv_count * depth * block;
  return {pitch, depth, memory, single, single + block, single + 2 * block, single + 3 * block};
}

// from [L, N] -> to [count, pitch], as the terms receive and send
template <typename T, typename Load>
SEGFAST_INLINE void to_pixels(const Load& load_label, int labels, int64_t pitch, T* to) {
  constexpr int W = kLanes<T>;
  for (int64_t l = 0; l < pitch; l += W) {
    transpose<T, W>([&](int i) { return l + i < labels ? load_label(l + i) : Vec<T, W>{}; },
                    [&](int w, Vec<T, W> v) { store<W>(to + w * pitch + l, v); });
  }
}

// Q of up to W pixels into their tile, from the scores or as it is given.
template <typename T>
SEGFAST_INLINE void believe(const MeanFieldBackward<T>& m, int64_t pixel, int count,
                            Vec<T, kLanes<T>>* tile) {
  constexpr int W = kLanes<T>;
  const T* from = (m.belief ? m.belief : m.scores) + pixel;
  Vec<T, W> top = broadcast<T, W>(-__builtin_inf());
  for (int l = 0; l < m.labels; ++l, from += m.pixels) {
    __builtin_prefetch(from + kChunk);
    tile[l] = load_pixels(from, count);
    top = maximum(tile[l], top);
  }
  if (m.belief) return;
  const Vec<T, W> inverse = exponentials<T>(tile, top, m.labels);
  for (int l = 0; l < m.labels; ++l) tile[l] *= inverse;
}

template <typename T, int N>
SEGFAST_INLINE void add_to(double* sums, Vec<T, N> x) {
  for (int i = 0; i < N; ++i) sums[i] += x[i];
}

// sums += R Q^T over the pixels: a chunk in the values' precision, then double.
template <typename T>
void reduce(const T* r, int64_t stride, const T* q, int64_t pitch, int labels, int row, int count,
            double* sums) {
  constexpr int kRows = 4;  // labels k at once
  for_each_vector<T>(row, [&](int64_t l, auto width) {
    constexpr int N = decltype(width)::value;
    for (int k = 0; k < labels; k += kRows) {
      Vec<T, N> sum[kRows] = {};
      for (int p = 0; p < count; ++p) {
        // (labels that do not exist are read, too, and left: more scratch follows the last row)
        const Vec<T, N> belief = load<N>(q + p * pitch + l);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) sum[i] += belief * r[p * stride + k + i];
      }
      for (int i = 0; i < kRows && k + i < labels; ++i) {
        add_to<T, N>(sums + (k + i) * row + l, sum[i]);
      }
    }
  });
}

// Where M is a scalar or a diagonal, both in one pass: message += M R, sums += the diagonal of
// R Q^T.
template <typename T>
void mix_and_reduce(const Mixing<T>& mixing, const T* r, int64_t stride, const T* q, int64_t pitch,
                    int row, int count, T* message, double* sums) {
  for_each_vector<T>(row, [&](int64_t l, auto width) {
    constexpr int N = decltype(width)::value;
    const Vec<T, N> scale = mixing.kind == MixingKind::scalar ? broadcast<T, N>(mixing.scalar)
                                                              : load<N>(mixing.values + l);
    Vec<T, N> sum{};
    for (int p = 0; p < count; ++p) {
      const Vec<T, N> x = load<N>(r + p * stride + l);
      sum += x * load<N>(q + p * pitch + l);
      T* at = message + p * row + l;
      store<N>(at, load<N>(at) + x * scale);
    }
    add_to<T, N>(sums + l, sum);
  });
}

// What a chunk of pixels from `first` on received: dQ, and dM of every term.
template <typename T>
void receive(const MeanFieldBackward<T>& m, int band, int64_t chunk, int64_t first, int count,
             const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  clear(s.message, count * m.row);
  for (int t = 0; t < m.lattice_count + m.conv_count + m.message_count; ++t) {
    const int conv = t - m.lattice_count, plane = conv - m.conv_count;
    const T* r = s.single;
    int64_t stride = m.row;
    if (conv < 0) {
      clear(s.single, count * m.row);
      slice_message(m.lattice[t], band, first, count, m.row, s.single);
    } else if (plane < 0) {
      r = s.row(conv, chunk);
    } else {
      stride = s.pitch;
      for (int p = 0; p < count; p += W) {
        const T* from = m.planes[plane] + first + p;
        const int some = count - p < W ? count - p : W;
        to_pixels<T>([&](int64_t l) { return load_pixels(from + l * m.pixels, some); }, m.labels,
                     s.pitch, s.single + p * s.pitch);
      }
    }
    double* sums = m.mixing_grad ? m.mixing_grad[t] : nullptr;
    if (sums && m.mixings[t].kind != MixingKind::matrix) {
      mix_and_reduce(m.mixings[t], r, stride, s.values, s.pitch, m.row, count, s.message, sums);
      continue;
    }
    if (sums) reduce(r, stride, s.values, s.pitch, m.labels, m.row, count, sums);
    mix(m.mixings[t], r, stride, m.labels, m.row, count, s.message);
  }
}

// dQ of up to W pixels, label by label, from rows of [row].
template <typename T>
SEGFAST_INLINE void from_pixels(const T* message, int labels, int row, int64_t pitch,
                                Vec<T, kLanes<T>>* to) {
  constexpr int W = kLanes<T>;
  for (int64_t l = 0; l < pitch; l += W) {
    // (vectors reach into the next pixel: those lanes are labels that do not exist)
    transpose<T, W>([&](int w) { return load<W>(message + w * row + l); },
                    [&](int i, Vec<T, W> v) {
                      if (l + i < labels) to[l + i] = v;
                    });
  }
}

// g of up to W pixels, from their Q and dQ; its rows replace those of Q.
template <typename T>
SEGFAST_INLINE void descend(const MeanFieldBackward<T>& m, int64_t pixel, int count,
                            const Vec<T, kLanes<T>>* belief, const T* message, int64_t pitch,
                            Vec<T, kLanes<T>>* g, T* values) {
  using V = Vec<T, kLanes<T>>;
  const T* upstream = m.upstream ? m.upstream + pixel : nullptr;
  const auto given = [&](int l) {
    return upstream ? load_pixels(upstream + l * m.pixels, count) : V{};
  };
  if (m.receive) {
    from_pixels(message, m.labels, m.row, pitch, g);
  } else {
    for (int l = 0; l < m.labels; ++l) g[l] = given(l);
  }
  if (m.receive || m.belief) {
    V along{};  // <dQ, Q>
    for (int l = 0; l < m.labels; ++l) along += g[l] * belief[l];
    for (int l = 0; l < m.labels; ++l) {
      g[l] = belief[l] * (g[l] - along);
      if (m.receive && upstream) g[l] += given(l);
    }
  }
  for (int l = 0; m.total && l < m.labels; ++l) {
    T* at = m.total + l * m.pixels + pixel;
    __builtin_prefetch(at + kChunk);
    store_pixels(at, load_pixels(at, count) + g[l], count);
  }
  if (m.send) to_pixels<T>([&](int64_t l) { return g[l]; }, m.labels, pitch, values);
}

template <typename T>
void receive_conv(const MeanFieldBackward<T>& m, int64_t y, int64_t chunk, int64_t width,
                  const Scratch<T>& s) {
  const int64_t x = chunk * kChunk;
  if (!m.receive || x >= width) return;
  const int count = static_cast<int>(width - x < kChunk ? width - x : kChunk);
  for (int t = 0; t < m.conv_count; ++t) {
    conv_message(m.conv[t], m.labels, m.row, y, x, count, T(1), false, s.row(t, chunk));
  }
}

// A line of `width` pixels from `first` on.
template <typename T>
void update_line(const MeanFieldBackward<T>& m, int band, int64_t first, int64_t width,
                 const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  const int64_t y = first / m.width;
  for (int64_t c = 0; c + 1 < s.depth; ++c) receive_conv(m, y, c, width, s);
  for (int64_t c = 0; c * kChunk < width; ++c) {
    const int64_t x = c * kChunk;
    const int count = static_cast<int>(width - x < kChunk ? width - x : kChunk);
    receive_conv(m, y, c + s.depth - 1, width, s);
    const auto some = [&](int p) { return count - p < W ? count - p : W; };
    for (int p = 0; (m.receive || m.belief) && p < count; p += W) {
      const auto* tile = s.tile(p);
      believe(m, first + x + p, some(p), s.tile(p));
      if (!m.receive) continue;
      to_pixels<T>([&](int64_t l) { return tile[l]; }, m.labels, s.pitch, s.values + p * s.pitch);
    }
    if (m.receive) receive(m, band, c, first + x, count, s);
    auto* g = reinterpret_cast<Vec<T, W>*>(s.single);
    for (int p = 0; p < count; p += W) {
      descend(m, first + x + p, some(p), s.tile(p), s.message + p * m.row, s.pitch, g,
              s.values + p * s.pitch);
    }
    if (m.send) send_to_terms(m, band, first + x, y, x, count, s.pitch, s.values);
  }
}

template <typename T>
void update(const MeanFieldBackward<T>& m, int band, int64_t begin, int64_t end, T* memory) {
  const Scratch<T> s = carve(m, memory);
  clear(memory, update_scratch(m));  // the padding stays finite from here on
  for_each_line(m, band, begin, end,
                [&](int64_t first, int64_t width) { update_line(m, band, first, width, s); });
}

}  // namespace

extern const MeanFieldBackwardKernels<float> mean_field_backward_kernels_f32 = {
    update<float>, update_scratch<float>};
extern const MeanFieldBackwardKernels<double> mean_field_backward_kernels_f64 = {
    update<double>, update_scratch<double>};

}  // namespace SEGFAST_ISA
}  // namespace segfast
