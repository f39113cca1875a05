// How many rows of planes are turned at once. Static: what is compiled for every instruction set
// has to be its own.
#pragma once

#include "direct.h"
#include "integers.h"

namespace segfast {

// Of the maps that are read: all, at most at once, those that one target row is computed from.
struct TurnedRows {
  int64_t source, most, reach;
};

static TurnedRows turned_rows(const DilatedConv& p, Direction direction) {
  constexpr int64_t kBytes = 1 << 20;  // about a second-level cache
  constexpr int64_t kPixel = 32 * sizeof(float);
  const bool of_gradient = direction == Direction::grad_input;
  const int64_t columns = of_gradient ? p.columns.output : p.columns.input;
  const int64_t span = (p.rows.taps - 1) * p.rows.dilation;
  return {of_gradient ? p.rows.output : p.rows.input, kBytes / (kPixel * columns),
          (of_gradient ? span / p.rows.stride : span) + 1};
}

}  // namespace segfast
