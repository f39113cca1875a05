// segfast::_linear_attention_state and its relatives: checks, memory, threads; the arithmetic is in
// kernels/linear_attention.
#include "kernels/linear_attention/linear_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "dispatch.h"

namespace segfast {
namespace {

using MaybeTensor = std::optional<Tensor>;

const LinearAttentionKernels& kernels() {
  return dispatch<LinearAttentionKernels>(SEGFAST_TABLES(linear_attention_kernels));
}

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

Map map_of(const Tensor& x, int64_t batch) {
  const char* base = static_cast<const char*>(x.const_data_ptr());
  return {base + batch * x.stride(0) * static_cast<int64_t>(x.element_size()), x.stride(1)};
}
MutableMap mutable_map_of(const Tensor& x, int64_t batch) {
  char* base = static_cast<char*>(x.mutable_data_ptr());
  return {base + batch * x.stride(0) * static_cast<int64_t>(x.element_size()), x.stride(1)};
}

// [B, rows, columns] of sums, a row's memory for one batch element.
char* sums_of(const Tensor& x, int64_t batch) {
  return static_cast<char*>(x.mutable_data_ptr()) +
         batch * x.stride(0) * static_cast<int64_t>(x.element_size());
}

LinearAttention problem(const Tensor& x, int64_t values, int64_t feature_map, double eps) {
  STD_TORCH_CHECK(feature_map >= 0 && feature_map <= 4, "unknown feature map");
  STD_TORCH_CHECK(x.dim() == 3 && x.size(1) >= 1 && values >= 1, "maps must have channels");
  return {static_cast<FeatureMap>(feature_map), dtype_of(x.scalar_type(), "maps"), x.size(1),
          values, eps};
}

int64_t state_rows(const LinearAttention& p) { return p.features + (p.map == FeatureMap::taylor); }

void check_state(const LinearAttention& p, const Tensor& state, const Tensor& like) {
  STD_TORCH_CHECK(state.dim() == 3, "state must be [B, R, E + 1]");
  check_tensor(state, sum_type(like), like.size(0) * state_rows(p) * (p.values + 1), "state");
}

// Positions are cut by the problem's size alone, never by the number of threads.
struct Chunks {
  static constexpr int64_t kMost = 32;
  int64_t length, count;

  Chunks(int64_t positions, int64_t least) {
    length = std::max(least, (positions + kMost - 1) / kMost);
    count = (positions + length - 1) / length;
  }
};

// work(batch element, chunk, begin, end, scratch), in any order on any thread.
template <typename Work>
void for_each_chunk(const LinearAttention& p, int64_t batch, int64_t positions,
                    const Chunks& chunks, const Work& work) {
  for_each_item(batch * chunks.count, [&] {
    return [&, scratch = make_buffer<char>(kernels().scratch(p))](int64_t item) {
      const int64_t b = item / chunks.count, c = item % chunks.count;
      work(b, c, c * chunks.length, std::min(positions, (c + 1) * chunks.length), scratch.get());
    };
  });
}

// state [B, R, E + 1] from parts [B, chunks, part]
void merge(const LinearAttention& p, const char* parts, int64_t chunks, const Tensor& state) {
  const int64_t part = kernels().part(p) * static_cast<int64_t>(state.element_size());
  const int64_t columns = p.values + 1, batch = state.size(0), rows = state_rows(p);
  const int64_t grain = std::max<int64_t>(1, 32768 / (rows * (chunks + 1)));
  torch::stable::parallel_for(0, batch * columns, grain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t b = at / columns, stop = std::min(end, (b + 1) * columns);
      kernels().merge(p, parts + b * chunks * part, chunks, at - b * columns, stop - b * columns,
                      sums_of(state, b));
      at = stop;
    }
  });
}

// A state, or its gradient, as the kernels take it: packed once, by all threads.
struct Weights {
  Buffer<char> memory;
  int64_t size;  // of one batch element
  char* of(int64_t batch) const { return memory.get() + batch * size; }
};

