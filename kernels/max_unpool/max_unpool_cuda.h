// The kernels of max_unpool.h on CUDA: each launcher serves a whole call and returns a cudaError_t,
// 0 for success. Sizes, layouts and meaning are those of MaxUnpoolKernels.
#pragma once

#include "max_unpool.h"

struct CUstream_st;

namespace segfast {

// x [N, C, H, W], y [N, C, Ho, Wo], packed [N, C, Ho, Wp], indices as y; channels_last: C last.
// packed: null when not wanted.
int max_pool_cuda(const Pooling&, const void* x, void* y, uint8_t* packed, CUstream_st*);
int max_pool_backward_cuda(const Pooling&, const void* y, const uint8_t* packed, void* x,
                           CUstream_st*);
int max_unpool_cuda(const Pooling&, const void* y, const uint8_t* packed, void* x, CUstream_st*);
int max_gather_cuda(const Pooling&, const void* x, const uint8_t* packed, void* y, bool winners,
                    CUstream_st*);

int max_unpack_cuda(const Pooling&, const uint8_t* packed, int64_t* indices, CUstream_st*);
// *outside, unless null, grows by the number of indices that lie outside of their window.
int max_pack_cuda(const Pooling&, const int64_t* indices, uint8_t* packed,
                  unsigned long long* outside, CUstream_st*);

// Indices outside of x take no part. winners: index_winners_bytes, aligned to 16; null for the
// gather without the search.
int max_unpool_indices_cuda(const Pooling&, const void* y, const int64_t* indices, void* x,
                            void* winners, CUstream_st*);
int max_gather_indices_cuda(const Pooling&, const void* x, const int64_t* indices, void* y,
                            void* winners, CUstream_st*);

// The last output that names each position of x, counted from 1: 32 bits where they suffice.
static constexpr bool wide_index_winners(const Pooling& p) {
  return p.rows.output * p.columns.output > 0xFFFFFFFELL;
}
static constexpr int64_t index_winners_bytes(const Pooling& p) {
  const int64_t each = wide_index_winners(p) ? 8 : 4;
  return (p.batch * p.channels * p.rows.input * p.columns.input * each + 15) / 16 * 16;
}

}  // namespace segfast
