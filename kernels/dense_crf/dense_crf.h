// The contract of the mean-field kernels: plain pointers, sizes, no allocation, no threads, no
// torch.
//
// Symbols: N pixels in `height` lines of `width` (the last may be shorter), L labels, rows of `row`
// scalars (L rounded up to 16 bytes, padding zero), d features, K = d + 1 vertices per pixel,
// V lattice vertices. Derivations: README.md.
#pragma once

#include <cstdint>

#include "lattice_plan.h"

namespace segfast {

constexpr int kMaxFeatures = 32;

// The permutohedral lattice.

// How the d stored coordinates of a vertex share the 64-bit words of its key: coordinate i, less
// origin[i], sits in word[i] at shift[i], with room for the coordinates of neighbours.
struct KeyLayout {
  int dims = 0;   // d
  int words = 0;  // per key
  int64_t origin[kMaxFeatures];
  int word[kMaxFeatures];
  int shift[kMaxFeatures];
};

// Open-addressing hash of vertex keys. Vertices are numbered as they are first touched.
struct VertexTable {
  int32_t* slots;    // [capacity] vertex or -1; capacity is a power of two
  uint64_t* keys;    // [capacity / 2, words]
  int64_t capacity;  // holds capacity / 2 vertices
  int64_t count;
};

// Which rows of the bands' tables belong to a vertex: local[start[v] .. start[v + 1]).
struct MergeTable {
  const int64_t* start;  // [V + 1]
  const int32_t* local;  // [M]
};

template <typename T>
struct LatticeKernels {
  // Smallest and largest value of features[0..count); NaN if any is NaN or infinite.
  void (*range)(const T* features, int64_t count, T* low, T* high);

  // Embeds pixels [begin, end) of features [d, pixels]; returns the first pixel for which `table`
  // had no room (end when all went in): grow it and call again from there.
  int64_t (*embed)(const T* features, int64_t pixels, int64_t begin, int64_t end,
                   const KeyLayout& layout, VertexTable* table,
                   int32_t* vertex,  // [pixels, K]
                   T* weight);       // [pixels, K] barycentric

  // neighbours[axis][0][v] = vertex at v - 1 (+ d along axis) or V where there is none;
  // neighbours[axis][1] is the mirror image and must come filled with V.
  void (*neighbours)(const KeyLayout& layout, const VertexTable& table, int64_t begin, int64_t end,
                     int32_t* neighbours);  // [K, 2, V]

  // table[v] = gain * sum of the rows that the bands sent for v, in the order of the bands.
  void (*gather)(const T* sent, const MergeTable& merge, T gain, int64_t begin, int64_t end,
                 int row, T* table);

  // out[v] = in[v] + (in[n1] + in[n2]) / 2 along one axis; row V of `in` is zero.
  void (*blur)(const T* in, const int32_t* n1, const int32_t* n2, int64_t begin, int64_t end,
               int row, T* out);