Weights pack(const LinearAttention& p, const Tensor& state, bool features, bool values) {
  const int64_t batch = state.size(0);
  const int64_t size = kernels().weights(p) * static_cast<int64_t>(state.element_size());
  Weights weights{make_buffer<char>(batch * size), size};
  const int64_t step = std::max<int64_t>(1, 32768 / state_rows(p) / kPackedValues) * kPackedValues;
  const int64_t slices = (p.values + step - 1) / step;
  for_each_item(batch * slices, [&] {
    return [&](int64_t item) {
      const int64_t b = item / slices, first = item % slices * step;
      kernels().pack(p, sums_of(state, b), first, std::min(p.values, first + step), features,
                     values, weights.of(b));
    };
  });
  return weights;
}

// With many channels fewer positions are work enough for a thread.
Chunks chunks_to_read(const LinearAttention& p, int64_t positions) {
  return {positions, p.features * p.values > 1 << 18 ? 128 : 512};
}

Tensor empty_state(const LinearAttention& p, const Tensor& like) {
  return torch::stable::new_empty(
      like, std::vector<int64_t>{like.size(0), state_rows(p), p.values + 1}, sum_type(like));
}

// k [B, D, M], v [B, E, M] -> state [B, R, E + 1]
Tensor linear_attention_state(const Tensor& k, const Tensor& v, int64_t feature_map) {
  const LinearAttention p = problem(k, v.size(1), feature_map, 0);
  const int64_t batch = k.size(0), positions = k.size(2);
  check_map(k, "k", k, batch, positions);
  check_map(v, "v", k, batch, positions);
  Tensor state = empty_state(p, k);
  const Chunks chunks(positions, 512);
  const int64_t part = kernels().part(p) * static_cast<int64_t>(state.element_size());
  const auto parts = make_buffer<char>(batch * chunks.count * part);
  // Few positions of many channels: values are cut too, and phi is computed for each range.
  const int64_t ranges = std::clamp<int64_t>(8 / (chunks.count + 1), 1, (p.values + 511) / 512);
  const int64_t range = (p.values + ranges - 1) / ranges;
  for_each_chunk(p, batch * ranges, positions, chunks,
                 [&](int64_t i, int64_t c, int64_t begin, int64_t end, char* scratch) {
                   const int64_t b = i / ranges, first = i % ranges * range;
                   kernels().state(p, map_of(k, b), map_of(v, b), begin, end, first,
                                   std::min(p.values, first + range),
                                   parts.get() + (b * chunks.count + c) * part, scratch);
                 });
  merge(p, parts.get(), chunks.count, state);
  return state;
}

const void* element(const MaybeTensor& x, int64_t index) {
  if (!x) return nullptr;
  return static_cast<const char*>(x->const_data_ptr()) +
         index * static_cast<int64_t>(x->element_size());
}

void check_gamma(const MaybeTensor& gamma, const Tensor& q) {
  if (gamma) check_tensor(*gamma, sum_type(q), q.size(0), "gamma");
}

// q [B, D, N], state [B, R, E + 1], gamma [B], residual [B, E, N] -> o [B, E, N]
Tensor linear_attention_read(const Tensor& q, const Tensor& state, MaybeTensor gamma,
                             MaybeTensor residual, int64_t feature_map, double eps) {
  const LinearAttention p = problem(q, state.size(2) - 1, feature_map, eps);
  const int64_t batch = q.size(0), positions = q.size(2);
  check_map(q, "q", q, batch, positions);
  const Tensor sums = torch::stable::contiguous(state);
  check_state(p, sums, q);
  if (gamma) gamma = torch::stable::contiguous(*gamma);
  check_gamma(gamma, q);
  if (residual) {
    check_map(*residual, "residual", q, batch, positions);
    STD_TORCH_CHECK(residual->size(1) == p.values, "residual must have the channels of o");
  }
  Tensor o = torch::stable::new_empty(q, std::vector<int64_t>{batch, p.values, positions});
  const auto weights = pack(p, sums, true, false);
  for_each_chunk(p, batch, positions, chunks_to_read(p, positions),
                 [&](int64_t b, int64_t, int64_t begin, int64_t end, char* scratch) {
                   const Map add = residual ? map_of(*residual, b) : Map{nullptr, 0};
                   kernels().read(p, map_of(q, b), weights.of(b), element(gamma, b), add,
                                  mutable_map_of(o, b), begin, end, scratch);
                 });
  return o;
}

