// The work of linear attention's operators, stage by stage and item by item, for any number of
// threads: linear_attention.cpp puts the stages together. The arithmetic is in
// kernels/linear_attention.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "dispatch.h"
#include "kernels/linear_attention/linear_attention.h"

namespace segfast {
namespace {

using MaybeTensor = std::optional<Tensor>;

const LinearAttentionKernels& kernels() {
  return dispatch<LinearAttentionKernels>(SEGFAST_TABLES(linear_attention_kernels));
}

Map map_of(const Tensor& x, int64_t batch) {
  const char* base = static_cast<const char*>(x.const_data_ptr());
  return {base + batch * x.stride(0) * static_cast<int64_t>(x.element_size()), x.stride(1)};
}
MutableMap mutable_map_of(const Tensor& x, int64_t batch) {
  char* base = static_cast<char*>(x.mutable_data_ptr());
  return {base + batch * x.stride(0) * static_cast<int64_t>(x.element_size()), x.stride(1)};
}

// [B, rows, columns] of sums: the memory of one batch element.
const char* sums_of(const Tensor& x, int64_t batch) {
  return static_cast<const char*>(x.const_data_ptr()) +
         batch * x.stride(0) * static_cast<int64_t>(x.element_size());
}
char* mutable_sums_of(const Tensor& x, int64_t batch) {
  return static_cast<char*>(x.mutable_data_ptr()) +
         batch * x.stride(0) * static_cast<int64_t>(x.element_size());
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
                    mutable_sums_of(state, b));
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

const void* element(const MaybeTensor& x, int64_t index) {
  if (!x) return nullptr;
  return static_cast<const char*>(x->const_data_ptr()) +
         index * static_cast<int64_t>(x->element_size());
}

// Items of work that wait for nothing of each other: run(item, scratch).
template <typename F>
struct Stage {
  int64_t items;
  F run;
};
template <typename F>
Stage(int64_t, F) -> Stage<F>;  // clang deduces it by itself from 17 on

// What the operators are made of, each in its stages(). They take checked tensors.

// The state of k and v.
struct StateSum {
  LinearAttention problem;
  const Tensor &k, &v, &state;
  Chunks chunks;
  Parts parts;
  // Few positions of many channels: values are cut too, and phi is computed for each range.
  int64_t ranges, range;

  StateSum(const LinearAttention& p, const Tensor& k_, const Tensor& v_, const Tensor& state_)
      : problem(p),
        k(k_),
        v(v_),
        state(state_),
        chunks(k.size(2), 512),
        parts(p, k.size(0), chunks.count, static_cast<int64_t>(state.element_size())),
        ranges(std::clamp<int64_t>(8 / (chunks.count + 1), 1, (p.values + 511) / 512)),
        range((p.values + ranges - 1) / ranges) {}

  auto stages() const {
    const int64_t batch = k.size(0);
    return std::tuple{
        Stage{batch * ranges * chunks.count, [this](int64_t i, char* scratch) { sum(i, scratch); }},
        Stage{batch * parts.slices, [this](int64_t i, char*) { parts.merge(i, state); }}};
  }
  void sum(int64_t item, char* scratch) const {
    const int64_t c = item % chunks.count, i = item / chunks.count;
    const int64_t b = i / ranges, first = i % ranges * range;
    kernels().state(problem, map_of(k, b), map_of(v, b), chunks.begin(c), chunks.end(c), first,
                    std::min(problem.values, first + range), parts.of(b, c), scratch);
  }
};

// o of q and a state.
struct StateRead {
  LinearAttention problem;
  const Tensor &q, &state;
  const MaybeTensor &gamma, &residual;
  const Tensor& o;
  Weights weights;
  Chunks chunks;

  StateRead(const LinearAttention& p, const Tensor& q_, const Tensor& state_,
            const MaybeTensor& gamma_, const MaybeTensor& residual_, const Tensor& o_)
      : problem(p),
        q(q_),
        state(state_),
        gamma(gamma_),
        residual(residual_),
        o(o_),
        weights(p, state, true, false),
        chunks(chunks_to_read(p, q.size(2))) {}

