// Finds data races: two accesses to a byte, one of them a write, not both atomic, by threads of
// which neither waited for the other in between. g++ -fsanitize=thread calls this file for every
// access of a kernel, in place of ThreadSanitizer, which knows nothing of blocks and warps.
//
// What orders accesses: barriers of the block, warp collectives, and __threadfence() + atomic on
// one side with atomic + __threadfence() on the other. Of the readers of a byte the last of two
// warps are remembered: a race may be missed, but none is made up.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "scheduler.h"

extern "C" {
extern char __start_cuda_shared[] __attribute__((weak));
extern char __stop_cuda_shared[] __attribute__((weak));
}

namespace host_cuda {
namespace {

struct Access {
  uint32_t block = 0;  // counted from 1 over all launches; 0: there was no access
  uint32_t thread : 10;
  uint32_t atomic : 1;
  uint32_t epoch : 21;  // barriers that the block had passed
  uint32_t time;        // of the thread: collectives and fences that it had passed
  uint32_t line;        // address of the instruction
};

struct Cell {
  Access write, read[2];
};

struct Memory {
  uintptr_t begin;
  bool shared;
  std::vector<Cell> cells;  // one per byte
};

using Seen = std::array<uint32_t, kWarp>;  // time of each lane up to which its accesses are known

// What a thread had done or knew of when it passed a fence.
struct Fence {
  uint32_t block = 0, thread = 0, epoch = 0, time = 0;
  Seen seen = {};
};
using Fences = std::map<std::pair<uint32_t, uint32_t>, Fence>;  // by block and thread

void add(Fences& to, const Fences& from) {
  for (const auto& [who, fence] : from) {
    Fence& here = to[who];
    if (here.time < fence.time) here = fence;
  }
}

struct Thread {
  uint32_t time = 1;
  Seen seen = {};
  Fences read;      // with atomics, since the last fence
  Fences acquired;  // before it
  Fences released;  // with the next atomic
};

bool is_before(const Access& a, uint32_t thread, uint32_t epoch, uint32_t time, const Seen& seen) {
  return a.epoch < epoch || (a.thread == thread && a.time <= time) ||
         (a.thread / kWarp == thread / kWarp && a.time <= seen[a.thread % kWarp]);
}

class Races : public Observer {
 public:
  void memory(const void* begin, size_t bytes, bool shared) override {
    memories_[reinterpret_cast<uintptr_t>(begin) + bytes] = {reinterpret_cast<uintptr_t>(begin),
                                                             shared, std::vector<Cell>(bytes)};
  }
  void forget(const void* begin, size_t bytes) override {
    memories_.erase(reinterpret_cast<uintptr_t>(begin) + bytes);
  }

  void grid_begins() override {
    first_block_ = block_ + 1;
    names_.clear();
    atomics_.clear();
    const size_t bytes = __stop_cuda_shared - __start_cuda_shared;
    if (bytes > 0 && memories_.count(reinterpret_cast<uintptr_t>(__stop_cuda_shared)) == 0)
      memory(__start_cuda_shared, bytes, true);
  }
  void block_begins(int threads, Index index) override {
    ++block_;
    epoch_ = 0;
    names_.push_back(index);
    threads_.assign(threads, Thread{});
    acquired_.clear();
  }
  void block_meets() override {
    ++epoch_;
    for (const Thread& thread : threads_) add(acquired_, thread.acquired);
  }
  void warp_meets(int warp, uint32_t came) override {
    Seen all = {};
    Fences acquired;
    for_lanes(warp, came, [&](Thread& thread, int lane) {
      thread.seen[lane] = thread.time++;
      for (int k = 0; k < kWarp; ++k) all[k] = std::max(all[k], thread.seen[k]);
      add(acquired, thread.acquired);
    });
    for_lanes(warp, came, [&](Thread& thread, int) {
      thread.seen = all;
      add(thread.acquired, acquired);
    });
  }
  void fence(int number) override {
    Thread& me = threads_[number];
    add(me.acquired, me.read);
    me.read.clear();
    me.released = acquired_;
    add(me.released, me.acquired);
    const uint32_t thread = static_cast<uint32_t>(number);
    me.released[{block_, thread}] = {block_, thread, epoch_, me.time++, me.seen};
  }
  void atomic(int number, const void* address, size_t bytes, const void* line) override {
    access(number, address, bytes, true, true, line);
    Fences& here = atomics_[address];
    Thread& me = threads_[number];
    add(me.read, here);
    add(here, me.released);
  }

