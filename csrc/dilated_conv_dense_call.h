// Arguments of the dense operators (_dilated_conv_dense, _dilated_conv_winograd), checked.
#pragma once

#include "csrc/dilated_conv_call.h"
#include "csrc/memory_format.h"
#include "kernels/dilated_conv/dense.h"

namespace segfast {

inline const char* image(const Tensor& x, int64_t n) {
  return static_cast<const char*>(x.const_data_ptr()) +
         n * (x.numel() / x.size(0)) * static_cast<int64_t>(x.element_size());
}

inline void check_map(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4, name, " must have four dimensions");
  check_tensor(x, like.scalar_type(), x.numel(), name);
}

inline Tensor planes_like(const Tensor& like, const Sizes& sizes) {
  return empty_in_format(sizes, like.scalar_type(), like.device(), false);
}

inline DilatedConv ungrouped(const Sizes& x, const Sizes& y, const Sizes& weight, const Strides& s,
                             ScalarType dtype) {
  STD_TORCH_CHECK(s.groups == 1, "the dense kernels have no groups, got ", s.groups);
  return problem(x, y, weight, s, dtype);
}

// x [N, C, H, W], weight [O, C, kh, kw] -> y [N, O, height, width]
inline DenseConv dense_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                            int64_t height, int64_t width, const Strides& strides) {
  check_map(x, x, "x");
  check_map(weight, x, "weight");
  STD_TORCH_CHECK(weight.size(1) == x.size(1), "weight must have the channels of x");
  const Sizes from = Shape(x).sizes, kernel = Shape(weight).sizes;
  if (bias) check_tensor(*bias, x.scalar_type(), kernel[0], "bias");
  const Sizes to{from[0], kernel[0], height, width};
  return {ungrouped(from, to, kernel, strides, x.scalar_type()), false};
}

// grad [N, O, Ho, Wo], weight [O, C, kh, kw] -> grad_x [N, C, height, width]
inline DenseConv dense_grad_input(const Tensor& grad, const Tensor& weight, int64_t height,
                                  int64_t width, const Strides& strides) {
  check_map(grad, grad, "grad");
  check_map(weight, grad, "weight");
  STD_TORCH_CHECK(weight.size(0) == grad.size(1), "weight must have the channels of grad");
  const Sizes from = Shape(grad).sizes, kernel = Shape(weight).sizes;
  const Sizes to{from[0], kernel[1], height, width};
  return {ungrouped(to, from, kernel, strides, grad.scalar_type()), true};
}

}  // namespace segfast
