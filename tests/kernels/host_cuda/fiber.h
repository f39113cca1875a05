// Stacks that take turns on one processor thread, known to AddressSanitizer.
#pragma once

#include <cstddef>

namespace host_cuda {

class Fiber {
 public:
  Fiber() = default;               // the stack that the program started on
  explicit Fiber(void (*body)());  // body never returns
  Fiber(const Fiber&) = delete;

  // Leaves this fiber, which must be the one that runs, and goes on where `other` left.
  void switch_to(Fiber& other);

 private:
  static void enter();
  void arrived();

  void* context_ = nullptr;     // its registers
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  const void* stack_ = nullptr;
  size_t size_ = 0;
  void (*body_)() = nullptr;
};

}  // namespace host_cuda
