"""What a CRF is made of: unary terms, and the choices and weights of a pairwise term."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segfast.compat.pydensecrf._arguments import (
    Float32,
    as_finite_float32,
    describe,
    require_finite,
)


class KernelType(enum.IntEnum):
    """Which kernel parameters could be learned; inference is the same for all three."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(enum.IntEnum):
    """K~ Q for n = K 1: K Q | K (Q / n) | (K Q) / n | n^-1/2 K (n^-1/2 Q)."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


OPERATOR_NAMES = {  # segfast.ops' names
    NormalizationType.NO_NORMALIZATION: "none",
    NormalizationType.NORMALIZE_BEFORE: "before",
    NormalizationType.NORMALIZE_AFTER: "after",
    NormalizationType.NORMALIZE_SYMMETRIC: "symmetric",
}


def as_member(kind: type[enum.IntEnum], value: Any, name: str) -> Any:
    """`value` as a member of `kind`; pydensecrf takes any integer, unknown ones without effect."""
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(f"{member.name} ({member.value})" for member in kind)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}") from None


def as_mixing(compat: object, nlabels: int) -> Tensor:
    """compat as what the scores gain, -E = mixing @ (K~ Q): [] | [nlabels] | [nlabels, nlabels]."""
    wanted = f"a number, [nlabels] = [{nlabels}] or [nlabels, nlabels] = [{nlabels}, {nlabels}]"
    if isinstance(compat, bool):
        compat = float(compat)  # a number to pydensecrf
    array = as_finite_float32(compat, "compat", wanted)
    if array.ndim == 0:
        return torch.from_numpy(array)
    if array.shape == (nlabels,):
        return -torch.from_numpy(array)
    if array.shape == (nlabels, nlabels):
        return torch.from_numpy(-0.5 * array - 0.5 * array.T)  # halves first: no overflow
    raise ValueError(f"compat must be {wanted}, got {describe(array)}")


class Unary:
    """Base of the unary terms; use `ConstUnary` or `LogisticUnary`."""

    def energy(self) -> Float32:
        """U, [nlabels, nvar]."""
        raise TypeError("u must be a ConstUnary or LogisticUnary, got an empty Unary")


class ConstUnary(Unary):
    """Given energies `u`, [nlabels, nvar] (copied). Errors as `DenseCRF.setUnaryEnergy`."""

    def __init__(self, u: object) -> None:
        self._u = as_finite_float32(u, "u", "energies [nlabels, nvar]")

    def energy(self) -> Float32:
        return self._u


class LogisticUnary(Unary):
    """Energies `L @ f`: weights L [nlabels, d] times features f [d, nvar] (copied).

    Raises ValueError when the shapes do not fit or a value is not finite, TypeError for other
    things than numbers.
    """

    def __init__(self, L: object, f: object) -> None:
        weights = as_finite_float32(L, "L", "weights [nlabels, d]")
        features = as_finite_float32(f, "f", "features [d, nvar]")
        if weights.ndim != 2 or features.ndim != 2 or weights.shape[1] != features.shape[0]:
            raise ValueError(
                f"L [nlabels, d] and f [d, nvar] must be matrices that share d, "
                f"got shapes {weights.shape} and {features.shape}"
            )
        self._weights, self._features = weights, features

    def energy(self) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):
            energy: Float32 = self._weights @ self._features
        require_finite(energy, "L @ f")
        return energy
