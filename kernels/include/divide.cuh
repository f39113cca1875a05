// Division by what only the host knows, as a multiplication.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace segfast {

// n / divisor for n >= 0, divisor >= 1. With s = ceil(log2 divisor) and
//
//   m = floor(2^32 (2^s - divisor) / divisor) + 1:  n / divisor = (n + floor(m n / 2^32)) / 2^s
//
// for n < 2^31 (T. Granlund, P. Montgomery, "Division by Invariant Integers using Multiplication",
// PLDI 1994, section 4); larger n are divided.
struct Divider {
  int64_t divisor;
  uint32_t multiplier = 0, shift = 31;  // 0 for every n < 2^31

  explicit Divider(int64_t by) : divisor(by) {
    if (by >= int64_t{1} << 31) return;
    for (shift = 0; int64_t{1} << shift < by;) ++shift;
    const uint64_t rest = (uint64_t{1} << shift) - static_cast<uint64_t>(by);
    multiplier = static_cast<uint32_t>((rest << 32) / static_cast<uint64_t>(by) + 1);
  }

  __device__ int64_t operator()(int64_t n) const {
    if (n >> 31 != 0) return n / divisor;
    const uint32_t small = static_cast<uint32_t>(n);
    return (__umulhi(small, multiplier) + small) >> shift;
  }
};

}  // namespace segfast
