#include "driver.h"
#include "kernels/dense_crf/dense_crf_cuda.h"

namespace {

using segfast::MessageTerm;
using segfast::MixingKind;

// Of two terms, what is no array.
struct Terms {
  int64_t count, corners[2], kinds[2];
  double gains[2];

  void set(int i, const int32_t* vertex, const void* weight, const void* scale, const void* rows,
           const int64_t* state, const void* mixing, void* kept, MessageTerm* term) const {
    *term = {static_cast<int>(corners[i]),
             static_cast<MixingKind>(kinds[i]),
             gains[i],
             vertex,
             weight,
             scale,
             rows,
             mixing,
             state,
             kept};
  }
};

int update(const segfast::UpdateSize& size, const Terms& terms, bool normalize, const void* logits,
           void* scores, void* result, void* belief, const int32_t* v0, const void* w0,
           const void* s0, const void* r0, const int64_t* t0, const void* m0, void* k0,
           const int32_t* v1, const void* w1, const void* s1, const void* r1, const int64_t* t1,
           const void* m1, void* k1, CUstream_st* stream) {
  segfast::BatchUpdate u{size, logits, scores, result, belief, normalize, int(terms.count), {}};
  terms.set(0, v0, w0, s0, r0, t0, m0, k0, &u.term[0]);
  terms.set(1, v1, w1, s1, r1, t1, m1, k1, &u.term[1]);
  return segfast::mean_field_update_cuda(u, stream);
}

int update_backward(const segfast::UpdateSize& size, const Terms& terms, const void* belief,
                    const void* upstream, void* gradient, void* total, const int32_t* v0,
                    const void* w0, const void* s0, const void* r0, const int64_t* t0,
                    const void* m0, void* k0, const int32_t* v1, const void* w1, const void* s1,
                    const void* r1, const int64_t* t1, const void* m1, void* k1,
                    CUstream_st* stream) {
  segfast::BatchUpdateBackward r{size, belief, upstream, gradient, total, int(terms.count), {}};
  terms.set(0, v0, w0, s0, r0, t0, m0, k0, &r.term[0]);
  terms.set(1, v1, w1, s1, r1, t1, m1, k1, &r.term[1]);
  return segfast::mean_field_update_backward_cuda(r, stream);
}

// The plan as bytes.
int plan(const segfast::LatticeSize& size, const void* features, void* ranges, uint8_t* plan,
         int64_t* state, CUstream_st* stream) {
  return segfast::lattice_plan_cuda(size, features, ranges,
                                    reinterpret_cast<segfast::KeyPlan*>(plan), state, stream);
}
int embed(const segfast::LatticeSize& size, const void* features, const uint8_t* plan,
          const int64_t* state, int64_t* keys, void* weight, CUstream_st* stream) {
  return segfast::lattice_embed_cuda(
      size, features, reinterpret_cast<const segfast::KeyPlan*>(plan), state, keys, weight, stream);
}
int link(const segfast::LatticeSize& size, int64_t capacity, const int64_t* keys,
         const int64_t* order, const uint64_t* heads, const int32_t* base, const void* weight,
         const uint8_t* plan, const int64_t* state, int64_t* vertex_keys, int32_t* vertex,
         int32_t* pixel, void* list_weight, int32_t* neighbours, CUstream_st* stream) {
  return segfast::lattice_link_cuda(size, capacity, keys, order, heads, base, weight,
                                    reinterpret_cast<const segfast::KeyPlan*>(plan), state,
                                    vertex_keys, vertex, pixel, list_weight, neighbours, stream);
}

}  // namespace

int main() {
  using host_cuda::function;
  return host_cuda::serve({
      {"features", function(segfast::lattice_features_cuda)},
      {"plan", function(plan)},
      {"embed", function(embed)},
      {"number", function(segfast::lattice_number_cuda)},
      {"link", function(link)},
      {"deliver", function(segfast::lattice_deliver_cuda)},
      {"convolve", function(segfast::spatial_conv_cuda)},
      {"update", function(update)},
      {"update_backward", function(update_backward)},
      {"products", function(segfast::mixing_gradient_cuda)},
  });
}