  auto stages() const {
    const int64_t batch = q.size(0);
    return std::tuple{
        Stage{batch * weights.slices, [this](int64_t i, char*) { weights.pack(i, state); }},
        Stage{batch * chunks.count, [this](int64_t i, char* scratch) { read(i, scratch); }}};
  }
  void read(int64_t item, char* scratch) const {
    const int64_t b = item / chunks.count, c = item % chunks.count;
    const Map add = residual ? map_of(*residual, b) : Map{nullptr, 0};
    kernels().read(problem, map_of(q, b), weights.of(b), element(gamma, b), add,
                   mutable_map_of(o, b), chunks.begin(c), chunks.end(c), scratch);
  }
};

// Gradients of a StateRead; merge_gamma comes last.
struct StateReadBackward {
  LinearAttention problem;
  const Tensor &grad, &q, &state;
  const MaybeTensor& gamma;
  const Tensor &grad_q, &grad_state;
  int64_t size;  // bytes of a sum
  Weights weights;
  Chunks chunks;
  Parts parts;
  Buffer<char> shares;  // of the gradient of gamma

  StateReadBackward(const LinearAttention& p, const Tensor& grad_, const Tensor& q_,
                    const Tensor& state_, const MaybeTensor& gamma_, const Tensor& grad_q_,
                    const Tensor& grad_state_)
      : problem(p),
        grad(grad_),
        q(q_),
        state(state_),
        gamma(gamma_),
        grad_q(grad_q_),
        grad_state(grad_state_),
        size(static_cast<int64_t>(state.element_size())),
        weights(p, state, false, true),
        chunks(chunks_to_read(p, q.size(2))),
        parts(p, q.size(0), chunks.count, size),
        shares(make_buffer<char>(q.size(0) * chunks.count * size)) {}

  auto stages() const {
    const int64_t batch = q.size(0);
    return std::tuple{
        Stage{batch * weights.slices, [this](int64_t i, char*) { weights.pack(i, state); }},
        Stage{batch * chunks.count, [this](int64_t i, char* scratch) { read(i, scratch); }},
        Stage{batch * parts.slices, [this](int64_t i, char*) { parts.merge(i, grad_state); }}};
  }
  void read(int64_t item, char* scratch) const {
    const int64_t b = item / chunks.count, c = item % chunks.count;
    kernels().read_backward(problem, map_of(grad, b), map_of(q, b), weights.of(b),
                            element(gamma, b), mutable_map_of(grad_q, b), parts.of(b, c),
                            shares.get() + item * size, chunks.begin(c), chunks.end(c), scratch);
  }
  void merge_gamma(const Tensor& grad_gamma) const {
    kernels().merge_gamma(problem, shares.get(), q.size(0), chunks.count,
                          grad_gamma.mutable_data_ptr());
  }
};

// Gradients of a StateSum.
struct StateSumBackward {
  LinearAttention problem;
  const Tensor &grad, &k, &v, &grad_k, &grad_v;
  Weights weights;
  Chunks chunks;

  StateSumBackward(const LinearAttention& p, const Tensor& grad_, const Tensor& k_,
                   const Tensor& v_, const Tensor& grad_k_, const Tensor& grad_v_)
      : problem(p),
        grad(grad_),
        k(k_),
        v(v_),
        grad_k(grad_k_),
        grad_v(grad_v_),
        weights(p, grad, true, true),
        chunks(chunks_to_read(p, k.size(2))) {}

  auto stages() const {
    const int64_t batch = k.size(0);
    return std::tuple{
        Stage{batch * weights.slices, [this](int64_t i, char*) { weights.pack(i, grad); }},
        Stage{batch * chunks.count, [this](int64_t i, char* scratch) { backward(i, scratch); }}};
  }
  void backward(int64_t item, char* scratch) const {
    const int64_t b = item / chunks.count, c = item % chunks.count;
    kernels().state_backward(problem, weights.of(b), map_of(k, b), map_of(v, b),
                             mutable_map_of(grad_k, b), mutable_map_of(grad_v, b), chunks.begin(c),
                             chunks.end(c), scratch);
  }
};

// The stages of the first, then those of the rest.
template <typename First, typename... Rest>
void run(const First& first, const Rest&... rest) {
  std::apply(
      [&](const auto&... stages) {
        for_each_stage<sizeof...(stages)>({stages.items...}, [&] {
          return [&, scratch = make_buffer<char>(kernels().scratch(first.problem))](size_t stage,
                                                                                    int64_t item) {
            size_t i = 0;
            ((stage == i++ ? stages.run(item, scratch.get()) : void()), ...);
          };
        });
      },
      std::tuple_cat(first.stages(), rest.stages()...));
}

}  // namespace
}  // namespace segfast
