// segfast::_max_pool2d and its relatives, for every device: checks and memory, registered once.
// kh, kw ... dh, dw: height and width of kernel, stride, padding, dilation.
//
// `On` says how a device computes: kType, and functions of a Call, the inputs as the kernels walk
// them, and the result (pool: packed is null when not wanted).
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "csrc/max_unpool_call.h"

namespace segfast {

template <typename On>
struct MaxUnpoolOperators {
  // x [N, C, H, W] -> y [N, C, height, width], packed
  static std::tuple<Tensor, Tensor> pool(const Tensor& x, int64_t kh, int64_t kw, int64_t sh,
                                         int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
                                         int64_t height, int64_t width) {
    const Call call = pool_call(On::kType, x, {kh, kw, sh, sw, ph, pw, dh, dw}, {height, width});
    Tensor y = call.empty_y(), packed = call.empty_packed();
    if (y.numel() > 0) On::pool(call, call.in_order(x), y, mutable_data<uint8_t>(packed));
    return {y, packed};
  }

  static Tensor pool_values(const Tensor& x, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
                            int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t height,
                            int64_t width) {
    const Call call = pool_call(On::kType, x, {kh, kw, sh, sw, ph, pw, dh, dw}, {height, width});
    Tensor y = call.empty_y();
    if (y.numel() > 0) On::pool(call, call.in_order(x), y, nullptr);
    return y;
  }

  // y [N, C, Ho, Wo] -> x [N, C, height, width]; compute: On::pool_backward or On::unpool
  template <auto compute>
  static Tensor from_windows(const Tensor& y, const Tensor& packed, int64_t kh, int64_t kw,
                             int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
                             int64_t height, int64_t width) {
    const Call call =
        unpool_call(On::kType, y, packed, {kh, kw, sh, sw, ph, pw, dh, dw}, {height, width});
    Tensor x = call.empty_x();
    if (x.numel() > 0) compute(call, call.in_order(y), call.in_order(packed), x);
    return x;
  }

  // x [N, C, H, W] -> y [N, C, packed.size(2), width]
  static Tensor gather(const Tensor& x, const Tensor& packed, int64_t kh, int64_t kw, int64_t sh,
                       int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t width,
                       bool winners) {
    const Call call = gather_call(On::kType, x, packed, {kh, kw, sh, sw, ph, pw, dh, dw}, width);
    Tensor y = call.empty_y();
    if (y.numel() > 0) On::gather(call, call.in_order(x), call.in_order(packed), y, winners);
    return y;
  }

  // y and int64 indices [N, C, Ho, Wo] -> x [N, C, height, width]
  static Tensor unpool_indices(const Tensor& y, const Tensor& indices, int64_t height,
                               int64_t width) {
    const Call call = unpool_indices_call(On::kType, y, indices, {height, width});
    Tensor x = call.empty_x();
    On::unpool_indices(call, call.in_order(y), call.in_order(indices), x);
    return x;
  }

  // x [N, C, H, W] and int64 indices [N, C, Ho, Wo] -> y
  static Tensor gather_indices(const Tensor& x, const Tensor& indices, bool winners) {
    const Call call = gather_indices_call(On::kType, x, indices);
    Tensor y = call.empty_y();
    On::gather_indices(call, call.in_order(x), call.in_order(indices), y, winners);
    return y;
  }

  // int64 indices [N, C, Ho, Wo] in maps of height x width -> packed
  static Tensor pack(const Tensor& indices, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
                     int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t height,
                     int64_t width) {
    const Call call =
        pack_call(On::kType, indices, {kh, kw, sh, sw, ph, pw, dh, dw}, {height, width});
    Tensor packed = call.empty_packed();
    if (packed.numel() > 0) On::pack(call, call.in_order(indices), packed);
    return packed;
  }

  // packed [N, C, Ho, bytes] -> int64 indices [N, C, Ho, output_width], contiguous
  static Tensor unpack(const Tensor& packed, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
                       int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t height,
                       int64_t width, int64_t output_width) {
    const Call call = unpack_call(On::kType, packed, {kh, kw, sh, sw, ph, pw, dh, dw},
                                  {height, width}, output_width);
    Tensor indices = call.empty(call.y_sizes(), ScalarType::Long);
    if (indices.numel() > 0) On::unpack(call, call.in_order(packed), indices);
    return indices;
  }

  template <typename Library>
  static void implement(Library& library) {
    library.impl("_max_pool2d", TORCH_BOX(&pool));
    library.impl("_max_pool2d_values", TORCH_BOX(&pool_values));
    library.impl("_max_pool2d_backward", TORCH_BOX(&from_windows<&On::pool_backward>));
    library.impl("_max_gather2d", TORCH_BOX(&gather));
    library.impl("_max_unpool2d", TORCH_BOX(&from_windows<&On::unpool>));
    library.impl("_max_unpool2d_indices", TORCH_BOX(&unpool_indices));
    library.impl("_max_gather2d_indices", TORCH_BOX(&gather_indices));
    library.impl("_max_pack", TORCH_BOX(&pack));
    library.impl("_max_unpack", TORCH_BOX(&unpack));
  }
};

}  // namespace segfast
