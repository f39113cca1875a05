// Exact Gaussian filter, one copy per instruction set. The contract is in exact.h.
//
// A tile's 32 output pixels are vector lanes. Per batch of kept tiles: the kernel block P [j, i]
// goes to a scratch that stays in the first-level cache, then y[c, i] += P[j, i] v[j, c] runs with
// the sums of a channel block in registers.
#include "exact.h"
#include "exact_block.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kBatch = 4;  // tiles of pixels j in one block P
// Registers hold the sums of kMaxBlock channels for kVectors vectors of pixels i, as many values
// and one vector of P.
constexpr int kMaxBlock = kVectorRegisters == 32 ? 8 : 3;

template <typename T>
using KeyOf = std::make_unsigned_t<IntOf<T>>;

// An integer that orders as x does.
template <typename T>
SEGFAST_INLINE KeyOf<T> order_key(T x) {
  using U = KeyOf<T>;
  U bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  constexpr U kSign = U{1} << (8 * sizeof(U) - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

// Splits the slots [begin, end) at middle: smaller keys on the widest axis left, stable, ties in
// order.
template <typename T>
void split_range(const ExactProblem<T>& p, int64_t begin, int64_t middle, int64_t end) {
  using U = KeyOf<T>;
  const T* features = p.features;
  U* keys = static_cast<U*>(p.keys);
  int64_t* order = p.order;

  // The axis only decides how well the tiles fit: a sample is enough to choose it.
  const int64_t sample = (end - begin + 255) / 256;
  const T* axis = features;
  T widest = -1;
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* x = features + f * p.pixels;
    T low = x[order[begin]], high = low;
    for (int64_t s = begin; s < end; s += sample) {
      const T v = x[order[s]];
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    if (high - low > widest) {
      widest = high - low;
      axis = x;
    }
  }

  for (int64_t s = begin; s < end; ++s) keys[s] = order_key(axis[order[s]]);
  // The key of rank middle - begin, bit by bit: the largest pivot with at most that many below it.
  constexpr int64_t kCounted = 1 << 16;  // counted in a key's own width, which is faster
  const int64_t rank = middle - begin;
  int64_t below = 0;
  U pivot = 0;
  for (U bit = U{1} << (8 * sizeof(U) - 1); bit; bit >>= 1) {
    const U candidate = pivot | bit;
    int64_t count = 0;
    for (int64_t s = begin; s < end;) {
      const int64_t stop = end - s < kCounted ? end : s + kCounted;
      U in_part = 0;
      for (; s < stop; ++s) in_part += keys[s] < candidate;
      count += in_part;
    }
    if (count <= rank) {
      pivot = candidate;
      below = count;
    }
  }

  int64_t ties_left = rank - below, left = begin, right = middle;
  for (int64_t s = begin; s < end; ++s) {
    const bool tie = keys[s] == pivot;
    const bool goes_left = keys[s] < pivot || (tie && ties_left > 0);
    ties_left -= tie;
    p.spare[goes_left ? left : right] = order[s];
    left += goes_left;
    right += !goes_left;
  }
  __builtin_memcpy(order + begin, p.spare + begin, (end - begin) * sizeof(int64_t));
}

template <typename T>
constexpr T kInfinity = __builtin_inf();

// The tile's centre, the middle of its box, and what product form needs of its pixels. A tile too
// large for it, or unbounded, has a NaN for a centre.
template <typename T>
void pack_centred(const ExactProblem<T>& p, int64_t tile) {
  constexpr T kLowest = -kSmallRadius * kSmallRadius * 1.4426950408889634 / 2;
  const int64_t stride = exact_box_stride(p.tiles);
  T* centre = p.centres + tile * p.dims;
  T* centred = p.centred + tile * kTile * (p.dims + 1);
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* box = p.boxes + f * stride + tile;
    centre[f] = box[0] + (box[p.dims * stride] - box[0]) / 2;
  }
  centre_tile(p.tile_features + tile * kTile * p.dims, centre, p.dims, centred);
  bool small = true;
  for (int i = 0; i < kTile; ++i) small &= centred[p.dims * kTile + i] >= kLowest;
  if (!small) centre[0] = static_cast<T>(__builtin_nan(""));
}

// One tile: rows of features [F, 32] and of values [32, C], and the box around its pixels.
// A last tile that is not full repeats its last pixel with value 0. NaN features lose their payload
// (gaussian.h shifts it into the result); a tile with NaN or infinite content gets an unbounded
// box, so that no bound can leave out what the full sum would turn into NaN.
template <typename T>
void pack_tile(const ExactProblem<T>& p, int64_t tile) {
  const int64_t first = tile * kTile;
  const int64_t count = p.pixels - first < kTile ? p.pixels - first : kTile;
  const int64_t* order = p.order + first;
  const int64_t stride = exact_box_stride(p.tiles);
  T* lower = p.boxes + tile;
  T* upper = lower + p.dims * stride;
  bool finite = true;

  T* rows = p.tile_values + first * p.channels;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* values = p.values + c * p.pixels;
    for (int64_t s = 0; s < count; ++s) {
      const T v = values[order[s]];
      finite &= v - v == 0;
      rows[s * p.channels + c] = v;
    }
  }
  for (int64_t k = count * p.channels; k < kTile * p.channels; ++k) rows[k] = 0;

  T* packed = p.tile_features + first * p.dims;
  for (int64_t f = 0; f < p.dims; ++f) {
    const T* x = p.features + f * p.pixels;
    T low = kInfinity<T>, high = -kInfinity<T>;
    for (int64_t s = 0; s < kTile; ++s) {
      T v = x[order[s < count ? s : count - 1]];
      finite &= v - v == 0;
      if (v != v) v = static_cast<T>(__builtin_nan(""));
      packed[f * kTile + s] = v;
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    lower[f * stride] = low;
    upper[f * stride] = high;
  }
  if (finite) return;
  for (int64_t f = 0; f < p.dims; ++f) {
    lower[f * stride] = -kInfinity<T>;
    upper[f * stride] = kInfinity<T>;
  }
}

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
    dropped += histogram[bin - 1] * weight;
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
  alignas(kExactAlign) T distance[kExactGroup];
  for (int k = 0; k < end - begin; k += W) {
    store<W>(distance + k, box_distances(p, tile, begin + k));
  }
  int count = 0;
  for (int64_t j = begin; j < end; ++j) {
    kept[count] = j;
    const T far = p.reach[j] > p.reach[tile] ? p.reach[j] : p.reach[tile];
    count += distance[j - begin] < far;
  }
  return count;
}

