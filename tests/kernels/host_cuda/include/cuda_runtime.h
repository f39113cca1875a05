// Stands in for CUDA's header of this name where a .cu file is compiled by g++.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static  // blocks run one after the other; the build finds these variables
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // empty: the standard library has attributes of this name
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#include "vector_types.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "device_atomics.h"
#include "device_functions.h"
#include "device_sync.h"
#include "runtime_launch.h"
