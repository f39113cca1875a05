// The contract of the dense kernels: convolution without groups, its input gradient and its weight
// gradient as products of matrices over live taps.
//
// A convolution and its transpose (the input gradient) both turn a source map into a result map,
//   result[b, q] = sum_{t, a} w_t[b, a] source[a, place_t(q)]
// and are one kernel here. Maps are contiguous [N, C, H, W].
#pragma once

#include <vector>

#include "dilated_conv.h"
#include "integers.h"

namespace segfast {

struct DenseConv {
  DilatedConv conv;  // groups = 1
  bool transposed;
};

static constexpr int64_t source_channels(const DenseConv& p) {
  return p.transposed ? p.conv.out_channels : p.conv.in_channels;
}
static constexpr int64_t result_channels(const DenseConv& p) {
  return p.transposed ? p.conv.in_channels : p.conv.out_channels;
}
static constexpr int64_t source_size(const DenseConv& p, const Axis& axis) {
  return p.transposed ? axis.output : axis.input;
}
static constexpr int64_t result_size(const DenseConv& p, const Axis& axis) {
  return p.transposed ? axis.input : axis.output;
}

// Where along an axis a tap of a result reads the source; -1: nowhere.
static constexpr int64_t place(const DenseConv& p, const Axis& axis, int64_t tap, int64_t result) {
  if (!p.transposed) {
    const int64_t at = input_of(axis, tap, result);
    return at < axis.input ? (at < 0 ? -1 : at) : -1;
  }
  int64_t at = result + axis.padding - tap * axis.dilation;
  if (at < 0) return -1;
  if (axis.stride != 1) {
    if (at % axis.stride != 0) return -1;
    at /= axis.stride;
  }
  return at < axis.output ? at : -1;
}

constexpr int64_t kBlockPositions = 192;  // of the result, at most, that are summed in cache
constexpr int64_t kBlockChannels = 512;   // likewise
constexpr int64_t kFewPositions = 96;     // with that many channels: sums take 200 KB of float32
static constexpr int64_t most_positions(int64_t channels) {
  return channels > kBlockChannels / 2 ? kFewPositions : kBlockPositions;
}
constexpr int64_t kChannelStep = 32;  // packed weights are padded to it: a multiple of all panels
constexpr int64_t kSourceChannels = 256;  // a step of a sum: a panel of them fits the first level

// Positions [first, first + count) of a rectangle of the result, in the order of memory.
struct DenseBlock {
  Range rows, columns;
  int64_t first, count;
  bool uniform;  // all have the same live taps
};

// All positions of the result, at most so many in a block. How they are cut changes no sum.
std::vector<DenseBlock> dense_blocks(const DenseConv& p, int64_t positions);

//   result = act(scale (sum + bias) + shift), each per channel of the result, or null
struct DenseFinish {
  const void* bias;   // of the maps' type
  const void* scale;  // of the sums' type
  const void* shift;
  bool relu;
};

// A block of weights whose gradient is summed in cache, as [taps, weight_rows, weight_pitch]. in
// begins at a multiple of kWeightRows, out at one of kChannelStep.
struct WeightBlock {
  Range in, out;
};
constexpr int64_t kWeightRows = 12;        // a multiple of the rows of any tile
constexpr int64_t kWeightPositions = 384;  // of the output, about, that are multiplied at once

static constexpr int64_t weight_rows(const WeightBlock& b) {
  return round_up(b.in.end - b.in.begin, kWeightRows);
}
static constexpr int64_t weight_pitch(const WeightBlock& b) {
  return round_up(b.out.end - b.out.begin, kChannelStep) + 16;  // rows must not meet in the cache
}

std::vector<WeightBlock> weight_blocks(const DenseConv& p);
// Rows of the output that are multiplied at once.
int64_t weight_output_rows(const DenseConv& p);

struct DenseKernels {
  // packed: the weights of result channels [begin, end), begin a multiple of kChannelStep, within
  // [padded channels, taps, source channels] sums. weight [out, in, taps].
  void (*pack_weight)(const DenseConv& p, const void* weight, int64_t begin, int64_t end,
                      void* packed);
  // Bytes of scratch that `add_conv` needs, aligned to a vector.
  int64_t (*conv_scratch)(const DenseConv& p);
  // Bytes of the sums of a block with that many channels, aligned to a vector.
  int64_t (*conv_sums)(const DenseConv& p, int64_t channels);
  // sums += source channels `from`, for result channels [begin, end) at a block's positions of one
  // image: at most kBlockChannels, begin a multiple of kChannelStep; from.begin a multiple of
  // kSourceChannels. The first channels begin the sums, the last ones write the result: a block
  // takes them in order, in one call or several. source, result: the image's.
  void (*add_conv)(const DenseConv& p, const DenseBlock& block, int64_t begin, int64_t end,
                   Range from, const void* source, const void* packed, const DenseFinish& finish,
                   void* result, void* sums, void* scratch);

  // packed: an image's gradient of output channels [begin, end), begin a multiple of kChannelStep,
  // within [padded channels, positions] sums.
  void (*pack_grad)(const DenseConv& p, const void* grad, int64_t begin, int64_t end, void* packed);
  // Bytes of scratch that `add_weight` needs.
  int64_t (*weight_scratch)(const DenseConv& p, const WeightBlock& block);
  // sums += the share of an image's rows `outputs`, at most weight_output_rows; x: the image's.
  void (*add_weight)(const DenseConv& p, const WeightBlock& block, Range outputs, const void* x,
                     const void* packed_grad, void* sums, void* scratch);
  // A block of weight [out, in, taps] = `count` parts of sums, one after another, added in order.
  void (*merge_weight)(const DenseConv& p, const WeightBlock& block, const void* parts,
                       int64_t count, void* weight);
};

#define SEGFAST_DECLARE_KERNELS(isa)       \
  namespace isa {                          \
  extern const DenseKernels dense_kernels; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
