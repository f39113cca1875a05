// segfast::_max_pool2d and its relatives on CUDA: checks, memory, the stream; the arithmetic is in
// kernels/max_unpool.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "csrc/cuda/stream.h"
#include "csrc/max_unpool_call.h"
#include "kernels/max_unpool/max_unpool_cuda.h"

namespace segfast {
namespace {

constexpr DeviceType kCuda = DeviceType::CUDA;

Tensor scratch(const Call& call, int64_t bytes) {
  return torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, call.device);
}

// x [N, C, H, W] -> y, packed
std::tuple<Tensor, Tensor> max_pool(const Tensor& x, const Ints& kernel, const Ints& stride,
                                    const Ints& padding, const Ints& dilation,
                                    const Ints& output_size) {
  const Call call = pool_call(kCuda, x, kernel, stride, padding, dilation, output_size);
  const Launch launch(x);
  Tensor y = call.empty_y(), packed = call.empty_packed();
  const Tensor values = call.in_order(x);
  check_cuda(max_pool_cuda(call.p, values.const_data_ptr(), y.mutable_data_ptr(),
                           mutable_data<uint8_t>(packed), launch.stream()));
  return {y, packed};
}

Tensor max_pool_values(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                       const Ints& dilation, const Ints& output_size) {
  const Call call = pool_call(kCuda, x, kernel, stride, padding, dilation, output_size);
  const Launch launch(x);
  Tensor y = call.empty_y();
  const Tensor values = call.in_order(x);
  check_cuda(max_pool_cuda(call.p, values.const_data_ptr(), y.mutable_data_ptr(), nullptr,
                           launch.stream()));
  return y;
}

// y [N, C, Ho, Wo] -> x of `size`
Tensor to_windows(decltype(&max_unpool_cuda) launcher, const Tensor& y, const Tensor& packed,
                  const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                  const Ints& size) {
  const Call call = unpool_call(kCuda, y, packed, kernel, stride, padding, dilation, size);
  const Launch launch(y);
  Tensor x = call.empty_x();
  const Tensor values = call.in_order(y), offsets = call.in_order(packed);
  check_cuda(launcher(call.p, values.const_data_ptr(), data<uint8_t>(offsets), x.mutable_data_ptr(),
                      launch.stream()));
  return x;
}

Tensor max_pool_backward(const Tensor& grad_y, const Tensor& packed, const Ints& kernel,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         const Ints& input_size) {
  return to_windows(max_pool_backward_cuda, grad_y, packed, kernel, stride, padding, dilation,
                    input_size);
}

Tensor max_unpool(const Tensor& y, const Tensor& packed, const Ints& kernel, const Ints& stride,
                  const Ints& padding, const Ints& dilation, const Ints& output_size) {
  return to_windows(max_unpool_cuda, y, packed, kernel, stride, padding, dilation, output_size);
}

// x [N, C, H, W] -> y [N, C, packed.size(2), output_width]
Tensor max_gather(const Tensor& x, const Tensor& packed, const Ints& kernel, const Ints& stride,
                  const Ints& padding, const Ints& dilation, int64_t output_width, bool winners) {
  const Call call = gather_call(kCuda, x, packed, kernel, stride, padding, dilation, output_width);
  const Launch launch(x);
  Tensor y = call.empty_y();
  const Tensor values = call.in_order(x), offsets = call.in_order(packed);
  check_cuda(max_gather_cuda(call.p, values.const_data_ptr(), data<uint8_t>(offsets),
                             y.mutable_data_ptr(), winners, launch.stream()));
  return y;
}

// y and int64 indices [N, C, Ho, Wo] -> x of `size`
Tensor max_unpool_indices(const Tensor& y, const Tensor& indices, const Ints& size) {
  const Call call = unpool_indices_call(kCuda, y, indices, size);
  const Launch launch(y);
  Tensor x = call.empty_x();
  const Tensor values = call.in_order(y), places = call.in_order(indices);
  const Tensor last = scratch(call, index_winners_bytes(call.p));
  check_cuda(max_unpool_indices_cuda(call.p, values.const_data_ptr(), data<int64_t>(places),
                                     x.mutable_data_ptr(), last.mutable_data_ptr(),
                                     launch.stream()));
  return x;
}

// x [N, C, H, W] and int64 indices [N, C, Ho, Wo] -> y
Tensor max_gather_indices(const Tensor& x, const Tensor& indices, bool winners) {
  const Call call = gather_indices_call(kCuda, x, indices);
  const Launch launch(x);
  Tensor y = call.empty_y();
  const Tensor values = call.in_order(x), places = call.in_order(indices);
  const Tensor last = scratch(call, winners ? index_winners_bytes(call.p) : 0);
  check_cuda(max_gather_indices_cuda(call.p, values.const_data_ptr(), data<int64_t>(places),
                                     y.mutable_data_ptr(),
                                     winners ? last.mutable_data_ptr() : nullptr, launch.stream()));
  return y;
}

// int64 indices [N, C, Ho, Wo] -> packed. Waits for the device, to say what is wrong with them;
// not while a graph is recorded: an index outside of its window is offset 0 then.
Tensor max_pack(const Tensor& indices, const Ints& kernel, const Ints& stride, const Ints& padding,
                const Ints& dilation, const Ints& input_size) {
  const Call call = pack_call(kCuda, indices, kernel, stride, padding, dilation, input_size);
  const Launch launch(indices);
  Tensor packed = call.empty_packed();
  const Tensor places = call.in_order(indices);
  const int64_t* from = data<int64_t>(places);
  uint8_t* to = mutable_data<uint8_t>(packed);
  if (launch.is_recorded()) {
    check_cuda(max_pack_cuda(call.p, from, to, nullptr, launch.stream()));
    return packed;
  }
  Tensor outside = scratch(call, sizeof(unsigned long long));
  torch::stable::zero_(outside);
  auto* count = static_cast<unsigned long long*>(outside.mutable_data_ptr());
  check_cuda(max_pack_cuda(call.p, from, to, count, launch.stream()));
  check_none_in_other_windows(static_cast<int64_t>(launch.read(count)), call.p);
  return packed;
}

// packed [N, C, Ho, bytes] -> int64 indices [N, C, Ho, output_width], contiguous
Tensor max_unpack(const Tensor& packed, const Ints& kernel, const Ints& stride, const Ints& padding,
                  const Ints& dilation, const Ints& input_size, int64_t output_width) {
  const Call call =
      unpack_call(kCuda, packed, kernel, stride, padding, dilation, input_size, output_width);
  const Launch launch(packed);
  Tensor indices = call.empty(call.y_sizes(), ScalarType::Long);
  const Tensor offsets = call.in_order(packed);
  check_cuda(max_unpack_cuda(call.p, data<uint8_t>(offsets), mutable_data<int64_t>(indices),
                             launch.stream()));
  return indices;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CUDA, m) {
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