  void access(int number, const void* address, size_t bytes, bool writes, bool atomic,
              const void* line) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const auto found = memories_.upper_bound(at);  // by their ends
    if (found == memories_.end() || at < found->second.begin) return;
    Memory& memory = found->second;
    Access now;
    now.block = block_;
    now.thread = static_cast<uint32_t>(number);
    now.atomic = atomic;
    now.epoch = epoch_;
    now.time = threads_[number].time;
    now.line = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(line));
    const size_t first = at - memory.begin, end = std::min(first + bytes, memory.cells.size());
    for (size_t i = first; i < end; ++i) {
      Cell& cell = memory.cells[i];
      check(cell.write, "write", now, writes, memory, i);
      if (writes) {
        for (const Access& read : cell.read) check(read, "read", now, true, memory, i);
        cell.write = now;
      } else {
        const bool again =
            cell.read[0].block == now.block && cell.read[0].thread / kWarp == now.thread / kWarp;
        if (!again) cell.read[1] = cell.read[0];
        cell.read[0] = now;
      }
    }
  }

 private:
  template <typename Use>
  void for_lanes(int warp, uint32_t lanes, const Use& use) {
    for (int lane = 0; lane < kWarp; ++lane)
      if (lanes >> lane & 1) use(threads_[warp * kWarp + lane], lane);
  }

  bool is_ordered(const Access& before, const Access& now) const {
    const Thread& me = threads_[now.thread];
    if (before.block == now.block && is_before(before, now.thread, now.epoch, now.time, me.seen))
      return true;
    const auto is_fenced = [&](const auto& entry) {
      const Fence& f = entry.second;
      return before.block == f.block && is_before(before, f.thread, f.epoch, f.time, f.seen);
    };
    return std::any_of(me.acquired.begin(), me.acquired.end(), is_fenced) ||
           std::any_of(acquired_.begin(), acquired_.end(), is_fenced);
  }

  void check(const Access& before, const char* did, const Access& now, bool writes,
             const Memory& memory, size_t byte) const {
    if (before.block < (memory.shared ? block_ : first_block_)) return;  // was another's memory
    if ((before.atomic && now.atomic) || is_ordered(before, now)) return;
    const Index a = names_[before.block - first_block_], b = names_.back();
    fail(
        "data race at byte %zu of %s memory:\n"
        "  thread %u of block (%u,%u,%u): %s%s at pc 0x%x\n"
        "  thread %u of block (%u,%u,%u): %s%s at pc 0x%x",
        byte, memory.shared ? "shared" : "global", now.thread + 0u, b.x, b.y, b.z,
        now.atomic ? "atomic " : "", writes ? "write" : "read", now.line, before.thread + 0u, a.x,
        a.y, a.z, before.atomic ? "atomic " : "", did, before.line);
  }

  std::map<uintptr_t, Memory> memories_;  // by their ends
  std::map<const void*, Fences> atomics_;
  std::vector<Thread> threads_;
  std::vector<Index> names_;  // of the blocks of this launch
  Fences acquired_;           // by the whole block
  uint32_t block_ = 0, first_block_ = 1, epoch_ = 0;
};

Races races;
const bool listening = (observer = &races, true);

void access(const void* address, size_t bytes, bool writes, const void* line) {
  if (const int thread = thread_number(); listening && thread >= 0)
    races.access(thread, address, bytes, writes, false, line);
}

}  // namespace
}  // namespace host_cuda

#define HOST_CUDA_ACCESS(name, bytes, writes)                               \
  extern "C" void __tsan_##name(void* address) {                            \
    host_cuda::access(address, bytes, writes, __builtin_return_address(0)); \
  }
#define HOST_CUDA_ACCESSES(bytes)                       \
  HOST_CUDA_ACCESS(read##bytes, bytes, false)           \
  HOST_CUDA_ACCESS(write##bytes, bytes, true)           \
  HOST_CUDA_ACCESS(unaligned_read##bytes, bytes, false) \
  HOST_CUDA_ACCESS(unaligned_write##bytes, bytes, true)
HOST_CUDA_ACCESSES(1)
HOST_CUDA_ACCESSES(2)
HOST_CUDA_ACCESSES(4)
HOST_CUDA_ACCESSES(8)
HOST_CUDA_ACCESSES(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* address, size_t bytes) {
  host_cuda::access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  host_cuda::access(address, bytes, true, __builtin_return_address(0));
}
}
