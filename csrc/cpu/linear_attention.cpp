// segfast::_linear_attention and its relatives: checks and memory. The work:
// linear_attention_stages.h.
#include "kernels/linear_attention/linear_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "csrc/allocate.h"
#include "csrc/check.h"
#include "csrc/cpu/linear_attention_stages.h"

namespace segfast {
namespace {

const Device kCpu(torch::headeronly::DeviceType::CPU);

ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x [B, C, N] with neighbouring positions, like another map in what is given.
void check_map(const Tensor& x, const char* name, const Tensor& like, int64_t batch,
               int64_t positions) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, " has another dtype");
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == batch && x.size(2) == positions, name, " must be [",
                  batch, ", channels, ", positions, "]");
  STD_TORCH_CHECK(x.stride(2) == 1 || x.size(2) <= 1 || x.numel() == 0, name,
                  " must have its positions in a row");
}

LinearAttention problem(const Tensor& x, int64_t values, int64_t feature_map, double eps) {
  STD_TORCH_CHECK(feature_map >= 0 && feature_map <= 4, "unknown feature map");
  STD_TORCH_CHECK(x.dim() == 3 && x.size(1) >= 1 && values >= 1, "maps must have channels");
  return {static_cast<FeatureMap>(feature_map), dtype_of(x.scalar_type(), "maps"), x.size(1),
          values, eps};
}

void check_state(const LinearAttention& p, const Tensor& state, const Tensor& like) {
  STD_TORCH_CHECK(state.dim() == 3 && state.size(0) == like.size(0) &&
                      state.size(1) == state_rows(p) && state.size(2) == p.values + 1,
                  "state must be [", like.size(0), ", ", state_rows(p), ", ", p.values + 1, "]");
  check_tensor(state, sum_type(like), state.numel(), "state");
}

Tensor empty_state(const LinearAttention& p, const Tensor& like) {
  return empty_contiguous<3>({like.size(0), state_rows(p), p.values + 1}, sum_type(like), kCpu);
}
Tensor empty_map(const Tensor& like, int64_t channels) {
  return empty_contiguous<3>({like.size(0), channels, like.size(2)}, like.scalar_type(), kCpu);
}

void check_gamma(const MaybeTensor& gamma, const Tensor& q) {
  if (gamma) check_tensor(*gamma, sum_type(q), q.size(0), "gamma");
}

// k [B, D, M], v [B, E, M] -> state [B, R, E + 1]
Tensor linear_attention_state(const Tensor& k, const Tensor& v, int64_t feature_map) {
  const LinearAttention p = problem(k, v.size(1), feature_map, 0);
  check_map(k, "k", k, k.size(0), k.size(2));
  check_map(v, "v", k, k.size(0), k.size(2));
  Tensor state = empty_state(p, k);
  run(StateSum(p, k, v, state));
  return state;
}

// q [B, D, N], state [B, R, E + 1], gamma [B], residual [B, E, N] -> o [B, E, N]
Tensor linear_attention_read(const Tensor& q, const Tensor& state, MaybeTensor gamma,
                             MaybeTensor residual, int64_t feature_map, double eps) {
  const LinearAttention p = problem(q, state.size(2) - 1, feature_map, eps);
  check_map(q, "q", q, q.size(0), q.size(2));
  const Tensor sums = made_contiguous(state);
  check_state(p, sums, q);
  if (gamma) gamma = made_contiguous(*gamma);
  check_gamma(gamma, q);
  if (residual) {
    check_map(*residual, "residual", q, q.size(0), q.size(2));
    STD_TORCH_CHECK(residual->size(1) == p.values, "residual must have the channels of o");
  }
  Tensor o = empty_map(q, p.values);
  run(StateRead(p, q, sums, gamma, residual, o));
  return o;
}

// q [B, D, N], k [B, D, M], v [B, E, M] -> o [B, E, N], state [B, R, E + 1]
std::tuple<Tensor, Tensor> linear_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            int64_t feature_map, double eps) {
  const LinearAttention p = problem(k, v.size(1), feature_map, eps);
  check_map(q, "q", q, k.size(0), q.size(2));
  check_map(k, "k", q, k.size(0), k.size(2));
  check_map(v, "v", q, k.size(0), k.size(2));
  STD_TORCH_CHECK(q.size(1) == p.features, "q must have the channels of k");
  Tensor state = empty_state(p, k), o = empty_map(q, p.values);
  const MaybeTensor none;
  run(StateSum(p, k, v, state), StateRead(p, q, state, none, none, o));
  return {o, state};
}

