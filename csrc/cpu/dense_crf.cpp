// segfast::_mean_field: owns memory and threads; the arithmetic is in kernels/dense_crf.
#include "kernels/dense_crf/dense_crf.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "kernels/dense_crf/tables.h"

namespace segfast {
namespace {

// Tensors per term, in the order in which segfast/ops/_dense_crf_engine.py lists them.
constexpr size_t kLatticeTensors = 8, kConvTensors = 7;

struct Sizes {
  int labels, row;
  int64_t pixels, width, height, bands;
};

template <typename T>
void zero(T* p, int64_t count) {
  std::memset(static_cast<void*>(p), 0, sizeof(T) * count);
}

// [] | [L] | [L, L] -> what the kernels read: padded, the matrix transposed.
template <typename T>
Mixing<T> make_mixing(const Tensor& mixing, const Sizes& size, std::vector<T>* memory) {
  const int64_t columns = mixing.dim() == 0 ? 1 : size.labels;
  const int64_t rows = mixing.dim() <= 1 ? 1 : size.labels;
  check_tensor(mixing, kDtype<T>, rows * columns, "mixing");
  const T* m = data<T>(mixing);
  if (mixing.dim() == 0) return {MixingKind::scalar, m[0], nullptr};
  memory->assign(rows * size.row, 0);
  for (int64_t l = 0; l < columns; ++l) {
    for (int64_t k = 0; k < rows; ++k) (*memory)[k * size.row + l] = m[l * rows + k];
  }
  return {mixing.dim() == 1 ? MixingKind::vector : MixingKind::matrix, T(1), memory->data()};
}

// One lattice with the tables that its messages pass through.
template <typename T>
class Lattice {
 public:
  Lattice(const Tensor* t, const Sizes& size, LatticeTerm<T>* term) : size_(size), term_(term) {
    const Tensor &vertex = t[0], &local_start = t[1], &merge_start = t[2], &merge_local = t[3];
    const Tensor &neighbours = t[4], &in_weight = t[5], &out_weight = t[6], &mixing = t[7];
    STD_TORCH_CHECK(vertex.dim() == 2 && neighbours.dim() == 3, "lattice tensors are malformed");
    corners_ = static_cast<int>(vertex.size(1));
    vertices_ = neighbours.size(2);
    const int64_t locals = merge_local.numel();
    check_tensor(vertex, ScalarType::Int, size.pixels * corners_, "vertex");
    check_tensor(local_start, ScalarType::Long, size.bands + 1, "local_start");
    check_tensor(merge_start, ScalarType::Long, vertices_ + 1, "merge_start");
    check_tensor(merge_local, ScalarType::Int, locals, "merge_local");
    check_tensor(neighbours, ScalarType::Int, 2 * corners_ * vertices_, "neighbours");
    check_tensor(in_weight, kDtype<T>, size.pixels * corners_, "in_weight");
    check_tensor(out_weight, kDtype<T>, size.pixels * corners_, "out_weight");
    sent_ = make_buffer<T>(locals * size.row);
    received_ = make_buffer<T>(locals * size.row);
    for (auto& table : table_) {
      table = make_buffer<T>((vertices_ + 1) * size.row);
      zero(table.get() + vertices_ * size.row, size.row);  // what absent neighbours hold
    }
    merge_ = {data<int64_t>(merge_start), data<int32_t>(merge_local)};
    neighbours_ = data<int32_t>(neighbours);
    *term = {corners_,
             data<int32_t>(vertex),
             data<T>(in_weight),
             data<T>(out_weight),
             data<int64_t>(local_start),
             sent_.get(),
             received_.get(),
             make_mixing(mixing, size, &mixing_)};
    gain_ = term->mixing.scalar / (1 + std::ldexp(T(1), 1 - corners_));  // alpha of the lattice
  }

