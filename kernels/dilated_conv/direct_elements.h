// Rows of elements to rows of sums and back, and scratch memory that is measured by the code that
// takes it.
#pragma once

#include "element.h"
#include "integers.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Hands out pieces of a block; of no block (null) it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  SEGFAST_INLINE T* take(int64_t count) {
    const int64_t at = used_;
    used_ += divide_up(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  SEGFAST_INLINE bool counts() const { return memory_ == nullptr; }
  SEGFAST_INLINE int64_t used() const { return used_; }

 private:
  static constexpr int64_t kLine = 64;
  char* memory_;
  int64_t used_ = 0;
};

// Positions p and p + phases lie next to each other: a step of `phases` becomes a step of one.
// to [phases, ceil(count / phases)] = from [count]
template <typename S, typename T>
SEGFAST_INLINE void split_row(const S* from, int64_t count, int64_t phases, T* to) {
  const int64_t length = divide_up(count, phases);
  if (phases == 1) {
    for (int64_t n = 0; n < count; ++n) to[n] = widen(from[n]);
    return;
  }
  for (int64_t phase = 0; phase < phases; ++phase) {
    T* row = to + phase * length;
    int64_t m = 0;
    for (int64_t n = phase; n < count; n += phases) row[m++] = widen(from[n]);
  }
}
// And back.
template <typename S, typename T>
SEGFAST_INLINE void join_row(const T* from, int64_t count, int64_t phases, S* to) {
  const int64_t length = divide_up(count, phases);
  if (phases == 1) {
    for (int64_t n = 0; n < count; ++n) narrow(from[n], to + n);
    return;
  }
  for (int64_t phase = 0; phase < phases; ++phase) {
    const T* row = from + phase * length;
    int64_t m = 0;
    for (int64_t n = phase; n < count; n += phases) narrow(row[m++], to + n);
  }
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
