// Uninitialised scratch memory, aligned for any vector. All but small blocks are kept for the next
// call, large ones ask for huge pages: having the system hand out fresh zeroed pages costs as much
// as an iteration.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "csrc/poison.h"

namespace segfast {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLeastKept = size_t{64} << 10;  // bytes of a block that is kept
constexpr size_t kMostKept = size_t{64} << 20;   // bytes kept by the process

// Freed blocks; the last one is taken first, while it is in the caches.
class BlockCache {
 public:
  BlockCache() { blocks_.reserve(kMostKept / kLeastKept); }  // keep() allocates nothing

  // A block of at least `bytes` and at most twice that, or null.
  void* take(size_t* bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if (block->first < *bytes || block->first > 2 * *bytes) continue;
      void* memory = block->second;
      *bytes = block->first;
      kept_ -= block->first;
      blocks_.erase(std::next(block).base());
      return memory;
    }
    return nullptr;
  }

  // Of at least kLeastKept. Full, it frees what came first; false: too large, the caller frees it.
  bool keep(void* memory, size_t bytes) {
    if (bytes > kMostKept) return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; kept_ + bytes > kMostKept; blocks_.erase(blocks_.begin())) {
      kept_ -= blocks_.front().first;
      std::free(blocks_.front().second);
    }
    blocks_.emplace_back(bytes, memory);
    kept_ += bytes;
    return true;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<size_t, void*>> blocks_;
  size_t kept_ = 0;
};

inline BlockCache& block_cache() {
  static BlockCache* cache = new BlockCache;  // never destroyed: buffers may outlive static order
  return *cache;
}

// While a test poisons memory, what follows a buffer (a multiple of 64 bytes) may not be touched:
// the process ends there.
constexpr size_t kGuard = size_t{64} << 10;  // whole pages, of any size that systems have

inline size_t in_guards(size_t bytes) { return (bytes + kGuard - 1) / kGuard * kGuard; }

inline void* guarded(size_t bytes) {
  const size_t used = in_guards(bytes);
  void* p =
      mmap(nullptr, used + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  if (mprotect(static_cast<char*>(p) + used, kGuard, PROT_NONE) != 0) {
    munmap(p, used + kGuard);
    throw std::bad_alloc();
  }
  return static_cast<char*>(p) + (used - bytes);
}
inline void release_guarded(void* p, size_t bytes) {
  const size_t used = in_guards(bytes);
  munmap(static_cast<char*>(p) - (used - bytes), used + kGuard);
}

struct ReleaseMemory {
  size_t bytes = 0;
  bool has_guard = false;
  void operator()(void* p) const {
    if (has_guard) return release_guarded(p, bytes);
    if (bytes < kLeastKept || !block_cache().keep(p, bytes)) std::free(p);
  }
};
template <typename T>
using Buffer = std::unique_ptr<T[], ReleaseMemory>;

// Fresh memory: page faults of 2 MB cost a fraction of 512 of 4 KB.
inline void want_huge_pages(void* p, size_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <typename T>
Buffer<T> make_buffer(int64_t count) {
  size_t bytes = static_cast<size_t>(count < 1 ? 1 : count) * sizeof(T);
  const bool guard = poisoning();
  const size_t alignment = bytes >= kHugePage && !guard ? kHugePage : 64;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* p = guard ? guarded(bytes) : bytes >= kLeastKept ? block_cache().take(&bytes) : nullptr;
  if (p == nullptr) {
    p = std::aligned_alloc(alignment, bytes);
    if (p == nullptr) throw std::bad_alloc();
    want_huge_pages(p, bytes);
  }
  poison(p, bytes);
  return Buffer<T>(static_cast<T*>(p), ReleaseMemory{bytes, guard});
}

}  // namespace segfast
