// Stands in for CUDA's header of this name: storage, conversions, comparisons, simple arithmetic.
#pragma once

#include "small_float.h"

namespace host_cuda {
struct Bfloat16Format {
  static float to_float(unsigned short bits) {
    return bit_cast<float>(static_cast<unsigned>(bits) << 16);
  }
  static unsigned short from_float(float x) {  // to nearest, ties to even
    if (std::isnan(x)) return 0x7FFF;
    const unsigned bits = bit_cast<unsigned>(x);
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
};
}  // namespace host_cuda

using __nv_bfloat16 = host_cuda::SmallFloat<host_cuda::Bfloat16Format>;
