"""Published keys of CRF-RNN -> ours: fcn.* as FCN's, crfrnn.* as crfasrnn_pytorch's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts.fcn import LAYERS

_FCN: tuple[Substitution, ...] = (*LAYERS, (r"^(?=backbone|classifier|head)", "fcn."))
_MATRIX = "inference1/2"
_CAFFE: tuple[Substitution, ...] = (  # torrvision/crfasrnn -> FCN's names
    (r"^inference1/0$", "crfrnn.spatial_ker_weights"),
    (r"^inference1/1$", "crfrnn.bilateral_ker_weights"),
    (rf"^{_MATRIX}$", "crfrnn.compatibility_matrix"),
    (r"^score-", "score_"),
    (r"^score2/", "upscore2/"),
    (r"^score4/", "upscore_pool4/"),
    (r"^upsample/", "upscore8/"),
)


class _Penalty(Rules):
    """Caffe's layer subtracts what its matrix makes of the beliefs; ours adds it."""

    def apply(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping under our keys, the matrix with our sign."""
        matrix = state.get(_MATRIX)
        if isinstance(matrix, Tensor) and matrix.is_floating_point():
            state = {**state, _MATRIX: -matrix}
        return super().apply(state)


LAYOUTS = {"crfasrnn_pytorch": Rules(*_FCN), "caffe": _Penalty(*_CAFFE, *_FCN)}
