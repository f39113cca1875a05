// segfast::_max_pool2d and its relatives on the CPU: threads; checks and memory are in
// max_unpool_operators.h, the arithmetic in kernels/max_unpool.
#include "kernels/max_unpool/max_unpool.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "csrc/buffer.h"
#include "csrc/max_unpool_operators.h"
#include "csrc/parallel.h"
#include "dispatch.h"

namespace segfast {
namespace {

constexpr int64_t kGrain = 32768;  // elements of x or y that are worth a thread

const MaxUnpoolKernels& kernels() {
  return dispatch<MaxUnpoolKernels>(SEGFAST_TABLES(max_unpool_kernels));
}

// work(begin, end) over items of `elements` elements each.
template <typename Work>
void for_items(int64_t items, int64_t elements, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  torch::stable::parallel_for(0, items, grain, work);
}

int64_t row_of_x(const Pooling& p) { return p.columns.input * inner(p); }
// Rows of y count by what is read and written for them: their part of x.
int64_t row_of_y(const Pooling& p) {
  return row_of_x(p) * std::max<int64_t>(1, p.rows.input / std::max<int64_t>(p.rows.output, 1));
}

int64_t slice_of_x(const Pooling& p) {
  return p.rows.input * p.columns.input * (p.channels_last ? kSliceChannels : 1);
}

void check_none_outside(int64_t count, const Pooling& p) {
  if (count == 0) return;
  const std::string height = std::to_string(p.rows.input), width = std::to_string(p.columns.input);
  throw std::runtime_error("indices must lie in [0, " +
                           std::to_string(p.rows.input * p.columns.input) + ") of the " + height +
                           "x" + width + " map, " + std::to_string(count) +
                           " do not; give the pool's input size as output_size");
}

// y [N, C, Ho, Wo] -> x
void from_windows(decltype(MaxUnpoolKernels::unpool) kernel, const Call& call, const Tensor& y,
                  const Tensor& packed, Tensor& x) {
  const void* from = y.const_data_ptr();
  const uint8_t* offsets = data<uint8_t>(packed);
  void* to = x.mutable_data_ptr();
  for_items(pool_rows_of_x(call.p), row_of_x(call.p),
            [&](int64_t begin, int64_t end) { kernel(call.p, from, offsets, to, begin, end); });
}

struct OnCpu {
  static constexpr DeviceType kType = DeviceType::CPU;

  static void pool(const Call& call, const Tensor& x, Tensor& y, uint8_t* packed) {
    const void* from = x.const_data_ptr();
    void* to = y.mutable_data_ptr();
    const auto pool = kernels().pool;
    for_items(pool_rows_of_y(call.p), row_of_y(call.p),
              [&](int64_t begin, int64_t end) { pool(call.p, from, to, packed, begin, end); });
  }

  static void pool_backward(const Call& call, const Tensor& y, const Tensor& packed, Tensor& x) {
    from_windows(kernels().pool_backward, call, y, packed, x);
  }

  static void unpool(const Call& call, const Tensor& y, const Tensor& packed, Tensor& x) {
    from_windows(kernels().unpool, call, y, packed, x);
  }

  static void gather(const Call& call, const Tensor& x, const Tensor& packed, Tensor& y,
                     bool winners) {
    const void* from = x.const_data_ptr();
    const uint8_t* offsets = data<uint8_t>(packed);
    void* to = y.mutable_data_ptr();
    const auto gather = kernels().gather;
    if (!winners || windows_disjoint(call.p)) {
      for_items(pool_rows_of_y(call.p), row_of_y(call.p), [&](int64_t begin, int64_t end) {
        gather(call.p, from, offsets, to, nullptr, begin, end);
      });
      return;
    }
    for_items(pool_rows_of_y(call.p), row_of_y(call.p), [&](int64_t begin, int64_t end) {
      const auto scratch = make_buffer<uint8_t>(winners_scratch(call.p));
      gather(call.p, from, offsets, to, scratch.get(), begin, end);
    });
  }

  static void unpool_indices(const Call& call, const Tensor& y, const Tensor& indices, Tensor& x) {
    const void* from = y.const_data_ptr();
    const int64_t* index = data<int64_t>(indices);
    void* to = x.mutable_data_ptr();
    const auto unpool = kernels().unpool_indices;
    std::atomic<int64_t> outside{0};
    for_items(pool_slices(call.p), slice_of_x(call.p), [&](int64_t begin, int64_t end) {
      outside += unpool(call.p, from, index, to, begin, end);
    });
    check_none_outside(outside, call.p);
  }

  static void gather_indices(const Call& call, const Tensor& x, const Tensor& indices, Tensor& y,
                             bool winners) {
    const void* from = x.const_data_ptr();
    const int64_t* index = data<int64_t>(indices);
    void* to = y.mutable_data_ptr();
    const auto gather = kernels().gather_indices;
    std::atomic<int64_t> outside{0};
    for_items(pool_slices(call.p), slice_of_x(call.p), [&](int64_t begin, int64_t end) {
      const auto scratch = make_buffer<uint8_t>(winners ? index_winners_scratch(call.p) : 0);
      outside += gather(call.p, from, index, to, winners ? scratch.get() : nullptr, begin, end);
    });
    check_none_outside(outside, call.p);
  }

  static void pack(const Call& call, const Tensor& indices, Tensor& packed) {
    const int64_t* from = data<int64_t>(indices);
    uint8_t* to = mutable_data<uint8_t>(packed);
    const auto pack = kernels().pack;
    std::atomic<int64_t> outside{0};
    for_items(pool_rows_of_y(call.p), row_of_y(call.p),
              [&](int64_t begin, int64_t end) { outside += pack(call.p, from, to, begin, end); });
    check_none_in_other_windows(outside, call.p);
  }

  static void unpack(const Call& call, const Tensor& packed, Tensor& indices) {
    const uint8_t* from = data<uint8_t>(packed);
    int64_t* to = mutable_data<int64_t>(indices);
    const auto unpack = kernels().unpack;
    for_items(pool_rows_of_y(call.p), row_of_y(call.p),
              [&](int64_t begin, int64_t end) { unpack(call.p, from, to, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CPU, m) { MaxUnpoolOperators<OnCpu>::implement(m); }

}  // namespace segfast
