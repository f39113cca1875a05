// The contract of the linear-attention kernels. Maps are rows (channels) of positions that lie next
// to each other; a kernel takes one batch element and a range of its positions.
//   state   S = sum_j phi(k_j) [v_j, 1]^T                     [R, E + 1]
//   read    o_n = residual + gamma phi(q_n)^T S_v / phi(q_n) . (S_1 + eps)
// R = D; taylor: D + 1, its features are [x / |x|, 1] and eps is added to the first D. Sums and the
// state are float, or double for double.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace segfast {

// In the order of reference.py's FEATURE_MAPS.
enum class FeatureMap : int { softplus = 0, taylor = 1, relu = 2, elu = 3, identity = 4 };

struct LinearAttention {
  FeatureMap map;
  Dtype dtype;       // of q, k, v, o, residual and their gradients
  int64_t features;  // D, channels of q and k
  int64_t values;    // E, channels of v and o
  double eps;
};

// R: the features, and the ones of taylor.
static inline int64_t state_rows(const LinearAttention& p) {
  return p.features + (p.map == FeatureMap::taylor);
}

struct Map {
  const void* data;  // position 0 of channel 0
  int64_t pitch;     // elements from channel to channel
};
struct MutableMap {
  void* data;
  int64_t pitch;
};

constexpr int64_t kPackedValues = 96;  // a multiple of the rows of a tile, in any instruction set

struct LinearAttentionKernels {
  // Bytes of scratch that any of the kernels needs, aligned to a vector.
  int64_t (*scratch)(const LinearAttention& p);
  // Elements of a partial sum over positions.
  int64_t (*part)(const LinearAttention& p);
  // Elements of a state, or of its gradient, in the order in which it is read.
  int64_t (*weights)(const LinearAttention& p);

  // part = sum of the state over positions [begin, end), at least one, for the values [begin_value,
  // end_value): the same bits whether they are taken at once or in ranges.
  void (*state)(const LinearAttention& p, Map k, Map v, int64_t begin, int64_t end,
                int64_t begin_value, int64_t end_value, void* part, void* scratch);
  // Columns [begin, end) of the state [R, E + 1] (or of its gradient): parts summed in order.
  void (*merge)(const LinearAttention& p, const void* parts, int64_t count, int64_t begin,
                int64_t end, void* state);
  // weights = values [begin, end) of a state, begin a multiple of kPackedValues; `features` for
  // read and state_backward, `values` for both gradients.
  void (*pack)(const LinearAttention& p, const void* state, int64_t begin, int64_t end,
               bool features, bool values, void* weights);
  // gamma: one element, or null; residual.data may be null.
  void (*read)(const LinearAttention& p, Map q, const void* weights, const void* gamma,
               Map residual, MutableMap o, int64_t begin, int64_t end, void* scratch);
  void (*state_backward)(const LinearAttention& p, const void* weights, Map k, Map v,
                         MutableMap grad_k, MutableMap grad_v, int64_t begin, int64_t end,
                         void* scratch);
  // part: of the state's gradient. grad_gamma: one element, this range's share.
  void (*read_backward)(const LinearAttention& p, Map grad_o, Map q, const void* weights,
                        const void* gamma, MutableMap grad_q, void* part, void* grad_gamma,
                        int64_t begin, int64_t end, void* scratch);
  // grad_gamma [batch] = shares [batch, count] summed in order.
  void (*merge_gamma)(const LinearAttention& p, const void* shares, int64_t batch, int64_t count,
                      void* grad_gamma);
};

#define SEGFAST_DECLARE_KERNELS(isa)                            \
  namespace isa {                                               \
  extern const LinearAttentionKernels linear_attention_kernels; \
  }
SEGFAST_DECLARE_KERNELS(baseline)
SEGFAST_DECLARE_KERNELS(avx2)
SEGFAST_DECLARE_KERNELS(avx512)
#undef SEGFAST_DECLARE_KERNELS

}  // namespace segfast
