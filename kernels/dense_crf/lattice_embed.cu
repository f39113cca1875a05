// Where pixels lie on the lattice: features, the layout of the keys, keys and weights.
#include "dense_crf.cuh"

namespace segfast {
namespace {

template <typename T>
__global__ void features_kernel(const __grid_constant__ FeatureSize s, Divider by_width,
                                Divider by_pixels, Divider by_dims,
                                const T* __restrict__ image,  // [B, C, H W]
                                T* __restrict__ features) {   // [B, 2 + C, H W]
  const int64_t at = thread_index(), pixels = s.height * s.width, dims = s.channels + 2;
  if (at >= s.images * dims * pixels) return;
  const int64_t plane = by_pixels(at), pixel = at - plane * pixels;
  const int64_t b = by_dims(plane);
  const int f = static_cast<int>(plane - b * dims);
  const int64_t y = by_width(pixel);
  const T value = f == 0   ? static_cast<T>(pixel - y * s.width)
                  : f == 1 ? static_cast<T>(y)
                           : image[(b * s.channels + f - 2) * pixels + pixel];
  features[at] = value / static_cast<T>(s.sigma[f]);
}

// ----------------------------------------------------------------------------------------- plan

template <typename T>
struct Range {
  T low, high;  // NaN where a value is NaN or infinite
};

template <typename T>
__device__ Range<T> joined(const Range<T>& a, const Range<T>& b) {
  const T poison = (a.low - a.low) + (b.low - b.low) + (a.high - a.high) + (b.high - b.high);
  return {(a.low < b.low ? a.low : b.low) + poison, (a.high > b.high ? a.high : b.high) + poison};
}

template <typename T>
__device__ Range<T> joined_in_warp(Range<T> r) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    r = joined(r,
               {__shfl_xor_sync(kAllLanes, r.low, step), __shfl_xor_sync(kAllLanes, r.high, step)});
  }
  return r;
}

// One warp for each (plane [B d], chunk).
template <typename T>
__global__ void range_kernel(int64_t planes, int64_t chunks, int64_t pixels,
                             const T* __restrict__ features,   // [planes, pixels]
                             Range<T>* __restrict__ ranges) {  // [planes, chunks]
  const int64_t warp = thread_index() / 32;
  if (warp >= planes * chunks) return;
  const int64_t plane = warp / chunks, first = (warp - plane * chunks) * kRangePixels;
  const int64_t end = first + kRangePixels < pixels ? first + kRangePixels : pixels;
  const T* from = features + plane * pixels;
  Range<T> range = {from[first], from[first]};
  for (int64_t i = first + threadIdx.x % 32; i < end; i += 32)
    range = joined(range, {from[i], from[i]});
  range = joined_in_warp(range);
  if (threadIdx.x % 32 == 0) ranges[warp] = range;
}

constexpr int kPlanWarps = 8;

