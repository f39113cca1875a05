// How many rows of planes are turned at once. Static: what is compiled for every instruction set
// has to be its own.
#pragma once

#include "direct.h"

namespace segfast {

struct TurnedRows {
  int64_t source, most;  // rows of the maps that are read: all; at once
  int64_t reach;         // source rows from the first that a target row reads to the last
  int64_t overlap;       // target rows that lie as far apart
};

static TurnedRows turned_rows(const DilatedConv& p, Direction direction) {
  constexpr int64_t kBytes = 1 << 20;  // about a second-level cache
  constexpr int64_t kPixel = 32 * sizeof(float);
  const bool of_gradient = direction == Direction::grad_input;
  const int64_t columns = of_gradient ? p.columns.output : p.columns.input;
  const int64_t span = (p.rows.taps - 1) * p.rows.dilation, strides = span / p.rows.stride;
  return {of_gradient ? p.rows.output : p.rows.input, kBytes / (kPixel * columns),
          (of_gradient ? strides : span) + 1, (of_gradient ? span : strides) + 1};
}

}  // namespace segfast
