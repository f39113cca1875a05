#include "driver.h"

#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "scheduler.h"

namespace host_cuda {
namespace {

constexpr size_t kAlignment = 256;  // of what a device allocates

using Memory = std::unique_ptr<void, decltype(&std::free)>;

// The answers' way out; what a kernel prints to stdout goes to stderr.
FILE* answers = nullptr;

bool read_bytes(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

template <typename T>
T read() {
  T value;
  if (!read_bytes(&value, sizeof(value))) std::_Exit(0);  // the caller has gone
  return value;
}

template <typename T>
void write(T value) {
  std::fwrite(&value, sizeof(value), 1, answers);
}

// An array starts `offset` bytes after an aligned address, and ends with its last byte.
char* read_memory(uint64_t offset, uint64_t size, std::vector<Memory>& owner) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, offset + size) != 0) fail("no memory");
  owner.emplace_back(memory, &std::free);
  char* data = static_cast<char*>(memory) + offset;
  if (size > 0 && !read_bytes(data, size)) std::_Exit(0);
  ASAN_POISON_MEMORY_REGION(memory, offset);
  return data;
}

Argument read_argument(std::vector<Memory>& owner) {
  Argument argument;
  argument.kind = read<char>();
  if (argument.kind == 'i') argument.integer = read<int64_t>();
  if (argument.kind == 'f') argument.real = read<double>();
  if (argument.kind == 'a' || argument.kind == 'b') {
    argument.item = read<uint32_t>();
    const uint64_t offset = read<uint64_t>();
    argument.size = read<uint64_t>();
    argument.data = read_memory(offset, argument.size, owner);
    observer->memory(argument.data, argument.size, false);
  }
  return argument;
}

std::string read_name() {
  std::string name(read<uint32_t>(), '\0');
  read_bytes(name.data(), name.size());
  return name;
}

// Answer: 'r' code, then the arrays that may have been written; or 'x' what is wrong.
void answer(const std::map<std::string, Launcher>& launchers) {
  std::vector<Memory> owner;
  Arguments arguments;
  const std::string name = read_name();
  const uint64_t seed = read<uint64_t>();
  const uint32_t count = read<uint32_t>();
  for (uint32_t i = 0; i < count; ++i) arguments.push_back(read_argument(owner));
  try {
    const auto found = launchers.find(name);
    if (found == launchers.end()) throw Refusal{"there is no launcher " + name};
    set_seed(seed);
    const int64_t code = found->second(arguments);
    write('r');
    write(code);
    for (const Argument& argument : arguments) {
      if (argument.kind != 'a') continue;
      write(argument.writable);
      if (argument.writable) std::fwrite(argument.data, 1, argument.size, answers);
    }
  } catch (const Refusal& refusal) {
    write('x');
    write(static_cast<uint32_t>(refusal.text.size()));
    std::fwrite(refusal.text.data(), 1, refusal.text.size(), answers);
  }
  std::fflush(answers);
  for (const Argument& argument : arguments) observer->forget(argument.data, argument.size);
}

}  // namespace

void Reader::refuse(const std::string& what) const {
  throw Refusal{"argument " + std::to_string(position_) + " " + what};
}

Argument& Reader::take(const char* kinds, const char* what) {
  if (position_++ == arguments_.size()) throw Refusal{"too few arguments"};
  Argument& argument = arguments_[position_ - 1];
  if (std::strchr(kinds, argument.kind) == nullptr) refuse(std::string("is not ") + what);
  return argument;
}

void Reader::finish() {
  if (position_ != arguments_.size())
    throw Refusal{std::to_string(arguments_.size()) + " arguments, expected " +
                  std::to_string(position_)};
}

int serve(const std::map<std::string, Launcher>& launchers) {
  answers = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  for (;;) answer(launchers);
}

}  // namespace host_cuda
