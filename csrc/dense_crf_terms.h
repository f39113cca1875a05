// The terms of mean field as the kernels see them, with the memory their messages pass through.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "kernels/dense_crf/dense_crf.h"
#include "kernels/dense_crf/tables.h"

namespace segfast {

// Tensors per term, in the order in which segfast/ops/_dense_crf_terms.py lists them.
constexpr size_t kLatticeTensors = 8, kConvTensors = 7;

struct CrfSizes {
  int labels, row;
  int64_t pixels, width, height, bands;
};

template <typename T>
void zero(T* p, int64_t count) {
  std::memset(static_cast<void*>(p), 0, sizeof(T) * count);
}

// On the way back kernels and mixings are transposed, and mix where they arrive.
enum class Way { forth, back };

// [] | [L] | [L, L] -> what the kernels read: padded, the matrix transposed (back: as it is).
template <typename T>
Mixing<T> make_mixing(const Tensor& mixing, const CrfSizes& size, Way way, std::vector<T>* memory) {
  const int64_t columns = mixing.dim() == 0 ? 1 : size.labels;
  const int64_t rows = mixing.dim() <= 1 ? 1 : size.labels;
  check_tensor(mixing, kDtype<T>, rows * columns, "mixing");
  const T* m = data<T>(mixing);
  if (mixing.dim() == 0) return {MixingKind::scalar, m[0], nullptr};
  memory->assign(rows * size.row, 0);
  for (int64_t l = 0; l < columns; ++l) {
    for (int64_t k = 0; k < rows; ++k)
      (*memory)[k * size.row + l] = way == Way::forth ? m[l * rows + k] : m[k * columns + l];
  }
  return {mixing.dim() == 1 ? MixingKind::vector : MixingKind::matrix, T(1), memory->data()};
}

// One lattice with the tables that its messages pass through.
template <typename T>
class LatticeMessages {
 public:
  LatticeMessages(const Tensor* t, const CrfSizes& size, Way way, LatticeTerm<T>* term)
      : size_(size), way_(way), term_(term) {
    const Tensor &vertex = t[0], &local_start = t[1], &merge_start = t[2], &merge_local = t[3];
    const Tensor &neighbours = t[4], &in_weight = t[5], &out_weight = t[6], &mixing = t[7];
    STD_TORCH_CHECK(vertex.dim() == 2 && neighbours.dim() == 3, "lattice tensors are malformed");
    STD_TORCH_CHECK(vertex.size(1) >= 2 && vertex.size(1) <= kMaxFeatures + 1,
                    "vertex must have 2 to ", kMaxFeatures + 1, " columns, got ", vertex.size(1));
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
             data<T>(way == Way::forth ? in_weight : out_weight),
             data<T>(way == Way::forth ? out_weight : in_weight),
             data<int64_t>(local_start),
             sent_.get(),
             received_.get(),
             make_mixing(mixing, size, way, &mixing_)};
    const T scale = way == Way::forth ? term->mixing.scalar : T(1);
    gain_ = scale / (1 + std::ldexp(T(1), 1 - corners_));  // alpha of the lattice
  }

  // Merges what the bands sent, blurs it along every axis in turn and hands it back to the bands.
  // The blurs do not commute: their product's transpose takes the axes in reverse.
  void deliver() {
    const auto& kernels = lattice_kernels<T>();
    const int64_t grain = std::max<int64_t>(1, 32768 / size_.row);
    torch::stable::parallel_for(0, vertices_, grain, [&](int64_t begin, int64_t end) {
      kernels.gather(sent_.get(), merge_, gain_, begin, end, size_.row, table_[0].get());
    });
    for (int i = 0; i < corners_; ++i) {
      const int axis = way_ == Way::forth ? i : corners_ - 1 - i;
      const T* in = table_[i & 1].get();
      T* out = table_[~i & 1].get();
      const int32_t* n1 = neighbours_ + 2 * axis * vertices_;
      const int32_t* n2 = n1 + vertices_;
      torch::stable::parallel_for(0, vertices_, grain, [&](int64_t begin, int64_t end) {
        if (i + 1 < corners_) {
          kernels.blur(in, n1, n2, begin, end, size_.row, out);
        } else {
          kernels.blur_scatter(in, n1, n2, merge_, begin, end, size_.row, received_.get());
        }
      });
    }
  }

