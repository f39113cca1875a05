// The part of the CUDA runtime that launches a kernel, with the limits of a device.
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

#include "../scheduler.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace host_cuda {
// Dynamic shared memory that this kernel may have; `bytes` >= 0 sets it.
cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel);
}  // namespace host_cuda

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int bytes) {
  return host_cuda::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  if (const auto error = host_cuda::check_launch(*config, reinterpret_cast<const void*>(kernel)))
    return error;
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  };
  const Call call{kernel, std::tuple<Params...>(std::forward<Args>(args)...)};
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  host_cuda::run_grid(
      {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config->dynamicSmemBytes,
      [](const void* context) {
        const Call& call = *static_cast<const Call*>(context);
        std::apply(call.kernel, call.arguments);
      },
      &call);
  return cudaSuccess;
}
