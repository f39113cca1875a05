// Binding of the exact Gaussian filter: checks, memory, threads. The arithmetic is in
// kernels/dense_crf/exact_cpu.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>

#include "../../kernels/dense_crf/exact.h"
#include "../../kernels/include/dispatch.h"

namespace segfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTilesPerGrab = 4;  // what a thread takes at once: tiles differ in cost

const ExactKernels& kernels() {
#if defined(__x86_64__) && !defined(SEGFAST_BASELINE_ONLY)
  return dispatch<ExactKernels>(
      {&baseline::exact_kernels, &avx2::exact_kernels, &avx512::exact_kernels});
#else
  return baseline::exact_kernels;
#endif
}

// Runs work(begin, end) over [0, count) on all threads; the status that is not kExactOk, if any.
template <typename Work>
int for_ranges(int64_t count, int64_t grain, const Work& work) {
  std::atomic<int> status{kExactOk};
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const int code = work(begin, end);
    if (code != kExactOk) status = code;
  });
  return status;
}

Tensor bytes(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Byte);
}

int run(ExactProblem& p, const Tensor& like) {
  const ExactKernels& k = kernels();
  const int64_t element = p.dtype == ExactDtype::float32 ? 4 : 8;

  Tensor order = bytes(like, p.pixels * 8);
  Tensor spare = bytes(like, p.pixels * 8);
  Tensor keys = bytes(like, p.pixels * 8);
  p.order = static_cast<int64_t*>(order.mutable_data_ptr());
  p.spare = static_cast<int64_t*>(spare.mutable_data_ptr());
  p.keys = keys.mutable_data_ptr();
  int status = for_ranges(p.pixels, 65536,
                          [&](int64_t begin, int64_t end) { return k.start(p, begin, end); });
  for (int64_t level = 0; level < exact_levels(p.tiles) && status == kExactOk; ++level) {
    const int64_t grain = (int64_t{1} << level) * 2048 / p.pixels + 1;
    status = for_ranges(int64_t{1} << level, grain,
                        [&](int64_t begin, int64_t end) { return k.split(p, level, begin, end); });
  }
  if (status != kExactOk) return status;

  const int64_t slots = p.tiles * kExactTile;
  Tensor features = bytes(like, slots * p.dims * element);
  Tensor values = bytes(like, slots * p.channels * element);
  Tensor boxes = bytes(like, 2 * p.dims * exact_box_stride(p.tiles) * element);
  p.tile_features = features.mutable_data_ptr();
  p.tile_values = values.mutable_data_ptr();
  p.boxes = boxes.mutable_data_ptr();
  status =
      for_ranges(p.tiles, 16, [&](int64_t begin, int64_t end) { return k.pack(p, begin, end); });
  if (status != kExactOk) return status;

  const int64_t threads = torch::stable::get_num_threads();
  const int64_t scratch_bytes = exact_scratch_bytes(p.tiles, p.channels) + kExactAlign;
  Tensor scratch = bytes(like, threads * scratch_bytes);
  const auto base = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  std::atomic<int64_t> next{0};
  return for_ranges(threads, 1, [&](int64_t first, int64_t) {
    const uintptr_t mine = (base + first * scratch_bytes + kExactAlign - 1) & -kExactAlign;
    for (;;) {
      const int64_t begin = next.fetch_add(kTilesPerGrab);
      if (begin >= p.tiles) return static_cast<int>(kExactOk);
      const int64_t end = begin + kTilesPerGrab < p.tiles ? begin + kTilesPerGrab : p.tiles;
      const int code = k.filter(p, begin, end, reinterpret_cast<void*>(mine));
      if (code != kExactOk) return code;
    }
  });
}

Tensor exact_filter(const Tensor& values, const Tensor& features, double tolerance) {
  STD_TORCH_CHECK(values.is_cpu() && features.is_cpu(),
                  "_exact_filter: values and features must be on the CPU");
  STD_TORCH_CHECK(values.dim() == 2 && features.dim() == 2,
                  "_exact_filter: values must be [C, N] and features [F, N], got ", values.dim(),
                  " and ", features.dim(), " dimensions");
  STD_TORCH_CHECK(values.size(1) == features.size(1),
                  "_exact_filter: values and features must have the same number of pixels, got ",
                  values.size(1), " and ", features.size(1));
  STD_TORCH_CHECK(features.size(0) >= 1, "_exact_filter: features must have at least one row");
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "_exact_filter: values must be float32 or float64");
  STD_TORCH_CHECK(features.scalar_type() == dtype,
                  "_exact_filter: features must have the dtype of values");
  STD_TORCH_CHECK(tolerance >= 0, "_exact_filter: tolerance must be at least 0, got ", tolerance);

  const Tensor dense_values = torch::stable::contiguous(values);
  const Tensor dense_features = torch::stable::contiguous(features);
  Tensor out = torch::stable::new_empty(dense_values, dense_values.sizes());
  if (out.numel() == 0) return out;

  ExactProblem problem{};
  problem.dtype = dtype == ScalarType::Float ? ExactDtype::float32 : ExactDtype::float64;
  problem.channels = dense_values.size(0);
  problem.pixels = dense_values.size(1);
  problem.dims = dense_features.size(0);
  problem.tiles = exact_tiles(problem.pixels);
  problem.tolerance = tolerance;
  problem.values = dense_values.const_data_ptr();
  problem.features = dense_features.const_data_ptr();
  problem.out = out.mutable_data_ptr();
  const int status = run(problem, dense_values);
  STD_TORCH_CHECK(status == kExactOk, "_exact_filter: the kernel refused its arguments (status ",
                  status, "); please report this");
  return out;
}

}  // namespace
}  // namespace segfast

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) {
  m.impl("_exact_filter", TORCH_BOX(&segfast::exact_filter));
}