 private:
  CrfSizes size_;
  Way way_;
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
class ConvMessages {
 public:
  ConvMessages(const Tensor* t, const CrfSizes& size, Way way, const MeanFieldKernels<T>& kernels,
               ConvTerm<T>* term)
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
    const int in = way == Way::forth ? 2 : 4, out = 6 - in;
    *term = {radius_y,
             radius_x,
             data<T>(t[0]),
             data<T>(t[1]),
             data<T>(t[in]),
             data<T>(t[in + 1]),
             data<T>(t[out]),
             data<T>(t[out + 1]),
             line,
             memory_.get() + radius_y * line,
             make_mixing(t[6], size, way, &mixing_)};
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
  CrfSizes size_;
  ConvTerm<T>* term_;
  int64_t shift_;  // lines to where the next convolution moves the beliefs
  Buffer<T> memory_;
  std::vector<T> mixing_;
};

// All terms of a problem, from the tensors of segfast/ops/_dense_crf_terms.py.
template <typename T>
struct Terms {
  std::vector<LatticeTerm<T>> lattice_terms;
  std::vector<ConvTerm<T>> conv_terms;
  std::vector<LatticeMessages<T>> lattices;
  std::vector<ConvMessages<T>> convs;

  Terms(const std::vector<Tensor>& lattice, const std::vector<Tensor>& conv, const CrfSizes& size,
        Way way, const MeanFieldKernels<T>& kernels)
      : lattice_terms(lattice.size() / kLatticeTensors), conv_terms(conv.size() / kConvTensors) {
    lattices.reserve(lattice_terms.size());
    convs.reserve(conv_terms.size());
    for (size_t i = 0; i < lattice_terms.size(); ++i) {
      lattices.emplace_back(&lattice[i * kLatticeTensors], size, way, &lattice_terms[i]);
    }
    for (size_t i = 0; i < conv_terms.size(); ++i) {
      convs.emplace_back(&conv[i * kConvTensors], size, way, kernels, &conv_terms[i]);
    }
  }

  void enter(const CrfSizes& size, Update<T>* u) const {
    u->labels = size.labels;
    u->row = size.row;
    u->pixels = size.pixels;
    u->width = size.width;
    u->lattice_count = static_cast<int>(lattice_terms.size());
    u->conv_count = static_cast<int>(conv_terms.size());
    u->lattice = lattice_terms.data();
    u->conv = conv_terms.data();
  }

  void deliver() {
    for (auto& lattice : lattices) lattice.deliver();
    for (auto& conv : convs) conv.deliver();
  }
};

// Runs update(band, begin, end, scratch) for every band.
template <typename T, typename U>
void for_each_band(const CrfSizes& size, int64_t scratch, const U& update) {
  for_each_item(size.bands, [&] {
    return [&, memory = make_buffer<T>(scratch)](int64_t band) {
      update(static_cast<int>(band), band_begin(band, size.pixels, size.width),
             band_begin(band + 1, size.pixels, size.width), memory.get());
    };
  });
}

// Of values [L, N], checked.
inline CrfSizes crf_sizes(const Tensor& values, int64_t width, int64_t iterations,
                          const std::vector<Tensor>& lattices, const std::vector<Tensor>& convs,
                          const char* name) {
  const ScalarType dtype = real_dtype(values, name);
  STD_TORCH_CHECK(values.dim() == 2 && values.numel() > 0 && width > 0 && iterations >= 0, name,
                  " must be [L, N] and not empty");
  STD_TORCH_CHECK(lattices.size() % kLatticeTensors == 0 && convs.size() % kConvTensors == 0,
                  "terms are malformed");
  STD_TORCH_CHECK(values.size(0) < (1 << 20), "too many labels");
  check_tensor(values, dtype, values.numel(), name);
  CrfSizes size{};
  size.labels = static_cast<int>(values.size(0));
  size.pixels = values.size(1);
  size.width = width;
  size.height = (size.pixels + width - 1) / width;
  size.bands = band_count(size.pixels, width);
  const int multiple = 16 / static_cast<int>(values.element_size());
  size.row = (size.labels + multiple - 1) / multiple * multiple;
  return size;
}

}  // namespace segfast
