// What the kernels get uninitialised, a test may have filled: segfast.testing.poison_empty.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

namespace segfast {

inline std::atomic<bool>& poisoning() {
  static std::atomic<bool> on{false};
  return on;
}

// All bits set: NaN in every floating-point type.
inline void poison(void* memory, size_t bytes) {
  if (poisoning().load(std::memory_order_relaxed)) std::memset(memory, 0xff, bytes);
}

}  // namespace segfast
