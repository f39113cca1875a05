// One mean-field update, fused: slice, convolve, mix, softmax and splat while the pixels are cached.
//   scores = logits + sum_m M_m K~_m Q;   Q = softmax(scores)
#include "dense_crf.h"
#include "simd.h"
#include "window.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Scratch rows hold all labels of one pixel, padded to whole vectors so that they transpose.
template <typename T>
SEGFAST_INLINE int64_t padded(int labels) {
  constexpr int W = kLanes<T>;
  return (labels + W - 1) / W * W;
}

template <typename T>
struct Scratch {
  int64_t row;  // padded labels
  T* message;   // [kChunk, row] sum of the mixed messages
  T* single;    // [kChunk, row] one message, before its mixing
  T* belief;    // [kChunk, row]
  T* tile;      // [row, W] one vector of pixels, label by label
};

template <typename T>
int64_t scratch_scalars(int labels) {
  return padded<T>(labels) * (3 * kChunk + kLanes<T>) + kVectorBytes;
}

template <typename T>
Scratch<T> carve(T* memory, int labels) {
  const int64_t row = padded<T>(labels), block = row * kChunk;
  return {row, memory, memory + block, memory + 2 * block, memory + 3 * block};
}

template <typename T>
SEGFAST_INLINE void clear(T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

template <int kForWriting, typename T>
SEGFAST_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i, kForWriting);
}

// message[p] += M single[p] for a mixing that is no scalar
template <typename T>
SEGFAST_INLINE void mix(const Mixing<T>& mixing, const T* single, int labels, int row,
                        int64_t pitch, int count, T* message) {
  for (int p = 0; p < count; ++p) {
    const T* from = single + p * pitch;
    T* to = message + p * pitch;
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      Vec<T, N> sum = load<N>(to + l);
      if (mixing.kind == MixingKind::vector) {
        sum += load<N>(from + l) * load<N>(mixing.values + l);
      } else {
        for (int k = 0; k < labels; ++k) sum += load<N>(mixing.values + k * row + l) * from[k];
      }
      store<N>(to + l, sum);
    });
  }
}

// to[p] += sum_k weight_k received[vertex_k]
template <typename T, int kCorners>
SEGFAST_INLINE void slice(const LatticeTerm<T>& term, const T* received, int64_t first, int count,
                          int row, int64_t pitch, T* to) {
  const int corners = kCorners ? kCorners : term.corners;
  const int32_t* vertex = term.vertex + first * corners;
  const T* weight = term.out_weight + first * corners;
  for (int p = 0; p < count; ++p, vertex += corners, weight += corners, to += pitch) {
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      Vec<T, N> sum = load<N>(to + l);
      for (int k = 0; k < corners; ++k) {
        sum += load<N>(received + int64_t{vertex[k]} * row + l) * weight[k];
      }
      store<N>(to + l, sum);
    });
  }
}

template <typename T>
SEGFAST_INLINE void add_lattice_message(const LatticeTerm<T>& term, int band, int64_t first,
                                        int count, int labels, int row, const Scratch<T>& s) {
  const bool direct = term.mixing.kind == MixingKind::scalar;
  T* to = direct ? s.message : s.single;
  if (!direct) clear(to, count * s.row);
  const auto run = term.corners == 6   ? &slice<T, 6>
                   : term.corners == 3 ? &slice<T, 3>
                                       : &slice<T, 0>;
  run(term, term.received + term.local_start[band] * row, first, count, row, s.row, to);
  if (!direct) mix(term.mixing, s.single, labels, row, s.row, count, s.message);
}

// Along the row, on what conv_columns left; overwrites the message if `first_message`.
template <typename T>
SEGFAST_INLINE void add_conv_message(const ConvTerm<T>& term, int64_t y, int64_t x, int count,
                                     int labels, int row, const Scratch<T>& s,
                                     bool first_message) {
  const bool direct = term.mixing.kind == MixingKind::scalar;
  const bool add = direct && !first_message;
  T* to = direct ? s.message : s.single;
  const T* in = term.columns + y * term.column_pitch + (term.radius_x + x) * row;
  for (int p = 0; p < count; p += kWindow) {
    const int outputs = count - p < kWindow ? count - p : kWindow;
    prefetch<0>(in + (p + kChunk + term.radius_x) * row, kWindow * row);
    T scale[kWindow];
    for (int b = 0; b < outputs; ++b) {
      scale[b] = term.out_y[y] * term.out_x[x + p + b] * term.mixing.scalar;
    }
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      symmetric_window<N>(in + p * row + l, row, term.taps_x, term.radius_x, outputs,
                          [&](int b, Vec<T, N> sum) {
                            T* at = to + (p + b) * s.row + l;
                            sum *= scale[b];
                            store<N>(at, add ? load<N>(at) + sum : sum);
                          });
    });
  }
  if (direct) return;
  if (first_message) clear(s.message, count * s.row);
  mix(term.mixing, s.single, labels, row, s.row, count, s.message);
}