// grad of the state [B, R, E + 1], k [B, D, M], v [B, E, M] -> those of k and v
std::tuple<Tensor, Tensor> linear_attention_state_backward(const Tensor& grad, const Tensor& k,
                                                           const Tensor& v, int64_t feature_map) {
  const LinearAttention p = problem(k, v.size(1), feature_map, 0);
  const int64_t batch = k.size(0), positions = k.size(2);
  check_map(k, "k", k, batch, positions);
  check_map(v, "v", k, batch, positions);
  const Tensor sums = torch::stable::contiguous(grad);
  check_state(p, sums, k);
  Tensor grad_k = torch::stable::new_empty(k, std::vector<int64_t>{batch, k.size(1), positions});
  Tensor grad_v = torch::stable::new_empty(v, std::vector<int64_t>{batch, p.values, positions});
  const auto weights = pack(p, sums, true, true);
  for_each_chunk(p, batch, positions, chunks_to_read(p, positions),
                 [&](int64_t b, int64_t, int64_t begin, int64_t end, char* scratch) {
                   kernels().state_backward(p, weights.of(b), map_of(k, b), map_of(v, b),
                                            mutable_map_of(grad_k, b), mutable_map_of(grad_v, b),
                                            begin, end, scratch);
                 });
  return {grad_k, grad_v};
}

// grad of o [B, E, N], q [B, D, N], state [B, R, E + 1], gamma [B] -> those of q, state and gamma
std::tuple<Tensor, Tensor, Tensor> linear_attention_read_backward(const Tensor& grad,
                                                                  const Tensor& q,
                                                                  const Tensor& state,
                                                                  MaybeTensor gamma,
                                                                  int64_t feature_map, double eps) {
  const LinearAttention p = problem(q, state.size(2) - 1, feature_map, eps);
  const int64_t batch = q.size(0), positions = q.size(2);
  check_map(q, "q", q, batch, positions);
  check_map(grad, "grad", q, batch, positions);
  STD_TORCH_CHECK(grad.size(1) == p.values, "grad must have the channels of o");
  const Tensor sums = torch::stable::contiguous(state);
  check_state(p, sums, q);
  if (gamma) gamma = torch::stable::contiguous(*gamma);
  check_gamma(gamma, q);
  Tensor grad_q = torch::stable::new_empty(q, std::vector<int64_t>{batch, q.size(1), positions});
  Tensor grad_state = empty_state(p, q);
  Tensor grad_gamma = torch::stable::new_empty(q, std::vector<int64_t>{batch}, sum_type(q));
  const auto weights = pack(p, sums, false, true);
  const Chunks chunks = chunks_to_read(p, positions);
  const int64_t size = static_cast<int64_t>(sums.element_size());
  const int64_t part = kernels().part(p) * size;
  const auto parts = make_buffer<char>(batch * chunks.count * part);
  const auto shares = make_buffer<char>(batch * chunks.count * size);
  for_each_chunk(p, batch, positions, chunks,
                 [&](int64_t b, int64_t c, int64_t begin, int64_t end, char* scratch) {
                   const int64_t at = b * chunks.count + c;
                   kernels().read_backward(p, map_of(grad, b), map_of(q, b), weights.of(b),
                                           element(gamma, b), mutable_map_of(grad_q, b),
                                           parts.get() + at * part, shares.get() + at * size, begin,
                                           end, scratch);
                 });
  merge(p, parts.get(), chunks.count, grad_state);
  kernels().merge_gamma(p, shares.get(), batch, chunks.count, grad_gamma.mutable_data_ptr());
  return {grad_q, grad_state, grad_gamma};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_linear_attention_state", TORCH_BOX(&linear_attention_state));
  m.impl("_linear_attention_state_backward", TORCH_BOX(&linear_attention_state_backward));
  m.impl("_linear_attention_read", TORCH_BOX(&linear_attention_read));
  m.impl("_linear_attention_read_backward", TORCH_BOX(&linear_attention_read_backward));
}

}  // namespace segfast
