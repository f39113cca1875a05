// The weight's gradient for planes [N, C, H, W]: per tap a dot product over its live rectangle.
//
//   grad_w[o, c, t] = sum_{n, m live} g[n, o, m] x[n, c, m s - b + t d]
//
// All taps of a rectangle of positions at once: g is read once, x from cache.
#include "direct_planes.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kMostTaps = 9;           // whose sums stay in registers
constexpr int64_t kRowBlock = 64;      // rows between looks at how long the sums have become
constexpr int64_t kMostAdded = 32768;  // positions after which sums in T go to a double then
// Of a vector along a row. Rows begin anywhere: one of 64 bytes would always touch two cache lines.
template <typename T>
constexpr int kAcross = (kVectorBytes > 32 ? 32 : kVectorBytes) / sizeof(T);

template <typename S, typename T>
struct Scratch {
  Plane source, grad;
  Line rows, columns;
  T *x, *g;          // staged planes, or null
  int64_t* offsets;  // [taps] of the rectangle's
  int64_t* numbers;  // [taps] which of the kernel's
  T* lanes;          // [taps, N]
  double* totals;    // [taps]
  mutable int64_t added = 0;

  Scratch(const DilatedConv& p, Arena* arena)
      : source(strided_input(p)), grad(plane_of(p.rows.output, p.columns.output, 1)) {
    const Lines row_lines = LineMaker(arena, p.rows, kLanes<T>, false).lines();
    const Lines column_lines = LineMaker(arena, p.columns, kAcross<T>, false).lines();
    x = staged<S, T>(source) ? arena->take<T>(source.size()) : nullptr;
    g = staged<S, T>(grad) ? arena->take<T>(grad.size()) : nullptr;
    offsets = arena->take<int64_t>(taps(p));
    numbers = arena->take<int64_t>(taps(p));
    lanes = arena->take<T>(taps(p) * kLanes<T>);
    totals = arena->take<double>(taps(p));
    if (arena->counts()) return;
    rows = *row_lines.line;
    columns = *column_lines.line;
  }
};

// Rows of a piece: B taps' sums, lane by lane. Lanes that do not count are cleared on both sides:
// what lies there may be infinite.
template <int N, int B, typename T>
SEGFAST_INLINE void dots(const T* g, int64_t g_pitch, const T* x, int64_t x_pitch, int64_t rows,
                         const Piece& piece, const int64_t* offset, T* const* lanes) {
  Vec<T, N> sum[B];
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) sum[b] = load<N>(lanes[b]);
  using Lane = Vec<IntOf<T>, N>;
  Lane lane;
  for (int n = 0; n < N; ++n) lane[n] = n;
  const Lane counts =
      (lane >= static_cast<IntOf<T>>(piece.keep)) & (lane < static_cast<IntOf<T>>(piece.keep_end));
  const bool all = piece.keep == 0 && piece.keep_end == N;
  const int64_t whole = piece.begin + (piece.vectors - (all ? 0 : 1)) * N;
  for (int64_t r = 0; r < rows; ++r, g += g_pitch, x += x_pitch) {
    for (int64_t m = piece.begin; m < whole; m += N) {
      const Vec<T, N> grad = load<N>(g + m);
#pragma GCC unroll 9
      for (int b = 0; b < B; ++b) sum[b] += grad * load<N>(x + m + offset[b]);
    }
    if (all) continue;
    const Vec<T, N> zero{}, loaded = load<N>(g + piece.last);
    const Vec<T, N> grad = counts ? loaded : zero;
#pragma GCC unroll 9
    for (int b = 0; b < B; ++b) {
      const Vec<T, N> from = load<N>(x + piece.last + offset[b]);
      sum[b] += grad * (counts ? from : zero);
    }
  }
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) store<N>(lanes[b], sum[b]);
}

template <int N, int B, typename T>
void dots_of(int64_t count, const T* g, int64_t g_pitch, const T* x, int64_t x_pitch, int64_t rows,
             const Piece& piece, const int64_t* offset, T* const* lanes) {
  if constexpr (B > 1) {
    if (count < B) {
      return dots_of<N, B - 1>(count, g, g_pitch, x, x_pitch, rows, piece, offset, lanes);
    }
  }
  dots<N, B>(g, g_pitch, x, x_pitch, rows, piece, offset, lanes);
}

