// Tensors made by the bindings, without the ways through the dispatcher by an operator's name,
// which box their arguments: torch::stable::empty takes 3 us of a call's 10, contiguous 3 us to do
// nothing.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "csrc/check.h"
#include "csrc/poison.h"

namespace segfast {

using torch::stable::Device;

template <size_t N>
Tensor empty_strided(const std::array<int64_t, N>& sizes, const std::array<int64_t, N>& strides,
                     ScalarType dtype, const Device& device) {
  using torch::stable::detail::from, torch::stable::detail::to;
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(N, sizes.data(), strides.data(), to<int32_t>(from(dtype)),
                               to<int32_t>(from(device.type())), device.index(), &made));
  Tensor empty(made);
  if (empty.is_cpu()) {  // dense: PyTorch's own way to fill it is not on this path
    poison(empty.mutable_data_ptr(), static_cast<size_t>(empty.numel()) * empty.element_size());
  }
  return empty;
}

template <size_t N>
Tensor empty_contiguous(const std::array<int64_t, N>& sizes, ScalarType dtype,
                        const Device& device) {
  std::array<int64_t, N> strides;
  int64_t next = 1;
  for (size_t d = N; d-- > 0; next *= std::max<int64_t>(sizes[d], 1)) strides[d] = next;
  return empty_strided(sizes, strides, dtype, device);
}

inline Tensor made_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

}  // namespace segfast
