// How CUDA bindings launch: on the device of a tensor, on PyTorch's current stream there.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace segfast {

inline void check_cuda(int error) {
  const auto code = static_cast<cudaError_t>(error);
  STD_TORCH_CHECK(code != cudaErrorNoKernelImageForDevice,
                  "segfast's CUDA kernels were not compiled for this GPU (they were for sm_",
                  SEGFAST_CUDA, "): build them with SEGFAST_CUDA_ARCHITECTURES, or set ",
                  "SEGFAST_NATIVE=0 to go without");
  STD_TORCH_CHECK(code == cudaSuccess, "segfast's CUDA kernel failed: ", cudaGetErrorString(code),
                  " (", cudaGetErrorName(code), ")");
}

// Looked up when it is wanted, in the library that is loaded already: this module must load where
// PyTorch has no CUDA.
inline CUstream_st* current_stream(int32_t device) {
  using Function = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(found);
  }();
  STD_TORCH_CHECK(get != nullptr, "this PyTorch has no CUDA streams");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "PyTorch has no current CUDA stream");
  return static_cast<CUstream_st*>(stream);
}

// As long as it lives the device of `tensor` is the current one.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {
    // The CUDA runtime in this module is not PyTorch's: it is told, too.
    check_cuda(cudaSetDevice(tensor.get_device_index()));
  }
  CUstream_st* stream() const { return stream_; }

  // Whether a graph is being recorded, which must not wait for anything.
  bool is_recorded() const {
    cudaStreamCaptureStatus status;
    check_cuda(cudaStreamIsCapturing(stream_, &status));
    return status != cudaStreamCaptureStatusNone;
  }
  // Waits for what was launched.
  template <typename T>
  T read(const T* device_memory) const {
    T value;
    check_cuda(cudaMemcpyAsync(&value, device_memory, sizeof(T), cudaMemcpyDeviceToHost, stream_));
    check_cuda(cudaStreamSynchronize(stream_));
    return value;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  CUstream_st* stream_;
};

}  // namespace segfast
