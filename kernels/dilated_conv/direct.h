// Direct dilated convolution for groups of few channels: depthwise above all. Three tables of
// kernels: for maps [N, C, H, W] (planes); for [N, H, W, C] with one input and one output channel
// per group (pixels); for planes of such maps, where it pays to turn them into pixels (turned).
// Sums are float, or double for double.
#pragma once

#include "dilated_conv.h"

namespace segfast {

enum class Direction : int { forward = 0, grad_input = 1, grad_weight = 2 };

struct DirectKernels {
  // Independent items; how they are split among threads changes no bit of the result.
  int64_t (*items)(const DilatedConv& p, Direction direction);
  // How many a thread takes at once, or more: neighbours read the same sources.
  int64_t (*together)(const DilatedConv& p, Direction direction);
  // Bytes of scratch that one thread needs.
  int64_t (*scratch)(const DilatedConv& p, Direction direction);

  // Weights [G O, C, kh, kw] to sums' type in the order that forward and grad_input read.
  void (*arrange)(const DilatedConv& p, const void* weight, void* arranged);
  // bias: [G O] of the maps' dtype, or null.
  void (*forward)(const DilatedConv& p, const void* x, const void* arranged, const void* bias,
                  void* y, int64_t begin, int64_t end, void* scratch);
  void (*grad_input)(const DilatedConv& p, const void* grad, const void* arranged, void* x,
                     int64_t begin, int64_t end, void* scratch);

  // Partial sums of the weight's gradient, [parts, all weights]; every item writes its own.
  int64_t (*parts)(const DilatedConv& p);
  void (*grad_weight)(const DilatedConv& p, const void* grad, const void* x, void* sums,
                      int64_t begin, int64_t end, void* scratch);
  // weight [G O, C, kh, kw] = parts added up in their order, which leaves nothing of use in sums.
  void (*merge)(const DilatedConv& p, void* sums, void* weight);
};

static constexpr int64_t one_item(const DilatedConv&, Direction) { return 1; }

// Whether maps [N, C, H, W] are turned.
bool turns(const DilatedConv& p, Direction direction);

#define SEGFAST_DECLARE_KERNELS(isa)        \
  namespace isa {                           \
  extern const DirectKernels direct_planes; \
  extern const DirectKernels direct_pixels; \
  extern const DirectKernels direct_turned; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
