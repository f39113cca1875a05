"""Argument checks shared by the operators: messages name the argument, the contract, what came."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segfast.ops._function import tracing

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # that kernels take
LARGEST = 1e308  # what a float holds, also as the limit of integers


def describe(value: object) -> str:
    """A short description of an argument for an error message."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return f"nested {value.dtype} tensor"
        kind = "" if value.layout == torch.strided else f"{value.layout} ".removeprefix("torch.")
        return f"{kind}{value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return f"{value.dtype} NumPy array of shape {value.shape}"
    return f"{type(value).__name__} {value!r}"[:120]


def require_tensor(name: str, value: object, contract: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {contract}, got {describe(value)}")
    if value.layout != torch.strided or value.is_nested:  # sparse, mkldnn
        raise TypeError(f"{name} must be an ordinary (strided) tensor, got {describe(value)}")


def require_floating(name: str, value: Tensor, contract: str) -> None:
    require_tensor(name, value, contract)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor {contract}, got {describe(value)}")


def require_dtype(name: str, value: Tensor) -> None:
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {describe(value)}"
        )


def require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {describe(value)}")


def integer(value: Any) -> int | None:
    """What counts as an integer (NumPy's do), as Python's or a symbol; None: it is none.

    Booleans are none, nor are tensors: their numbers may change, and may lie on a GPU. But where
    torch.jit.trace looks on, sizes are tensors.
    """
    if type(value) is int:
        return value
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        size = tracing() and value.dim() == 0 and value.dtype == torch.int64
        return value if size else None  # type: ignore[return-value]
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> Any:
    """What counts as a number (NumPy's do), as Python's or a symbol; None: it is none."""
    if type(value) is float:
        return value
    if (number := integer(value)) is not None:
        return number
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def plain(value: Any) -> Any:
    """NumPy's numbers, alone or in a tuple or list, as Python's; all else as it is."""
    if isinstance(value, (tuple, list)):
        each = [plain(x) for x in value]
        return each if isinstance(value, list) else tuple(each)
    number = real(value)
    return value if number is None else number


def require_count(name: str, value: object, minimum: int = 0) -> int:
    """The integer."""
    if (count := integer(value)) is None:
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")
    if count >= 2**31:
        raise ValueError(f"{name} must be below 2^31, got {count}")
    return count


SEQUENCES = (tuple, list, range)


def require_counts(name: str, values: Any, minimum: int = 1) -> tuple[int, ...]:
    """At least one integer, as a tuple."""
    if not isinstance(values, SEQUENCES):
        raise TypeError(f"{name} must be a list of integers, got {describe(values)}")
    if not values:
        raise ValueError(f"{name} must hold at least one integer, got {describe(values)}")
    return tuple([require_count(name, value, minimum) for value in values])


def pair(name: str, value: IntOrPair, minimum: int) -> Pair:
    """Twice an integer, or the two (the one) of a sequence."""
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):
        both = value[0], value[-1]
    elif (number := integer(value)) is not None:
        both = number, number
    else:
        raise TypeError(f"{name} must be an integer or two of them, got {describe(value)}")
    return require_count(name, both[0], minimum), require_count(name, both[1], minimum)


def not_negative(name: str, value: object) -> float:
    """A finite number >= 0 as a float."""
    number = real(value)
    if number is None:
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return float(number)


def positive_floats(name: str, value: object, count: int) -> list[float]:
    """One positive number, or a sequence of ``count`` of them -> list of 1 or ``count``."""
    values: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) != 1 and len(values) != count:  # `in` does not trace where count is symbolic
        raise ValueError(f"{name} must be one number or {count} of them, got {describe(value)}")
    numbers = [real(number) for number in values]
    for number in numbers:
        if number is None:
            raise TypeError(f"{name} must be a number or {count} of them, got {describe(value)}")
        if not 0 < number <= LARGEST:  # math.isfinite does not trace
            raise ValueError(f"{name} must be positive and finite, got {describe(value)}")
    return [float(number) for number in numbers]
