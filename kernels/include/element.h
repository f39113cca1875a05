// Elements of a tensor as they lie in memory, and the type their sums have.
#pragma once

#include "dtype.h"
#include "half.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

struct F16 {
  int16_t bits;
};
struct BF16 {
  int16_t bits;
};
SEGFAST_INLINE float widen(float x) { return x; }
SEGFAST_INLINE double widen(double x) { return x; }
SEGFAST_INLINE float widen(F16 x) { return f16_to_float(x.bits); }
SEGFAST_INLINE float widen(BF16 x) { return bf16_to_float(x.bits); }
SEGFAST_INLINE void narrow(float x, float* to) { *to = x; }
SEGFAST_INLINE void narrow(double x, double* to) { *to = x; }
SEGFAST_INLINE void narrow(float x, F16* to) { to->bits = float_to_f16(x); }
SEGFAST_INLINE void narrow(float x, BF16* to) { to->bits = float_to_bf16(x); }

// f(element type, type of sums)
template <typename F>
void by_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{}, float{});
    case Dtype::f64:
      return f(double{}, double{});
    case Dtype::f16:
      return f(F16{}, float{});
    case Dtype::bf16:
      return f(BF16{}, float{});
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
