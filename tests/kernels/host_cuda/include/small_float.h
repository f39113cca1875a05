// What __half and __nv_bfloat16 share: 16 bits of storage, arithmetic in float rounded once.
#pragma once

#include <cuda_runtime.h>

namespace host_cuda {

template <typename Format>
struct SmallFloat {
  SmallFloat() = default;
  SmallFloat(float x) : bits(Format::from_float(x)) {}
  SmallFloat(int x) : SmallFloat(static_cast<float>(x)) {}
  SmallFloat(double x) = delete;  // say through which type, or it is rounded twice
  operator float() const { return Format::to_float(bits); }

  SmallFloat& operator+=(SmallFloat b) { return *this = *this + b; }
  SmallFloat& operator-=(SmallFloat b) { return *this = *this - b; }
  SmallFloat& operator*=(SmallFloat b) { return *this = *this * b; }
  SmallFloat& operator/=(SmallFloat b) { return *this = *this / b; }

  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return float(a) + float(b); }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return float(a) - float(b); }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return float(a) * float(b); }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return float(a) / float(b); }
  friend SmallFloat operator-(SmallFloat a) { return -float(a); }
  friend bool operator==(SmallFloat a, SmallFloat b) { return float(a) == float(b); }
  friend bool operator!=(SmallFloat a, SmallFloat b) { return float(a) != float(b); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return float(a) < float(b); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return float(a) > float(b); }
  friend bool operator<=(SmallFloat a, SmallFloat b) { return float(a) <= float(b); }
  friend bool operator>=(SmallFloat a, SmallFloat b) { return float(a) >= float(b); }

  unsigned short bits;
};

}  // namespace host_cuda
