// The program around an operator's launchers: reads calls from stdin, answers on stdout.
//
//   int main() { return host_cuda::serve({{"fold", host_cuda::function(segfast::fold_cuda)}}); }
//
// A launcher is any function, or captureless lambda, whose parameters are
//   T*, const T*      an array, copied to memory of its exact size; T* is copied back
//   CUstream_st*      null; the caller passes nothing
//   a number, an enum a number
//   a struct          its bytes
// and which returns an error code.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

struct CUstream_st;

namespace host_cuda {

// As it came: program.py writes what driver.cpp reads.
struct Argument {
  char kind;          // 'a'rray, 'i'nteger, 'f'loat, 'b'ytes, 'n'one
  uint32_t item = 0;  // bytes per element of an array
  int64_t integer = 0;
  double real = 0;
  char* data = nullptr;  // of an array or bytes
  uint64_t size = 0;
  bool writable = false;
};

// What is wrong with a call; the caller is told.
struct Refusal {
  std::string text;
};

using Arguments = std::vector<Argument>;
using Launcher = std::function<int64_t(Arguments&)>;

class Reader {
 public:
  explicit Reader(Arguments& arguments) : arguments_(arguments) {}

  template <typename T>
  T next() {
    if constexpr (std::is_same_v<T, CUstream_st*>) {
      return nullptr;
    } else if constexpr (std::is_pointer_v<T>) {
      return array<std::remove_pointer_t<T>>();
    } else if constexpr (std::is_enum_v<T>) {
      return static_cast<T>(integer());
    } else if constexpr (std::is_integral_v<T>) {
      const int64_t value = integer();
      if (static_cast<int64_t>(static_cast<T>(value)) != value) refuse("does not fit its type");
      return static_cast<T>(value);
    } else if constexpr (std::is_floating_point_v<T>) {
      Argument& argument = take("if", "a number");
      return static_cast<T>(argument.kind == 'i' ? static_cast<double>(argument.integer)
                                                 : argument.real);
    } else {
      return object<T>();
    }
  }
  void finish();

 private:
  Argument& take(const char* kinds, const char* what);
  [[noreturn]] void refuse(const std::string& what) const;
  int64_t integer() { return take("i", "an integer").integer; }

  template <typename T>
  T* array() {
    using Item = std::remove_cv_t<T>;
    Argument& argument = take("abn", "an array");
    if constexpr (!std::is_void_v<Item>) {
      if (argument.kind == 'a' && sizeof(Item) != 1 && sizeof(Item) != argument.item)
        refuse("has elements of " + std::to_string(argument.item) + " bytes, expected " +
               std::to_string(sizeof(Item)));
      if (argument.kind == 'b' && argument.size % sizeof(Item) != 0)
        refuse("has " + std::to_string(argument.size) + " bytes: no multiple of " +
               std::to_string(sizeof(Item)));
    }
    argument.writable = argument.kind == 'a' && !std::is_const_v<T>;
    return reinterpret_cast<T*>(argument.data);
  }

  template <typename T>
  T object() {
    static_assert(std::is_trivially_copyable_v<T>, "a launcher takes plain structs");
    Argument& argument = take("b", "the bytes of a struct");
    if (argument.size != sizeof(T))
      refuse("has " + std::to_string(argument.size) + " bytes, expected " +
             std::to_string(sizeof(T)));
    return *reinterpret_cast<const T*>(argument.data);
  }

  Arguments& arguments_;
  size_t position_ = 0;
};

template <typename... Params>
Launcher function(int (*launcher)(Params...)) {
  return [launcher](Arguments& arguments) -> int64_t {
    Reader reader(arguments);
    // Braces: in the order of the parameters.
    std::tuple<std::decay_t<Params>...> values{reader.next<std::decay_t<Params>>()...};
    reader.finish();
    return std::apply(launcher, values);
  };
}

template <typename Lambda>
Launcher function(Lambda lambda) {
  return function(+lambda);
}

int serve(const std::map<std::string, Launcher>& launchers);

}  // namespace host_cuda
