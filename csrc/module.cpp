// segfast._C: what is not a tensor operator. The operators register themselves (csrc/cpu,
// csrc/cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "csrc/poison.h"
#include "dispatch.h"

#ifndef SEGFAST_CUDA
#define SEGFAST_CUDA ""
#endif

namespace segfast {
namespace {

std::map<std::string, std::string> build_info() {
  return {{"compiler", __VERSION__},
          {"flags", SEGFAST_FLAGS},
          {"torch_stable_abi", "2.11"},
          {"cuda_architectures", SEGFAST_CUDA}};
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa_available(static_cast<Isa>(i))) names.emplace_back(kIsaNames[i]);
  }
  return names;
}

bool select_instruction_set(const std::string& name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (name == kIsaNames[i]) return isa_select(static_cast<Isa>(i));
  }
  return false;
}

}  // namespace
}  // namespace segfast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of segfast; see segfast.info().";
  m.def("build_info", &segfast::build_info, "Compiler, flags, stable ABI, CUDA architectures.");
  m.def("instruction_sets", &segfast::instruction_sets, "Those that run here, narrowest first.");
  m.def("instruction_set",
        [] { return segfast::kIsaNames[static_cast<int>(segfast::isa_selected())]; });
  m.def(
      "poison", [](bool on) { return segfast::poisoning().exchange(on); },
      "For tests: whether to fill what is not initialised; returns what it was.");
  m.def("select_instruction_set", &segfast::select_instruction_set, "False when not available.");
}
