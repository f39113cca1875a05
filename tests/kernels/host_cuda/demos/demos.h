// Launchers of the demonstrations, with the signatures that an operator's have.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace demos {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Of x [rows, columns], rows `row_stride` elements apart.
struct Matrix {
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
};

// --- right ---
int row_sums(const float* x, const Matrix& size, float* sums, CUstream_st* stream);  // [rows]
int inclusive_scan(const int* x, int* scan, int64_t count, CUstream_st* stream);     // of <= 1024
int histogram(const int* x, int64_t count, unsigned* bins, int n_bins, CUstream_st* stream);
int transpose(const float* x, const Matrix& size, float* y, CUstream_st* stream);
int twice(const void* x, void* y, int64_t count, Dtype dtype, CUstream_st* stream);
// slots [capacity] of -1: every value once.
int distinct(const int* x, int64_t count, int* slots, unsigned capacity, int* n_distinct,
             CUstream_st* stream);
int integer_atomics(const int* x, int64_t count, int* found, CUstream_st* stream);  // [9]
int warp_facts(unsigned* facts, int threads, CUstream_st* stream);                  // [threads, 8]

// --- wrong: one launcher, by the name of what is wrong ---
enum class Fault : int {
  missing_barrier,         // a write not seen
  missing_second_barrier,  // read too late
  missing_warp_barrier,
  read_past_the_end,  // global memory
  write_past_the_end,
  read_before_the_start,
  shared_past_the_end,  // static, through a pointer
  shared_index,         // static, by its bounds
  dynamic_past_the_end,
  uninitialised_shared,
  shared_of_the_last_block,
  divergent_barrier,
  deadlock,
  foreign_mask,
  misaligned_load,
  signed_overflow,
  order_of_blocks,
  endless_spin,
  sum_without_atomic,
  plain_and_atomic,
  message_without_fence,  // of the last block that comes
  message,                // right
  message_in_a_warp,      // right
  too_much_shared,        // refused at launch
  too_many_threads,
  grid_too_large,
};
int fault(Fault which, const float* x, float* y, int n, CUstream_st* stream);  // y[i] = x[n-1-i]

}  // namespace demos
