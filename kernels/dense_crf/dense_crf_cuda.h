// The mean-field kernels on CUDA. A launcher takes plain pointers and returns a cudaError_t, 0 for
// success; it allocates nothing and never waits.
//
// Symbols as in dense_crf.h: B images of N pixels, d features, K = d + 1 vertices per pixel, L
// labels in rows of `row` scalars (whole 16 bytes, padding zero), V vertices of all images. An
// entry is one of the K vertices of one pixel: M = B N K in all. Derivations: README.md, "CUDA".
#pragma once

#include "dense_crf.h"
#include "dtype.h"

struct CUstream_st;

namespace segfast {

// ------------------------------------------------------------------------------------- building

constexpr int kKeyBits = 63;    // of a word: words are sorted as signed numbers
constexpr int kEntryTile = 64;  // entries that are summed together

// What building finds out, in device memory: int64 state[kFinite + B].
enum LatticeState : int {
  kVertices = 0,
  kWords = 1,   // that the keys need
  kStatus = 2,  // 0, or what prevents a result
  kFinite = 3,  // + image: whether all of its features are finite
};
enum LatticeStatus : int64_t {
  kFull = 1,     // there are more vertices than there is room
  kTooWide = 2,  // the keys need more words than there are
  kTooFar = 4,   // a coordinate is beyond kCoordinateLimit
};

struct LatticeSize {
  int64_t images, pixels;  // pixels: of an image
  int dims, words;
  Dtype dtype;  // f32 or f64
};
SEGFAST_ANYWHERE static constexpr int64_t lattice_points(const LatticeSize& s) {
  return s.images * s.pixels;
}
SEGFAST_ANYWHERE static constexpr int64_t lattice_entries(const LatticeSize& s) {
  return lattice_points(s) * (s.dims + 1);
}
// No tile has entries of two images: the bits of one do not depend on the others.
SEGFAST_ANYWHERE static constexpr int64_t tiles_per_image(const LatticeSize& s) {
  return (s.pixels * (s.dims + 1) + kEntryTile - 1) / kEntryTile;
}

// How keys are packed; the batch index is above all coordinates.
struct KeyPlan {
  KeyLayout layout;
  int image_word, image_shift;
};

// features (x / sx, y / sy, channels / sigma), [B, 2 + C, H W]
struct FeatureSize {
  int64_t images, height, width;
  int channels;
  Dtype dtype;
  double sigma[kMaxFeatures];  // sx, sy, of each channel
};
int lattice_features_cuda(const FeatureSize&, const void* image, void* features, CUstream_st*);

// Chooses the layout of the keys from the range of the features and sets `state`, vertices apart.
// ranges: range_scalars of scratch.
int lattice_plan_cuda(const LatticeSize&, const void* features, void* ranges, KeyPlan* plan,
                      int64_t* state, CUstream_st*);
constexpr int kRangePixels = 4096;
static constexpr int64_t range_scalars(const LatticeSize& s) {
  return s.images * s.dims * ((s.pixels + kRangePixels - 1) / kRangePixels) * 2;
}

// keys [words, M], the most significant word last; weight [B N, K] barycentric
int lattice_embed_cuda(const LatticeSize&, const void* features, const KeyPlan* plan,
                       const int64_t* state, int64_t* keys, void* weight, CUstream_st*);

// Numbers the vertices of sorted keys. heads [tiles]: bit j tells whether entry j is the first of
// its vertex; base [tiles]: the vertex before the tile's first entry. capacity: vertices that there
// is room for, 0: not decided yet.
int lattice_number_cuda(const LatticeSize&, int64_t capacity, const int64_t* keys, uint64_t* heads,
                        int32_t* base, int64_t* state, CUstream_st*);

// order [M]: the entry that each sorted key came from. vertex [B N, K]; pixel, list_weight [M] in
// the order of the keys; vertex_keys [words, capacity] scratch; neighbours [K, 2, capacity]: before
// and after along each direction, -1 where none is.
int lattice_link_cuda(const LatticeSize&, int64_t capacity, const int64_t* keys,
                      const int64_t* order, const uint64_t* heads, const int32_t* base,
                      const void* weight, const KeyPlan* plan, const int64_t* state,
                      int64_t* vertex_keys, int32_t* vertex, int32_t* pixel, void* list_weight,
                      int32_t* neighbours, CUstream_st*);

// ------------------------------------------------------------------------------------ filtering

// tables [2, capacity, row]: splats values [B N, row] times scale [B N] (null: 1) and blurs along
// every direction, in reverse order if `reverse`; the result is in tables[K % 2].
// partial [2, tiles, row] scratch.
int lattice_deliver_cuda(const LatticeSize&, int64_t capacity, int row, bool reverse,
                         const int64_t* state, const uint64_t* heads, const int32_t* base,
                         const int32_t* pixel, const void* list_weight, const void* scale,
                         const int32_t* neighbours, const void* values, void* partial, void* tables,
                         CUstream_st*);

// Separable Gaussian on the pixel grid: out = after_y Gy before_y (after_x Gx before_x values);
// values, between, out [B, H, W, row].
struct ConvSize {
  int64_t images, height, width, radius_y, radius_x;
  int row;
  Dtype dtype;
};
int spatial_conv_cuda(const ConvSize&, const void* taps_y, const void* taps_x, const void* before_y,
                      const void* before_x, const void* after_y, const void* after_x,
                      const void* values, void* between, void* out, CUstream_st*);

// ----------------------------------------------------------------------------------- mean field

constexpr int kMaxTerms = 4;

// A message: of a lattice, sliced from `rows`, or ready in `rows` (corners == 0).
struct MessageTerm {
  int corners;            // K, or 0
  MixingKind kind;        // of M
  double gain;            // times the message
  const int32_t* vertex;  // [B N, K]
  const void* weight;     // [B N, K]
  const void* scale;      // [B N] after slicing, or null
  const void* rows;       // [capacity, row], or [B N, row]
  const void* mixing;     // [1], [row], or [L, row]: row k holds what label k sends
  const int64_t* state;   // of the lattice, or null
  void* kept;             // [B N, row] takes the message before its mixing, or null
};

struct UpdateSize {
  int64_t images, pixels;
  int labels, row;
  Dtype dtype;
};
// In shared memory, of which there is this much on every GPU.
static constexpr int max_labels(Dtype dtype) { return dtype == Dtype::f64 ? 3064 : 6136; }

// scores = logits + sum_m M_m message_m; belief = softmax(scores), or scores if not `normalize`.
struct BatchUpdate {
  UpdateSize size;
  const void* logits;  // [B, L, N], or null: 0
  void* scores;        // [B, L, N], or null
  void* result;        // [B, L, N] the belief, or null
  void* belief;        // [B N, row] the same in rows, or null
  bool normalize;
  int terms;
  MessageTerm term[kMaxTerms];
};
int mean_field_update_cuda(const BatchUpdate&, CUstream_st*);

// g = Q (dQ - <dQ, Q>) + upstream, dQ = sum_m M_m message_m;  total += g
struct BatchUpdateBackward {
  UpdateSize size;
  const void* belief;    // Q [B N, row], or null: g = upstream
  const void* upstream;  // [B, L, N], or null: 0
  void* gradient;        // g [B N, row]
  void* total;           // [B, L, N]
  int terms;
  MessageTerm term[kMaxTerms];
};
int mean_field_update_backward_cuda(const BatchUpdateBackward&, CUstream_st*);

// partial[c, l, k] += sum of a_l b_k over the pixels of chunk c, a and b [B N, row]; [c, l] for
// l = k alone if `diagonal`. Chunks are equal, but for the last ones.
struct ProductSize {
  int64_t points, chunks;  // B N
  int labels, row;
  bool diagonal;
  Dtype dtype;
};
int mixing_gradient_cuda(const ProductSize&, const void* a, const void* b, void* partial,
                         CUstream_st*);

}  // namespace segfast
