// Cuts a result map into blocks: by sizes alone.
#include <algorithm>

#include "dense.h"

namespace segfast {
namespace {

// Below this many channels one tap is too short a product: taps are multiplied together, over
// rectangles in which the same ones are live.
constexpr int64_t kFewChannels = 128;

// Where the live taps change along an axis, and its two ends.
std::vector<int64_t> cuts(const DenseConv& p, const Axis& axis) {
  const int64_t size = result_size(p, axis);
  std::vector<int64_t> at = {0, size};
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    const Range outputs = live(axis, tap);
    if (outputs.begin == outputs.end) continue;
    // Transposed with stride 1, from outputs to the inputs that they read.
    const int64_t shift = p.transposed ? input_of(axis, tap, 0) : 0;
    at.push_back(outputs.begin + shift);
    at.push_back(outputs.end + shift);
  }
  std::sort(at.begin(), at.end());
  at.erase(std::unique(at.begin(), at.end()), at.end());
  return at;
}

void cut_rectangle(Range rows, Range columns, bool uniform, int64_t positions,
                   std::vector<DenseBlock>* blocks) {
  const int64_t all = (rows.end - rows.begin) * (columns.end - columns.begin);
  const int64_t parts = divide_up(all, positions);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = all * i / parts, last = all * (i + 1) / parts;
    blocks->push_back({rows, columns, first, last - first, uniform});
  }
}

}  // namespace

std::vector<DenseBlock> dense_blocks(const DenseConv& p, int64_t positions) {
  const Axis &rows = p.conv.rows, &columns = p.conv.columns;
  std::vector<DenseBlock> blocks;
  const bool phases = p.transposed && (rows.stride != 1 || columns.stride != 1);
  if (phases || source_channels(p) >= kFewChannels) {
    cut_rectangle({0, result_size(p, rows)}, {0, result_size(p, columns)}, false, positions,
                  &blocks);
    return blocks;
  }
  const auto row_cuts = cuts(p, rows), column_cuts = cuts(p, columns);
  for (size_t i = 0; i + 1 < row_cuts.size(); ++i) {
    for (size_t j = 0; j + 1 < column_cuts.size(); ++j) {
      cut_rectangle({row_cuts[i], row_cuts[i + 1]}, {column_cuts[j], column_cuts[j + 1]}, true,
                    positions, &blocks);
    }
  }
  return blocks;
}

std::vector<WeightBlock> weight_blocks(const DenseConv& p) {
  constexpr int64_t kSums = 64 << 10;  // of a block: half of a second-level cache
  const int64_t in = p.conv.in_channels, out = p.conv.out_channels, all = taps(p.conv);
  int64_t width = std::min(kBlockChannels, round_up(out, kChannelStep));
  while (width > kChannelStep && width * all * kWeightRows > kSums) {
    width = round_up(width / 2, kChannelStep);
  }
  const int64_t most = 8 * kWeightRows;
  const int64_t height =
      std::clamp(kSums / (width * all) / kWeightRows * kWeightRows, kWeightRows, most);
  std::vector<WeightBlock> blocks;
  for (int64_t c = 0; c < in; c += height) {
    for (int64_t o = 0; o < out; o += width) {
      blocks.push_back({{c, std::min(in, c + height)}, {o, std::min(out, o + width)}});
    }
  }
  return blocks;
}

int64_t weight_output_rows(const DenseConv& p) {
  return std::clamp<int64_t>(kWeightPositions / p.conv.columns.output, 1, p.conv.rows.output);
}

}  // namespace segfast
