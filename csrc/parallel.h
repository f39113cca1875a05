// Threads that take the next item as they become free: items differ in cost, cores in speed.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace segfast {

// make_worker() -> callable(item), made once per thread (it may own scratch). Which thread handles
// an item must not matter.
template <typename MakeWorker>
void for_each_item(int64_t items, const MakeWorker& make_worker) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), items);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const auto work = make_worker();
    for (int64_t item = next++; item < items; item = next++) work(item);
  });
}

}  // namespace segfast