template <typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> load_pixels(const T* from, int count) {
  constexpr int W = kLanes<T>;
  if (count == W) return load<W>(from);
  Vec<T, W> v{};
  for (int w = 0; w < count; ++w) v[w] = from[w];
  return v;
}

template <typename T>
SEGFAST_INLINE void store_pixels(T* to, Vec<T, kLanes<T>> v, int count) {
  if (count == kLanes<T>) return store<kLanes<T>>(to, v);
  for (int w = 0; w < count; ++w) to[w] = v[w];
}

// tile[l] = exp(tile[l] - top); returns 1 / sum: together the softmax of W pixels at once.
template <typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> exponentials(Vec<T, kLanes<T>>* tile, Vec<T, kLanes<T>> top,
                                              int labels) {
  constexpr int W = kLanes<T>;
  Vec<T, W> sum{};
  for (int l = 0; l < labels; ++l) {
    tile[l] = exp_nonpositive<W>(tile[l] - top);
    sum += tile[l];
  }
  return T(1) / sum;
}

// Scores and belief of up to W pixels: logits [L, N] and messages [W, row] in, belief [W, row] out.
template <typename T>
SEGFAST_INLINE void decide(const MeanField<T>& m, int64_t pixel, int count, const T* message,
                           const Scratch<T>& s, T* belief) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  V* tile = reinterpret_cast<V*>(s.tile);
  V inverse = broadcast<T, W>(1), top = broadcast<T, W>(-__builtin_inf());
  const auto take = [&](int64_t l, V score) {
    const T* logits = m.logits + l * m.pixels + pixel;
    __builtin_prefetch(logits + kChunk);  // as many streams as labels: too many for the hardware
    score += load_pixels(logits, count);
    if (m.scores) store_pixels(m.scores + l * m.pixels + pixel, score, count);
    tile[l] = score;
    top = maximum(score, top);
  };
  if (m.belief != nullptr) {
    for (int l = 0; l < m.labels; ++l) tile[l] = load_pixels(m.belief + l * m.pixels + pixel, count);
  } else {
    if (m.receive) {
      for (int64_t l = 0; l < s.row; l += W) {
        transpose<T, W>([&](int w) { return load<W>(message + w * s.row + l); },
                        [&](int i, V score) {
                          if (l + i < m.labels) take(l + i, score);
                        });
      }
    } else {
      for (int l = 0; l < m.labels; ++l) take(l, V{});
    }
    if (!m.send) return;
    inverse = exponentials<T>(tile, top, m.labels);
  }
  for (int64_t l = 0; l < s.row; l += W) {
    transpose<T, W>([&](int i) { return l + i < m.labels ? tile[l + i] * inverse : V{}; },
                    [&](int w, V labels) { store<W>(belief + w * s.row + l, labels); });
  }
}

// sent[vertex_k] += weight_k belief[p]
template <typename T, int kCorners>
SEGFAST_INLINE void splat(const LatticeTerm<T>& term, T* sent, int64_t first, int count, int row,
                          int64_t pitch, const T* belief) {
  const int corners = kCorners ? kCorners : term.corners;
  const int32_t* vertex = term.vertex + first * corners;
  const T* weight = term.in_weight + first * corners;
  for (int p = 0; p < count; ++p, vertex += corners, weight += corners, belief += pitch) {
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      const Vec<T, N> q = load<N>(belief + l);
      for (int k = 0; k < corners; ++k) {
        T* at = sent + int64_t{vertex[k]} * row + l;
        store<N>(at, load<N>(at) + q * weight[k]);
      }
    });
  }
}

template <typename T>
SEGFAST_INLINE void send_to_lattice(const LatticeTerm<T>& term, int band, int64_t first, int count,
                                    int row, const Scratch<T>& s) {
  const auto run = term.corners == 6   ? &splat<T, 6>
                   : term.corners == 3 ? &splat<T, 3>
                                       : &splat<T, 0>;
  run(term, term.sent + term.local_start[band] * row, first, count, row, s.row, s.belief);
}

template <typename T>
SEGFAST_INLINE T* belief_line(const ConvTerm<T>& term, int64_t y) {
  return term.belief + (term.radius_y + y) * term.belief_pitch;
}

template <typename T>
SEGFAST_INLINE void send_to_conv(const ConvTerm<T>& term, int64_t y, int64_t x, int count, int row,
                                 const Scratch<T>& s) {
  T* to = belief_line(term, y) + x * row;
  for (int p = 0; p < count; ++p) {
    const T scale = term.in_y[y] * term.in_x[x + p];
    for_each_vector<T>(row, [&](int64_t l, auto width) {
      constexpr int N = decltype(width)::value;
      store<N>(to + p * row + l, load<N>(s.belief + p * s.row + l) * scale);
    });
  }
}

