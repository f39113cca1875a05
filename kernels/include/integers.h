// Whole numbers: sizes, steps and what is left of them.
#pragma once

#include <cstdint>

namespace segfast {

// static: an inline function would be a weak symbol in every per-instruction-set object.
static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
// a >= 0, b > 0: ceil(a / b), and the multiple of b that it counts.
static constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace segfast
