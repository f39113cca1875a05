// Runs the threads of a CUDA block on one processor: a fiber per thread that waits, real barriers,
// an order drawn from a seed. Device functions of include/ stand on what is declared here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host_cuda {

constexpr int kWarp = 32;

struct Index {
  unsigned x, y, z;
};

// Where a thread meets others: they have to meet at the same line.
struct Site {
  const char* operation;
  const char* file;
  int line;
};
bool operator==(const Site& a, const Site& b);

// What a thread brings to a warp collective, and what it finds there when all have come.
struct Meeting {
  uint32_t came = 0;       // lanes
  uint64_t values[kWarp];  // of the others: poison
  uint64_t get(int lane) const { return values[lane & (kWarp - 1)]; }
};

// Waits for all threads of the block that have not returned; the number of them with `vote`.
int meet_block(bool vote, Site site);
// Waits for all lanes of `mask` that have not returned.
const Meeting& meet_warp(uint32_t mask, uint64_t value, Site site);
int thread_number();  // in its block; -1 outside of kernels
inline int lane() { return thread_number() % kWarp; }
// Another thread may run here: before and after atomics, at fences.
void preempt();
void fence();

// Told of what orders accesses to memory; races.cpp listens.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void memory(const void* /*begin*/, size_t /*bytes*/, bool /*shared*/) {}
  virtual void forget(const void* /*begin*/, size_t /*bytes*/) {}
  virtual void grid_begins() {}
  virtual void block_begins(int /*threads*/, Index) {}
  virtual void block_meets() {}
  virtual void warp_meets(int /*warp*/, uint32_t /*came*/) {}
  virtual void fence(int /*thread*/) {}
  virtual void atomic(int /*thread*/, const void*, size_t /*bytes*/, const void* /*line*/) {}
};
extern Observer* observer;

void* dynamic_shared();

// Runs every block of the grid, one after the other; body(context) is one thread.
void run_grid(Index grid, Index block, size_t shared_bytes, void (*body)(const void*),
              const void* context);
void set_seed(uint64_t seed);
// Ends the process, saying where.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace host_cuda
