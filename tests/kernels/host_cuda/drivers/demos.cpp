#include "demos/demos.h"

#include "driver.h"

int main() {
  using host_cuda::function;
  return host_cuda::serve({
      {"row_sums", function(demos::row_sums)},
      {"inclusive_scan", function(demos::inclusive_scan)},
      {"histogram", function(demos::histogram)},
      {"transpose", function(demos::transpose)},
      {"twice", function(demos::twice)},
      {"integer_atomics", function(demos::integer_atomics)},
      {"distinct", function(demos::distinct)},
      {"warp_facts", function(demos::warp_facts)},
      {"fault", function(demos::fault)},
      {"divided", function([](float* y, double by) { return (y[0] /= by, 0); })},
  });
}
