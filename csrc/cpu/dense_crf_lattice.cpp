// segfast::_lattice_build: embeds features, numbers the vertices in raster order, finds neighbours.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "kernels/dense_crf/dense_crf.h"
#include "kernels/dense_crf/tables.h"

namespace segfast {
namespace {

// A vertex table and the memory it lives in.
class Vertices {
 public:
  Vertices(int words, int64_t capacity) : words_(words) { reserve(capacity); }

  void grow() { reserve(2 * table.capacity); }
  const uint64_t* keys() const { return keys_.get(); }

  VertexTable table{};

 private:
  void reserve(int64_t capacity) {
    auto keys = make_buffer<uint64_t>(capacity / 2 * words_);
    if (table.count > 0) {
      std::memcpy(keys.get(), keys_.get(), sizeof(uint64_t) * table.count * words_);
    }
    keys_ = std::move(keys);
    slots_ = make_buffer<int32_t>(capacity);
    table = {slots_.get(), keys_.get(), capacity, table.count};
    rehash(&table, words_);
  }

  int words_;
  Buffer<int32_t> slots_;
  Buffer<uint64_t> keys_;
};

int64_t power_of_two_above(int64_t n) {
  int64_t p = 1024;
  while (p < n) p *= 2;
  return p;
}

template <typename T>
std::vector<Tensor> build(const Tensor& features, const KeyLayout& layout, int64_t width) {
  const auto& kernels = lattice_kernels<T>();
  const int64_t pixels = features.size(1), corners = layout.dims + 1;
  const int64_t bands = band_count(pixels, width);
  const auto make = [&](std::vector<int64_t> size, ScalarType dtype) {
    return torch::stable::new_empty(features, size, dtype);
  };
  Tensor vertex = make({pixels, corners}, ScalarType::Int);  // numbered within the band
  Tensor weight = make({pixels, corners}, kDtype<T>);
  want_huge_pages(mutable_data<int32_t>(vertex), sizeof(int32_t) * vertex.numel());
  want_huge_pages(mutable_data<T>(weight), sizeof(T) * weight.numel());

  std::vector<Vertices> tables;
  for (int64_t b = 0; b < bands; ++b) tables.emplace_back(layout.words, 16384);
  for_each_item(bands, [&] {
    return [&](int64_t b) {
      int64_t at = band_begin(b, pixels, width);
      const int64_t end = band_begin(b + 1, pixels, width);
      while ((at = kernels.embed(data<T>(features), pixels, at, end, layout, &tables[b].table,
                                 mutable_data<int32_t>(vertex), mutable_data<T>(weight))) < end) {
        tables[b].grow();
      }
    };
  });

  Tensor local_start = make({bands + 1}, ScalarType::Long);
  int64_t* start = mutable_data<int64_t>(local_start);
  start[0] = 0;
  for (int64_t b = 0; b < bands; ++b) start[b + 1] = start[b] + tables[b].table.count;
  const int64_t locals = start[bands];
  STD_TORCH_CHECK(locals < std::numeric_limits<int32_t>::max(),
                  "the lattice has more than 2^31 vertices; use larger sigmas or a smaller image");

  const auto global = make_buffer<int32_t>(locals);  // vertex of each band's own number
  Vertices all(layout.words, power_of_two_above(2 * locals));
  for (int64_t b = 0; b < bands; ++b) {
    merge_vertices(tables[b].keys(), tables[b].table.count, layout.words, &all.table,
                   global.get() + start[b]);
  }
  tables.clear();

  // Local rows of each vertex, in the order of the bands.
  const int64_t vertices = all.table.count;
  Tensor merge_start = make({vertices + 1}, ScalarType::Long);
  Tensor merge_local = make({locals}, ScalarType::Int);
  int64_t* merge = mutable_data<int64_t>(merge_start);
  std::fill(merge, merge + vertices + 1, 0);
  for (int64_t i = 0; i < locals; ++i) ++merge[global[i] + 1];
  for (int64_t v = 0; v < vertices; ++v) merge[v + 1] += merge[v];
  std::vector<int64_t> next(merge, merge + vertices);
  for (int64_t i = 0; i < locals; ++i) {
    mutable_data<int32_t>(merge_local)[next[global[i]]++] = static_cast<int32_t>(i);
  }

  Tensor neighbours = make({corners, 2, vertices}, ScalarType::Int);
  int32_t* n = mutable_data<int32_t>(neighbours);
  std::fill(n, n + neighbours.numel(), static_cast<int32_t>(vertices));
  torch::stable::parallel_for(0, vertices, 2048, [&](int64_t begin, int64_t end) {
    kernels.neighbours(layout, all.table, begin, end, n);
  });
  return {vertex, local_start, merge_start, merge_local, neighbours, weight};
}

// features [d, N], range [2, d] (lowest, highest) -> [vertex, local_start, merge_start,
// merge_local, neighbours, barycentric weight].
std::vector<Tensor> lattice_build(const Tensor& features, const Tensor& range, int64_t width) {
  const int64_t dims = features.size(0);
  const ScalarType dtype = real_dtype(features, "features");
  STD_TORCH_CHECK(features.dim() == 2 && dims >= 1 && dims <= kMaxFeatures,
                  "features must have shape [1..", kMaxFeatures, ", N]");
  STD_TORCH_CHECK(features.size(1) >= 1 && width >= 1, "there must be a pixel and a width");
  check_tensor(features, dtype, features.numel(), "features");
  check_tensor(range, ScalarType::Double, 2 * dims, "range");
  KeyLayout layout;
  const double limit =
      dtype == ScalarType::Float ? kCoordinateLimit<float> : kCoordinateLimit<double>;
  STD_TORCH_CHECK(plan_keys(data<double>(range), data<double>(range) + dims, static_cast<int>(dims),
                            limit, &layout),
                  "features reach too far for their dtype");
  return dtype == ScalarType::Float ? build<float>(features, layout, width)
                                    : build<double>(features, layout, width);
}

template <typename T>
void range_into(const Tensor& features, double* range) {
  const int64_t dims = features.size(0), pixels = features.size(1);
  torch::stable::parallel_for(0, dims, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T low, high;
      lattice_kernels<T>().range(data<T>(features) + i * pixels, pixels, &low, &high);
      range[i] = low;
      range[dims + i] = high;
    }
  });
}

// features [d, N] -> [2, d] float64: lowest and highest of each, NaN where any is not finite.
Tensor feature_range(const Tensor& features) {
  const ScalarType dtype = real_dtype(features, "features");
  STD_TORCH_CHECK(features.dim() == 2 && features.size(1) >= 1, "features must be [d, N >= 1]");
  check_tensor(features, dtype, features.numel(), "features");
  Tensor range = torch::stable::new_empty(features, std::vector<int64_t>{2, features.size(0)},
                                          ScalarType::Double);
  dtype == ScalarType::Float ? range_into<float>(features, mutable_data<double>(range))
                             : range_into<double>(features, mutable_data<double>(range));
  return range;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_feature_range", TORCH_BOX(&feature_range));
  m.impl("_lattice_build", TORCH_BOX(&lattice_build));
}

}  // namespace segfast