template <typename T>
void update(const MeanField<T>& m, int band, int64_t begin, int64_t end, T* memory) {
  constexpr int W = kLanes<T>;
  const Scratch<T> s = carve(memory, m.labels);
  clear(s.message, 3 * kChunk * s.row);  // padding labels stay zero from here on
  if (m.send) {
    for (int t = 0; t < m.lattice_count; ++t) {
      const LatticeTerm<T>& term = m.lattice[t];
      clear(term.sent + term.local_start[band] * m.row,
            (term.local_start[band + 1] - term.local_start[band]) * m.row);
    }
  }
  for (int64_t first = begin; first < end;) {
    const int64_t y = first / m.width, x = first - y * m.width;
    int64_t room = end - first < m.width - x ? end - first : m.width - x;
    const int count = static_cast<int>(room < kChunk ? room : kChunk);
    if (m.send) {
      for (int t = 0; t < m.conv_count; ++t) {
        prefetch<1>(belief_line(m.conv[t], y) + x * m.row, count * m.row);
      }
    }
    if (m.receive) {
      if (m.conv_count == 0) clear(s.message, count * s.row);
      for (int t = 0; t < m.conv_count; ++t) {
        add_conv_message(m.conv[t], y, x, count, m.labels, m.row, s, t == 0);
      }
      for (int t = 0; t < m.lattice_count; ++t) {
        add_lattice_message(m.lattice[t], band, first, count, m.labels, m.row, s);
      }
    }
    for (int p = 0; p < count; p += W) {
      decide(m, first + p, count - p < W ? count - p : W, s.message + p * s.row, s,
             s.belief + p * s.row);
    }
    if (m.send) {
      for (int t = 0; t < m.lattice_count; ++t) {
        send_to_lattice(m.lattice[t], band, first, count, m.row, s);
      }
      for (int t = 0; t < m.conv_count; ++t) send_to_conv(m.conv[t], y, x, count, m.row, s);
    }
    first += count;
  }
}

template <typename T>
void softmax_pixels(const T* scores, int labels, int64_t pixels, int64_t begin, int64_t end,
                    T* scratch, T* belief) {
  constexpr int W = kLanes<T>;
  Vec<T, W>* tile = reinterpret_cast<Vec<T, W>*>(scratch);
  for (int64_t at = begin; at < end; at += W) {
    const int count = static_cast<int>(end - at < W ? end - at : W);
    Vec<T, W> top = broadcast<T, W>(-__builtin_inf());
    for (int l = 0; l < labels; ++l) {
      tile[l] = load_pixels(scores + l * pixels + at, count);
      top = maximum(tile[l], top);
    }
    const Vec<T, W> inverse = exponentials<T>(tile, top, labels);
    for (int l = 0; l < labels; ++l) {
      store_pixels(belief + l * pixels + at, tile[l] * inverse, count);
    }
  }
}

template <typename T>
void conv_columns(const ConvTerm<T>& term, int64_t height, int row, int64_t begin, int64_t end) {
  const T* in = term.belief + term.radius_y * term.belief_pitch;
  T* out = term.columns + term.radius_x * row;
  for (int64_t y = 0; y < height; y += kWindow) {
    const int outputs = static_cast<int>(height - y < kWindow ? height - y : kWindow);
    const T* next = in + (y + kWindow + term.radius_y) * term.belief_pitch + begin;
    for_each_vector<T>(end - begin, [&](int64_t i, auto width) {
      for (int b = 0; b < kWindow; ++b) {
        __builtin_prefetch(next + b * term.belief_pitch + i);
        __builtin_prefetch(out + (y + kWindow + b) * term.column_pitch + begin + i, 1);
      }
      constexpr int N = decltype(width)::value;
      symmetric_window<N>(in + y * term.belief_pitch + begin + i, term.belief_pitch, term.taps_y,
                          term.radius_y, outputs, [&](int b, Vec<T, N> sum) {
                            store<N>(out + (y + b) * term.column_pitch + begin + i, sum);
                          });
    });
  }
}

}  // namespace

extern const MeanFieldKernels<float> mean_field_kernels_f32 = {
    update<float>, scratch_scalars<float>, softmax_pixels<float>, conv_columns<float>, kWindow};
extern const MeanFieldKernels<double> mean_field_kernels_f64 = {
    update<double>, scratch_scalars<double>, softmax_pixels<double>, conv_columns<double>, kWindow};

}  // namespace SEGFAST_ISA
}  // namespace segfast
