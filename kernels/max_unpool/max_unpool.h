// Max-pooling with packed indices, and its inverse: the seam between bindings and kernels, CPU and
// CUDA alike.
//
// Two maps, x the large and y the small one. Output o = (ho, wo) looks at the window
//
//   x[ho * stride - padding + i * dilation, wo * stride - padding + j * dilation],
//   i in [0, kernel_h), j in [0, kernel_w),
//
// and chooses one position of it: what is kept is the offset i * kernel_w + j, in 2, 4 or 8 bits.
//
//   pool            y[o] = max over its window inside x; the first maximum, the last NaN if any
//   pool_backward   x[p] = sum of y[o] over the windows that chose p, in row-major order of o
//   unpool          x[p] = y[o] of the last window that chose p, else 0
//   gather          y[o] = x[position chosen by o], 0 where that lies outside x;
//                   winners: 0 also where a later window chose the same position
//
// Layouts, dense:    NCHW                     channels_last
//   x                [N, C, H, W]             [N, H, W, C]
//   y                [N, C, Ho, Wo]           [N, Ho, Wo, C]
//   packed, bytes    [N, C, Ho, Wp]           [N, Ho, Wp, C]     Wp = packed_width
//   indices          as y, int64: h * W + w
//
// The offset of column wo is in byte wo * bits / 8 of its row, at bit wo * bits % 8. Packed bytes
// and indices may hold anything: what names no position inside x is never written.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace segfast {

// The windows along one direction.
struct PoolAxis {
  int64_t input, output;  // sizes of x and of y
  int64_t kernel = 1, stride = 1, padding = 0, dilation = 1;
};

struct Pooling {
  int64_t batch, channels;
  PoolAxis rows, columns;
  bool channels_last;
  Dtype dtype;  // of x and y
};

constexpr int64_t kMostPositions = 256;  // of a window: an offset has at most 8 bits

// static: an inline function would be a weak symbol in every per-instruction-set object.
static constexpr int64_t positions(const Pooling& p) { return p.rows.kernel * p.columns.kernel; }
static constexpr int offset_bits(int64_t positions) {
  return positions <= 4 ? 2 : positions <= 16 ? 4 : 8;
}
static constexpr int offset_bits(const Pooling& p) { return offset_bits(positions(p)); }
static constexpr int64_t packed_width(int64_t width, int bits) { return (width * bits + 7) / 8; }
// Bytes of a row of packed offsets, for one channel.
static constexpr int64_t packed_row(const Pooling& p) {
  return packed_width(p.columns.output, offset_bits(p));
}

// Maps are walked as [maps, H, W, inner]: planes, or images whose pixels have `inner` channels.
static constexpr int64_t maps(const Pooling& p) {
  return p.channels_last ? p.batch : p.batch * p.channels;
}
static constexpr int64_t inner(const Pooling& p) { return p.channels_last ? p.channels : 1; }

// Positions from the first to the last of a window.
static constexpr int64_t window_extent(const PoolAxis& axis) {
  return (axis.kernel - 1) * axis.dilation + 1;
}
// No position belongs to two windows.
static constexpr bool windows_disjoint(const PoolAxis& axis) {
  return axis.stride >= window_extent(axis) || axis.output <= 1;
}
static constexpr bool windows_disjoint(const Pooling& p) {
  return windows_disjoint(p.rows) && windows_disjoint(p.columns);
}

// 2x2 windows side by side, as SegNet and DeconvNet have them. The last row or column of x may
// belong to no window, and the last window may reach beyond x.
static constexpr bool is_two_by_two(const PoolAxis& axis) {
  return axis.kernel == 2 && axis.stride == 2 && axis.padding == 0 && axis.dilation == 1;
}
static constexpr bool is_two_by_two(const Pooling& p) {
  return is_two_by_two(p.rows) && is_two_by_two(p.columns);
}

// Independent items of work. A row is one line of a plane, or of an image when channels_last; a
// slice is one plane, or up to kSliceChannels channels of an image when channels_last.
constexpr int64_t kSliceChannels = 16;
static constexpr int64_t pool_rows_of_x(const Pooling& p) { return maps(p) * p.rows.input; }
static constexpr int64_t pool_rows_of_y(const Pooling& p) { return maps(p) * p.rows.output; }
static constexpr int64_t pool_slices_per_image(const Pooling& p) {
  return p.channels_last ? (p.channels + kSliceChannels - 1) / kSliceChannels : p.channels;
}
static constexpr int64_t pool_slices(const Pooling& p) {
  return p.batch * pool_slices_per_image(p);
}

// Bytes that one thread needs to find the winners among overlapping windows (gather), or among
// arbitrary indices (gather_indices).
static constexpr int64_t winners_scratch(const Pooling& p) {
  return window_extent(p.rows) * p.columns.input * inner(p);
}
static constexpr int64_t index_winners_scratch(const Pooling& p) {
  return p.rows.input * p.columns.input * (p.channels_last ? kSliceChannels : 1);
}

// Each kernel serves the items [begin, end) named above it; the result does not depend on how they
// are split. Maps are dense, as walked: x [maps, H, W, inner], y [maps, Ho, Wo, inner], packed
// [maps, Ho, Wp, inner], indices as y.
struct MaxUnpoolKernels {
  // Rows of y. packed: null when not wanted.
  void (*pool)(const Pooling&, const void* x, void* y, uint8_t* packed, int64_t begin, int64_t end);
  // Rows of x.
  void (*pool_backward)(const Pooling&, const void* y, const uint8_t* packed, void* x,
                        int64_t begin, int64_t end);
  void (*unpool)(const Pooling&, const void* y, const uint8_t* packed, void* x, int64_t begin,
                 int64_t end);
  // Rows of y. scratch: winners_scratch bytes, or null for the plain gather.
  void (*gather)(const Pooling&, const void* x, const uint8_t* packed, void* y, uint8_t* scratch,
                 int64_t begin, int64_t end);

  // Rows of y. Offsets to PyTorch's indices and back; pack returns how many indices lie outside of
  // their window.
  void (*unpack)(const Pooling&, const uint8_t* packed, int64_t* indices, int64_t begin,
                 int64_t end);
  int64_t (*pack)(const Pooling&, const int64_t* indices, uint8_t* packed, int64_t begin,
                  int64_t end);

  // Slices. The same as unpool and gather for arbitrary indices; both return how many lie outside
  // of x. Of Pooling they read sizes, layout and dtype. scratch: index_winners_scratch or null.
  int64_t (*unpool_indices)(const Pooling&, const void* y, const int64_t* indices, void* x,
                            int64_t begin, int64_t end);
  int64_t (*gather_indices)(const Pooling&, const void* x, const int64_t* indices, void* y,
                            uint8_t* scratch, int64_t begin, int64_t end);
};

#define SEGFAST_DECLARE_KERNELS(isa)                \
  namespace isa {                                   \
  extern const MaxUnpoolKernels max_unpool_kernels; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
