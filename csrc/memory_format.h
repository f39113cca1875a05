// Memory formats of maps [N, C, H, W].
#pragma once

#include <algorithm>
#include <array>

#include "csrc/allocate.h"
#include "csrc/check.h"
#include "dtype.h"

namespace segfast {

using torch::headeronly::DeviceType;
using torch::headeronly::MemoryFormat;
using Sizes = std::array<int64_t, 4>;  // N, C, H, W

struct Shape {
  Sizes sizes, strides;

  explicit Shape(const Tensor& t) {
    const auto size = t.sizes(), stride = t.strides();
    STD_TORCH_CHECK(size.size() == sizes.size(), "maps must be [N, C, H, W], got ", size.size(),
                    " dimensions");
    std::copy(size.begin(), size.end(), sizes.begin());
    std::copy(stride.begin(), stride.end(), strides.begin());
  }
};

// Dimensions, the fastest first.
constexpr std::array<int, 4> order_of(bool channels_last) {
  return channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0};
}

// As at::suggest_memory_format: ambiguous shapes are what their strides say.
inline bool suggests_channels_last(const Shape& t) {
  int64_t least = 0;
  for (int d : order_of(true)) {
    const int64_t size = t.sizes[d], stride = t.strides[d];
    if (size == 0 || stride < least || (d == 0 && least == t.strides[1])) return false;
    least = stride * std::max<int64_t>(size, 1);
  }
  return t.strides[1] != 0;
}

inline bool is_dense(const Shape& t, bool channels_last) {
  int64_t expected = 1;
  for (int d : order_of(channels_last)) {
    if (t.sizes[d] == 0) return true;
    if (t.sizes[d] != 1 && t.strides[d] != expected) return false;
    expected *= t.sizes[d];
  }
  return true;
}

inline Tensor in_format(const Tensor& t, bool channels_last) {
  if (is_dense(Shape(t), channels_last)) return t;
  return torch::stable::contiguous(
      t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Dense; the strides of dimensions of size 1 tell the format, too.
inline Tensor empty_in_format(const Sizes& sizes, ScalarType dtype, const Device& device,
                              bool channels_last) {
  Sizes strides;
  int64_t next = 1;
  for (int d : order_of(channels_last)) {
    strides[d] = next;
    next *= std::max<int64_t>(sizes[d], 1);
  }
  return empty_strided(sizes, strides, dtype, device);
}

}  // namespace segfast
