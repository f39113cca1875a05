// The kernels of the selected instruction set, by scalar type.
#pragma once

#include "dense_crf.h"
#include "dispatch.h"
#include "exact.h"

namespace segfast {

template <typename T>
const LatticeKernels<T>& lattice_kernels() {
  if constexpr (sizeof(T) == 4) {
    return dispatch<LatticeKernels<float>>(SEGFAST_TABLES(lattice_kernels_f32));
  } else {
    return dispatch<LatticeKernels<double>>(SEGFAST_TABLES(lattice_kernels_f64));
  }
}

template <typename T>
const MeanFieldKernels<T>& mean_field_kernels() {
  if constexpr (sizeof(T) == 4) {
    return dispatch<MeanFieldKernels<float>>(SEGFAST_TABLES(mean_field_kernels_f32));
  } else {
    return dispatch<MeanFieldKernels<double>>(SEGFAST_TABLES(mean_field_kernels_f64));
  }
}

template <typename T>
const MeanFieldBackwardKernels<T>& mean_field_backward_kernels() {
  if constexpr (sizeof(T) == 4) {
    return dispatch<MeanFieldBackwardKernels<float>>(
        SEGFAST_TABLES(mean_field_backward_kernels_f32));
  } else {
    return dispatch<MeanFieldBackwardKernels<double>>(
        SEGFAST_TABLES(mean_field_backward_kernels_f64));
  }
}

template <typename T>
const ExactKernels<T>& exact_kernels() {
  if constexpr (sizeof(T) == 4) {
    return dispatch<ExactKernels<float>>(SEGFAST_TABLES(exact_kernels_f32));
  } else {
    return dispatch<ExactKernels<double>>(SEGFAST_TABLES(exact_kernels_f64));
  }
}

}  // namespace segfast