// sums[c, i] += sum_j P[j, i] v[j, c] for C channels from `first` on and a group of pixels i;
// values[t] are rows of tile t.
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
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * channels / blocks, end = (b + 1) * channels / blocks;
    const auto run = pick<T>(end - first, std::make_integer_sequence<int, kMaxBlock>{});
    for (int i = 0; i < kTile; i += kGroup<T>) {
      run(block + i, values, tiles, first, channels, sums + i);
    }
  }
}

// What two groups of tiles send each other: sums [C, kTile] of T per tile, of those used.
template <typename T>
struct PairSums {
  const ExactProblem<T>& p;
  T* memory;
  bool used[2 * kExactGroup];

  T* of(int64_t slot) {
    const int64_t size = p.channels * kTile;
    T* sums = memory + slot * size;
    if (!used[slot]) __builtin_memset(sums, 0, size * sizeof(T));
    used[slot] = true;
    return sums;
  }

  void flush(int64_t slot, int64_t tile) {
    if (!used[slot]) return;
    const int64_t size = p.channels * kTile;
    const T* sums = memory + slot * size;
    double* total = p.sums + tile * size;
    for (int64_t k = 0; k < size; ++k) total[k] += sums[k];
  }
};

template <typename T>
void filter(const ExactProblem<T>& p, int64_t a, int64_t b, void* scratch) {
  alignas(kExactAlign) T block[kBatch * kTile * kTile];
  alignas(kExactAlign) T flipped[kTile * kTile];
  PairSums<T> sums{p, static_cast<T*>(scratch), {}};
  T* centred = sums.memory + 2 * kExactGroup * p.channels * kTile;
  int64_t kept[kExactGroup];
  const T* rows[kBatch];
  const int64_t first = a * kExactGroup, other = b * kExactGroup;
  const int64_t end = first + kExactGroup < p.tiles ? first + kExactGroup : p.tiles;
  const int64_t stop = other + kExactGroup < p.tiles ? other + kExactGroup : p.tiles;

  for (int64_t j = other; j < stop; ++j) {
    const int count = keep_tiles(p, j, first, a == b ? j + 1 : end, kept);
    for (int k = 0; k < count; k += kBatch) {
      const int tiles = count - k < kBatch ? count - k : kBatch;
      for (int t = 0; t < tiles; ++t) {
        kernel_block(p, j, kept[k + t], centred, block + t * kTile * kTile);
        rows[t] = p.tile_values + kept[k + t] * kTile * p.channels;
      }
      accumulate_all(block, rows, tiles, p.channels, sums.of(kExactGroup + j - other));
      const T* row = p.tile_values + j * kTile * p.channels;
      for (int t = 0; t < tiles; ++t) {
        if (kept[k + t] == j) continue;
        transpose_block(block + t * kTile * kTile, flipped);
        accumulate_all(flipped, &row, 1, p.channels, sums.of(kept[k + t] - first));
      }
    }
  }
  for (int64_t i = first; i < end; ++i) sums.flush(i - first, i);
  for (int64_t j = other; j < stop; ++j) sums.flush(kExactGroup + j - other, j);
}

