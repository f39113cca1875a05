// The arguments of segfast::_max_pool2d and its relatives, checked, as the kernels want them: what
// the bindings of all devices share.
#pragma once

#include <array>
#include <stdexcept>
#include <string>

#include "csrc/check.h"
#include "csrc/memory_format.h"
#include "kernels/max_unpool/max_unpool.h"

namespace segfast {

using Size = std::array<int64_t, 2>;  // height, width
// Height and width of each of kernel, stride, padding, dilation: as the operators take them, plain
// integers, which cost a third of four lists.
using Windows = std::array<int64_t, 8>;

constexpr int64_t kMostSize = (int64_t{1} << 31) - 1;  // of a stride or dilation, as in Python

// --------------------------------------------------------------------------------------- calls

inline std::string name_of(const Device& device) {
  const auto type = device.type();
  if (type == DeviceType::CPU) return "cpu";
  const std::string name =
      type == DeviceType::CUDA ? "cuda" : "device type " + std::to_string(static_cast<int>(type));
  return name + ":" + std::to_string(device.index());
}

struct Call {
  Pooling p{};
  ScalarType scalar;
  Device device;
  bool channels_last;  // the memory format of the results; p.channels_last: how they are walked

  Call(DeviceType on, const Tensor& first, const char* name);
  void set_dtype(const char* name) { p.dtype = dtype_of(scalar, name); }
  void set_sizes(const Size& input, const Size& output);
  void set_windows(const Windows& windows);

  Sizes x_sizes() const { return {p.batch, p.channels, p.rows.input, p.columns.input}; }
  Sizes y_sizes() const { return {p.batch, p.channels, p.rows.output, p.columns.output}; }
  Sizes packed_sizes() const { return {p.batch, p.channels, p.rows.output, packed_row(p)}; }

