// segfast::_max_pool2d and its relatives: checks, memory, threads; the arithmetic is in
// kernels/max_unpool.
#include "kernels/max_unpool/max_unpool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "dispatch.h"

namespace segfast {
namespace {

using torch::headeronly::MemoryFormat;
using Ints = std::vector<int64_t>;
using Sizes = std::array<int64_t, 4>;

constexpr int64_t kGrain = 32768;       // elements of x or y that are worth a thread
constexpr int64_t kMostSize = 1 << 30;  // of a kernel, stride, padding or dilation

const MaxUnpoolKernels& kernels() {
  return dispatch<MaxUnpoolKernels>(SEGFAST_TABLES(max_unpool_kernels));
}

Dtype dtype_of(const Tensor& t, const char* name) {
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

// As at::suggest_memory_format: ambiguous shapes are what their strides say.
bool suggests_channels_last(const Tensor& t) {
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least || (d == 0 && least == t.stride(1))) return false;
    least = stride * std::max<int64_t>(size, 1);
  }
  return t.stride(1) != 0;
}

bool is_dense(const Tensor& t, bool channels_last) {
  int64_t expected = 1;
  for (int d : channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return t.numel() == 0;
    expected *= t.size(d);
  }
  return true;
}

MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor in_format(const Tensor& t, bool channels_last) {
  if (is_dense(t, channels_last)) return t;
  return torch::stable::contiguous(t, format_of(channels_last));
}

Tensor new_tensor(const Sizes& sizes, ScalarType dtype, bool channels_last) {
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt, std::nullopt,
                              std::nullopt, format_of(channels_last));
}

void check_map(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(t.dim() == 4, name, " must be [N, C, H, W], got ", t.dim(), " dimensions");
}

void check_sizes(const Tensor& t, ScalarType dtype, const Sizes& sizes, const char* name) {
  check_map(t, name);
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(t.size(d) == sizes[d], name, " must have size ", sizes[d], " in dimension ", d,
                    ", got ", t.size(d));
  }
}

// The arguments that the operators share, as the kernels want them.
struct Call {
  Pooling p{};
  ScalarType scalar;
  bool channels_last;  // the memory format of the results; p.channels_last: how they are walked

  Sizes x_sizes() const { return {p.batch, p.channels, p.rows.input, p.columns.input}; }
  Sizes y_sizes() const { return {p.batch, p.channels, p.rows.output, p.columns.output}; }
  Sizes packed_sizes() const {
    const int bits = offset_bits(p.rows.kernel * p.columns.kernel);
    return {p.batch, p.channels, p.rows.output, packed_width(p.columns.output, bits)};
  }
};

Call begin_call(const Tensor& first, const char* name) {
  check_map(first, name);
  Call call;
  call.scalar = first.scalar_type();
  call.channels_last = suggests_channels_last(first);
  call.p.batch = first.size(0);
  call.p.channels = first.size(1);
  call.p.channels_last = call.channels_last && call.p.channels > 1;
  return call;
}

void set_sizes(Call* call, const Ints& input, const Ints& output) {
  STD_TORCH_CHECK(input.size() == 2 && output.size() == 2, "sizes must be pairs");
  for (int64_t size : {input[0], input[1], output[0], output[1]}) {
    STD_TORCH_CHECK(size >= 0 && size < (int64_t{1} << 40), "a size must not be ", size);
  }
  call->p.rows.input = input[0];
  call->p.columns.input = input[1];
  call->p.rows.output = output[0];
  call->p.columns.output = output[1];
}

