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
int lane();
// Another thread may run here: before and after atomics, at fences.
void preempt();

void* dynamic_shared();

// Runs every block of the grid, one after the other; body(context) is one thread.
void run_grid(Index grid, Index block, size_t shared_bytes, void (*body)(const void*),
              const void* context);
void set_seed(uint64_t seed);
// Ends the process, saying where.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace host_cuda