// grad of the state [B, R, E + 1], k [B, D, M], v [B, E, M] -> those of k and v
std::tuple<Tensor, Tensor> linear_attention_state_backward(const Tensor& grad, const Tensor& k,
                                                           const Tensor& v, int64_t feature_map) {
  const LinearAttention p = problem(k, v.size(1), feature_map, 0);
  check_map(k, "k", k, k.size(0), k.size(2));
  check_map(v, "v", k, k.size(0), k.size(2));
  const Tensor sums = made_contiguous(grad);
  check_state(p, sums, k);
  Tensor grad_k = empty_map(k, p.features), grad_v = empty_map(k, p.values);
  run(StateSumBackward(p, sums, k, v, grad_k, grad_v));
  return {grad_k, grad_v};
}

// grad of o [B, E, N], q [B, D, N], state [B, R, E + 1], gamma [B] -> those of q, state and gamma
std::tuple<Tensor, Tensor, Tensor> linear_attention_read_backward(const Tensor& grad,
                                                                  const Tensor& q,
                                                                  const Tensor& state,
                                                                  MaybeTensor gamma,
                                                                  int64_t feature_map, double eps) {
  const LinearAttention p = problem(q, state.size(2) - 1, feature_map, eps);
  check_map(q, "q", q, q.size(0), q.size(2));
  check_map(grad, "grad", q, q.size(0), q.size(2));
  STD_TORCH_CHECK(grad.size(1) == p.values, "grad must have the channels of o");
  const Tensor sums = made_contiguous(state);
  check_state(p, sums, q);
  if (gamma) gamma = made_contiguous(*gamma);
  check_gamma(gamma, q);
  Tensor grad_q = empty_map(q, p.features), grad_state = empty_state(p, q);
  Tensor grad_gamma = empty_contiguous<1>({q.size(0)}, sum_type(q), kCpu);
  const StateReadBackward backward(p, grad, q, sums, gamma, grad_q, grad_state);
  run(backward);
  backward.merge_gamma(grad_gamma);
  return {grad_q, grad_state, grad_gamma};
}

// grad of o [B, E, N]; q, k, v, state as `linear_attention` took and gave them -> those of q, k, v
std::tuple<Tensor, Tensor, Tensor> linear_attention_backward(const Tensor& grad, const Tensor& q,
                                                             const Tensor& k, const Tensor& v,
                                                             const Tensor& state,
                                                             int64_t feature_map, double eps) {
  const LinearAttention p = problem(k, v.size(1), feature_map, eps);
  check_map(q, "q", q, k.size(0), q.size(2));
  check_map(k, "k", q, k.size(0), k.size(2));
  check_map(v, "v", q, k.size(0), k.size(2));
  check_map(grad, "grad", q, k.size(0), q.size(2));
  STD_TORCH_CHECK(q.size(1) == p.features, "q must have the channels of k");
  STD_TORCH_CHECK(grad.size(1) == p.values, "grad must have the channels of v");
  const Tensor sums = made_contiguous(state);
  check_state(p, sums, q);
  Tensor grad_q = empty_map(q, p.features), grad_state = empty_state(p, q);
  Tensor grad_k = empty_map(k, p.features), grad_v = empty_map(k, p.values);
  const MaybeTensor none;
  const StateReadBackward of_read(p, grad, q, sums, none, grad_q, grad_state);
  // Its sums are gradients: no eps is added to them.
  const StateSumBackward of_sum(problem(k, v.size(1), feature_map, 0), grad_state, k, v, grad_k,
                                grad_v);
  run(of_read, of_sum);
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_linear_attention", TORCH_BOX(&linear_attention));
  m.impl("_linear_attention_backward", TORCH_BOX(&linear_attention_backward));
  m.impl("_linear_attention_state", TORCH_BOX(&linear_attention_state));
  m.impl("_linear_attention_state_backward", TORCH_BOX(&linear_attention_state_backward));
  m.impl("_linear_attention_read", TORCH_BOX(&linear_attention_read));
  m.impl("_linear_attention_read_backward", TORCH_BOX(&linear_attention_read_backward));
}

}  // namespace segfast
