// Stands in for CUDA's header of this name: storage, conversions, comparisons, simple arithmetic.
#pragma once

#include "small_float.h"

namespace host_cuda {
struct HalfFormat {
  static float to_float(unsigned short bits) { return bit_cast<_Float16>(bits); }
  static unsigned short from_float(float x) {
    return bit_cast<unsigned short>(static_cast<_Float16>(x));
  }
};
}  // namespace host_cuda

using __half = host_cuda::SmallFloat<host_cuda::HalfFormat>;
