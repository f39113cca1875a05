// Neighbouring elements that are loaded and stored at once.
#pragma once

#include <cuda_runtime.h>

namespace segfast {

constexpr int kUnit = 16;  // bytes of the widest access

template <typename T, int V>
struct alignas(sizeof(T) * V) Lanes {
  T at[V];
};
template <typename T>
constexpr int kLanes = kUnit / sizeof(T);

template <int V, typename T>
__device__ Lanes<T, V> load(const T* from) {
  return *reinterpret_cast<const Lanes<T, V>*>(from);
}
template <int V, typename T>
__device__ void store(T* to, const Lanes<T, V>& v) {
  *reinterpret_cast<Lanes<T, V>*>(to) = v;
}

}  // namespace segfast