  // Merges what the bands sent, blurs it along every axis in turn and hands it back to the bands.
  void deliver() {
    const auto& kernels = lattice_kernels<T>();
    const int64_t grain = std::max<int64_t>(1, 32768 / size_.row);
    torch::stable::parallel_for(0, vertices_, grain, [&](int64_t begin, int64_t end) {
      kernels.gather(sent_.get(), merge_, gain_, begin, end, size_.row, table_[0].get());
    });
    for (int axis = 0; axis < corners_; ++axis) {
      const T* in = table_[axis & 1].get();
      T* out = table_[~axis & 1].get();
      const int32_t* n1 = neighbours_ + 2 * axis * vertices_;
      const int32_t* n2 = n1 + vertices_;
      torch::stable::parallel_for(0, vertices_, grain, [&](int64_t begin, int64_t end) {
        if (axis + 1 < corners_) {
          kernels.blur(in, n1, n2, begin, end, size_.row, out);
        } else {
          kernels.blur_scatter(in, n1, n2, merge_, begin, end, size_.row, received_.get());
        }
      });
    }
  }

 private:
  Sizes size_;
  LatticeTerm<T>* term_;
  int corners_;
  int64_t vertices_;
  T gain_;
  MergeTable merge_;
  const int32_t* neighbours_;
  Buffer<T> sent_, received_, table_[2];
  std::vector<T> mixing_;
};

template <typename T>
class Conv {
 public:
  Conv(const Tensor* t, const Sizes& size, const MeanFieldKernels<T>& kernels, ConvTerm<T>* term)
      : kernels_(kernels), size_(size), term_(term) {
    STD_TORCH_CHECK(t[0].numel() >= 1 && t[1].numel() >= 1, "taps must not be empty");
    check_tensor(t[0], kDtype<T>, t[0].numel(), "taps_y");
    check_tensor(t[1], kDtype<T>, t[1].numel(), "taps_x");
    for (int i : {2, 4}) check_tensor(t[i], kDtype<T>, size.height, "scale_y");
    for (int i : {3, 5}) check_tensor(t[i], kDtype<T>, size.width, "scale_x");
    STD_TORCH_CHECK(size.pixels == size.width * size.height, "a convolution needs whole lines");
    const int64_t radius_y = t[0].numel() - 1, radius_x = t[1].numel() - 1;
    const int slack = kernels_.slack;
    shift_ = radius_y + slack;
    const int64_t before = radius_x * size.labels, inside = size.width * size.labels;
    const int64_t after = before + slack * size.labels + kVectorScalars;
    const int64_t line = pitch(before + inside + after);
    const int64_t count = radius_y + size.height + shift_ + radius_y + slack;
    memory_ = make_buffer<T>(count * line);
    for (int64_t y = 0; y < count; ++y) {
      zero(memory_.get() + y * line, before);
      zero(memory_.get() + y * line + before + inside, after);
    }
    *term = {radius_y,
             radius_x,
             data<T>(t[0]),
             data<T>(t[1]),
             data<T>(t[2]),
             data<T>(t[3]),
             data<T>(t[4]),
             data<T>(t[5]),
             line,
             memory_.get() + radius_y * line,
             make_mixing(t[6], size, &mixing_)};
  }

  // Convolves what was sent down the columns, strip by strip; alternately down and up the buffer.
  void deliver() {
    const int64_t strip = strip_width();
    const int64_t begin = term_->radius_x * size_.labels;
    const int64_t scalars =
        (size_.width * size_.labels + kVectorScalars - 1) / kVectorScalars * kVectorScalars;
    T* out = term_->lines + shift_ * term_->pitch;
    for_each_item((scalars + strip - 1) / strip, [&] {
      return [&](int64_t i) {
        kernels_.conv_columns(*term_, size_.height, begin + i * strip,
                              std::min(strip, scalars - i * strip), out);
      };
    });
    term_->lines = out;
    shift_ = -shift_;
  }

 private:
  static constexpr int64_t kVectorScalars = 64 / sizeof(T);  // whole vectors may be written

  // Scalars per line of a strip: the lines around one block fill half of a first-level cache, but
  // no line is shorter than four cache lines.
  int64_t strip_width() const {
    constexpr int64_t kBytes = 16 << 10, kShortest = 256, kLongest = 2048;
    const int64_t line = kBytes / (2 * term_->radius_y + kernels_.slack) / 128 * 128;
    return std::clamp(line, kShortest, kLongest) / static_cast<int64_t>(sizeof(T));
  }

  // An odd number of cache lines: walking down a column must not revisit the same cache sets.
  static int64_t pitch(int64_t scalars) {
    constexpr int64_t kLine = 64 / sizeof(T);
    return ((scalars + kLine - 1) / kLine | 1) * kLine;
  }