void set_geometry(Call* call, const Ints& kernel, const Ints& stride, const Ints& padding,
                  const Ints& dilation) {
  for (const Ints* pair : {&kernel, &stride, &padding, &dilation}) {
    STD_TORCH_CHECK(pair->size() == 2, "kernel, stride, padding and dilation must be pairs");
  }
  for (int d = 0; d < 2; ++d) {
    PoolAxis& axis = d == 0 ? call->p.rows : call->p.columns;
    axis.kernel = kernel[d];
    axis.stride = stride[d];
    axis.padding = padding[d];
    axis.dilation = dilation[d];
    STD_TORCH_CHECK(axis.kernel >= 1 && axis.kernel <= 256 && axis.stride >= 1 &&
                        axis.stride <= kMostSize && axis.dilation >= 1 &&
                        axis.dilation <= kMostSize && axis.padding >= 0,
                    "kernel, stride and dilation must be at least 1, padding at least 0");
    STD_TORCH_CHECK(2 * axis.padding <= window_extent(axis),
                    "padding must be at most half of the window");
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= 256, "a window must have at most 256 positions, got ",
                  kernel[0] * kernel[1]);
}

// work(begin, end) over items of `elements` elements each.
template <typename Work>
void for_items(int64_t items, int64_t elements, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  torch::stable::parallel_for(0, items, grain, work);
}

int64_t row_of_x(const Pooling& p) { return p.columns.input * (p.channels_last ? p.channels : 1); }
// Rows of y count by what is read and written for them: their part of x.
int64_t row_of_y(const Pooling& p) {
  return row_of_x(p) * std::max<int64_t>(1, p.rows.input / std::max<int64_t>(p.rows.output, 1));
}

int64_t slice_of_x(const Pooling& p) {
  return p.rows.input * p.columns.input * (p.channels_last ? kSliceChannels : 1);
}

void check_none_outside(int64_t count, const Pooling& p) {
  STD_TORCH_CHECK(count == 0, "indices must lie in [0, ", p.rows.input * p.columns.input,
                  ") of the ", p.rows.input, "x", p.columns.input, " map, ", count, " do not");
}

void pool_into(const Call& call, const Tensor& x, const Tensor& y, uint8_t* packed) {
  if (y.numel() == 0) return;
  const auto& kernel = kernels();
  const void* from = x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  for_items(pool_rows_of_y(call.p), row_of_y(call.p),
            [&](int64_t begin, int64_t end) { kernel.pool(call.p, from, to, packed, begin, end); });
}

Call pool_call(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
               const Ints& dilation, const Ints& output_size) {
  Call call = begin_call(x, "x");
  call.p.dtype = dtype_of(x, "x");
  set_sizes(&call, {x.size(2), x.size(3)}, output_size);
  set_geometry(&call, kernel, stride, padding, dilation);
  for (const PoolAxis& axis : {call.p.rows, call.p.columns}) {
    STD_TORCH_CHECK(
        axis.output == 0 || (axis.output - 1) <= (axis.input - 1 + axis.padding) / axis.stride,
        "every window must begin inside x or its padding");
  }
  return call;
}

// x [N, C, H, W] -> y, packed
std::tuple<Tensor, Tensor> max_pool(const Tensor& x, const Ints& kernel, const Ints& stride,
                                    const Ints& padding, const Ints& dilation,
                                    const Ints& output_size) {
  const Call call = pool_call(x, kernel, stride, padding, dilation, output_size);
  Tensor y = new_tensor(call.y_sizes(), call.scalar, call.channels_last);
  Tensor packed = new_tensor(call.packed_sizes(), ScalarType::Byte, call.channels_last);
  pool_into(call, in_format(x, call.p.channels_last), y, mutable_data<uint8_t>(packed));
  return {y, packed};
}

Tensor max_pool_values(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                       const Ints& dilation, const Ints& output_size) {
  const Call call = pool_call(x, kernel, stride, padding, dilation, output_size);
  Tensor y = new_tensor(call.y_sizes(), call.scalar, call.channels_last);
  pool_into(call, in_format(x, call.p.channels_last), y, nullptr);
  return y;
}

using FromPacked = decltype(MaxUnpoolKernels::unpool);

