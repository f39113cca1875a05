// Atomics for the types that CUDA has them for. Other threads may run before and after each.
#pragma once

#include <type_traits>

#include "../scheduler.h"

namespace host_cuda {

template <typename T>
struct Identity {
  using type = T;
};
template <typename T>  // not deduced: the pointer says the type
using Value = typename Identity<T>::type;

template <typename T, typename... Allowed>
constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

template <typename T>
constexpr bool has_integer_atomics = is_one_of<T, int, unsigned, unsigned long long>;
template <typename T>
constexpr bool has_ordered_atomics = has_integer_atomics<T> || is_one_of<T, long long>;
template <typename T>
constexpr bool has_sums = has_integer_atomics<T> || is_one_of<T, float, double>;

template <typename T>
constexpr bool has_differences = is_one_of<T, int, unsigned>;
template <typename T>
constexpr bool has_wraps = is_one_of<T, unsigned>;
template <typename T>
constexpr bool has_exchanges = has_integer_atomics<T> || is_one_of<T, float>;

// On the device sums of integers wrap around; here signed ones must not overflow.
template <typename T>
T sum(T a, T b) {
  if constexpr (std::is_same_v<T, int>) {
    return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  } else {
    return a + b;
  }
}
template <typename T>
T difference(T a, T b) {
  return static_cast<T>(static_cast<unsigned>(a) - static_cast<unsigned>(b));
}

// A function of its own, so that its caller's line can be told, and this access from a plain one.
template <typename T, typename Update>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* address, const Update& update) {
  preempt();
  observer->atomic(thread_number(), address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = update(old);
  preempt();
  return old;
}

}  // namespace host_cuda

#define HOST_CUDA_ATOMIC(name, condition, result)                                 \
  template <typename T>                                                           \
  __forceinline__ T name(T* address, host_cuda::Value<T> value) {                 \
    static_assert(host_cuda::condition<T>, "CUDA has no " #name " of this type"); \
    return host_cuda::atomic(address, [&](T old) -> T { return result; });        \
  }

HOST_CUDA_ATOMIC(atomicAdd, has_sums, host_cuda::sum(old, value))
HOST_CUDA_ATOMIC(atomicSub, has_differences, host_cuda::difference(old, value))
HOST_CUDA_ATOMIC(atomicMin, has_ordered_atomics, value < old ? value : old)
HOST_CUDA_ATOMIC(atomicMax, has_ordered_atomics, value > old ? value : old)
HOST_CUDA_ATOMIC(atomicAnd, has_integer_atomics, (old & value))
HOST_CUDA_ATOMIC(atomicOr, has_integer_atomics, (old | value))
HOST_CUDA_ATOMIC(atomicXor, has_integer_atomics, (old ^ value))
HOST_CUDA_ATOMIC(atomicExch, has_exchanges, value)
HOST_CUDA_ATOMIC(atomicInc, has_wraps, old >= value ? 0 : old + 1)
#undef HOST_CUDA_ATOMIC

template <typename T>
__forceinline__ T atomicCAS(T* address, host_cuda::Value<T> expected, host_cuda::Value<T> value) {
  static_assert(host_cuda::has_integer_atomics<T> || std::is_same_v<T, unsigned short>,
                "CUDA has no atomicCAS of this type");
  return host_cuda::atomic(address, [&](T old) -> T { return old == expected ? value : old; });
}
