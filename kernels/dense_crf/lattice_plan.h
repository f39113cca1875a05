// How wide the keys of lattice vertices must be, for the kernels of the CPU and of CUDA alike.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SEGFAST_ANYWHERE __host__ __device__
#else
#define SEGFAST_ANYWHERE
#endif

namespace segfast {
namespace {  // compiled once per instruction set

// Coordinates beyond it are not rounded exactly: COORDINATE_LIMIT of _dense_crf_terms.py.
template <typename T>
constexpr double kCoordinateLimit = sizeof(T) == 4 ? 1 << 22 : 1 << 30;

// scale_i of the embedding, i in [0, d). sqrt(2/3) (d + 1) is rounded to T first, as in the
// published code: positions on the border of a simplex then fall to the same side.
template <typename T>
SEGFAST_ANYWHERE inline T lattice_scale(int dims, int i) {
  const double step = static_cast<T>(0.81649658092772603 * (dims + 1));
  return static_cast<T>(step * (1 / sqrt((i + 1.0) * (i + 2.0))));
}

struct CoordinateRange {
  double low, high;
};

// Of e_j = sum_{k > j} c_k - j c_j by interval arithmetic, c_k = f_{k-1} scale_{k-1}.
SEGFAST_ANYWHERE inline CoordinateRange coordinate_range(const double* low, const double* high,
                                                         int dims, int j) {
  CoordinateRange e = {0, 0};
  for (int k = j < 1 ? 1 : j; k <= dims; ++k) {
    const double factor = lattice_scale<double>(dims, k - 1) * (k == j ? -j : 1);
    const double a = low[k - 1] * factor, b = high[k - 1] * factor;
    e.low += a < b ? a : b;
    e.high += a < b ? b : a;
  }
  return e;
}

struct CoordinateBits {
  int64_t origin;
  int bits;
};

// Room on both sides: rounding moves a coordinate by up to d + 1, a neighbour's is d further.
SEGFAST_ANYWHERE constexpr int coordinate_margin(int dims) { return 3 * (dims + 1); }

SEGFAST_ANYWHERE inline CoordinateBits coordinate_bits(const CoordinateRange& e, int dims) {
  const int margin = coordinate_margin(dims);
  const int64_t first = static_cast<int64_t>(floor(e.low)) - margin;
  const int64_t last = static_cast<int64_t>(ceil(e.high)) + margin;
  int bits = 1;
  while ((last - first) >> bits) ++bits;
  return {first, bits};
}

// Puts fields of bits side by side into words.
struct WordPacker {
  int word_bits;
  int words = 1, used = 0;  // used: of the last word

  SEGFAST_ANYWHERE void put(int bits, int* word, int* shift) {
    if (used + bits > word_bits) {
      ++words;
      used = 0;
    }
    *word = words - 1;
    *shift = used;
    used += bits;
  }
};

}  // namespace
}  // namespace segfast
