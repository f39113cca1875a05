"""The matrices that inference returns: plain numpy arrays here, opaque buffers in pydensecrf.

`np.array(Q)`, `np.asarray(Q)` and `memoryview(Q)` see what they see in pydensecrf: float32
[nlabels, nvar] with strides (4, 4 * nlabels), a label-first matrix over a label-last buffer.
"""

from __future__ import annotations

import numpy as np

from segfast.compat.pydensecrf._arguments import Float32, as_finite_float32, describe

MatrixXf = VectorXf = np.ndarray  # for isinstance


def matrixXf(arr: object) -> Float32:
    """A copy of `arr` [rows, columns] (any real dtype, finite): float32, stored column by column.

    Raises TypeError for what is no array of numbers, ValueError for other than two axes.

    Example:
        >>> from segfast.compat.pydensecrf.eigen import matrixXf
        >>> memoryview(matrixXf([[1, 2, 3], [4, 5, 6]])).strides
        (4, 8)
    """
    array = as_finite_float32(arr, "arr", "a matrix [rows, columns]")
    if array.ndim != 2:
        raise ValueError(f"arr must be a matrix [rows, columns], got {describe(array)}")
    return np.asfortranarray(array)


def vectorXf(arr: object) -> Float32:
    """A float32 copy of `arr` [size] (any real dtype, finite); errors as `matrixXf`.

    Example:
        >>> from segfast.compat.pydensecrf.eigen import vectorXf
        >>> vectorXf([1, 2])
        array([1., 2.], dtype=float32)
    """
    array = as_finite_float32(arr, "arr", "a vector [size]")
    if array.ndim != 1:
        raise ValueError(f"arr must be a vector [size], got {describe(array)}")
    return array
