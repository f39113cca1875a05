// Exact Gaussian filter, one copy per instruction set. The contract is in exact.h.
//
// 32 output pixels of a tile are vector lanes. For a tile J and a batch of tiles I within reach,
// the kernel block P [i, j] goes to a scratch that stays in the first-level cache, then y[c, j] +=
// P[i, j] v[i, c] runs with the sums of a channel block in registers; transposed, the same block
// serves y[c, i] += P[i, j] v[j, c].
#include "exact.h"
#include "exact_block.h"
#include "exact_gradient.h"
#include "exact_tiles.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kBatch = 4;  // tiles I in one block P
// Registers hold the sums of kMaxBlock channels for kVectors vectors of pixels, as many values
// and one vector of P.
constexpr int kMaxBlock = kVectorRegisters == 32 ? 8 : 3;

constexpr int kBins = 512;  // of half a squared distance, rounded down to a bin
constexpr int kPerUnit = 4;

// Half the squared distances from the tile's box to those of tiles j, j + 1, ..., rounded so as to
// be at most the true ones, and at most the last bin's.
template <typename T>
SEGFAST_INLINE Vec<T, kLanes<T>> box_distances(const ExactProblem<T>& p, int64_t tile, int64_t j) {
  constexpr int W = kLanes<T>;
  constexpr T kLast = T(kBins - 1) / kPerUnit;
  // Less than 1/2 by more than F + 4 roundings of d^2 can make up: a bin is never too far.
  constexpr T kEpsilon = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  const T half = T(0.5) / (1 + T(p.dims + 8) * kEpsilon);

  const int64_t stride = exact_box_stride(p.tiles);
  const T* lower = p.boxes;
  const T* upper = lower + p.dims * stride;
  Vec<T, W> sum{};
  for (int64_t f = 0; f < p.dims; ++f) {
    const int64_t at = f * stride;
    const Vec<T, W> above = load<W>(lower + at + j) - upper[at + tile];
    const Vec<T, W> under = lower[at + tile] - load<W>(upper + at + j);
    // NaN (infinite boxes) ends as 0 in the outer maximum: not a number > 0.
    const Vec<T, W> gap = maximum(maximum(above, under), Vec<T, W>{});
    sum += gap * gap;
  }
  sum *= half;
  return sum > kLast ? broadcast<T, W>(kLast) : sum;
}

// How far the tile must see: it may do without the tiles from this half squared distance on.
//
// d_J, the distance between two boxes, bounds every distance between their pixels, so a tile left
// out costs a row at most 32 exp(-d_J^2 / 2) max|v|. Tiles are dropped from the farthest inwards
// while the sum of these stays within the tolerance; d^2 / 2 is binned (rounded down) to find
// where.
template <typename T>
T reach_of(const ExactProblem<T>& p, int64_t tile) {
  constexpr int W = kLanes<T>;
  int bin = kBins;
  if (!(p.tolerance > 0)) return T(bin) / kPerUnit;
  int32_t histogram[kBins] = {};
  for (int64_t j = 0; j < p.tiles; j += W) {
    const Vec<T, W> bins = box_distances(p, tile, j) * T(kPerUnit);
    const int count = p.tiles - j < W ? static_cast<int>(p.tiles - j) : W;
    for (int k = 0; k < count; ++k) ++histogram[static_cast<int>(bins[k])];
  }
  constexpr double kWiden = 1.2840254166877414;  // exp(1 / kPerUnit)
  double weight = kTile * 3.303e-56;             // kTile exp(-kLast), rounded up
  double dropped = 0;
  while (bin > 0) {
    // Of the gradient, K |f_i - f_j| <= max(1, D) exp(-D^2 / 2) for all pairs at least D apart.
    const double squared = 2.0 * (bin - 1) / kPerUnit;
    const double moment = p.gradient && squared > 1 ? __builtin_sqrt(squared) : 1;
    dropped += histogram[bin - 1] * weight * moment;
    if (dropped > p.tolerance) break;
    weight *= kWiden;
    --bin;
  }
  return T(bin) / kPerUnit;
}

