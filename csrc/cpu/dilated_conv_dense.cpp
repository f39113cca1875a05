// segfast::_dilated_conv_dense and its gradients: checks, memory, threads; the arithmetic is in
// kernels/dilated_conv.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/dilated_conv_dense_call.h"
#include "csrc/memory_format.h"
#include "csrc/parallel.h"
#include "dispatch.h"
#include "kernels/dilated_conv/dense.h"

namespace segfast {
namespace {

const DenseKernels& kernels() { return dispatch<DenseKernels>(SEGFAST_TABLES(dense_kernels)); }

int64_t sum_bytes(const Tensor& x) { return x.scalar_type() == ScalarType::Double ? 8 : 4; }

// Packed weights of a convolution or its transpose.
Buffer<char> pack(const DenseConv& p, const Tensor& weight) {
  const int64_t channels = result_channels(p), padded = round_up(channels, kChannelStep);
  auto packed = make_buffer<char>(padded * taps(p.conv) * source_channels(p) * sum_bytes(weight));
  for_each_item(padded / kChannelStep, [&] {
    return [&](int64_t item) {
      const int64_t begin = item * kChannelStep;
      kernels().pack_weight(p, weight.const_data_ptr(), begin,
                            std::min(channels, begin + kChannelStep), packed.get());
    };
  });
  return packed;
}

// A convolution of the source (or its transpose), and where its channels begin in the result.
struct Branch {
  DenseConv conv;
  Tensor weight;
  int64_t first_channel;
};

const void* after(const void* data, int64_t elements, int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + elements * bytes;
}

// Channels [begin, end) of a block of an image's result.
struct Item {
  const Branch* branch;
  const char* packed;
  DenseBlock block;
  int64_t begin, end, band;
};

// A block of the source: a step of its channels, as far as a band of rows of the result reads it.
struct SourceBlock {
  int64_t channels, rows;
};

// A pyramid's serves the taps of all branches before the next is read: small enough for the
// last-level cache. A single convolution's blocks of the result take all channels at once.
SourceBlock source_block(const std::vector<Branch>& branches, const Tensor& source) {
  constexpr int64_t kSourceBytes = 4 << 20;
  const int64_t channels = std::max<int64_t>(1, source.size(1));
  if (branches.size() == 1) return {channels, INT64_MAX};
  const int64_t step = std::min(channels, kSourceChannels);
  const int64_t row = step * source.size(3) * source.element_size();
  return {step, std::max<int64_t>(1, kSourceBytes / row)};
}

int64_t block_channels(const Branch& branch) {
  return std::min(result_channels(branch.conv), kBlockChannels);
}

// Of a block. Many read the packed weights less often, few share the work better.
int64_t block_positions(const Branch& branch, int64_t branches, const Tensor& result) {
  const int64_t map = result.size(2) * result.size(3), threads = torch::stable::get_num_threads();
  const int64_t others =
      result.size(0) * branches * divide_up(result_channels(branch.conv), kBlockChannels);
  const auto longest = [&](int64_t positions) {  // a thread's share, in positions
    return divide_up(divide_up(map, positions) * others, threads) * positions;
  };
  const int64_t most = most_positions(block_channels(branch));
  return longest(most) <= longest(kFewPositions) ? most : kFewPositions;
}

// The items of an image: band by band, in a band branch by branch.
std::vector<Item> items_of(const std::vector<Branch>& branches,
                           const std::vector<Buffer<char>>& packed, const Tensor& result,
                           int64_t band_rows) {
  std::vector<Item> items;
  for (size_t i = 0; i < branches.size(); ++i) {
    const int64_t channels = result_channels(branches[i].conv);
    const int64_t positions = block_positions(branches[i], branches.size(), result);
    for (const DenseBlock& block : dense_blocks(branches[i].conv, positions)) {
      const int64_t width = block.columns.end - block.columns.begin;
      const int64_t band = (block.rows.begin + block.first / width) / band_rows;
      for (int64_t begin = 0; begin < channels; begin += kBlockChannels) {
        const int64_t end = std::min(channels, begin + kBlockChannels);
        items.push_back({&branches[i], packed[i].get(), block, begin, end, band});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.band < b.band; });
  return items;
}

// All branches side by side.
void convolve(const std::vector<Branch>& branches, const Tensor& source, const DenseFinish& finish,
              const Tensor& result) {
  std::vector<Buffer<char>> packed;
  int64_t scratch_bytes = 0, sums_bytes = 0;
  for (const Branch& branch : branches) {
    packed.push_back(pack(branch.conv, branch.weight));
    scratch_bytes = std::max(scratch_bytes, kernels().conv_scratch(branch.conv));
    sums_bytes = std::max(sums_bytes, kernels().conv_sums(branch.conv, block_channels(branch)));
  }
  const SourceBlock block = source_block(branches, source);
  const auto items = items_of(branches, packed, result, block.rows);
  const int64_t count = static_cast<int64_t>(items.size()), all = source.size(0) * count;
  const int64_t channels = source.size(1), bytes = result.element_size();
  const int64_t steps = std::max<int64_t>(1, divide_up(channels, block.channels));

  // Items, of all images, whose sums wait for the next step of channels: whole bands.
  constexpr int64_t kStripBytes = 16 << 20;
  const auto band_end = [&](int64_t index) {
    const int64_t band = items[index % count].band;
    do {
      ++index;
    } while (index % count != 0 && items[index % count].band == band);
    return index;
  };
  const auto strip_end = [&](int64_t start) {
    if (steps == 1) return all;
    int64_t end = band_end(start);
    while (end < all && (band_end(end) - start) * sums_bytes <= kStripBytes) end = band_end(end);
    return end;
  };

  for (int64_t start = 0, end; start < all; start = end) {
    end = strip_end(start);
    const auto sums = make_buffer<char>(steps == 1 ? 1 : (end - start) * sums_bytes);
    for_each_step(end - start, steps, [&] {
      return [&, scratch = make_buffer<char>(scratch_bytes),
              own = make_buffer<char>(steps == 1 ? sums_bytes : 1)](int64_t index, int64_t step) {
        const Item& item = items[(start + index) % count];
        const int64_t first = item.branch->first_channel, n = (start + index) / count;
        const DenseFinish its{after(finish.bias, first, bytes),
                              after(finish.scale, first, sum_bytes(source)),
                              after(finish.shift, first, sum_bytes(source)), finish.relu};
        char* to =
            const_cast<char*>(image(result, n)) + first * result.size(2) * result.size(3) * bytes;
        const Range from{step * block.channels, std::min(channels, (step + 1) * block.channels)};
        kernels().add_conv(item.branch->conv, item.block, item.begin, item.end, from,
                           image(source, n), item.packed, its, to,
                           steps == 1 ? own.get() : sums.get() + index * sums_bytes, scratch.get());
      };
    });
  }
}

const void* data_of(const MaybeTensor& x) { return x ? x->const_data_ptr() : nullptr; }

// x [N, C, H, W], weight [O, C, kh, kw] -> y [N, O, height, width]
Tensor dilated_conv_dense(const Tensor& x, const Tensor& weight, MaybeTensor bias, int64_t height,
                          int64_t width, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh,
                          int64_t dw, int64_t groups) {
  const DenseConv p = dense_conv(x, weight, bias, height, width, {sh, sw, ph, pw, dh, dw, groups});
  Tensor y = planes_like(x, {x.size(0), weight.size(0), height, width});
  if (x.size(0) == 0) return y;
  convolve({{p, weight, 0}}, x, {data_of(bias), nullptr, nullptr, false}, y);
  return y;
}

// grad [N, O, Ho, Wo], weight [O, C, kh, kw] -> grad_x [N, C, height, width]
Tensor dilated_conv_dense_grad_input(const Tensor& grad, const Tensor& weight, int64_t height,
                                     int64_t width, int64_t sh, int64_t sw, int64_t ph, int64_t pw,
                                     int64_t dh, int64_t dw, int64_t groups) {
  const DenseConv p =
      dense_grad_input(grad, weight, height, width, {sh, sw, ph, pw, dh, dw, groups});
  Tensor x = planes_like(grad, {grad.size(0), weight.size(1), height, width});
  if (grad.size(0) == 0) return x;
  convolve({{p, weight, 0}}, grad, {nullptr, nullptr, nullptr, false}, x);
  return x;
}

// grad [N, O, Ho, Wo], x [N, C, H, W] -> grad_weight [O, C, height, width]
Tensor dilated_conv_dense_grad_weight(const Tensor& grad, const Tensor& x, int64_t height,
                                      int64_t width, int64_t sh, int64_t sw, int64_t ph, int64_t pw,
                                      int64_t dh, int64_t dw, int64_t groups) {
  check_map(grad, grad, "grad");
  check_map(x, grad, "x");
  const int64_t images = x.size(0), in = x.size(1), out = grad.size(1);
  STD_TORCH_CHECK(grad.size(0) == images, "grad must have the batch of x");
  const Sizes kernel{out, in, height, width};
  const DenseConv p{ungrouped(Shape(x).sizes, Shape(grad).sizes, kernel,
                              {sh, sw, ph, pw, dh, dw, groups}, x.scalar_type()),
                    false};
  Tensor weight = planes_like(x, kernel);
  if (images == 0) return torch::stable::fill_(weight, 0.0);

  // Work is cut into blocks of weights and, where those are few, into parts of the positions; the
  // gradient is packed for as many images at a time as a buffer holds.
  constexpr int64_t kItems = 32, kPackedBytes = 64 << 20;
  const auto blocks = weight_blocks(p);
  const int64_t count = static_cast<int64_t>(blocks.size()), element = sum_bytes(x);
  const int64_t step = weight_output_rows(p), chunks = divide_up(p.conv.rows.output, step);
  const int64_t padded = round_up(out, kChannelStep);
  const int64_t packed_image = padded * p.conv.rows.output * p.conv.columns.output * element;
  const int64_t together = std::clamp<int64_t>(kPackedBytes / packed_image, 1, images);
  const int64_t parts = std::clamp<int64_t>(kItems / count, 1, together * chunks);
  int64_t sums_bytes = 0, scratch_bytes = 0;
  for (const WeightBlock& b : blocks) {
    sums_bytes = std::max(sums_bytes, taps(p.conv) * weight_rows(b) * weight_pitch(b) * element);
    scratch_bytes = std::max(scratch_bytes, kernels().weight_scratch(p, b));
  }
  const auto packed = make_buffer<char>(together * packed_image);
  const auto sums = make_buffer<char>(count * parts * sums_bytes);
  for (int64_t first = 0; first < images; first += together) {
    const int64_t here = std::min(together, images - first),
                  groups_of_channels = padded / kChannelStep;
    for_each_item(here * groups_of_channels, [&] {
      return [&](int64_t item) {
        const int64_t n = item / groups_of_channels,
                      begin = item % groups_of_channels * kChannelStep;
        kernels().pack_grad(p, image(grad, first + n), begin, std::min(out, begin + kChannelStep),
                            packed.get() + n * packed_image);
      };
    });
    for_each_item(count * parts, [&] {
      return [&, scratch = make_buffer<char>(scratch_bytes)](int64_t item) {
        const int64_t part = item % parts;
        const WeightBlock& b = blocks[item / parts];
        const int64_t used = taps(p.conv) * weight_rows(b) * weight_pitch(b) * element;
        char* to = sums.get() + item / parts * parts * sums_bytes + part * used;
        if (first == 0) std::memset(to, 0, used);
        const int64_t all = here * chunks;
        for (int64_t u = all * part / parts; u < all * (part + 1) / parts; ++u) {
          const int64_t n = u / chunks, row = u % chunks * step;
          kernels().add_weight(p, b, {row, std::min(p.conv.rows.output, row + step)},
                               image(x, first + n), packed.get() + n * packed_image, to,
                               scratch.get());
        }
      };
    });
  }
  for_each_item(count, [&] {
    return [&](int64_t item) {
      kernels().merge_weight(p, blocks[item], sums.get() + item * parts * sums_bytes, parts,
                             weight.mutable_data_ptr());
    };
  });
  return weight;
}

// x [N, C, H, W], weights [O_b, C, kh, kw] with odd kernels, bias, scale, shift [O_1 + O_2 + ...]
//   -> act(scale ([w_1 *_rate x, ...] + bias) + shift)  [N, O_1 + O_2 + ..., H, W]
Tensor atrous_pyramid_dense(const Tensor& x, std::vector<Tensor> weights, MaybeTensor bias,
                            std::vector<int64_t> rates, MaybeTensor scale, MaybeTensor shift,
                            bool relu) {
  check_map(x, x, "x");
  STD_TORCH_CHECK(weights.size() == rates.size(), "every branch must have a rate");
  const Sizes from = Shape(x).sizes;
  Sizes to{from[0], 0, from[2], from[3]};
  std::vector<Branch> branches;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    check_map(weight, x, "weights");
    const Sizes kernel = Shape(weight).sizes;
    const int64_t kh = kernel[2], kw = kernel[3], rate = rates[i];
    STD_TORCH_CHECK(kernel[1] == from[1], "weights must have the channels of x");
    STD_TORCH_CHECK(kh % 2 == 1 && kw % 2 == 1, "weights must have odd kernels");
    STD_TORCH_CHECK(is_size(kh) && is_size(kw) && is_size(rate),
                    "kernels and rates must be at least 1 and below 2^31, got ", kh, "x", kw,
                    " and ", rate);
    const Strides strides{1, 1, rate * (kh - 1) / 2, rate * (kw - 1) / 2, rate, rate, 1};
    const Sizes result{from[0], kernel[0], from[2], from[3]};
    branches.push_back(
        {{problem(from, result, kernel, strides, x.scalar_type()), false}, weight, to[1]});
    to[1] += kernel[0];
  }
  const ScalarType sum = sum_bytes(x) == 8 ? ScalarType::Double : ScalarType::Float;
  if (bias) check_tensor(*bias, x.scalar_type(), to[1], "bias");
  if (scale) check_tensor(*scale, sum, to[1], "scale");
  if (shift) check_tensor(*shift, sum, to[1], "shift");
  Tensor y = planes_like(x, to);
  if (x.size(0) == 0) return y;
  convolve(branches, x, {data_of(bias), data_of(scale), data_of(shift), relu}, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_dilated_conv_dense", TORCH_BOX(&dilated_conv_dense));
  m.impl("_dilated_conv_dense_grad_input", TORCH_BOX(&dilated_conv_dense_grad_input));
  m.impl("_dilated_conv_dense_grad_weight", TORCH_BOX(&dilated_conv_dense_grad_weight));
  m.impl("_atrous_pyramid_dense", TORCH_BOX(&atrous_pyramid_dense));
}

}  // namespace segfast