// One block. Images with a value that is not finite have no place on the lattice and no say.
template <typename T>
__global__ void plan_kernel(LatticeSize s, int64_t chunks,
                            const Range<T>* __restrict__ ranges,  // [B, d, chunks]
                            KeyPlan* __restrict__ plan,
                            int64_t* __restrict__ state) {  // [kFinite + B]
  __shared__ double low[kMaxFeatures], high[kMaxFeatures];
  __shared__ CoordinateBits bits[kMaxFeatures];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t each = s.dims * chunks;
  for (int64_t b = warp; b < s.images; b += kPlanWarps) {
    T poison = 0;
    for (int64_t i = lane; i < each; i += 32) poison += ranges[b * each + i].low * T(0);
    const int finite = __all_sync(kAllLanes, poison == 0);
    if (lane == 0) state[kFinite + b] = finite;
  }
  __syncthreads();
  for (int f = warp; f < s.dims; f += kPlanWarps) {
    Range<T> range = {0, 0};
    bool any = false;
    for (int64_t i = lane; i < s.images * chunks; i += 32) {
      const int64_t b = i / chunks;
      if (!state[kFinite + b]) continue;
      const Range<T> part = ranges[b * each + f * chunks + i - b * chunks];
      range = any ? joined(range, part) : part;
      any = true;
    }
    const unsigned with = __ballot_sync(kAllLanes, any);  // others take what one of these has
    const int source = with ? __ffs(static_cast<int>(with)) - 1 : 0;
    const Range<T> some = {__shfl_sync(kAllLanes, range.low, source),
                           __shfl_sync(kAllLanes, range.high, source)};
    range = joined_in_warp(any ? range : some);
    if (lane == 0) {
      low[f] = range.low;
      high[f] = range.high;
    }
  }
  __syncthreads();
  const int j = threadIdx.x;
  bool far = false;
  if (j < s.dims) {
    // |e_j| <= sum_k |c_k| + j |c_j|: require_reach of _dense_crf_terms.py
    double reach = 0, own = 0;
    for (int k = 0; k < s.dims; ++k) {
      const double farthest = -low[k] > high[k] ? -low[k] : high[k];
      const double c = (farthest < 0 ? -farthest : farthest) * lattice_scale<double>(s.dims, k);
      reach += c;
      if (k == j) own = (j + 1) * c;
    }
    far = !(reach + own <= kCoordinateLimit<T>);
    bits[j] = far ? CoordinateBits{0, 1}
                  : coordinate_bits(coordinate_range(low, high, s.dims, j), s.dims);
  }
  const bool too_far = __syncthreads_or(far);
  if (j != 0) return;
  WordPacker packer{kKeyBits};
  for (int i = 0; i < s.dims; ++i) {
    plan->layout.origin[i] = bits[i].origin;
    packer.put(bits[i].bits, &plan->layout.word[i], &plan->layout.shift[i]);
  }
  int image_bits = 1;
  while ((s.images - 1) >> image_bits) ++image_bits;
  packer.put(image_bits, &plan->image_word, &plan->image_shift);
  plan->layout.dims = s.dims;
  plan->layout.words = packer.words;
  state[kVertices] = 0;
  state[kWords] = packer.words;
  state[kStatus] = (packer.words > s.words ? kTooWide : 0) + (too_far ? kTooFar : 0);
}

// ---------------------------------------------------------------------------------------- embed

constexpr int kEmbedBlock = 64;

// The work arrays of a thread: columns of shared memory, since registers have no index.
template <typename T>
struct Columns {
  T* offset;  // e - rem0 at first
  int* rem0;
  int* axis;  // of each rank; wrapped, its rem0 is one period off: kUp or kDown
  static constexpr int kUp = 64, kDown = 128;

  __device__ explicit Columns(int axes)
      : offset(dynamic_shared<T>() + threadIdx.x),
        rem0(reinterpret_cast<int*>(dynamic_shared<T>() + axes * kEmbedBlock) + threadIdx.x),
        axis(rem0 + axes * kEmbedBlock) {}
  static size_t bytes(int axes) { return axes * kEmbedBlock * (sizeof(T) + 2 * sizeof(int)); }
  static __device__ int at(int i) { return i * kEmbedBlock; }
};

template <typename T>
struct Scales {
  T at[kMaxFeatures];
};

// README.md, "Simplex"; lattice_cpu.cpp does the same with vectors.
template <typename T>
__device__ void enclose(const Columns<T>& c, int d, const Scales<T>& scale, const T* feature,
                        int64_t stride, bool usable) {
  T sum = 0;
  for (int j = d; j > 0; --j) {
    const T value = usable ? feature[(j - 1) * stride] * scale.at[j - 1] : T(0);
    c.offset[c.at(j)] = sum - value * T(j);
    sum += value;
  }
  c.offset[0] = sum;
  const T down = T(1) / T(d + 1);
  int total = 0;
  for (int i = 0; i <= d; ++i) {
    const T nearest = rint(c.offset[c.at(i)] * down);
    const int n = static_cast<int>(nearest);
    c.offset[c.at(i)] -= nearest * T(d + 1);
    c.rem0[c.at(i)] = n * (d + 1);
    total += n;
  }
  total = total > d ? d : total < -d ? -d : total;  // whatever rounding did, ranks stay in range
  for (int i = 0; i <= d; ++i) {
    const T own = c.offset[c.at(i)];
    int rank = total;
    for (int j = 0; j <= d; ++j) {
      const T other = c.offset[c.at(j)];
      rank += other > own || (other == own && j < i);
    }
    const int wrap = rank < 0 ? d + 1 : rank > d ? -(d + 1) : 0;
    c.rem0[c.at(i)] += wrap;
    c.axis[c.at(rank + wrap)] = i | (wrap > 0 ? c.kUp : wrap < 0 ? c.kDown : 0);
  }
}