// Tiles of [begin, end) that are within reach of the tile or have it within theirs.
template <typename T>
int keep_tiles(const ExactProblem<T>& p, int64_t tile, int64_t begin, int64_t end, int64_t* kept) {
  constexpr int W = kLanes<T>;
  alignas(kExactAlign) T distances[kExactGroup + W];
  const int64_t first = begin / W * W;  // whole vectors of boxes
  for (int64_t j = first; j < end; j += W) {
    store<W>(distances + (j - first), box_distances(p, tile, j));
  }
  int count = 0;
  for (int64_t j = begin; j < end; ++j) {
    kept[count] = j;
    const T reach = p.reach[j] > p.reach[tile] ? p.reach[j] : p.reach[tile];
    count += distances[j - first] < reach;
  }
  return count;
}

// sums[c, i] += sum_j P[j, i] v[j, c] for C channels from `first` on and a group of pixels i;
// values[t] are rows of tile t. At most 128 terms meet in a register, at most kExactGroup such sums
// in `sums`, all of these in double: rounding stays below that of a plain float32 product.
template <typename T, int C>
void accumulate(const T* block, const T* const* values, int tiles, int64_t first, int64_t channels,
                T* sums) {
  constexpr int W = kLanes<T>;
  Vec<T, W> y[C][kVectors] = {};
  for (int t = 0; t < tiles; ++t) {
    const T* row = values[t] + first;
    for (int j = 0; j < kTile; ++j, row += channels, block += kTile) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<T, W> p = load<W>(block + v * W);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) y[c][v] += p * row[c];
      }
    }
  }
  sums += first * kTile;
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c, sums += kTile) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store<W>(sums + v * W, load<W>(sums + v * W) + y[c][v]);
  }
}

template <typename T>
using Accumulate = void (*)(const T*, const T* const*, int, int64_t, int64_t, T*);

template <typename T, int... C>
constexpr Accumulate<T> pick(int64_t count, std::integer_sequence<int, C...>) {
  constexpr Accumulate<T> table[] = {&accumulate<T, C + 1>...};
  return table[count - 1];
}

template <typename T>
void accumulate_all(const T* block, const T* const* values, int tiles, int64_t channels, T* sums) {
  // Blocks of nearly equal size: 19 channels are 7 + 6 + 6, not 8 + 8 + 3.
  const int64_t blocks = (channels + kMaxBlock - 1) / kMaxBlock;
  const int64_t smaller = channels / blocks, larger_blocks = channels % blocks;
  int64_t first = 0, size = 0;
  for (int64_t b = 0; b < blocks; ++b, first += size) {
    size = smaller + (b < larger_blocks);
    const auto run = pick<T>(size, std::make_integer_sequence<int, kMaxBlock>{});
    for (int i = 0; i < kTile; i += kGroup<T>) {
      run(block + i, values, tiles, first, channels, sums + i);
    }
  }
}

// What the tiles of one group receive from another: [rows, kTile] for each tile that was used.
template <typename T>
struct GroupSums {
  T* memory;
  int64_t first, size;  // the group's first tile, elements per tile
  bool used[kExactGroup];

  T* of(int64_t tile) {
    T* sums = memory + (tile - first) * size;
    if (!used[tile - first]) __builtin_memset(sums, 0, size * sizeof(T));
    used[tile - first] = true;
    return sums;
  }

  void add_to(double* totals) const {
    for (int64_t k = 0; k < kExactGroup; ++k) {
      if (!used[k]) continue;
      double* total = totals + (first + k) * size;
      for (int64_t m = 0; m < size; ++m) total[m] += memory[k * size + m];
    }
  }
};

