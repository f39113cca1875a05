// segfast::_exact_order, _exact_filter and _exact_gradient: checks, memory, threads; the arithmetic
// is in kernels/dense_crf/exact_cpu.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "csrc/buffer.h"
#include "csrc/check.h"
#include "csrc/parallel.h"
#include "kernels/dense_crf/exact.h"
#include "kernels/dense_crf/tables.h"

namespace segfast {
namespace {

template <typename T>
Tensor order_of(const Tensor& features) {
  Tensor order = torch::stable::new_empty(features, {features.size(1)}, ScalarType::Long);
  ExactProblem<T> p{};
  p.dims = features.size(0);
  p.pixels = features.size(1);
  p.tiles = exact_tiles(p.pixels);
  p.features = data<T>(features);
  p.order = mutable_data<int64_t>(order);
  if (p.pixels == 0) return order;
  const auto& kernels = exact_kernels<T>();
  const auto spare = make_buffer<int64_t>(p.pixels);
  const auto keys = make_buffer<T>(p.pixels);
  p.spare = spare.get();
  p.keys = keys.get();
  torch::stable::parallel_for(0, p.pixels, 65536,
                              [&](int64_t begin, int64_t end) { kernels.start(p, begin, end); });
  for (int64_t level = 0; level < exact_levels(p.tiles); ++level) {
    const int64_t ranges = int64_t{1} << level;
    torch::stable::parallel_for(
        0, ranges, ranges * 2048 / p.pixels + 1,
        [&](int64_t begin, int64_t end) { kernels.split(p, level, begin, end); });
  }
  return order;
}

// features [F, N] -> the pixels [N] in an order that keeps near ones together.
Tensor exact_order(const Tensor& features) {
  const ScalarType dtype = real_dtype(features, "features");
  STD_TORCH_CHECK(features.dim() == 2 && features.size(0) >= 1,
                  "features must be [F, N] with at least one row");
  check_tensor(features, dtype, features.numel(), "features");
  return dtype == ScalarType::Float ? order_of<float>(features) : order_of<double>(features);
}

template <typename T>
void run(ExactProblem<T> p) {
  const auto& kernels = exact_kernels<T>();
  const int64_t slots = p.tiles * kExactTile;
  const auto features = make_buffer<T>(slots * p.dims);
  const auto values = make_buffer<T>(slots * p.channels);
  const auto boxes = make_buffer<T>(2 * p.dims * exact_box_stride(p.tiles));
  const auto centres = make_buffer<T>(p.tiles * p.dims);
  const auto centred = make_buffer<T>(slots * (p.dims + 1));
  const auto reach = make_buffer<T>(p.tiles);
  const auto sums = make_buffer<double>(slots * p.rows);
  p.tile_features = features.get();
  p.tile_values = values.get();
  p.boxes = boxes.get();
  p.centres = centres.get();
  p.centred = centred.get();
  p.reach = reach.get();
  p.sums = sums.get();
  torch::stable::parallel_for(0, p.tiles, 16,
                              [&](int64_t begin, int64_t end) { kernels.pack(p, begin, end); });
  torch::stable::parallel_for(0, p.tiles, 16,
                              [&](int64_t begin, int64_t end) { kernels.reach(p, begin, end); });
  const auto run_pair = p.gradient ? kernels.gradient : kernels.filter;
  for_each_pair(exact_groups(p.tiles), [&] {
    return [&, scratch = make_buffer<char>(exact_scratch_bytes(p.tiles, p.rows, p.dims))](
               int64_t a, int64_t b) { run_pair(p, a, b, scratch.get()); };
  });
  torch::stable::parallel_for(0, p.tiles, 16,
                              [&](int64_t begin, int64_t end) { kernels.unpack(p, begin, end); });
}

template <typename T>
Tensor filter(const Tensor& values, const Tensor& features, const Tensor& order, double tolerance,
              bool gradient) {
  ExactProblem<T> p{};
  p.channels = values.size(0);
  p.pixels = values.size(1);
  p.dims = features.size(0);
  p.gradient = gradient;
  p.rows = gradient ? p.dims + 2 : p.channels;
  Tensor out = torch::stable::new_empty(values, {p.rows, p.pixels});
  p.tiles = exact_tiles(p.pixels);
  p.tolerance = tolerance;
  p.values = data<T>(values);
  p.features = data<T>(features);
  p.order = const_cast<int64_t*>(data<int64_t>(order));
  p.out = mutable_data<T>(out);
  if (out.numel() > 0) run(p);
  return out;
}

Tensor checked(const Tensor& values, const Tensor& features, const Tensor& order, double tolerance,
               bool gradient) {
  const ScalarType dtype = real_dtype(values, "values");
  STD_TORCH_CHECK(values.dim() == 2 && features.dim() == 2,
                  "values must be [C, N] and features [F, N], got ", values.dim(), " and ",
                  features.dim(), " dimensions");
  STD_TORCH_CHECK(features.size(0) >= 1, "features must have at least one row");
  check_tensor(values, dtype, values.numel(), "values");
  check_tensor(features, dtype, features.size(0) * values.size(1), "features");
  check_tensor(order, ScalarType::Long, values.size(1), "order");
  STD_TORCH_CHECK(tolerance >= 0, "tolerance must be at least 0, got ", tolerance);
  return dtype == ScalarType::Float ? filter<float>(values, features, order, tolerance, gradient)
                                    : filter<double>(values, features, order, tolerance, gradient);
}

// values [C, N], features [F, N], their order [N] -> y [C, N], within tolerance * max|values| of
// the sum over all.
Tensor exact_filter(const Tensor& values, const Tensor& features, const Tensor& order,
                    double tolerance) {
  return checked(values, features, order, tolerance, false);
}

// [G, V] [2 C, N] -> df, rho, kappa [F + 2, N]: see kernels/dense_crf/exact.h.
Tensor exact_gradient(const Tensor& values, const Tensor& features, const Tensor& order,
                      double tolerance) {
  STD_TORCH_CHECK(values.size(0) % 2 == 0, "values must be G and V, of as many channels");
  return checked(values, features, order, tolerance, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_exact_order", TORCH_BOX(&exact_order));
  m.impl("_exact_filter", TORCH_BOX(&exact_filter));
  m.impl("_exact_gradient", TORCH_BOX(&exact_gradient));
}

}  // namespace segfast