  // One instruction set throughout: the memory is sized for its slack.
  const MeanFieldKernels<T>& kernels_;
  Sizes size_;
  ConvTerm<T>* term_;
  int64_t shift_;  // lines to where the next convolution moves the beliefs
  Buffer<T> memory_;
  std::vector<T> mixing_;
};

template <typename T>
Tensor run(const Tensor& logits, const T* belief, const Sizes& size,
           const std::vector<Tensor>& lattice_tensors, const std::vector<Tensor>& conv_tensors,
           int64_t iterations, bool softmax) {
  std::vector<LatticeTerm<T>> lattice_terms(lattice_tensors.size() / kLatticeTensors);
  std::vector<ConvTerm<T>> conv_terms(conv_tensors.size() / kConvTensors);
  std::vector<Lattice<T>> lattices;
  std::vector<Conv<T>> convs;
  const auto& kernels = mean_field_kernels<T>();
  lattices.reserve(lattice_terms.size());
  convs.reserve(conv_terms.size());
  for (size_t i = 0; i < lattice_terms.size(); ++i) {
    lattices.emplace_back(&lattice_tensors[i * kLatticeTensors], size, &lattice_terms[i]);
  }
  for (size_t i = 0; i < conv_terms.size(); ++i) {
    convs.emplace_back(&conv_tensors[i * kConvTensors], size, kernels, &conv_terms[i]);
  }

  Tensor out = torch::stable::empty_like(logits);
  want_huge_pages(mutable_data<T>(out), sizeof(T) * out.numel());
  MeanField<T> m{};
  m.labels = size.labels;
  m.row = size.row;
  m.pixels = size.pixels;
  m.width = size.width;
  m.logits = data<T>(logits);
  m.lattice_count = static_cast<int>(lattice_terms.size());
  m.conv_count = static_cast<int>(conv_terms.size());
  m.lattice = lattice_terms.data();
  m.conv = conv_terms.data();
  for (int64_t i = 0; i <= iterations; ++i) {
    m.receive = i > 0;
    m.send = i < iterations;
    m.belief = i == 0 ? belief : nullptr;
    if (i == iterations) (softmax ? m.result : m.scores) = mutable_data<T>(out);
    if (m.receive) {
      for (auto& lattice : lattices) lattice.deliver();
      for (auto& conv : convs) conv.deliver();
    }
    for_each_item(size.bands, [&] {
      return [&, scratch = make_buffer<T>(kernels.update_scratch(m))](int64_t band) {
        kernels.update(m, static_cast<int>(band), band_begin(band, size.pixels, size.width),
                       band_begin(band + 1, size.pixels, size.width), scratch.get());
      };
    });
  }
  return out;
}

// logits [L, N], belief [L, N] to start from (else softmax(logits)) -> scores [L, N], or their
// softmax over the labels.
Tensor mean_field(const Tensor& logits, std::optional<Tensor> belief, int64_t width,
                  const std::vector<Tensor>& lattices, const std::vector<Tensor>& convs,
                  int64_t iterations, bool softmax) {
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "logits must be float32 or float64");
  STD_TORCH_CHECK(logits.dim() == 2 && logits.numel() > 0 && width > 0 && iterations >= 0,
                  "logits must be [L, N] and not empty");
  STD_TORCH_CHECK(lattices.size() % kLatticeTensors == 0 && convs.size() % kConvTensors == 0,
                  "terms are malformed");
  STD_TORCH_CHECK(logits.size(0) < (1 << 20), "too many labels");
  check_tensor(logits, dtype, logits.numel(), "logits");
  if (belief) check_tensor(*belief, dtype, logits.numel(), "belief");
  Sizes size{};
  size.labels = static_cast<int>(logits.size(0));
  size.pixels = logits.size(1);
  size.width = width;
  size.height = (size.pixels + width - 1) / width;
  size.bands = band_count(size.pixels, width);
  const int multiple = 16 / static_cast<int>(logits.element_size());
  size.row = (size.labels + multiple - 1) / multiple * multiple;
  if (dtype == ScalarType::Float) {
    return run<float>(logits, belief ? data<float>(*belief) : nullptr, size, lattices, convs,
                      iterations, softmax);
  }
  return run<double>(logits, belief ? data<double>(*belief) : nullptr, size, lattices, convs,
                     iterations, softmax);
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
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "scores must be float32 or float64");
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
