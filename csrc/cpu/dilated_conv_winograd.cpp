// segfast::_dilated_conv_winograd and its input gradient: checks, memory, threads; the arithmetic
// is in kernels/dilated_conv/winograd*.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/dilated_conv_dense_call.h"
#include "csrc/memory_format.h"
#include "csrc/parallel.h"
#include "dispatch.h"
#include "kernels/dilated_conv/winograd.h"

namespace segfast {
namespace {

constexpr int64_t kSlabBytes = 24 << 20;  // of a transformed source: within the last-level cache
constexpr int64_t kSourceChannels = 16;   // of an item
constexpr int64_t kItems = 16;            // are wanted, as long as
constexpr int64_t kItemTiles = 256;       // pay for transforming an item's weights once more

const WinogradKernels& kernels() {
  return dispatch<WinogradKernels>(SEGFAST_TABLES(winograd_kernels));
}

// Every image's panels [begin, end) in a slab, a block of source channels at a time.
void transform_source(const Winograd& p, Range slab, const Tensor& source, float* to) {
  struct Item {
    int64_t image;
    Range panels;
  };
  const WinogradKernels& k = kernels();
  const int64_t in_image = image_panels(p, k.panel_tiles), channels = source_channels(p.conv);
  const int64_t blocks = divide_up(channels, kSourceChannels);
  std::vector<Item> items;
  int64_t scratch_bytes = 0;
  for (int64_t n = slab.begin / in_image; n * in_image < slab.end; ++n) {
    const Range panels{std::max<int64_t>(slab.begin - n * in_image, 0),
                       std::min(slab.end - n * in_image, in_image)};
    items.push_back({n, panels});
    scratch_bytes = std::max(scratch_bytes, k.source_scratch(p, panels.end - panels.begin));
  }
  for_each_item(static_cast<int64_t>(items.size()) * blocks, [&] {
    return [&, scratch = make_buffer<char>(scratch_bytes)](int64_t index) {
      const auto& [n, panels] = items[index / blocks];
      const int64_t first = index % blocks * kSourceChannels;
      const int64_t before = n * in_image + panels.begin - slab.begin;
      k.source(p, panels, {first, std::min(channels, first + kSourceChannels)},
               reinterpret_cast<const float*>(image(source, n)), slab.end - slab.begin,
               to + before * k.panel_floats(p), scratch.get());
    };
  });
}

// Blocks of result channels, at parts of a slab where there are few of them.
void multiply(const Winograd& p, Range slab, const float* transformed, const Tensor& weight,
              const float* bias, const Tensor& result) {
  const WinogradKernels& k = kernels();
  const int64_t channels = result_channels(p.conv), panels = slab.end - slab.begin;
  const int64_t blocks = divide_up(channels, kChannelStep);
  const int64_t most = std::max<int64_t>(1, panels * k.panel_tiles / kItemTiles);
  const int64_t parts = std::clamp<int64_t>(kItems / blocks, 1, most);
  for_each_item(blocks * parts, [&] {
    return [&, scratch = make_buffer<char>(k.result_scratch(p))](int64_t index) {
      const int64_t begin = index / parts * kChannelStep, part = index % parts;
      const Range its{slab.begin + panels * part / parts, slab.begin + panels * (part + 1) / parts};
      k.result(p, slab, its, begin, std::min(channels, begin + kChannelStep), transformed,
               static_cast<const float*>(weight.const_data_ptr()), bias,
               static_cast<float*>(result.mutable_data_ptr()), scratch.get());
    };
  });
}

void convolve(const DenseConv& conv, const Tensor& source, const Tensor& weight,
              const MaybeTensor& bias, const Tensor& result) {
  STD_TORCH_CHECK(source.scalar_type() == ScalarType::Float, "Winograd's kernels take float32");
  for (const Axis& axis : {conv.conv.rows, conv.conv.columns}) {
    STD_TORCH_CHECK(axis.taps == 3 && axis.stride == 1,
                    "Winograd's kernels take 3x3 convolutions of stride 1, got ", axis.taps,
                    " taps, stride ", axis.stride);
  }
  if (source.size(0) == 0) return;
  const auto rows = winograd_tiles(conv, conv.conv.rows);
  const auto columns = winograd_tiles(conv, conv.conv.columns);
  const Winograd p{conv, rows.data(), columns.data(), static_cast<int64_t>(rows.size()),
                   static_cast<int64_t>(columns.size())};
  const WinogradKernels& k = kernels();
  const int64_t panels = source.size(0) * image_panels(p, k.panel_tiles);
  const int64_t panel_bytes = kPoints * k.panel_floats(p) * static_cast<int64_t>(sizeof(float));
  const int64_t together = std::clamp<int64_t>(kSlabBytes / panel_bytes, 1, panels);
  const int64_t slabs = divide_up(panels, together);
  const auto transformed = make_buffer<float>(together * panel_bytes / sizeof(float));
  const float* summand = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  for (int64_t s = 0; s < slabs; ++s) {  // of sizes that differ by one panel at most
    const Range slab{panels * s / slabs, panels * (s + 1) / slabs};
    transform_source(p, slab, source, transformed.get());
    multiply(p, slab, transformed.get(), weight, summand, result);
  }
}

// x [N, C, H, W], weight [O, C, 3, 3] -> y [N, O, height, width]
Tensor conv(const Tensor& x, const Tensor& weight, MaybeTensor bias, int64_t height, int64_t width,
            int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
            int64_t groups) {
  const DenseConv p = dense_conv(x, weight, bias, height, width, {sh, sw, ph, pw, dh, dw, groups});
  Tensor y = planes_like(x, {x.size(0), weight.size(0), height, width});
  convolve(p, x, weight, bias, y);
  return y;
}

// grad [N, O, Ho, Wo], weight [O, C, 3, 3] -> grad_x [N, C, height, width]
Tensor grad_input(const Tensor& grad, const Tensor& weight, int64_t height, int64_t width,
                  int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw,
                  int64_t groups) {
  const DenseConv p =
      dense_grad_input(grad, weight, height, width, {sh, sw, ph, pw, dh, dw, groups});
  Tensor x = planes_like(grad, {grad.size(0), weight.size(1), height, width});
  convolve(p, grad, weight, std::nullopt, x);
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_dilated_conv_winograd", TORCH_BOX(&conv));
  m.impl("_dilated_conv_winograd_grad_input", TORCH_BOX(&grad_input));
}

}  // namespace segfast
