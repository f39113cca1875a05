// Uninitialised scratch memory, aligned for any vector; large blocks ask for huge pages, because
// faulting in 4 KiB pages costs as much as an iteration.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <new>

namespace segfast {

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], FreeMemory>;

template <typename T>
Buffer<T> make_buffer(int64_t count) {
  constexpr size_t kHugePage = size_t{2} << 20;
  size_t bytes = static_cast<size_t>(count < 1 ? 1 : count) * sizeof(T);
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, bytes);
  if (p == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return Buffer<T>(static_cast<T*>(p));
}

}  // namespace segfast