// Tile j and up to kBatch tiles i: what all of these send to j and, but for j itself, receive.
template <typename T>
void filter_batch(const ExactProblem<T>& p, int64_t j, const int64_t* i, int tiles, T* scratch,
                  GroupSums<T>& sums_i, GroupSums<T>& sums_j) {
  alignas(kExactAlign) T block[kBatch][kTile * kTile];
  alignas(kExactAlign) T transposed[kTile * kTile];
  const auto rows_of = [&](int64_t tile) { return p.tile_values + tile * kTile * p.channels; };
  const T* rows[kBatch];
  for (int t = 0; t < tiles; ++t) {
    kernel_block(p, j, i[t], scratch, block[t]);
    rows[t] = rows_of(i[t]);
  }
  accumulate_all(block[0], rows, tiles, p.channels, sums_j.of(j));
  rows[0] = rows_of(j);
  for (int t = 0; t < tiles; ++t) {
    if (i[t] == j) continue;
    transpose_block(block[t], transposed);
    accumulate_all(transposed, rows, 1, p.channels, sums_i.of(i[t]));
  }
}

// batch(j, tiles i, how many, scratch, sums of i's group, sums of j's) for all tiles j of group b
// and those of group a that it sees.
template <typename T, typename Batch>
SEGFAST_INLINE void visit_pairs(const ExactProblem<T>& p, int64_t a, int64_t b, void* scratch,
                                const Batch& batch) {
  const int64_t group = exact_group(p.tiles), size = p.rows * kTile;
  T* memory = static_cast<T*>(scratch);
  GroupSums<T> sums_a{memory, a * group, size, {}};
  GroupSums<T> sums_b{memory + group * size, b * group, size, {}};
  T* centred = memory + 2 * group * size;
  const int64_t end_a = (a + 1) * group < p.tiles ? (a + 1) * group : p.tiles;
  const int64_t end_b = (b + 1) * group < p.tiles ? (b + 1) * group : p.tiles;

  for (int64_t j = b * group; j < end_b; ++j) {
    int64_t kept[kExactGroup];
    const int count = keep_tiles(p, j, a * group, a == b ? j + 1 : end_a, kept);
    for (int k = 0; k < count; k += kBatch) {
      batch(j, kept + k, count - k < kBatch ? count - k : kBatch, centred, sums_a, sums_b);
    }
  }
  sums_a.add_to(p.sums);
  sums_b.add_to(p.sums);
}

template <typename T>
void filter(const ExactProblem<T>& p, int64_t a, int64_t b, void* scratch) {
  visit_pairs(p, a, b, scratch,
              [&](int64_t j, const int64_t* i, int tiles, T* centred, auto& sums_i, auto& sums_j) {
                filter_batch(p, j, i, tiles, centred, sums_i, sums_j);
              });
}

template <typename T>
void gradient(const ExactProblem<T>& p, int64_t a, int64_t b, void* scratch) {
  visit_pairs(p, a, b, scratch,
              [&](int64_t j, const int64_t* i, int tiles, T* centred, auto& sums_i, auto& sums_j) {
                for (int t = 0; t < tiles; ++t) {
                  gradient_pair(p, j, i[t], centred, sums_j.of(j),
                                i[t] == j ? nullptr : sums_i.of(i[t]));
                }
              });
}

template <typename T>
void reach(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) p.reach[tile] = reach_of(p, tile);
  const int64_t size = p.rows * kTile;
  __builtin_memset(p.sums + begin * size, 0, (end - begin) * size * sizeof(double));
}

template <typename T>
void unpack(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t* order = p.order + tile * kTile;
    const double* sums = p.sums + tile * p.rows * kTile;
    const int64_t count = p.pixels - tile * kTile < kTile ? p.pixels - tile * kTile : kTile;
    for (int64_t c = 0; c < p.rows; ++c) {
      T* out = p.out + c * p.pixels;
      for (int64_t s = 0; s < count; ++s) out[order[s]] = static_cast<T>(sums[c * kTile + s]);
    }
  }
}

}  // namespace

extern const ExactKernels<float> exact_kernels_f32 = {start<float>, split<float>,  pack<float>,
                                                      reach<float>, filter<float>, gradient<float>,
                                                      unpack<float>};
extern const ExactKernels<double> exact_kernels_f64 = {
    start<double>,  split<double>,    pack<double>,  reach<double>,
    filter<double>, gradient<double>, unpack<double>};

}  // namespace SEGFAST_ISA
}  // namespace segfast
