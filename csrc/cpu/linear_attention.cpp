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
  int64_t positions, length, count;

  Chunks(int64_t all, int64_t least) : positions(all) {
    length = std::max(least, (positions + kMost - 1) / kMost);
    count = (positions + length - 1) / length;
  }
  int64_t begin(int64_t chunk) const { return chunk * length; }
  int64_t end(int64_t chunk) const { return std::min(positions, (chunk + 1) * length); }
};

// Sums over positions of one batch element after the other, chunk by chunk; merged column by
// column.
struct Parts {
  LinearAttention problem;
  int64_t chunks, size;   // size: bytes of a part
  int64_t grain, slices;  // columns of a state that are merged at once
  Buffer<char> memory;

  Parts(const LinearAttention& p, int64_t batch, int64_t chunk_count, int64_t element_size)
      : problem(p),
        chunks(chunk_count),
        size(kernels().part(p) * element_size),
        grain(std::max<int64_t>(1, 32768 / (state_rows(p) * (chunks + 1)))),
        slices((p.values + grain) / grain),  // of E + 1 columns
        memory(make_buffer<char>(batch * chunks * size)) {}

  char* of(int64_t batch, int64_t chunk) const {
    return memory.get() + (batch * chunks + chunk) * size;
  }

  // Item `index` of batch * slices; state [B, R, E + 1].
  void merge(int64_t index, const Tensor& state) const {
    const int64_t b = index / slices, first = index % slices * grain;
    kernels().merge(problem, of(b, 0), chunks, first, std::min(problem.values + 1, first + grain),
                    sums_of(state, b));
  }
};

// A state, or its gradient, as the kernels take it: packed once, slice by slice.
struct Weights {
  LinearAttention problem;
  bool features, values;
  int64_t step, slices;
  int64_t size;  // bytes of one batch element
  Buffer<char> memory;

  Weights(const LinearAttention& p, const Tensor& state, bool for_features, bool for_values)
      : problem(p),
        features(for_features),
        values(for_values),
        step(std::max<int64_t>(1, 32768 / state_rows(p) / kPackedValues) * kPackedValues),
        slices((p.values + step - 1) / step),
        size(kernels().weights(p) * static_cast<int64_t>(state.element_size())),
        memory(make_buffer<char>(state.size(0) * size)) {}

  char* of(int64_t batch) const { return memory.get() + batch * size; }

  // Item `index` of batch * slices.
  void pack(int64_t index, const Tensor& state) const {
    const int64_t b = index / slices, first = index % slices * step;
    kernels().pack(problem, sums_of(state, b), first, std::min(problem.values, first + step),
                   features, values, of(b));
  }
};

// With many channels fewer positions are work enough for a thread.
Chunks chunks_to_read(const LinearAttention& p, int64_t positions) {
  return {positions, p.features * p.values > 1 << 18 ? 128 : 512};
}

// A state packed for all threads, then work(batch element, chunk, scratch) for every chunk.
template <typename Work>
void for_each_chunk(const Weights& weights, const Tensor& state, const Chunks& chunks,
                    const Work& work) {
  const int64_t batch = state.size(0);
  for_each_stage<2>({batch * weights.slices, batch * chunks.count}, [&] {
    return [&, scratch = make_buffer<char>(kernels().scratch(weights.problem))](size_t stage,
                                                                                int64_t item) {
      if (stage == 0) return weights.pack(item, state);
      work(item / chunks.count, item % chunks.count, scratch.get());
    };
  });
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
  const Parts parts(p, batch, chunks.count, static_cast<int64_t>(state.element_size()));
  // Few positions of many channels: values are cut too, and phi is computed for each range.
  const int64_t ranges = std::clamp<int64_t>(8 / (chunks.count + 1), 1, (p.values + 511) / 512);
  const int64_t range = (p.values + ranges - 1) / ranges;
  for_each_stage<2>({batch * ranges * chunks.count, batch * parts.slices}, [&] {
    return [&, scratch = make_buffer<char>(kernels().scratch(p))](size_t stage, int64_t item) {
      if (stage == 1) return parts.merge(item, state);
      const int64_t c = item % chunks.count, i = item / chunks.count;
      const int64_t b = i / ranges, first = i % ranges * range;
      kernels().state(p, map_of(k, b), map_of(v, b), chunks.begin(c), chunks.end(c), first,
                      std::min(p.values, first + range), parts.of(b, c), scratch.get());
    };
  });
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
  const Weights weights(p, sums, true, false);
  const Chunks chunks = chunks_to_read(p, positions);
  for_each_chunk(weights, sums, chunks, [&](int64_t b, int64_t c, char* scratch) {
    const Map add = residual ? map_of(*residual, b) : Map{nullptr, 0};
    kernels().read(p, map_of(q, b), weights.of(b), element(gamma, b), add, mutable_map_of(o, b),
                   chunks.begin(c), chunks.end(c), scratch);
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
  const Weights weights(p, sums, true, true);
  const Chunks chunks = chunks_to_read(p, positions);
  for_each_chunk(weights, sums, chunks, [&](int64_t b, int64_t c, char* scratch) {
    kernels().state_backward(p, weights.of(b), map_of(k, b), map_of(v, b),
                             mutable_map_of(grad_k, b), mutable_map_of(grad_v, b), chunks.begin(c),
                             chunks.end(c), scratch);
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
  const Weights weights(p, sums, false, true);
  const Chunks chunks = chunks_to_read(p, positions);
  const int64_t size = static_cast<int64_t>(sums.element_size());
  const Parts parts(p, batch, chunks.count, size);
  const auto shares = make_buffer<char>(batch * chunks.count * size);
  const int64_t work = batch * chunks.count;
  for_each_stage<3>({batch * weights.slices, work, batch * parts.slices}, [&] {
    return [&, scratch = make_buffer<char>(kernels().scratch(p))](size_t stage, int64_t item) {
      if (stage == 0) return weights.pack(item, sums);
      if (stage == 2) return parts.merge(item, grad_state);
      const int64_t b = item / chunks.count, c = item % chunks.count;
      kernels().read_backward(p, map_of(grad, b), map_of(q, b), weights.of(b), element(gamma, b),
                              mutable_map_of(grad_q, b), parts.of(b, c), shares.get() + item * size,
                              chunks.begin(c), chunks.end(c), scratch.get());
    };
  });
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
