#include "divide.cuh"
#include "driver.h"
#include "kernels/max_unpool/max_unpool_cuda.h"

int main() {
  using host_cuda::function;
  return host_cuda::serve({
      {"pool", function(segfast::max_pool_cuda)},
      {"pool_backward", function(segfast::max_pool_backward_cuda)},
      {"unpool", function(segfast::max_unpool_cuda)},
      {"gather", function(segfast::max_gather_cuda)},
      {"unpack", function(segfast::max_unpack_cuda)},
      {"pack", function(segfast::max_pack_cuda)},
      {"unpool_indices", function(segfast::max_unpool_indices_cuda)},
      {"gather_indices", function(segfast::max_gather_indices_cuda)},
      {"divide", function([](const int64_t* n, int64_t count, int64_t by, int64_t* quotients) {
         const segfast::Divider divide(by);
         for (int64_t i = 0; i < count; ++i) quotients[i] = divide(n[i]);
         return 0;
       })},
  });
}
