// One mean-field update, fused: slice, convolve, mix, softmax and splat while the pixels are
// cached.
//   scores = logits + sum_m M_m K~_m Q;   Q = softmax(scores)
#include "messages.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

template <typename T>
struct Scratch {
  int64_t pitch;  // padded labels
  int64_t depth;  // chunks whose messages are held at once
  T* messages;    // [depth, kChunk, pitch] sums of the mixed messages, rows of [row]
  T* single;      // [kChunk, pitch] one message, before its mixing
  T* belief;      // [kChunk, pitch]
  T* tile;        // [pitch, W] one vector of pixels, label by label

  T* message(int64_t chunk) const { return messages + chunk % depth * kChunk * pitch; }
};

template <typename T>
int64_t update_scratch(const MeanField<T>& m) {
  return padded<T>(m.labels) * ((chunks_held(m) + 2) * kChunk + 2 * kLanes<T>);
}

template <typename T>
Scratch<T> carve(const MeanField<T>& m, T* memory) {
  const int64_t pitch = padded<T>(m.labels), block = kChunk * pitch, depth = chunks_held(m);
  T* single = memory + depth * block;
  return {pitch, depth, memory, single, single + block, single + 2 * block};
}

template <typename T>
SEGFAST_INLINE void add_lattice_message(const MeanField<T>& m, const LatticeTerm<T>& term, int band,
                                        int64_t first, int count, T* single, T* message) {
  const bool direct = term.mixing.kind == MixingKind::scalar;
  if (!direct) clear(single, count * m.row);
  slice_message(term, band, first, count, m.row, direct ? message : single);
  if (!direct) mix(term.mixing, single, m.row, m.labels, m.row, count, message);
}

// Overwrites the message if `first_term`.
template <typename T>
void add_conv_message(const MeanField<T>& m, const ConvTerm<T>& term, int64_t y, int64_t x,
                      int count, bool first_term, T* single, T* message) {
  const bool direct = term.mixing.kind == MixingKind::scalar;
  conv_message(term, m.labels, m.row, y, x, count, term.mixing.scalar, direct && !first_term,
               direct ? message : single);
  if (direct) return;
  if (first_term) clear(message, count * m.row);
  mix(term.mixing, single, m.row, m.labels, m.row, count, message);
}

// Scores and belief of up to W pixels: logits [L, N] and messages [W, row] in, belief [W, row] out.
template <bool kWhole, typename T>
SEGFAST_INLINE void decide(const MeanField<T>& m, int64_t pixel, int some, const T* message,
                           const Scratch<T>& s, T* belief) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  const int labels = m.labels, count = kWhole ? W : some;
  const int64_t pixels = m.pixels;
  const T* const logits = m.logits + pixel;
  T* const scores = m.scores ? m.scores + pixel : nullptr;
  V* const tile = reinterpret_cast<V*>(s.tile);
  V inverse = broadcast<T, W>(1), top = broadcast<T, W>(-__builtin_inf());
  const auto take = [&](int64_t l, V score) {
    const T* at = logits + l * pixels;
    __builtin_prefetch(at + kChunk);  // as many streams as labels: too many for the hardware
    score += load_pixels(at, count);
    if (scores) store_pixels(scores + l * pixels, score, count);
    tile[l] = score;
    top = maximum(score, top);
  };
  if (m.belief != nullptr) {
    for (int l = 0; l < labels; ++l) tile[l] = load_pixels(m.belief + l * pixels + pixel, count);
  } else {
    if (m.receive) {
      for (int64_t l = 0; l < s.pitch; l += W) {
        // (vectors reach into the next pixel: those lanes are labels that do not exist)
        transpose<T, W>([&](int w) { return load<W>(message + w * m.row + l); },
                        [&](int i, V score) {
                          if (l + i < labels) take(l + i, score);
                        });
      }
    } else {
      for (int l = 0; l < labels; ++l) take(l, V{});
    }
    if (!m.send && !m.result) return;
    inverse = exponentials<T>(tile, top, labels);
    for (int64_t l = 0; m.result && l < labels; ++l) {
      store_pixels(m.result + l * pixels + pixel, tile[l] * inverse, count);
    }
    if (!m.send) return;
  }
  for (int64_t l = 0; l < s.pitch; l += W) {
    transpose<T, W>([&](int i) { return l + i < labels ? tile[l + i] * inverse : V{}; },
                    [&](int w, V values) { store<W>(belief + w * s.pitch + l, values); });
  }
}

template <typename T>
SEGFAST_INLINE void receive_conv(const MeanField<T>& m, int64_t y, int64_t x, int64_t width,
                                 T* single, T* message) {
  if (!m.receive || x >= width) return;
  const int count = static_cast<int>(width - x < kChunk ? width - x : kChunk);
  if (m.conv_count == 0) clear(message, count * m.row);
  for (int t = 0; t < m.conv_count; ++t) {
    add_conv_message(m, m.conv[t], y, x, count, t == 0, single, message);
  }
}

