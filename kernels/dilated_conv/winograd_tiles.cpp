// Cuts the phases of a result into tiles: by sizes alone.
#include "winograd.h"

namespace segfast {

std::vector<int64_t> winograd_tiles(const DenseConv& p, const Axis& axis) {
  const int64_t size = result_size(p, axis), rate = axis.dilation;
  std::vector<int64_t> first;
  for (int64_t phase = 0; phase < rate && phase < size; ++phase) {
    for (int64_t at = phase; at < size; at += kTile * rate) first.push_back(at);
  }
  return first;
}

}  // namespace segfast
