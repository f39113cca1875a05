// The arguments of segfast::_max_pool2d and its relatives, checked, as the kernels want them: what
// the bindings of all devices share.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/check.h"
#include "kernels/max_unpool/max_unpool.h"

namespace segfast {

using torch::headeronly::DeviceType;
using torch::headeronly::MemoryFormat;
using torch::stable::Device;
using Ints = std::vector<int64_t>;
using Sizes = std::array<int64_t, 4>;

constexpr int64_t kMostSize = (int64_t{1} << 31) - 1;  // of a stride or dilation, as in Python

// ----------------------------------------------------------------------------- memory formats

// As at::suggest_memory_format: ambiguous shapes are what their strides say.
inline bool suggests_channels_last(const Tensor& t) {
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least || (d == 0 && least == t.stride(1))) return false;
    least = stride * std::max<int64_t>(size, 1);
  }
  return t.stride(1) != 0;
}

inline bool is_dense(const Tensor& t, bool channels_last) {
  int64_t expected = 1;
  for (int d : channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return t.numel() == 0;
    expected *= t.size(d);
  }
  return true;
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_format(const Tensor& t, bool channels_last) {
  if (is_dense(t, channels_last)) return t;
  return torch::stable::contiguous(t, format_of(channels_last));
}

// --------------------------------------------------------------------------------------- calls

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
  }
}

struct Call {
  Pooling p{};
  ScalarType scalar;
  Device device;
  bool channels_last;  // the memory format of the results; p.channels_last: how they are walked

  Call(DeviceType on, const Tensor& first, const char* name);
  void set_sizes(const Ints& input, const Ints& output);
  void set_geometry(const Ints& kernel, const Ints& stride, const Ints& padding,
                    const Ints& dilation);

  Sizes x_sizes() const { return {p.batch, p.channels, p.rows.input, p.columns.input}; }
  Sizes y_sizes() const { return {p.batch, p.channels, p.rows.output, p.columns.output}; }
  Sizes packed_sizes() const {
    const int bits = offset_bits(p.rows.kernel * p.columns.kernel);
    return {p.batch, p.channels, p.rows.output, packed_width(p.columns.output, bits)};
  }

  void check_map(const Tensor& t, const char* name) const;
  void check_sizes(const Tensor& t, ScalarType dtype, const Sizes& sizes, const char* name) const;
  Tensor empty(const Sizes& sizes, ScalarType dtype) const {
    return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt, device,
                                std::nullopt, format_of(channels_last));
  }
  Tensor empty_x() const { return empty(x_sizes(), scalar); }
  Tensor empty_y() const { return empty(y_sizes(), scalar); }
  Tensor empty_packed() const { return empty(packed_sizes(), ScalarType::Byte); }
  // As the kernels walk it.
  Tensor in_order(const Tensor& t) const { return in_format(t, p.channels_last); }
};

inline Call::Call(DeviceType on, const Tensor& first, const char* name)
    : scalar(first.scalar_type()), device(first.device()) {
  STD_TORCH_CHECK(device.type() == on, name, " is on the wrong device");
  check_map(first, name);
  channels_last = suggests_channels_last(first);
  p.batch = first.size(0);
  p.channels = first.size(1);
  p.channels_last = channels_last && p.channels > 1;
}

inline void Call::check_map(const Tensor& t, const char* name) const {
  STD_TORCH_CHECK(t.device() == device, name, " must be on the device of the first tensor");
  STD_TORCH_CHECK(t.dim() == 4, name, " must be [N, C, H, W], got ", t.dim(), " dimensions");
}

inline void Call::check_sizes(const Tensor& t, ScalarType dtype, const Sizes& sizes,
                              const char* name) const {
  check_map(t, name);
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(t.size(d) == sizes[d], name, " must have size ", sizes[d], " in dimension ", d,
                    ", got ", t.size(d));
  }
}

inline void Call::set_sizes(const Ints& input, const Ints& output) {
  STD_TORCH_CHECK(input.size() == 2 && output.size() == 2, "sizes must be pairs");
  for (int64_t size : {input[0], input[1], output[0], output[1]}) {
    STD_TORCH_CHECK(size >= 0 && size < (int64_t{1} << 40), "a size must not be ", size);
  }
  p.rows.input = input[0];
  p.columns.input = input[1];
  p.rows.output = output[0];
  p.columns.output = output[1];
}

