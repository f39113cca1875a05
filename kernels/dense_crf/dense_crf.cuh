// What the CUDA kernels of the dense CRF share.
#pragma once

#include "dense_crf_cuda.h"
#include "divide.cuh"
#include "lanes.cuh"
#include "launch.cuh"

namespace segfast {
namespace {

constexpr int kBlock = 128;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Labels are worked on 16 bytes at a time: Vector<T>, kLanes<T> of them.
template <typename T>
using Vector = Lanes<T, kLanes<T>>;

template <typename T>
__device__ Vector<T> load_vector(const T* from) {
  return load<kLanes<T>>(from);
}
// to += a v
template <typename T>
__device__ void add_times(Vector<T>& to, T a, const Vector<T>& v) {
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) to.at[i] += a * v.at[i];
}

// f(a T) for the dtype; anything but f32 and f64 is refused.
template <typename F>
int for_real(Dtype dtype, const F& f) {
  if (dtype == Dtype::f32) return f(float{});
  if (dtype == Dtype::f64) return f(double{});
  return cudaErrorInvalidValue;
}

// Tiles of entries, in the order of the keys; none has entries of two images.
struct Tiles {
  int64_t count, per_image, entries;  // entries: of an image
  Divider by_image;

  explicit Tiles(const LatticeSize& s)
      : count(s.images * tiles_per_image(s)),
        per_image(tiles_per_image(s)),
        entries(s.pixels * (s.dims + 1)),
        by_image(per_image > 0 ? per_image : 1) {}
};

__device__ inline int count_bits(uint64_t mask) {
  return __popc(static_cast<unsigned>(mask)) + __popc(static_cast<unsigned>(mask >> 32));
}

inline Grid blocks_for(int64_t threads, int block) { return {ceil_div(threads, block)}; }

}  // namespace
}  // namespace segfast
