// Threads that take the next item as they become free: items differ in cost, cores in speed.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace segfast {

// make_worker() -> callable(item), made once per thread (it may own scratch). Which thread handles
// an item must not matter. At most `most` threads.
template <typename MakeWorker>
void for_each_item(int64_t items, const MakeWorker& make_worker, int64_t most = INT64_MAX) {
  const int64_t threads = std::min<int64_t>({torch::stable::get_num_threads(), items, most});
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const auto work = make_worker();
    for (int64_t item = next++; item < items; item = next++) work(item);
  });
}

// make_worker() -> callable(stage, item) for items[stage] items of each stage: all of a stage are
// done before the next begins. One call to the threads, where one for each stage would wake them
// again.
template <size_t kStages, typename MakeWorker>
void for_each_stage(const std::array<int64_t, kStages>& items, const MakeWorker& make_worker) {
  std::atomic<int64_t> done{0};
  const auto worker = [&] {
    return [&, work = make_worker()](int64_t index) {
      size_t stage = 0;
      int64_t earlier = 0;  // items of earlier stages
      while (index - earlier >= items[stage]) earlier += items[stage++];
      while (done.load(std::memory_order_acquire) < earlier) std::this_thread::yield();
      work(stage, index - earlier);
      done.fetch_add(1, std::memory_order_acq_rel);
    };
  };
  // Items are taken in order: the earliest unfinished one never waits.
  for_each_item(std::accumulate(items.begin(), items.end(), int64_t{0}), worker);
}

// make_worker() -> callable(item, step): step 0 of all items, then step 1 of all, ... An item takes
// its steps in order, whichever threads take them.
template <typename MakeWorker>
void for_each_step(int64_t items, int64_t steps, const MakeWorker& make_worker) {
  std::vector<std::atomic<int64_t>> done(items);  // steps of each item
  const auto worker = [&] {
    return [&, work = make_worker()](int64_t index) {
      const int64_t item = index % items, step = index / items;
      while (done[item].load(std::memory_order_acquire) < step) std::this_thread::yield();
      work(item, step);
      done[item].store(step + 1, std::memory_order_release);
    };
  };
  for_each_item(items * steps, worker, items);  // the earliest unfinished step never waits
}

// make_worker() -> callable(a, b), for every unordered pair of groups, a == b included. Pairs that
// share a group are handled one after the other, always in the same order: in round r, every group
// a meets (r - a) mod groups.
template <typename MakeWorker>
void for_each_pair(int64_t groups, const MakeWorker& make_worker) {
  std::vector<std::atomic<int64_t>> rounds(groups);  // done by each group
  const auto wait = [&](int64_t group, int64_t round) {
    while (rounds[group].load(std::memory_order_acquire) < round) std::this_thread::yield();
  };
  // Items are taken in order: the earliest unfinished one never waits for another.
  for_each_item(groups * groups, [&] {
    return [&, work = make_worker()](int64_t item) {
      const int64_t round = item / groups, a = item % groups;
      const int64_t b = (round - a + groups) % groups;
      if (a > b) return;
      wait(a, round);
      wait(b, round);
      work(a, b);
      rounds[a].store(round + 1, std::memory_order_release);
      rounds[b].store(round + 1, std::memory_order_release);
    };
  });
}

}  // namespace segfast
