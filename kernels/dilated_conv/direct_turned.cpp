// Where depthwise planes are turned into pixels: where it was measured to be faster (Zen 5).
#include "direct_turned.h"

#include "direct.h"
#include "integers.h"

namespace segfast {

bool turns(const DilatedConv& p, Direction direction) {
  if (p.batch == 0 || p.in_channels != 1 || p.out_channels != 1) return false;
  const int64_t inputs = p.rows.input * p.columns.input, outputs = p.rows.output * p.columns.output;
  if (p.groups < 8 || smaller(inputs, outputs) < 16) return false;  // less would not fill vectors
  const bool strided = p.rows.stride > 1 || p.columns.stride > 1, few_taps = taps(p) <= 9;
  if (few_taps && !strided) {  // planes are fast
    const bool in_place = p.dtype == Dtype::f32 || p.dtype == Dtype::f64;
    if (p.groups < 16 || (in_place && p.columns.input >= 64)) return false;
  }
  // Rows that two bands read are turned twice.
  const TurnedRows rows = turned_rows(p, direction);
  return rows.source <= rows.most || (few_taps ? 4 : 2) * rows.reach <= rows.most;
}

}  // namespace segfast
