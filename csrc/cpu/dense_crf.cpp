// segfast::_mean_field: owns memory and threads; the arithmetic is in kernels/dense_crf.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "csrc/dense_crf_terms.h"

namespace segfast {
namespace {

template <typename T>
Tensor run(const Tensor& logits, const T* belief, T* states, int64_t kept, const CrfSizes& size,
           const std::vector<Tensor>& lattices, const std::vector<Tensor>& convs,
           int64_t iterations, bool softmax, Way way) {
  const auto& kernels = mean_field_kernels<T>();
  Terms<T> terms(lattices, convs, size, way, kernels);
  Tensor out = torch::stable::empty_like(logits);
  want_huge_pages(mutable_data<T>(out), sizeof(T) * out.numel());
  want_huge_pages(states, sizeof(T) * kept * logits.numel());
  MeanField<T> m{};
  terms.enter(size, &m);
  m.logits = data<T>(logits);
  for (int64_t i = 0; i <= iterations; ++i) {
    m.receive = i > 0;
    m.send = i < iterations;
    m.belief = i == 0 ? belief : nullptr;
    m.scores = i > 0 && i <= kept ? states + (i - 1) * logits.numel() : nullptr;
    if (i == iterations) (softmax ? m.result : m.scores) = mutable_data<T>(out);
    if (m.receive) terms.deliver();
    for_each_band<T>(size, kernels.update_scratch(m),
                     [&](int band, auto... at) { kernels.update(m, band, at...); });
  }
  return out;
}

// logits [L, N], belief [L, N] to start from (else softmax(logits)), which takes an iteration ->
// scores [L, N], or their softmax over the labels. states [S < iterations, L, N] takes the scores
// of the first S iterations.
Tensor mean_field(const Tensor& logits, std::optional<Tensor> belief, std::optional<Tensor> states,
                  int64_t width, const std::vector<Tensor>& lattices,
                  const std::vector<Tensor>& convs, int64_t iterations, bool softmax,
                  bool transposed) {
  const CrfSizes size = crf_sizes(logits, width, iterations, lattices, convs, "logits");
  const ScalarType dtype = logits.scalar_type();
  if (belief) check_tensor(*belief, dtype, logits.numel(), "belief");
  STD_TORCH_CHECK(!belief || iterations > 0, "a belief to start from needs an iteration");
  const int64_t kept = states ? states->size(0) : 0;
  STD_TORCH_CHECK(kept == 0 || kept < iterations, "states must be of all iterations but the last");
  if (states) check_tensor(*states, dtype, kept * logits.numel(), "states");
  const auto go = [&](auto zero) {
    using T = decltype(zero);
    return run<T>(logits, belief ? data<T>(*belief) : nullptr,
                  states ? mutable_data<T>(*states) : nullptr, kept, size, lattices, convs,
                  iterations, softmax, transposed ? Way::back : Way::forth);
  };
  return dtype == ScalarType::Float ? go(0.0f) : go(0.0);
}

template <typename T>
void softmax_into(const Tensor& scores, const Tensor& belief) {
  const auto& kernels = mean_field_kernels<T>();
  const int labels = static_cast<int>(scores.size(0));
  const int64_t pixels = scores.size(1), chunk = 64;
  torch::stable::parallel_for(0, (pixels + chunk - 1) / chunk, 16, [&](int64_t a, int64_t b) {
    kernels.softmax(data<T>(scores), labels, pixels, a * chunk, std::min(b * chunk, pixels),
                    mutable_data<T>(belief));
  });
}

// scores [L, N] -> softmax over labels, as between two updates of mean_field.
Tensor softmax(const Tensor& scores) {
  const ScalarType dtype = real_dtype(scores, "scores");
  STD_TORCH_CHECK(scores.dim() == 2 && scores.size(0) < (1 << 20), "scores must be [L, N]");
  check_tensor(scores, dtype, scores.numel(), "scores");
  Tensor belief = torch::stable::empty_like(scores);
  dtype == ScalarType::Float ? softmax_into<float>(scores, belief)
                             : softmax_into<double>(scores, belief);
  return belief;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_mean_field", TORCH_BOX(&mean_field));
  m.impl("_softmax", TORCH_BOX(&softmax));
}

}  // namespace segfast
