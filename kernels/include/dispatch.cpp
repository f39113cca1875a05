#include "dispatch.h"

#include <atomic>

namespace segfast {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__) && !defined(SEGFAST_BASELINE_ONLY)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return isa == Isa::baseline || (isa == Isa::avx2 && avx2) || (isa == Isa::avx512 && avx512);
#else
  return isa == Isa::baseline;
#endif
}

Isa widest() {
  for (Isa isa : {Isa::avx512, Isa::avx2}) {
    if (supported(isa)) return isa;
  }
  return Isa::baseline;
}

std::atomic<Isa>& selected() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

}  // namespace

bool isa_available(Isa isa) { return supported(isa); }
Isa isa_selected() { return selected().load(std::memory_order_relaxed); }
bool isa_select(Isa isa) {
  if (!supported(isa)) return false;
  selected().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace segfast
