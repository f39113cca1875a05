// segfast::_max_pool2d and its relatives: checks, memory, threads; the arithmetic is in
// kernels/max_unpool.
#include "kernels/max_unpool/max_unpool.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <tuple>

#include "csrc/buffer.h"
#include "csrc/max_unpool_call.h"
#include "csrc/parallel.h"
#include "dispatch.h"

namespace segfast {
namespace {

constexpr DeviceType kCpu = DeviceType::CPU;
constexpr int64_t kGrain = 32768;  // elements of x or y that are worth a thread

const MaxUnpoolKernels& kernels() {
  return dispatch<MaxUnpoolKernels>(SEGFAST_TABLES(max_unpool_kernels));
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
  if (count == 0) return;
  const std::string height = std::to_string(p.rows.input), width = std::to_string(p.columns.input);
  throw std::runtime_error("indices must lie in [0, " +
                           std::to_string(p.rows.input * p.columns.input) + ") of the " + height +
                           "x" + width + " map, " + std::to_string(count) +
                           " do not; give the pool's input size as output_size");
}

void pool_into(const Call& call, const Tensor& x, const Tensor& y, uint8_t* packed) {
  if (y.numel() == 0) return;
  const auto& kernel = kernels();
  const void* from = x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  for_items(pool_rows_of_y(call.p), row_of_y(call.p),
            [&](int64_t begin, int64_t end) { kernel.pool(call.p, from, to, packed, begin, end); });
}

// x [N, C, H, W] -> y, packed
std::tuple<Tensor, Tensor> max_pool(const Tensor& x, const Ints& kernel, const Ints& stride,
                                    const Ints& padding, const Ints& dilation,
                                    const Ints& output_size) {
  const Call call = pool_call(kCpu, x, kernel, stride, padding, dilation, output_size);
  Tensor y = call.empty_y();
  Tensor packed = call.empty_packed();
  pool_into(call, call.in_order(x), y, mutable_data<uint8_t>(packed));
  return {y, packed};
}

Tensor max_pool_values(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                       const Ints& dilation, const Ints& output_size) {
  const Call call = pool_call(kCpu, x, kernel, stride, padding, dilation, output_size);
  Tensor y = call.empty_y();
  pool_into(call, call.in_order(x), y, nullptr);
  return y;
}

using FromPacked = decltype(MaxUnpoolKernels::unpool);

// y [N, C, Ho, Wo] -> x of `size`
Tensor to_windows(FromPacked kernel_function, const Tensor& y, const Tensor& packed,
                  const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                  const Ints& size) {
  const Call call = unpool_call(kCpu, y, packed, kernel, stride, padding, dilation, size);
  Tensor x = call.empty_x();
  if (x.numel() == 0) return x;
  const Tensor values = call.in_order(y);
  const Tensor offsets = call.in_order(packed);
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
  const Call call = gather_call(kCpu, x, packed, kernel, stride, padding, dilation, output_width);
  Tensor y = call.empty_y();
  if (y.numel() == 0) return y;
  const Tensor values = call.in_order(x);
  const Tensor offsets = call.in_order(packed);
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
  const Call call = unpool_indices_call(kCpu, y, indices, size);
  Tensor x = call.empty_x();
  const Tensor values = call.in_order(y);
  const Tensor places = call.in_order(indices);
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
  const Call call = gather_indices_call(kCpu, x, indices);
  Tensor y = call.empty_y();
  const Tensor values = call.in_order(x);
  const Tensor places = call.in_order(indices);
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
  const Call call = pack_call(kCpu, indices, kernel, stride, padding, dilation, input_size);
  Tensor packed = call.empty_packed();
  if (indices.numel() == 0) return packed;
  const Tensor places = call.in_order(indices);
  const int64_t* from = data<int64_t>(places);
  uint8_t* to = mutable_data<uint8_t>(packed);
  const auto pack = kernels().pack;
  std::atomic<int64_t> outside{0};
  for_items(pool_rows_of_y(call.p), row_of_y(call.p),
            [&](int64_t begin, int64_t end) { outside += pack(call.p, from, to, begin, end); });
  check_none_in_other_windows(outside, call.p);
  return packed;
}

// packed [N, C, Ho, bytes] -> int64 indices [N, C, Ho, output_width], contiguous
Tensor max_unpack(const Tensor& packed, const Ints& kernel, const Ints& stride, const Ints& padding,
                  const Ints& dilation, const Ints& input_size, int64_t output_width) {
  const Call call =
      unpack_call(kCpu, packed, kernel, stride, padding, dilation, input_size, output_width);
  Tensor indices = call.empty(call.y_sizes(), ScalarType::Long);
  if (indices.numel() == 0) return indices;
  const Tensor offsets = call.in_order(packed);
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