template <typename T>
void reach(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) p.reach[tile] = reach_of(p, tile);
  const int64_t size = p.channels * kTile;
  __builtin_memset(p.sums + begin * size, 0, (end - begin) * size * sizeof(double));
}

template <typename T>
void unpack(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t* order = p.order + tile * kTile;
    const double* sums = p.sums + tile * p.channels * kTile;
    const int64_t count = p.pixels - tile * kTile < kTile ? p.pixels - tile * kTile : kTile;
    for (int64_t c = 0; c < p.channels; ++c) {
      T* out = p.out + c * p.pixels;
      for (int64_t s = 0; s < count; ++s) out[order[s]] = static_cast<T>(sums[c * kTile + s]);
    }
  }
}

template <typename T>
void start(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) p.order[s] = s;
}

template <typename T>
void split(const ExactProblem<T>& p, int64_t level, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    // Children of a range are the ranges 2k and 2k + 1 of the next level: the same formula.
    const int64_t first = k * p.tiles >> level;
    const int64_t middle = (2 * k + 1) * p.tiles >> (level + 1);
    const int64_t last = (k + 1) * p.tiles >> level;
    if (middle == first || middle == last) continue;
    const int64_t stop = last * kTile < p.pixels ? last * kTile : p.pixels;
    split_range(p, first * kTile, middle * kTile, stop);
  }
}

template <typename T>
void pack(const ExactProblem<T>& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    pack_tile(p, tile);
    if constexpr (kProductForm<T>) pack_centred(p, tile);
  }
}

}  // namespace

extern const ExactKernels<float> exact_kernels_f32 = {
    start<float>, split<float>, pack<float>, reach<float>, filter<float>, unpack<float>};
extern const ExactKernels<double> exact_kernels_f64 = {
    start<double>, split<double>, pack<double>, reach<double>, filter<double>, unpack<double>};

}  // namespace SEGFAST_ISA
}  // namespace segfast
