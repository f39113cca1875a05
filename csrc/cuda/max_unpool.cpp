// segfast::_max_pool2d and its relatives on CUDA: the stream, scratch memory; checks and results
// are in max_unpool_operators.h, the arithmetic in kernels/max_unpool.
#include "csrc/cuda/stream.h"
#include "csrc/max_unpool_operators.h"
#include "kernels/max_unpool/max_unpool_cuda.h"

namespace segfast {
namespace {

Tensor scratch(const Call& call, int64_t bytes) {
  return torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, call.device);
}

struct OnCuda {
  static constexpr DeviceType kType = DeviceType::CUDA;

  static void pool(const Call& call, const Tensor& x, Tensor& y, uint8_t* packed) {
    const Launch launch(x);
    check_cuda(
        max_pool_cuda(call.p, x.const_data_ptr(), y.mutable_data_ptr(), packed, launch.stream()));
  }

  static void pool_backward(const Call& call, const Tensor& y, const Tensor& packed, Tensor& x) {
    const Launch launch(y);
    check_cuda(max_pool_backward_cuda(call.p, y.const_data_ptr(), data<uint8_t>(packed),
                                      x.mutable_data_ptr(), launch.stream()));
  }

  static void unpool(const Call& call, const Tensor& y, const Tensor& packed, Tensor& x) {
    const Launch launch(y);
    check_cuda(max_unpool_cuda(call.p, y.const_data_ptr(), data<uint8_t>(packed),
                               x.mutable_data_ptr(), launch.stream()));
  }

  static void gather(const Call& call, const Tensor& x, const Tensor& packed, Tensor& y,
                     bool winners) {
    const Launch launch(x);
    check_cuda(max_gather_cuda(call.p, x.const_data_ptr(), data<uint8_t>(packed),
                               y.mutable_data_ptr(), winners, launch.stream()));
  }

  static void unpool_indices(const Call& call, const Tensor& y, const Tensor& indices, Tensor& x) {
    const Launch launch(y);
    const Tensor last = scratch(call, index_winners_bytes(call.p));
    check_cuda(max_unpool_indices_cuda(call.p, y.const_data_ptr(), data<int64_t>(indices),
                                       x.mutable_data_ptr(), last.mutable_data_ptr(),
                                       launch.stream()));
  }

  static void gather_indices(const Call& call, const Tensor& x, const Tensor& indices, Tensor& y,
                             bool winners) {
    const Launch launch(x);
    const Tensor last = scratch(call, winners ? index_winners_bytes(call.p) : 0);
    check_cuda(max_gather_indices_cuda(
        call.p, x.const_data_ptr(), data<int64_t>(indices), y.mutable_data_ptr(),
        winners ? last.mutable_data_ptr() : nullptr, launch.stream()));
  }

  // Waits for the device, to say what is wrong with the indices; not while a graph is recorded: an
  // index outside of its window is offset 0 then.
  static void pack(const Call& call, const Tensor& indices, Tensor& packed) {
    const Launch launch(indices);
    const int64_t* from = data<int64_t>(indices);
    uint8_t* to = mutable_data<uint8_t>(packed);
    if (launch.is_recorded()) {
      check_cuda(max_pack_cuda(call.p, from, to, nullptr, launch.stream()));
      return;
    }
    Tensor outside = scratch(call, sizeof(unsigned long long));
    torch::stable::zero_(outside);
    auto* count = static_cast<unsigned long long*>(outside.mutable_data_ptr());
    check_cuda(max_pack_cuda(call.p, from, to, count, launch.stream()));
    check_none_in_other_windows(static_cast<int64_t>(launch.read(count)), call.p);
  }

  static void unpack(const Call& call, const Tensor& packed, Tensor& indices) {
    const Launch launch(packed);
    check_cuda(max_unpack_cuda(call.p, data<uint8_t>(packed), mutable_data<int64_t>(indices),
                               launch.stream()));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CUDA, m) { MaxUnpoolOperators<OnCuda>::implement(m); }

}  // namespace segfast
