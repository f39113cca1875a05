// Which compiled copy of a kernel runs: the widest instruction set that this machine has, or a
// forced one.
#pragma once

namespace segfast {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };
constexpr int kIsaCount = 3;
constexpr const char* kIsaNames[kIsaCount] = {"baseline", "avx2", "avx512"};

// True when the kernels were compiled for it and the processor can run it.
bool isa_available(Isa isa);
Isa isa_selected();
// Forces an instruction set for the whole process; false (and no change) when it is not available.
bool isa_select(Isa isa);

// A kernel has one table per instruction set; this is the selected one's:
//   dispatch<Kernels>(SEGFAST_TABLES(kernels))
template <typename Table>
const Table& dispatch(const Table* const (&tables)[kIsaCount]) {
  return *tables[static_cast<int>(isa_selected())];
}

#ifdef SEGFAST_BASELINE_ONLY
#define SEGFAST_TABLES(name) {&baseline::name, &baseline::name, &baseline::name}
#else
#define SEGFAST_TABLES(name) {&baseline::name, &avx2::name, &avx512::name}
#endif

}  // namespace segfast