// One pixel. Where there is no lattice every pixel is at the origin, and its keys are counted from
// there: the others may all be so far away that fields would run into the next image's.
template <typename T>
__global__ void embed_kernel(LatticeSize s, Divider by_pixels,
                             const __grid_constant__ Scales<T> scales,
                             const T* __restrict__ features,  // [B, d, N]
                             const KeyPlan* __restrict__ plan,
                             const int64_t* __restrict__ state,  // [kFinite + B]
                             int64_t* __restrict__ keys,         // [words, M]
                             T* __restrict__ weight) {           // [B N, K]
  const int64_t point = thread_index();
  if (point >= lattice_points(s)) return;
  const int d = s.dims;
  const int64_t b = by_pixels(point), entry = point * (d + 1);
  const Columns<T> c(d + 1);
  const bool usable = !(state[kStatus] & kTooFar) && state[kFinite + b];
  enclose(c, d, scales, features + b * d * s.pixels + point - b * s.pixels, s.pixels, usable);

  const T down = T(1) / T(d + 1);
  const auto t = [&](int rank) {
    const int code = c.axis[c.at(rank)];
    const T wrap = code & c.kUp ? T(d + 1) : code & c.kDown ? -T(d + 1) : T(0);
    return (c.offset[c.at(code & (c.kUp - 1))] - wrap) * down;
  };
  T after = t(d);
  weight[entry] = 1 + after - t(0);
  for (int k = 1; k <= d; ++k) {
    const T before = t(d - k);
    weight[entry + k] = before - after;
    after = before;
  }

  // Vertex k + 1 is vertex k plus 1 everywhere, less d + 1 on the axis of rank d - k.
  for (int w = 0; w < s.words; ++w) {
    uint64_t key = 0, ones = 0;
    if (plan->image_word == w) key = static_cast<uint64_t>(b) << plan->image_shift;
    for (int i = 0; i < d; ++i) {
      if (plan->layout.word[i] != w) continue;
      const int64_t origin = usable ? plan->layout.origin[i] : -coordinate_margin(d);
      const uint64_t field = static_cast<uint64_t>(c.rem0[c.at(i)] - origin);
      key += field << plan->layout.shift[i];
      ones += uint64_t{1} << plan->layout.shift[i];
    }
    int64_t* to = keys + w * lattice_entries(s) + entry;
    to[0] = static_cast<int64_t>(key);
    for (int k = 0; k < d; ++k) {
      const int a = c.axis[c.at(d - k)] & (c.kUp - 1);
      key += ones;
      if (a < d && plan->layout.word[a] == w) key -= uint64_t(d + 1) << plan->layout.shift[a];
      to[k + 1] = static_cast<int64_t>(key);
    }
  }
}

}  // namespace

int lattice_features_cuda(const FeatureSize& s, const void* image, void* features,
                          CUstream_st* stream) {
  const int64_t dims = s.channels + 2, pixels = s.height * s.width;
  const int64_t count = s.images * dims * pixels;
  if (count == 0) return cudaSuccess;
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    return launch(features_kernel<T>, blocks_for(count, kBlock), kBlock, 0, stream, s,
                  Divider(s.width), Divider(pixels), Divider(dims), static_cast<const T*>(image),
                  static_cast<T*>(features));
  });
}

int lattice_plan_cuda(const LatticeSize& s, const void* features, void* ranges, KeyPlan* plan,
                      int64_t* state, CUstream_st* stream) {
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    const int64_t planes = s.images * s.dims, chunks = ceil_div(s.pixels, kRangePixels);
    auto* found = static_cast<Range<T>*>(ranges);
    const int error =
        launch(range_kernel<T>, blocks_for(planes * chunks * 32, kBlock), kBlock, 0, stream, planes,
               chunks, s.pixels, static_cast<const T*>(features), found);
    if (error != cudaSuccess) return error;
    return launch(plan_kernel<T>, {1}, kPlanWarps * 32, 0, stream, s, chunks, found, plan, state);
  });
}

int lattice_embed_cuda(const LatticeSize& s, const void* features, const KeyPlan* plan,
                       const int64_t* state, int64_t* keys, void* weight, CUstream_st* stream) {
  if (lattice_points(s) == 0) return cudaSuccess;
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    Scales<T> scales;
    for (int i = 0; i < s.dims; ++i) scales.at[i] = lattice_scale<T>(s.dims, i);
    return launch(embed_kernel<T>, blocks_for(lattice_points(s), kEmbedBlock), kEmbedBlock,
                  Columns<T>::bytes(s.dims + 1), stream, s, Divider(s.pixels), scales,
                  static_cast<const T*>(features), plan, state, keys, static_cast<T*>(weight));
  });
}

}  // namespace segfast