  Sizes sizes_of_map(const Tensor& t, const char* name) const;
  void check(const Tensor& t, ScalarType dtype, const Sizes& sizes, const char* name) const;
  Tensor empty(const Sizes& sizes, ScalarType dtype) const {
    return empty_in_format(sizes, dtype, device, channels_last);
  }
  Tensor empty_x() const { return empty(x_sizes(), scalar); }
  Tensor empty_y() const { return empty(y_sizes(), scalar); }
  Tensor empty_packed() const { return empty(packed_sizes(), ScalarType::Byte); }
  // As the kernels walk it.
  Tensor in_order(const Tensor& t) const { return in_format(t, p.channels_last); }
};

inline Call::Call(DeviceType on, const Tensor& first, const char* name)
    : scalar(first.scalar_type()), device(first.device()) {
  STD_TORCH_CHECK(device.type() == on, name, " must be on device ",
                  on == DeviceType::CPU ? "cpu" : "cuda", ", got one on ", name_of(device));
  sizes_of_map(first, name);
  const Shape shape(first);
  channels_last = suggests_channels_last(shape);
  p.batch = shape.sizes[0];
  p.channels = shape.sizes[1];
  p.channels_last = channels_last && p.channels > 1;
}

inline Sizes Call::sizes_of_map(const Tensor& t, const char* name) const {
  const Device found = t.device();
  STD_TORCH_CHECK(found == device, name, " must be on the device of the first tensor, ",
                  name_of(device), ", got one on ", name_of(found));
  const auto sizes = t.sizes();
  STD_TORCH_CHECK(sizes.size() == 4, name, " must be [N, C, H, W], got ", sizes.size(),
                  " dimensions");
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

inline void Call::check(const Tensor& t, ScalarType dtype, const Sizes& sizes,
                        const char* name) const {
  const Sizes found = sizes_of_map(t, name);
  check_dtype(t, dtype, name);
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(found[d] == sizes[d], name, " must have size ", sizes[d], " in dimension ", d,
                    ", got ", found[d]);
  }
}

inline void Call::set_sizes(const Size& input, const Size& output) {
  for (int64_t size : {input[0], input[1], output[0], output[1]}) {
    STD_TORCH_CHECK(size >= 0 && size < (int64_t{1} << 40),
                    "sizes of maps must be at least 0 and below 2^40, got ", size);
  }
  p.rows.input = input[0];
  p.columns.input = input[1];
  p.rows.output = output[0];
  p.columns.output = output[1];
}

inline void Call::set_windows(const Windows& windows) {
  for (int d = 0; d < 2; ++d) {
    PoolAxis& axis = d == 0 ? p.rows : p.columns;
    axis.kernel = windows[d];
    axis.stride = windows[2 + d];
    axis.padding = windows[4 + d];
    axis.dilation = windows[6 + d];
    STD_TORCH_CHECK(axis.kernel >= 1 && axis.kernel <= kMostPositions && axis.stride >= 1 &&
                        axis.stride <= kMostSize && axis.dilation >= 1 &&
                        axis.dilation <= kMostSize && axis.padding >= 0,
                    "kernel (at most 256), stride and dilation must be at least 1 and below 2^31, "
                    "padding at least 0; got ",
                    axis.kernel, ", ", axis.stride, ", ", axis.dilation, ", ", axis.padding);
    STD_TORCH_CHECK(axis.padding <= window_extent(axis) / 2,
                    "padding must be at most half of the window, ", window_extent(axis), ", got ",
                    axis.padding);
  }
  STD_TORCH_CHECK(positions(p) <= kMostPositions, "a window must have at most ", kMostPositions,
                  " positions, got ", positions(p));
}

// ----------------------------------------------------------------------------- by the operator

inline Call pool_call(DeviceType on, const Tensor& x, const Windows& windows,
                      const Size& output_size) {
  Call call(on, x, "x");
  call.set_dtype("x");
  const Sizes sizes = call.sizes_of_map(x, "x");
  call.set_sizes({sizes[2], sizes[3]}, output_size);
  call.set_windows(windows);
  for (const PoolAxis& axis : {call.p.rows, call.p.columns}) {
    STD_TORCH_CHECK(
        axis.output == 0 ||
            (axis.input > 0 && axis.output - 1 <= (axis.input - 1 + axis.padding) / axis.stride),
        "every window must begin inside x or its padding: ", axis.output, " windows, stride ",
        axis.stride, ", padding ", axis.padding, " over ", axis.input, " positions do not");
  }
  return call;
}

// Of max_pool_backward and max_unpool.
inline Call unpool_call(DeviceType on, const Tensor& y, const Tensor& packed,
                        const Windows& windows, const Size& size) {
  Call call(on, y, "y");
  call.set_dtype("y");
  const Sizes sizes = call.sizes_of_map(y, "y");
  call.set_sizes(size, {sizes[2], sizes[3]});
  call.set_windows(windows);
  call.check(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline Call gather_call(DeviceType on, const Tensor& x, const Tensor& packed,
                        const Windows& windows, int64_t output_width) {
  Call call(on, x, "x");
  call.set_dtype("x");
  const Sizes sizes = call.sizes_of_map(x, "x");
  const int64_t output_height = call.sizes_of_map(packed, "packed")[2];
  call.set_sizes({sizes[2], sizes[3]}, {output_height, output_width});
  call.set_windows(windows);
  call.check(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline Call unpool_indices_call(DeviceType on, const Tensor& y, const Tensor& indices,
                                const Size& size) {
  Call call(on, y, "y");
  call.set_dtype("y");
  const Sizes sizes = call.sizes_of_map(y, "y");
  call.set_sizes(size, {sizes[2], sizes[3]});
  call.check(indices, ScalarType::Long, call.y_sizes(), "indices");
  return call;
}

inline Call gather_indices_call(DeviceType on, const Tensor& x, const Tensor& indices) {
  Call call(on, x, "x");
  call.set_dtype("x");
  const Sizes sizes = call.sizes_of_map(x, "x"), wanted = call.sizes_of_map(indices, "indices");
  call.set_sizes({sizes[2], sizes[3]}, {wanted[2], wanted[3]});
  call.check(indices, ScalarType::Long, call.y_sizes(), "indices");
  return call;
}

inline Call pack_call(DeviceType on, const Tensor& indices, const Windows& windows,
                      const Size& input_size) {
  Call call(on, indices, "indices");
  const Sizes sizes = call.sizes_of_map(indices, "indices");
  call.set_sizes(input_size, {sizes[2], sizes[3]});
  call.set_windows(windows);
  call.check(indices, ScalarType::Long, call.y_sizes(), "indices");
  STD_TORCH_CHECK(indices.numel() == 0 || (input_size[0] > 0 && input_size[1] > 0),
                  "input_size must be at least 1x1 where there are indices, got ", input_size[0],
                  "x", input_size[1]);
  return call;
}

// Its result is contiguous.
inline Call unpack_call(DeviceType on, const Tensor& packed, const Windows& windows,
                        const Size& input_size, int64_t output_width) {
  Call call(on, packed, "packed");
  call.channels_last = call.p.channels_last = false;
  call.set_sizes(input_size, {call.sizes_of_map(packed, "packed")[2], output_width});
  call.set_windows(windows);
  call.check(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  return call;
}

inline void check_none_in_other_windows(int64_t count, const Pooling& p) {
  if (count == 0) return;
  throw std::runtime_error("indices must lie in their window: " + std::to_string(count) +
                           " are no position of theirs in a pool over " +
                           std::to_string(p.rows.input) + "x" + std::to_string(p.columns.input));
}

}  // namespace segfast
