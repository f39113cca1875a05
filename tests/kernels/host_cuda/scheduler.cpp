#include "scheduler.h"

#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.h"

// Where the build puts the __shared__ variables of the kernels; absent when there are none.
extern "C" {
extern char __start_cuda_shared[] __attribute__((weak));
extern char __stop_cuda_shared[] __attribute__((weak));
}

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_cuda {
namespace {

// Not written memory reads as one of these, by the seed: NaN in every floating-point type, a
// number that no one expects, integers beyond every bound.
constexpr unsigned char kPoison[] = {0xFF, 0xCD, 0x7F};

struct Thread {
  uint3 index;
  int number = 0;
  bool finished = false;
  Fiber* fiber = nullptr;       // while it is under way
  const Site* waits = nullptr;  // where, or null
  int votes = 0;                // result of the last block barrier
  Meeting met;                  // result of the last warp collective
};

struct BlockBarrier {
  Site site;
  int votes = 0;
  std::vector<Thread*> waiting;
};

// A warp collective that not all lanes have come to.
struct WarpBarrier {
  Site site;
  uint32_t mask;
  Meeting meeting;
};

struct Warp {
  uint32_t present = 0;  // lanes that have not returned
  std::vector<std::unique_ptr<WarpBarrier>> open;
};

// --- the block that runs ---
Observer nobody;
Fiber main_fiber;
std::vector<Fiber*> idle;  // fibers of finished threads, to be used again
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<Thread*> ready;
BlockBarrier barrier;
Thread* current = nullptr;
int unfinished = 0;
std::unique_ptr<char[], decltype(&std::free)> dynamic_memory(nullptr, &std::free);
size_t dynamic_bytes = 0;
void (*body)(const void*) = nullptr;
const void* body_context = nullptr;

// --- what the seed decides ---
uint64_t random_state = 0;
unsigned char poison = kPoison[0];

uint64_t random_bits() {  // splitmix64
  uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

uint64_t random_below(uint64_t n) { return random_bits() % n; }

std::string name(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string name(const Site& site) {
  return std::string(site.operation) + " at " + site.file + ":" + std::to_string(site.line);
}

[[noreturn]] void fail_with_threads(const char* what) {
  std::string text;
  std::vector<const Thread*> left;
  for (const Thread& thread : threads)
    if (thread.waits != nullptr) left.push_back(&thread);
  while (!left.empty()) {
    const Site& site = *left[0]->waits;
    const auto here = [&](const Thread* thread) { return *thread->waits == site; };
    const auto count = std::count_if(left.begin(), left.end(), here);
    text += "\n  " + std::to_string(count) + " wait in " + name(site) + ":";
    int shown = 0;
    for (const Thread* thread : left) {
      if (here(thread) && shown++ < 8) text += " " + name(thread->index);
    }
    if (count > 8) text += " ...";
    left.erase(std::remove_if(left.begin(), left.end(), here), left.end());
  }
  const auto gone = std::count_if(threads.begin(), threads.end(),
                                  [](const Thread& thread) { return thread.finished; });
  if (gone > 0) text += "\n  " + std::to_string(gone) + " have returned";
  fail("%s%s", what, text.c_str());
}

void run_threads();

// Goes on with any thread that can: one under way, or one that has not begun.
void run_another(Fiber& from) {
  if (ready.empty()) fail_with_threads("deadlock: no thread can go on");
  std::swap(ready[random_below(ready.size())], ready.back());
  current = ready.back();
  ready.pop_back();
  threadIdx = current->index;
  if (current->fiber == nullptr) {
    if (idle.empty()) idle.push_back(new Fiber(run_threads));
    current->fiber = idle.back();
    idle.pop_back();
  }
  if (current->fiber != &from) from.switch_to(*current->fiber);
}

void go_on(Thread* thread) {
  thread->waits = nullptr;
  ready.push_back(thread);
}

void open_if_complete() {
  if (barrier.waiting.empty() || static_cast<int>(barrier.waiting.size()) < unfinished) return;
  for (Thread* thread : barrier.waiting) {
    thread->votes = barrier.votes;
    go_on(thread);
  }
  barrier.waiting.clear();
  barrier.votes = 0;
  observer->block_meets();
}

void open_if_complete(int warp_number) {
  Warp& warp = warps[warp_number];
  for (size_t i = 0; i < warp.open.size(); ++i) {
    const WarpBarrier& at = *warp.open[i];
    if (at.mask & warp.present & ~at.meeting.came) continue;
    observer->warp_meets(warp_number, at.meeting.came);
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(at.meeting.came >> lane & 1)) continue;
      Thread& thread = threads[warp_number * kWarp + lane];
      thread.met = at.meeting;
      go_on(&thread);
    }
    warp.open.erase(warp.open.begin() + i--);
  }
}

void finish_current() {
  current->finished = true;
  --unfinished;
  const int warp = current->number / kWarp;
  warps[warp].present &= ~(1u << lane());
  open_if_complete(warp);
  open_if_complete();
}

// What a fiber does: thread after thread, as long as none has to wait for another.
void run_threads() {
  for (;;) {
    body(body_context);
    Fiber& me = *current->fiber;
    finish_current();
    idle.push_back(&me);
    if (unfinished == 0) {
      me.switch_to(main_fiber);
    } else {
      run_another(me);
    }
  }
}

// Without the sanitizer: red zones lie between the variables.
__attribute__((no_sanitize("address"))) void poison_static_shared() {
  uint64_t pattern;
  std::memset(&pattern, poison, sizeof(pattern));
  volatile char* p = __start_cuda_shared;
  for (; p < __stop_cuda_shared && reinterpret_cast<uintptr_t>(p) % 8 != 0; ++p) *p = poison;
  for (; p + 8 <= __stop_cuda_shared; p += 8) *reinterpret_cast<volatile uint64_t*>(p) = pattern;
  for (; p < __stop_cuda_shared; ++p) *p = poison;
}

void poison_dynamic_shared(size_t bytes) {
  void* memory = nullptr;  // of the exact size, and another one for every block
  if (bytes > 0 && posix_memalign(&memory, 128, bytes) != 0) fail("no memory");
  if (memory != nullptr) std::memset(memory, poison, bytes);
  observer->forget(dynamic_memory.get(), dynamic_bytes);
  dynamic_memory.reset(static_cast<char*>(memory));
  dynamic_bytes = bytes;
  observer->memory(memory, bytes, true);
}

void run_block(Index block, size_t shared_bytes) {
  unfinished = static_cast<int>(block.x * block.y * block.z);
  poison_static_shared();
  poison_dynamic_shared(shared_bytes);
  threads.assign(unfinished, Thread{});
  warps.clear();
  warps.resize((unfinished + kWarp - 1) / kWarp);
  for (int i = 0; i < unfinished; ++i) {
    const unsigned n = static_cast<unsigned>(i);
    threads[i].index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    threads[i].number = i;
    warps[i / kWarp].present |= 1u << i % kWarp;
    ready.push_back(&threads[i]);
  }
  observer->block_begins(unfinished, {blockIdx.x, blockIdx.y, blockIdx.z});
  run_another(main_fiber);
  current = nullptr;
}

}  // namespace

Observer* observer = &nobody;

bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0 &&
         std::strcmp(a.operation, b.operation) == 0;
}

