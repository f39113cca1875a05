// Barriers, shuffles and votes.
#pragma once

#include <type_traits>

#include "../scheduler.h"

// Every function ends in the line of its caller, by which the scheduler knows a divergent barrier.
#define HOST_CUDA_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define HOST_CUDA_SITE \
  host_cuda::Site { __func__, file, line }

inline void __syncthreads(HOST_CUDA_CALLER) { host_cuda::meet_block(false, HOST_CUDA_SITE); }
inline int __syncthreads_count(int predicate, HOST_CUDA_CALLER) {
  return host_cuda::meet_block(predicate != 0, HOST_CUDA_SITE);
}
inline int __syncthreads_or(int predicate, HOST_CUDA_CALLER) {
  return host_cuda::meet_block(predicate != 0, HOST_CUDA_SITE) > 0;
}
inline int __syncthreads_and(int predicate, HOST_CUDA_CALLER) {
  return host_cuda::meet_block(predicate == 0, HOST_CUDA_SITE) == 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, HOST_CUDA_CALLER) {
  host_cuda::meet_warp(mask, 0, HOST_CUDA_SITE);
}

// The lanes that happen to run together. A kernel may rely on no more than its own lane.
inline unsigned __activemask() { return 1u << host_cuda::lane(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_CUDA_CALLER) {
  const host_cuda::Meeting& met = host_cuda::meet_warp(mask, predicate != 0, HOST_CUDA_SITE);
  unsigned ballot = 0;
  for (int lane = 0; lane < host_cuda::kWarp; ++lane)
    if (met.came >> lane & 1 && met.get(lane)) ballot |= 1u << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, HOST_CUDA_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HOST_CUDA_CALLER) {
  return __ballot_sync(mask, predicate == 0, file, line) == 0;
}

namespace host_cuda {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 ||
                                                    (sizeof(T) == 2 && !std::is_integral_v<T>)),
                "shuffles move 4 or 8 bytes, or a half");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Lanes form groups of `width`; source(lane in its group) is a lane of the group, else one's own.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, int width, Site site, const Source& source) {
  if (width <= 0 || width > kWarp || (width & (width - 1)))
    fail("%s at %s:%d: width %d is not a power of two up to 32", site.operation, site.file,
         site.line, width);
  const Meeting& met = meet_warp(mask, to_bits(value), site);
  const int first = lane() & ~(width - 1);
  const int from = source(lane() - first);
  return from_bits<T>(met.get(from >= 0 && from < width ? first + from : lane()));
}

}  // namespace host_cuda

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, HOST_CUDA_CALLER) {
  return host_cuda::shuffle(mask, value, width, HOST_CUDA_SITE,
                            [&](int) { return source & (width - 1); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_CUDA_CALLER) {
  return host_cuda::shuffle(mask, value, width, HOST_CUDA_SITE,
                            [&](int lane) { return lane - static_cast<int>(delta); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_CUDA_CALLER) {
  return host_cuda::shuffle(mask, value, width, HOST_CUDA_SITE,
                            [&](int lane) { return lane + static_cast<int>(delta); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, HOST_CUDA_CALLER) {
  return host_cuda::shuffle(mask, value, width, HOST_CUDA_SITE,
                            [&](int lane) { return lane ^ lanes; });
}

// The lanes of `mask` whose value has the same bits.
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, HOST_CUDA_CALLER) {
  const uint64_t mine = host_cuda::to_bits(value);
  const host_cuda::Meeting& met = host_cuda::meet_warp(mask, mine, HOST_CUDA_SITE);
  unsigned same = 0;
  for (int lane = 0; lane < host_cuda::kWarp; ++lane)
    if (met.came >> lane & 1 && met.get(lane) == mine) same |= 1u << lane;
  return same;
}

inline void __threadfence() { host_cuda::fence(); }

#undef HOST_CUDA_CALLER
#undef HOST_CUDA_SITE
