// segfast::_dilated_conv_direct and its gradients on the CPU: checks, memory, threads; the
// arithmetic is in kernels/dilated_conv/direct*.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/dilated_conv_call.h"
#include "csrc/memory_format.h"
#include "csrc/parallel.h"
#include "dispatch.h"
#include "integers.h"
#include "kernels/dilated_conv/direct.h"

namespace segfast {
namespace {

constexpr int64_t kBlock = 65536;  // elements that are worth a thread's turn

Sizes sizes_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 4, name, " must be four-dimensional, on the CPU");
  return Shape(t).sizes;
}

// Whether maps are walked as [N, H, W, C]: all of them must be dense in one way or the other.
template <typename... Maps>
bool in_pixels(const Maps&... maps) {
  if ((is_dense(Shape(maps), false) && ...)) return false;
  STD_TORCH_CHECK((is_dense(Shape(maps), true) && ...),
                  "maps must be without gaps in one memory format");
  return true;
}

const DirectKernels& kernels(const DilatedConv& p, Direction direction, bool pixels) {
  if (!pixels && turns(p, direction)) {
    return dispatch<DirectKernels>(SEGFAST_TABLES(direct_turned));
  }
  if (!pixels) return dispatch<DirectKernels>(SEGFAST_TABLES(direct_planes));
  STD_TORCH_CHECK(p.in_channels == 1 && p.out_channels == 1,
                  "channels_last needs one input and one output channel per group");
  return dispatch<DirectKernels>(SEGFAST_TABLES(direct_pixels));
}

Tensor dense_weight(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == dtype, name, " must be like x, on the CPU");
  return made_contiguous(t);
}

int64_t sum_size(const DilatedConv& p) { return p.dtype == Dtype::f64 ? 8 : 4; }

// work(begin, end, scratch) over all items, some at a time.
template <typename Work>
void for_items(const DirectKernels& k, const DilatedConv& p, Direction direction,
               const Work& work) {
  const int64_t items = k.items(p, direction);
  if (items == 0) return;
  const int64_t elements = p.batch * p.groups *
                           (p.in_channels * p.rows.input * p.columns.input +
                            p.out_channels * p.rows.output * p.columns.output);
  const int64_t worthwhile = kBlock * items / std::max<int64_t>(elements, 1);
  const int64_t block = std::min(std::max(k.together(p, direction), worthwhile), items);
  const int64_t scratch = k.scratch(p, direction);
  for_each_item(divide_up(items, block), [&] {
    return [&, memory = make_buffer<char>(scratch)](int64_t at) {
      work(at * block, std::min(items, (at + 1) * block), memory.get());
    };
  });
}

Buffer<char> arranged(const DirectKernels& k, const DilatedConv& p, const Tensor& weight) {
  auto weights = make_buffer<char>(weights_of(p) * sum_size(p));
  k.arrange(p, weight.const_data_ptr(), weights.get());
  return weights;
}

Tensor conv(const Tensor& x, const Tensor& weight, MaybeTensor bias, int64_t height, int64_t width,
            int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
            int64_t groups) {
  const Sizes from = sizes_of(x, "x"), kernel = sizes_of(weight, "weight");
  const Sizes to{from[0], kernel[0], height, width};
  const DilatedConv p =
      problem(from, to, kernel, {sh, sw, ph, pw, dh, dw, groups}, x.scalar_type());
  const bool pixels = in_pixels(x);
  const DirectKernels& k = kernels(p, Direction::forward, pixels);
  const Tensor dense = dense_weight(weight, x.scalar_type(), "weight");
  if (bias) {
    bias = dense_weight(*bias, x.scalar_type(), "bias");
    STD_TORCH_CHECK(bias->numel() == kernel[0], "bias must have ", kernel[0], " elements");
  }
  Tensor y = empty_in_format(to, x.scalar_type(), x.device(), pixels);
  if (p.batch == 0) return y;
  const auto weights = arranged(k, p, dense);
  const void* constants = bias ? bias->const_data_ptr() : nullptr;
  const void* source = x.const_data_ptr();
  void* target = y.mutable_data_ptr();
  for_items(k, p, Direction::forward, [&](int64_t begin, int64_t end, void* scratch) {
    k.forward(p, source, weights.get(), constants, target, begin, end, scratch);
  });
  return y;
}

Tensor grad_input(const Tensor& grad, const Tensor& weight, int64_t height, int64_t width,
                  int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
                  int64_t groups) {
  const Sizes from = sizes_of(grad, "grad"), kernel = sizes_of(weight, "weight");
  const Sizes to{from[0], kernel[1] * groups, height, width};
  const DilatedConv p =
      problem(to, from, kernel, {sh, sw, ph, pw, dh, dw, groups}, grad.scalar_type());
  const bool pixels = in_pixels(grad);
  const DirectKernels& k = kernels(p, Direction::grad_input, pixels);
  const Tensor dense = dense_weight(weight, grad.scalar_type(), "weight");
  Tensor x = empty_in_format(to, grad.scalar_type(), grad.device(), pixels);
  if (p.batch == 0) return x;
  const auto weights = arranged(k, p, dense);
  const void* source = grad.const_data_ptr();
  void* target = x.mutable_data_ptr();
  for_items(k, p, Direction::grad_input, [&](int64_t begin, int64_t end, void* scratch) {
    k.grad_input(p, source, weights.get(), target, begin, end, scratch);
  });
  return x;
}

Tensor grad_weight(const Tensor& grad, const Tensor& x, int64_t height, int64_t width, int64_t sh,
                   int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t groups) {
  const Sizes outer = sizes_of(grad, "grad"), inner = sizes_of(x, "x");
  STD_TORCH_CHECK(groups >= 1, "groups must be at least 1, got ", groups);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad must be like x");
  const Sizes kernel{outer[1], inner[1] / groups, height, width};
  const DilatedConv p =
      problem(inner, outer, kernel, {sh, sw, ph, pw, dh, dw, groups}, x.scalar_type());
  const DirectKernels& k = kernels(p, Direction::grad_weight, in_pixels(grad, x));
  Tensor weight = empty_in_format(kernel, x.scalar_type(), x.device(), false);
  const auto sums = make_buffer<char>(k.parts(p) * weights_of(p) * sum_size(p));
  const void *left = grad.const_data_ptr(), *right = x.const_data_ptr();
  for_items(k, p, Direction::grad_weight, [&](int64_t begin, int64_t end, void* scratch) {
    k.grad_weight(p, left, right, sums.get(), begin, end, scratch);
  });
  k.merge(p, sums.get(), weight.mutable_data_ptr());
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_dilated_conv_direct", TORCH_BOX(&conv));
  m.impl("_dilated_conv_direct_grad_input", TORCH_BOX(&grad_input));
  m.impl("_dilated_conv_direct_grad_weight", TORCH_BOX(&grad_weight));
}

}  // namespace segfast
