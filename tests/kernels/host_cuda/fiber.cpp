#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace host_cuda {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // of which only what is touched is memory

Fiber* coming = nullptr;   // the fiber that is switched to
Fiber* leaving = nullptr;  // and from

// Lowest address of a stack that faults when it overflows.
char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    std::perror("host_cuda: stack of a fiber");
    std::_Exit(70);
  }
  return static_cast<char*>(memory) + page;
}

}  // namespace

#ifdef __x86_64__
// swapcontext would do, but it asks the kernel for the signal mask: ten times as slow. The switch
// keeps what a function has to keep: six registers and the stack pointer.
extern "C" void host_cuda_switch(void** from, void* to);
asm(R"(
  .text
  .type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size host_cuda_switch, . - host_cuda_switch
)");

static void* new_context(char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // whom `entry` would return to: it does not
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

static void switch_context(void** from, void* to) { host_cuda_switch(from, to); }
#else
static void* new_context(char* stack, size_t bytes, void (*entry)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  makecontext(context, entry, 0);
  return context;
}

static void switch_context(void** from, void* to) {
  if (*from == nullptr) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
#endif

Fiber::Fiber(void (*body)()) : size_(kStackBytes), body_(body) {
  char* stack = new_stack();
  stack_ = stack;
  context_ = new_context(stack, kStackBytes, enter);
}

void Fiber::arrived() {
  // The first switch of all also learns where the program's own stack is.
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack_, &stack, &size);
  if (leaving->body_ == nullptr) {
    leaving->stack_ = stack;
    leaving->size_ = size;
  }
}

void Fiber::enter() {
  coming->arrived();
  coming->body_();
}

void Fiber::switch_to(Fiber& other) {
  leaving = this;
  coming = &other;
  __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.size_);
  switch_context(&context_, other.context_);
  arrived();
}

}  // namespace host_cuda