// y [N, C, Ho, Wo] -> x of `size`
Tensor to_windows(FromPacked kernel_function, const Tensor& y, const Tensor& packed,
                  const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                  const Ints& size) {
  Call call = begin_call(y, "y");
  call.p.dtype = dtype_of(y, "y");
  set_sizes(&call, size, {y.size(2), y.size(3)});
  set_geometry(&call, kernel, stride, padding, dilation);
  check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  Tensor x = new_tensor(call.x_sizes(), call.scalar, call.channels_last);
  if (x.numel() == 0) return x;
  const Tensor values = in_format(y, call.p.channels_last);
  const Tensor offsets = in_format(packed, call.p.channels_last);
  const void* from = values.const_data_ptr();
  const uint8_t* bytes = data<uint8_t>(offsets);
  void* to = x.mutable_data_ptr();
  for_items(pool_rows_of_x(call.p), row_of_x(call.p), [&](int64_t begin, int64_t end) {
    kernel_function(call.p, from, bytes, to, begin, end);
  });
  return x;
}

Tensor max_pool_backward(const Tensor& grad_y, const Tensor& packed, const Ints& kernel,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         const Ints& input_size) {
  return to_windows(kernels().pool_backward, grad_y, packed, kernel, stride, padding, dilation,
                    input_size);
}

Tensor max_unpool(const Tensor& y, const Tensor& packed, const Ints& kernel, const Ints& stride,
                  const Ints& padding, const Ints& dilation, const Ints& output_size) {
  return to_windows(kernels().unpool, y, packed, kernel, stride, padding, dilation, output_size);
}

// x [N, C, H, W] -> y [N, C, packed.size(2), output_width]
Tensor max_gather(const Tensor& x, const Tensor& packed, const Ints& kernel, const Ints& stride,
                  const Ints& padding, const Ints& dilation, int64_t output_width, bool winners) {
  Call call = begin_call(x, "x");
  check_map(packed, "packed");
  call.p.dtype = dtype_of(x, "x");
  set_sizes(&call, {x.size(2), x.size(3)}, {packed.size(2), output_width});
  set_geometry(&call, kernel, stride, padding, dilation);
  check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  Tensor y = new_tensor(call.y_sizes(), call.scalar, call.channels_last);
  if (y.numel() == 0) return y;
  const Tensor values = in_format(x, call.p.channels_last);
  const Tensor offsets = in_format(packed, call.p.channels_last);
  const void* from = values.const_data_ptr();
  const uint8_t* bytes = data<uint8_t>(offsets);
  void* to = y.mutable_data_ptr();
  const auto gather = kernels().gather;
  const bool search = winners && !windows_disjoint(call.p);
  for_items(pool_rows_of_y(call.p), row_of_y(call.p), [&](int64_t begin, int64_t end) {
    const auto scratch = make_buffer<uint8_t>(search ? winners_scratch(call.p) : 0);
    gather(call.p, from, bytes, to, search ? scratch.get() : nullptr, begin, end);
  });
  return y;
}

// y and int64 indices [N, C, Ho, Wo] -> x of `size`
Tensor max_unpool_indices(const Tensor& y, const Tensor& indices, const Ints& size) {
  Call call = begin_call(y, "y");
  call.p.dtype = dtype_of(y, "y");
  set_sizes(&call, size, {y.size(2), y.size(3)});
  check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  Tensor x = new_tensor(call.x_sizes(), call.scalar, call.channels_last);
  const Tensor values = in_format(y, call.p.channels_last);
  const Tensor places = in_format(indices, call.p.channels_last);
  const void* from = values.const_data_ptr();
  const int64_t* index = data<int64_t>(places);
  void* to = x.mutable_data_ptr();
  const auto unpool = kernels().unpool_indices;
  std::atomic<int64_t> outside{0};
  for_items(pool_slices(call.p), slice_of_x(call.p), [&](int64_t begin, int64_t end) {
    outside += unpool(call.p, from, index, to, begin, end);
  });
  check_none_outside(outside, call.p);
  return x;
}