// A line of `width` pixels from `first` on.
template <typename T>
void update_line(const MeanField<T>& m, int band, int64_t first, int64_t width,
                 const Scratch<T>& s) {
  constexpr int W = kLanes<T>;
  const int64_t y = first / m.width;
  for (int64_t c = 0; c + 1 < s.depth; ++c) {
    receive_conv(m, y, c * kChunk, width, s.single, s.message(c));
  }
  for (int64_t c = 0; c * kChunk < width; ++c) {
    const int64_t x = c * kChunk, ahead = c + s.depth - 1;
    const int count = static_cast<int>(width - x < kChunk ? width - x : kChunk);
    T* message = s.message(c);
    receive_conv(m, y, ahead * kChunk, width, s.single, s.message(ahead));
    if (m.receive) {
      for (int t = 0; t < m.lattice_count; ++t) {
        add_lattice_message(m, m.lattice[t], band, first + x, count, s.single, message);
      }
    }
    int p = 0;
    for (; p + W <= count; p += W) {
      decide<true>(m, first + x + p, W, message + p * m.row, s, s.belief + p * s.pitch);
    }
    if (p < count) {
      decide<false>(m, first + x + p, count - p, message + p * m.row, s, s.belief + p * s.pitch);
    }
    if (m.send) send_to_terms(m, band, first + x, y, x, count, s.pitch, s.belief);
  }
}

template <typename T>
void update(const MeanField<T>& m, int band, int64_t begin, int64_t end, T* memory) {
  const Scratch<T> s = carve(m, memory);
  clear(memory, update_scratch(m));  // the padding stays zero from here on
  for_each_line(m, band, begin, end,
                [&](int64_t first, int64_t width) { update_line(m, band, first, width, s); });
}

template <typename T>
void softmax_pixels(const T* scores, int labels, int64_t pixels, int64_t begin, int64_t end,
                    T* belief) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  for (int64_t at = begin; at < end; at += W) {
    const int count = static_cast<int>(end - at < W ? end - at : W);
    V top = broadcast<T, W>(-__builtin_inf()), sum{};
    for (int l = 0; l < labels; ++l)
      top = maximum(load_pixels(scores + l * pixels + at, count), top);
    for (int l = 0; l < labels; ++l) {
      const V e = exp_nonpositive<W>(load_pixels(scores + l * pixels + at, count) - top);
      store_pixels(belief + l * pixels + at, e, count);
      sum += e;
    }
    const V inverse = T(1) / sum;
    for (int l = 0; l < labels; ++l) {
      T* q = belief + l * pixels + at;
      store_pixels(q, load_pixels(q, count) * inverse, count);
    }
  }
}

template <typename T>
void conv_columns(const ConvTerm<T>& term, int64_t height, int64_t begin, int64_t count, T* out) {
  T* in = term.lines + begin;
  out += begin;
  for (int64_t y = 1; y <= term.radius_y; ++y) clear(in - y * term.pitch, count);
  for (int64_t y = 0; y < term.radius_y + kWindow; ++y)
    clear(in + (height + y) * term.pitch, count);
  const int64_t blocks = (height + kWindow - 1) / kWindow;
  const int64_t step = out < in ? 1 : -1;  // towards what is still to be read
  const int64_t ahead = step > 0 ? kWindow + term.radius_y : -term.radius_y - kWindow;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t y = (step > 0 ? i : blocks - 1 - i) * kWindow;
    const int outputs = static_cast<int>(height - y < kWindow ? height - y : kWindow);
    const T* from = in + y * term.pitch;
    T* to = out + y * term.pitch;
    for_each_vector<T>(count, [&](int64_t x, auto width) {
      constexpr int N = decltype(width)::value;
      for (int b = 0; b < kWindow; ++b) __builtin_prefetch(from + (ahead + b) * term.pitch + x);
      symmetric_window<N>(from + x, term.pitch, term.taps_y, term.radius_y, outputs,
                          [&](int b, Vec<T, N> sum) { store<N>(to + b * term.pitch + x, sum); });
    });
  }
}

}  // namespace

extern const MeanFieldKernels<float> mean_field_kernels_f32 = {
    update<float>, update_scratch<float>, softmax_pixels<float>, conv_columns<float>, kWindow};
extern const MeanFieldKernels<double> mean_field_kernels_f64 = {
    update<double>, update_scratch<double>, softmax_pixels<double>, conv_columns<double>, kWindow};

}  // namespace SEGFAST_ISA
}  // namespace segfast