inline void Call::set_geometry(const Ints& kernel, const Ints& stride, const Ints& padding,
                               const Ints& dilation) {
  for (const Ints* pair : {&kernel, &stride, &padding, &dilation}) {
    STD_TORCH_CHECK(pair->size() == 2, "kernel, stride, padding and dilation must be pairs");
  }
  for (int d = 0; d < 2; ++d) {
    PoolAxis& axis = d == 0 ? p.rows : p.columns;
    axis.kernel = kernel[d];
    axis.stride = stride[d];
    axis.padding = padding[d];
    axis.dilation = dilation[d];
    STD_TORCH_CHECK(axis.kernel >= 1 && axis.kernel <= 256 && axis.stride >= 1 &&
                        axis.stride <= kMostSize && axis.dilation >= 1 &&
                        axis.dilation <= kMostSize && axis.padding >= 0,
                    "kernel (at most 256), stride and dilation must be at least 1, padding at "
                    "least 0, all below 2^31; got ",
                    axis.kernel, ", ", axis.stride, ", ", axis.dilation, ", ", axis.padding);
    STD_TORCH_CHECK(2 * axis.padding <= window_extent(axis),
                    "padding must be at most half of the window");
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= 256, "a window must have at most 256 positions, got ",
                  kernel[0] * kernel[1]);
}

// ----------------------------------------------------------------------------- by the operator

inline Call pool_call(DeviceType on, const Tensor& x, const Ints& kernel, const Ints& stride,
                      const Ints& padding, const Ints& dilation, const Ints& output_size) {
  Call call(on, x, "x");
  call.p.dtype = dtype_of(x, "x");
  call.set_sizes({x.size(2), x.size(3)}, output_size);
  call.set_geometry(kernel, stride, padding, dilation);
  for (const PoolAxis& axis : {call.p.rows, call.p.columns}) {
    STD_TORCH_CHECK(
        axis.output == 0 || (axis.output - 1) <= (axis.input - 1 + axis.padding) / axis.stride,
        "every window must begin inside x or its padding");
  }
  return call;
}

// Of max_pool_backward and max_unpool.
inline Call unpool_call(DeviceType on, const Tensor& y, const Tensor& packed, const Ints& kernel,
                        const Ints& stride, const Ints& padding, const Ints& dilation,
                        const Ints& size) {
  Call call(on, y, "y");
  call.p.dtype = dtype_of(y, "y");
  call.set_sizes(size, {y.size(2), y.size(3)});
  call.set_geometry(kernel, stride, padding, dilation);
  call.check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline Call gather_call(DeviceType on, const Tensor& x, const Tensor& packed, const Ints& kernel,
                        const Ints& stride, const Ints& padding, const Ints& dilation,
                        int64_t output_width) {
  Call call(on, x, "x");
  call.check_map(packed, "packed");
  call.p.dtype = dtype_of(x, "x");
  call.set_sizes({x.size(2), x.size(3)}, {packed.size(2), output_width});
  call.set_geometry(kernel, stride, padding, dilation);
  call.check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline Call unpool_indices_call(DeviceType on, const Tensor& y, const Tensor& indices,
                                const Ints& size) {
  Call call(on, y, "y");
  call.p.dtype = dtype_of(y, "y");
  call.set_sizes(size, {y.size(2), y.size(3)});
  call.check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  return call;
}

inline Call gather_indices_call(DeviceType on, const Tensor& x, const Tensor& indices) {
  Call call(on, x, "x");
  call.check_map(indices, "indices");
  call.p.dtype = dtype_of(x, "x");
  call.set_sizes({x.size(2), x.size(3)}, {indices.size(2), indices.size(3)});
  call.check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  return call;
}

inline Call pack_call(DeviceType on, const Tensor& indices, const Ints& kernel, const Ints& stride,
                      const Ints& padding, const Ints& dilation, const Ints& input_size) {
  Call call(on, indices, "indices");
  call.set_sizes(input_size, {indices.size(2), indices.size(3)});
  call.set_geometry(kernel, stride, padding, dilation);
  call.check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  STD_TORCH_CHECK(indices.numel() == 0 || (input_size[0] > 0 && input_size[1] > 0),
                  "indices into an empty input");
  return call;
}

// Its result is contiguous.
inline Call unpack_call(DeviceType on, const Tensor& packed, const Ints& kernel, const Ints& stride,
                        const Ints& padding, const Ints& dilation, const Ints& input_size,
                        int64_t output_width) {
  Call call(on, packed, "packed");
  call.channels_last = call.p.channels_last = false;
  call.set_sizes(input_size, {packed.size(2), output_width});
  call.set_geometry(kernel, stride, padding, dilation);
  call.check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline void check_none_in_other_windows(int64_t count, const Pooling& p) {
  if (count == 0) return;
  throw std::runtime_error("indices must lie in their window: " + std::to_string(count) +
                           " are no position of theirs in a pool over " +
                           std::to_string(p.rows.input) + "x" + std::to_string(p.columns.input));
}

}  // namespace segfast