// x [N, C, H, W] and int64 indices [N, C, Ho, Wo] -> y
Tensor max_gather_indices(const Tensor& x, const Tensor& indices, bool winners) {
  Call call = begin_call(x, "x");
  check_map(indices, "indices");
  call.p.dtype = dtype_of(x, "x");
  set_sizes(&call, {x.size(2), x.size(3)}, {indices.size(2), indices.size(3)});
  check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  Tensor y = new_tensor(call.y_sizes(), call.scalar, call.channels_last);
  const Tensor values = in_format(x, call.p.channels_last);
  const Tensor places = in_format(indices, call.p.channels_last);
  const void* from = values.const_data_ptr();
  const int64_t* index = data<int64_t>(places);
  void* to = y.mutable_data_ptr();
  const auto gather = kernels().gather_indices;
  std::atomic<int64_t> outside{0};
  for_items(pool_slices(call.p), slice_of_x(call.p), [&](int64_t begin, int64_t end) {
    const auto scratch = make_buffer<uint8_t>(winners ? index_winners_scratch(call.p) : 0);
    outside += gather(call.p, from, index, to, winners ? scratch.get() : nullptr, begin, end);
  });
  check_none_outside(outside, call.p);
  return y;
}

// int64 indices [N, C, Ho, Wo] -> packed
Tensor max_pack(const Tensor& indices, const Ints& kernel, const Ints& stride, const Ints& padding,
                const Ints& dilation, const Ints& input_size) {
  Call call = begin_call(indices, "indices");
  set_sizes(&call, input_size, {indices.size(2), indices.size(3)});
  set_geometry(&call, kernel, stride, padding, dilation);
  check_sizes(indices, ScalarType::Long, call.y_sizes(), "indices");
  Tensor packed = new_tensor(call.packed_sizes(), ScalarType::Byte, call.channels_last);
  if (indices.numel() == 0) return packed;
  STD_TORCH_CHECK(input_size[0] > 0 && input_size[1] > 0, "indices into an empty input");
  const Tensor places = in_format(indices, call.p.channels_last);
  const int64_t* from = data<int64_t>(places);
  uint8_t* to = mutable_data<uint8_t>(packed);
  const auto pack = kernels().pack;
  std::atomic<int64_t> outside{0};
  for_items(pool_rows_of_y(call.p), row_of_y(call.p),
            [&](int64_t begin, int64_t end) { outside += pack(call.p, from, to, begin, end); });
  STD_TORCH_CHECK(outside == 0, "indices must lie in their window: ", outside.load(),
                  " are no position of theirs in a pool over ", input_size[0], "x", input_size[1]);
  return packed;
}

// packed [N, C, Ho, bytes] -> int64 indices [N, C, Ho, output_width], contiguous
Tensor max_unpack(const Tensor& packed, const Ints& kernel, const Ints& stride, const Ints& padding,
                  const Ints& dilation, const Ints& input_size, int64_t output_width) {
  Call call = begin_call(packed, "packed");
  call.p.channels_last = false;
  set_sizes(&call, input_size, {packed.size(2), output_width});
  set_geometry(&call, kernel, stride, padding, dilation);
  check_sizes(packed, ScalarType::Byte, call.packed_sizes(), "packed");
  Tensor indices = new_tensor(call.y_sizes(), ScalarType::Long, false);
  if (indices.numel() == 0) return indices;
  const Tensor offsets = in_format(packed, false);
  const uint8_t* from = data<uint8_t>(offsets);
  int64_t* to = mutable_data<int64_t>(indices);
  const auto unpack = kernels().unpack;
  for_items(pool_rows_of_y(call.p), row_of_y(call.p),
            [&](int64_t begin, int64_t end) { unpack(call.p, from, to, begin, end); });
  return indices;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_max_pool2d", TORCH_BOX(&max_pool));
  m.impl("_max_pool2d_values", TORCH_BOX(&max_pool_values));
  m.impl("_max_pool2d_backward", TORCH_BOX(&max_pool_backward));
  m.impl("_max_gather2d", TORCH_BOX(&max_gather));
  m.impl("_max_unpool2d", TORCH_BOX(&max_unpool));
  m.impl("_max_unpool2d_indices", TORCH_BOX(&max_unpool_indices));
  m.impl("_max_gather2d_indices", TORCH_BOX(&max_gather_indices));
  m.impl("_max_pack", TORCH_BOX(&max_pack));
  m.impl("_max_unpack", TORCH_BOX(&max_unpack));
}

}  // namespace segfast