  // The same, handed to every band that uses the vertex.
  void (*blur_scatter)(const T* in, const int32_t* n1, const int32_t* n2, const MergeTable& merge,
                       int64_t begin, int64_t end, int row, T* received);
};

// Pixels are splatted band by band into a table of the band's own; the bands are merged in their
// order. They depend on the sizes alone, so any number of threads gives the same bits.
int64_t band_count(int64_t pixels, int64_t width);
int64_t band_begin(int64_t band, int64_t pixels, int64_t width);  // its first pixel
// Chooses bits per axis from the range of each feature; false when a coordinate would pass `limit`.
bool plan_keys(const double* low, const double* high, int dims, double limit, KeyLayout* layout);
// Empties the slots and enters keys[0..count) again.
void rehash(VertexTable* table, int words);
// Numbers the keys [0, count) in `global`, inserting the new ones; the table must have room.
void merge_vertices(const uint64_t* keys, int64_t count, int words, VertexTable* table,
                    int32_t* global);

// One mean-field update.

enum class MixingKind : int { scalar, vector, matrix };

template <typename T>
struct Mixing {
  MixingKind kind;
  T scalar;
  // vector: [row]; matrix: [L, row], row k holds what label k sends to every label
  const T* values;
};

template <typename T>
struct LatticeTerm {
  int corners;                 // K
  const int32_t* vertex;       // [N, K] numbered within the pixel's band
  const T* in_weight;          // [N, K] barycentric, times the normalisation before the kernel
  const T* out_weight;         // [N, K] the same after it
  const int64_t* local_start;  // [bands + 1] where a band's rows begin
  T* sent;                     // [M, row] what the bands splat
  const T* received;           // [M, row] merged and blurred, times a scalar mixing
  Mixing<T> mixing;
};

// Separable Gaussian on the pixel grid. One buffer carries the beliefs: written by an update,
// convolved down the columns as it moves, and along each row just before the next update overwrites
// it.
template <typename T>
struct ConvTerm {
  int64_t radius_y, radius_x;
  const T *taps_y, *taps_x;  // [radius + 1] exp(-r^2 / 2 sigma^2)
  const T *in_y, *in_x;      // [height], [width]: normalisation before the kernel, an outer product
  const T *out_y, *out_x;    // and after it
  int64_t pitch;             // scalars from line to line
  T* lines;                  // [height, pitch]: zeros, [width, L], zeros (radius_x pixels, slack)
  Mixing<T> mixing;
};

// The pixels of an update and the terms through which they send and receive.
template <typename T>
struct Update {
  int labels, row;
  int64_t pixels, width;
  bool receive;  // the messages of the terms
  bool send;     // something for the next update
  int lattice_count, conv_count;
  const LatticeTerm<T>* lattice;
  const ConvTerm<T>* conv;
};

template <typename T>
struct MeanField : Update<T> {
  const T* logits;  // [L, N] the messages are added to them
  const T* belief;  // [L, N] to send instead of softmax(scores), or null
  T* scores;        // [L, N] or null
  T* result;        // [L, N] or null: softmax(scores)
};

// The way back. Terms have their normalisations exchanged, and what they send is g.
//   Q = softmax(scores);  dQ = sum_m M_m^T R_m;  g = Q (dQ - <dQ, Q>) + upstream
// An update that receives nothing starts from g = upstream, through the softmax if Q is given.
template <typename T>
struct MeanFieldBackward : Update<T> {
  const T* scores;           // [L, N]
  const T* belief;           // [L, N] Q in place of scores, or null
  const T* upstream;         // [L, N] or null
  T* total;                  // [L, N] or null: g is added to it
  int message_count;         // what arrives from elsewhere:
  const T* const* planes;    // its R_m, [L, N] each
  const Mixing<T>* mixings;  // M_m^T of lattices, convolutions and planes, in this order
  // Of each, per band: R_m Q^T [L, row] for a matrix, else its diagonal [row], added to; or null.
  double* const* mixing_grad;
};

template <typename T>
struct MeanFieldKernels {
  // scores = logits + messages; belief = softmax(scores); send it: for the pixels of one band.
  void (*update)(const MeanField<T>& problem, int band, int64_t begin, int64_t end, T* scratch);
  // Scalars of scratch that an update needs.
  int64_t (*update_scratch)(const MeanField<T>& problem);
  // belief = softmax over labels of scores [L, pixels], for pixels [begin, end).
  void (*softmax)(const T* scores, int labels, int64_t pixels, int64_t begin, int64_t end,
                  T* belief);
  // Convolves `count` scalars of every line, from `begin` on, down the columns: what stands at
  // term.lines moves to `out`, radius_y + slack lines further up or down in its buffer. Zeroes the
  // radius_y lines above and radius_y + slack lines below the input.
  void (*conv_columns)(const ConvTerm<T>& term, int64_t height, int64_t begin, int64_t count,
                       T* out);
  int slack;  // pixels or lines that the convolution may read past its padding
};

template <typename T>
struct MeanFieldBackwardKernels {
  void (*update)(const MeanFieldBackward<T>& problem, int band, int64_t begin, int64_t end,
                 T* scratch);
  int64_t (*update_scratch)(const MeanFieldBackward<T>& problem);
};

#define SEGFAST_DECLARE_KERNELS(isa)                                             \
  namespace isa {                                                                \
  extern const LatticeKernels<float> lattice_kernels_f32;                        \
  extern const LatticeKernels<double> lattice_kernels_f64;                       \
  extern const MeanFieldKernels<float> mean_field_kernels_f32;                   \
  extern const MeanFieldKernels<double> mean_field_kernels_f64;                  \
  extern const MeanFieldBackwardKernels<float> mean_field_backward_kernels_f32;  \
  extern const MeanFieldBackwardKernels<double> mean_field_backward_kernels_f64; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
