// Counts which parts of a tensor are read, and in which order: all are closed but the one read
// last.
#include <signal.h>
#include <sys/mman.h>

#include <cstdint>

namespace {

uintptr_t base, bytes, page;
int parts, last, most, count;
int* order;

void open(int part, bool opened) {
  if (part < 0) return;
  // The first page of a part stays open: vectors reach beyond the end of the part before.
  mprotect(reinterpret_cast<void*>(base + part * bytes + page), bytes - page,
           opened ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void on_fault(int, siginfo_t* info, void*) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
  if (at < base || at >= base + parts * bytes || count == most) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  open(last, false);
  last = static_cast<int>((at - base) / bytes);
  open(last, true);
  order[count++] = last;
}

}  // namespace

extern "C" void watch(uintptr_t memory, uintptr_t part_bytes, int part_count, uintptr_t page_bytes,
                      int* into, int into_size) {
  base = memory, bytes = part_bytes, parts = part_count, page = page_bytes;
  order = into, most = into_size, count = 0, last = -1;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  for (int part = 0; part < parts; ++part) open(part, false);
}

// How many times a part was opened that was not the one before.
extern "C" int stop() {
  for (int part = 0; part < parts; ++part) open(part, true);
  signal(SIGSEGV, SIG_DFL);
  return count;
}
