// segfast::_mean_field_run_backward: mean field run backwards; the arithmetic is in
// kernels/dense_crf.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "csrc/dense_crf_terms.h"

namespace segfast {
namespace {

// Upstream gradients and what the run forth left.
struct Backward {
  const Tensor &upstream,
      &logits;  // [U, L, N]: of the last scores, or of every iteration's; [L, N]
  const std::optional<Tensor>&belief, &states;  // [L, N], [S, L, N]
  const std::vector<Tensor>&lattices, &convs, &planes, &mixings;
  int64_t iterations;
  bool start;  // whether the sum includes the gradient of the last scores
  bool weights;
};

// Sums over pixels of every term's R Q^T, band by band.
template <typename T>
class MixingGradients {
 public:
  MixingGradients(const Mixing<T>* mixings, size_t terms, const CrfSizes& size) : size_(size) {
    const int64_t labels = size.labels;
    for (size_t t = 0; t < terms; ++t) {
      slots_.push_back((mixings[t].kind == MixingKind::matrix ? labels : 1) * size.row);
      sums_.push_back(make_buffer<double>(size.bands * slots_.back()));
      std::fill(sums_[t].get(), sums_[t].get() + size.bands * slots_[t], 0.0);
    }
  }

  std::vector<double*> of(int band) const {
    std::vector<double*> at;
    for (size_t t = 0; t < sums_.size(); ++t) at.push_back(sums_[t].get() + band * slots_[t]);
    return at;
  }

  // [], [L] or [L, L] in float64: the bands in their order.
  Tensor total(size_t t, MixingKind kind, const Tensor& like) const {
    const int64_t labels = size_.labels, rows = slots_[t] / size_.row;
    std::vector<int64_t> shape(static_cast<size_t>(kind), labels);
    Tensor out = torch::stable::new_empty(like, shape, ScalarType::Double);
    double* to = mutable_data<double>(out);
    std::fill(to, to + out.numel(), 0.0);
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t l = 0; l < labels; ++l) {
        double sum = 0;
        for (int64_t b = 0; b < size_.bands; ++b) {
          sum += sums_[t][b * slots_[t] + k * size_.row + l];
        }
        to[kind == MixingKind::scalar ? 0 : k * labels + l] += sum;
      }
    }
    return out;
  }

 private:
  CrfSizes size_;
  std::vector<int64_t> slots_;
  std::vector<Buffer<double>> sums_;
};

template <typename T>
std::vector<Tensor> run(const Backward& r, const CrfSizes& size) {
  const auto& kernels = mean_field_backward_kernels<T>();
  Terms<T> terms(r.lattices, r.convs, size, Way::back, mean_field_kernels<T>());
  std::vector<Mixing<T>> mixings;
  std::vector<const T*> planes;
  std::vector<std::vector<T>> memory(r.planes.size());
  for (const auto& term : terms.lattice_terms) mixings.push_back(term.mixing);
  for (const auto& term : terms.conv_terms) mixings.push_back(term.mixing);
  for (size_t i = 0; i < r.planes.size(); ++i) {
    planes.push_back(data<T>(r.planes[i]));
    mixings.push_back(make_mixing(r.mixings[i], size, Way::back, &memory[i]));
  }
  const int64_t count = r.logits.numel(), upstreams = r.upstream.size(0);
  Tensor out = torch::stable::empty_like(r.logits);
  want_huge_pages(mutable_data<T>(out), sizeof(T) * count);
  std::memset(mutable_data<T>(out), 0, sizeof(T) * count);
  const T* upstream = data<T>(r.upstream);
  MixingGradients<T> gradients(mixings.data(), r.weights ? mixings.size() : 0, size);

  MeanFieldBackward<T> m{};
  terms.enter(size, &m);
  m.message_count = static_cast<int>(planes.size());
  m.planes = planes.data();
  m.mixings = mixings.data();
  for (int64_t t = r.iterations; t >= 0; --t) {
    m.receive = t < r.iterations;
    m.send = t > 0;
    m.belief = !m.receive && r.belief ? data<T>(*r.belief) : nullptr;
    m.scores = t == 0     ? data<T>(r.logits)
               : r.states ? data<T>(*r.states) + (t - 1) * count
                          : nullptr;
    m.upstream = !m.receive               ? upstream + (upstreams - 1) * count
                 : t > 0 && upstreams > 1 ? upstream + (t - 1) * count
                                          : nullptr;
    m.total = m.receive || r.start ? mutable_data<T>(out) : nullptr;
    if (m.receive) terms.deliver();
    for_each_band<T>(size, kernels.update_scratch(m), [&](int band, auto... at) {
      const auto sums = gradients.of(band);
      MeanFieldBackward<T> own = m;
      own.mixing_grad = r.weights ? sums.data() : nullptr;
      kernels.update(own, band, at...);
    });
  }
  std::vector<Tensor> found{out};
  for (size_t t = 0; r.weights && t < mixings.size(); ++t) {
    found.push_back(gradients.total(t, mixings[t].kind, out));
  }
  return found;
}

// dL/dscores after every iteration or the last [U, L, N]; that of belief if it is given. -> the sum
// of dL/dscores over all iterations [L, N], then if `weights` dL/dM of lattices, convolutions and
// planes (messages [L, N] that came another way, each with its mixing).
std::vector<Tensor> run_backward(const Tensor& upstream, std::optional<Tensor> belief,
                                 const Tensor& logits, std::optional<Tensor> states, int64_t width,
                                 const std::vector<Tensor>& lattices,
                                 const std::vector<Tensor>& convs,
                                 const std::vector<Tensor>& planes,
                                 const std::vector<Tensor>& mixings, int64_t iterations, bool start,
                                 bool weights) {
  const CrfSizes size = crf_sizes(logits, width, iterations, lattices, convs, "logits");
  const ScalarType dtype = logits.scalar_type();
  const int64_t count = logits.numel();
  STD_TORCH_CHECK(upstream.dim() == 3 && (upstream.size(0) == 1 || upstream.size(0) == iterations),
                  "upstream must be [1 or iterations, L, N]");
  check_tensor(upstream, dtype, upstream.size(0) * count, "upstream");
  if (belief) check_tensor(*belief, dtype, count, "belief");
  STD_TORCH_CHECK(iterations <= 1 || (states && states->size(0) >= iterations - 1),
                  "states must be of all iterations but the last");
  if (states) check_tensor(*states, dtype, states->size(0) * count, "states");
  STD_TORCH_CHECK(planes.size() == mixings.size(), "every plane must have a mixing");
  for (const Tensor& plane : planes) check_tensor(plane, dtype, count, "plane");
  const Backward r{upstream, logits,  belief,     states, lattices, convs,
                   planes,   mixings, iterations, start,  weights};
  return dtype == ScalarType::Float ? run<float>(r, size) : run<double>(r, size);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_mean_field_run_backward", TORCH_BOX(&run_backward));
}

}  // namespace segfast