void fail(const char* format, ...) {
  std::fprintf(stderr, "host_cuda: block %s: ", name(blockIdx).c_str());
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  _exit(70);
}

void set_seed(uint64_t seed) {
  random_state = seed;
  poison = kPoison[seed % sizeof(kPoison)];
}

int thread_number() { return current == nullptr ? -1 : current->number; }

void preempt() {
  if (ready.empty() || random_below(4) != 0) return;
  Thread* me = current;
  ready.push_back(me);
  run_another(*me->fiber);
}

void fence() {
  observer->fence(current->number);
  preempt();
}

int meet_block(bool vote, Site site) {
  Thread* me = current;
  if (barrier.waiting.empty()) {
    barrier.site = site;
  } else if (!(barrier.site == site)) {
    me->waits = &site;
    fail_with_threads("divergent barrier: threads of one block wait in different lines");
  }
  barrier.votes += vote;
  barrier.waiting.push_back(me);
  me->waits = &site;
  open_if_complete();
  run_another(*me->fiber);
  return me->votes;
}

const Meeting& meet_warp(uint32_t mask, uint64_t value, Site site) {
  Thread* me = current;
  const int warp_number = me->number / kWarp;
  Warp& warp = warps[warp_number];
  me->waits = &site;
  if (!(mask >> lane() & 1))
    fail("thread %s, lane %d, is not in its own mask %08x: %s", name(me->index).c_str(), lane(),
         mask, name(site).c_str());
  WarpBarrier* at = nullptr;
  for (const auto& open : warp.open) {
    if (!(open->mask & mask)) continue;
    if (open->mask != mask || !(open->site == site))
      fail_with_threads("divergent warp: lanes of one mask wait in different lines or masks");
    at = open.get();
  }
  if (at == nullptr) {
    warp.open.push_back(std::make_unique<WarpBarrier>());
    at = warp.open.back().get();
    at->site = site;
    at->mask = mask;
    std::memset(at->meeting.values, poison, sizeof(at->meeting.values));
  }
  at->meeting.values[lane()] = value;
  at->meeting.came |= 1u << lane();
  open_if_complete(warp_number);
  run_another(*me->fiber);
  return me->met;
}

void* dynamic_shared() { return dynamic_memory.get(); }

void run_grid(Index grid, Index block, size_t shared_bytes, void (*thread)(const void*),
              const void* context) {
  observer->grid_begins();
  body = thread;
  body_context = context;
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(block.x, block.y, block.z);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  // n -> (n * step + start) % blocks visits every block once and needs no list of them.
  const uint64_t start = random_below(blocks);
  uint64_t step = random_below(blocks);
  while (std::gcd(step, blocks) != 1) ++step;
  for (uint64_t n = 0; n < blocks; ++n) {
    const uint64_t i = static_cast<uint64_t>(((unsigned __int128)n * step + start) % blocks);
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(block, shared_bytes);
  }
  poison_dynamic_shared(0);
}

}  // namespace host_cuda