template <typename S, typename T>
void flush(const Scratch<S, T>& s, int64_t taps) {
  constexpr int N = kLanes<T>;
  for (int64_t t = 0; t < taps; ++t) {
    T* lanes = s.lanes + t * N;
    double total = 0;
    for (int n = 0; n < N; ++n) total += lanes[n];
    s.totals[t] += total;
    store<N>(lanes, Vec<T, N>{});
  }
  s.added = 0;
}

// A rectangle of rows and a piece of columns.
template <typename S, typename T>
void add_rectangle(const DilatedConv& p, const Scratch<S, T>& s, const Span& span,
                   const Piece& piece, const T* g, const T* x) {
  constexpr int N = kLanes<T>;
  int64_t count = 0;
  for (int64_t i = span.first_tap; i < span.last_tap; ++i) {
    const LineTap& row = s.rows.tap[i];
    for (int64_t j = piece.first_tap; j < piece.last_tap; ++j) {
      const LineTap& column = s.columns.tap[j];
      s.offsets[count] = row.first * s.source.pitch() + first_column(s.columns, column, s.source);
      s.numbers[count++] = row.tap * p.columns.taps + column.tap;
    }
  }
  if (count == 0) return;
  const int64_t g_pitch = s.grad.pitch(), x_pitch = s.rows.step * s.source.pitch();
  for (int64_t r = span.begin; r < span.end; r += kRowBlock) {
    const int64_t rows = smaller(kRowBlock, span.end - r);
    for (int64_t k = 0; k < count; k += kMostTaps) {
      T* lanes[kMostTaps];
      const int64_t chunk = smaller(kMostTaps, count - k);
      for (int64_t b = 0; b < chunk; ++b) lanes[b] = s.lanes + s.numbers[k + b] * N;
      for_width<kAcross<T>>(piece.width, [&](auto width) __attribute__((always_inline)) {
        constexpr int W = decltype(width)::value;
        dots_of<W, kMostTaps>(chunk, g + r * g_pitch, g_pitch, x + r * x_pitch, x_pitch, rows,
                              piece, s.offsets + k, lanes);
      });
    }
    s.added += rows * piece.vectors * piece.width;
    if (s.added > kMostAdded) flush(s, taps(p));
  }
}

template <typename S, typename T>
void grad_weight_of(const DilatedConv& p, const S* grads, const S* maps, T* sums, int64_t begin,
                    int64_t end, Arena* arena) {
  const Scratch<S, T> s(p, arena);
  const int64_t x_size = p.rows.input * p.columns.input, g_size = s.grad.size(), kernel = taps(p);
  for (int64_t k = 0; k < kernel * kLanes<T>; ++k) s.lanes[k] = 0;
  for (int64_t item = begin; item < end; ++item) {  // (group, output channel, input channel)
    const int64_t out = item / p.in_channels;
    const int64_t in = out / p.out_channels * p.in_channels + item % p.in_channels;
    for (int64_t k = 0; k < kernel; ++k) s.totals[k] = 0;
    for (int64_t n = 0; n < p.batch; ++n) {
      const S* x_plane = maps + (n * p.groups * p.in_channels + in) * x_size;
      const S* g_plane = grads + (n * p.groups * p.out_channels + out) * g_size;
      if (s.x != nullptr) stage(x_plane, s.source, s.x);
      if (s.g != nullptr) stage(g_plane, s.grad, s.g);
      const T *x = s.x, *g = s.g;
      if constexpr (kSameType<S, T>) {
        if (x == nullptr) x = x_plane;
        if (g == nullptr) g = g_plane;
      }
      for (int64_t k = 0; k < s.rows.spans; ++k) {
        for (int64_t q = 0; q < s.columns.pieces; ++q) {
          add_rectangle(p, s, s.rows.span[k], s.columns.piece[q], g, x);
        }
      }
      flush(s, kernel);
    }
    for (int64_t k = 0; k < kernel; ++k) sums[item * kernel + k] = static_cast<T>(s.totals[k]);
  }
}

}  // namespace

int64_t planes_grad_weight_scratch(const DilatedConv& p) { return bytes_of<Scratch>(p); }

void planes_grad_weight(const DilatedConv& p, const void* grad, const void* x, void* sums,
                        int64_t begin, int64_t end, void* memory) {
  with_sums(p.dtype, grad, x, sums, [&](auto grad, auto x, auto sums) {
    Arena arena(memory);
    grad_weight_of(p, grad, x, sums, begin, end, &arena);
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
