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

  friend SmallFloat __hadd(SmallFloat a, SmallFloat b) { return a + b; }
  friend SmallFloat __hsub(SmallFloat a, SmallFloat b) { return a - b; }
  friend SmallFloat __hmul(SmallFloat a, SmallFloat b) { return a * b; }
  friend SmallFloat __hdiv(SmallFloat a, SmallFloat b) { return a / b; }
  friend SmallFloat __hneg(SmallFloat a) { return -a; }
  friend SmallFloat __habs(SmallFloat a) { return std::fabs(float(a)); }
  friend SmallFloat __hmax(SmallFloat a, SmallFloat b) { return std::fmax(float(a), float(b)); }
  friend SmallFloat __hmin(SmallFloat a, SmallFloat b) { return std::fmin(float(a), float(b)); }
  friend SmallFloat __hmax_nan(SmallFloat a, SmallFloat b) { return __hisnan(b) || a < b ? b : a; }
  friend SmallFloat __hmin_nan(SmallFloat a, SmallFloat b) { return __hisnan(b) || a > b ? b : a; }
  friend bool __heq(SmallFloat a, SmallFloat b) { return a == b; }
  friend bool __hne(SmallFloat a, SmallFloat b) { return a < b || a > b; }  // unlike !=: ordered
  friend bool __hlt(SmallFloat a, SmallFloat b) { return a < b; }
  friend bool __hgt(SmallFloat a, SmallFloat b) { return a > b; }
  friend bool __hle(SmallFloat a, SmallFloat b) { return a <= b; }
  friend bool __hge(SmallFloat a, SmallFloat b) { return a >= b; }
  friend bool __hisnan(SmallFloat a) { return std::isnan(float(a)); }

  unsigned short bits;
};

template <typename Format>
struct alignas(4) SmallFloat2 {
  SmallFloat<Format> x, y;
};

}  // namespace host_cuda
