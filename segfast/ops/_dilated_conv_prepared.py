"""A call of a public function, looked at once for all calls that look alike.

Small maps take less time than the checks of their arguments and the choice of a kernel. One look-up
gives what a call comes to, by all that this depends on: shapes, strides, dtypes and devices of its
tensors, what autocast does to them, the other arguments and their types (2 == 2.0 == True).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segfast.ops._autocast import autocast_dtype
from segfast.ops._dilated_conv_geometry import MAP, Resolved, given, resolve, resolve_transposed
from segfast.ops._dilated_conv_kernels import Serve, choose, conv_for, grad_input_for
from segfast.ops._dilated_conv_plan import DIRECTIONS, Problem
from segfast.ops._function import Remembered
from segfast.ops._layout import channels_last

PLAIN = (Tensor, torch.nn.Parameter)  # of other classes, the operators themselves are called


class Prepared(NamedTuple):
    """What a call comes to."""

    rest: tuple[int, ...]  # the last arguments of the raw operator
    torch_always: bool  # PyTorch serves the result and all its derivatives
    torch_result: bool  # PyTorch serves the result
    cast: torch.dtype | None  # of the tensors, where they are not what the raw operator takes
    serve: Serve | None  # computes the result of plain tensors where nothing looks on


class Kind(NamedTuple):
    """A public function."""

    resolve: Callable[..., Resolved]  # of what is given, and its other arguments
    weight: str  # the shape in messages
    direction: int  # of DIRECTIONS
    serve_for: Callable[[Tensor, Tensor, tuple[int, ...]], Serve]


CONV = Kind(resolve, "[O, C / groups, kh, kw]", 0, conv_for)
TRANSPOSED = Kind(resolve_transposed, "[C, O / groups, kh, kw]", 1, grad_input_for)

PREPARED: Remembered[Prepared] = Remembered()


def prepare(
    kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> Prepared:
    """Raises what the arguments deserve; that is not remembered."""
    plain = type(x) in PLAIN and type(weight) in PLAIN and (bias is None or type(bias) in PLAIN)
    if not plain or torch.compiler.is_compiling():
        return _prepare(kind, x, weight, bias, arguments, plain=False)
    try:
        key = (
            kind.direction, x.shape, x.stride(), x.dtype, x.device,
            weight.shape, weight.stride(), weight.dtype, weight.device,
            bias if bias is None else (bias.shape, bias.stride(), bias.dtype, bias.device),
            torch._C._is_any_autocast_enabled() and autocast_dtype(x),
            arguments, tuple([_type(argument) for argument in arguments]),
        )  # fmt: skip
        found = PREPARED.get(key)
    except (TypeError, RuntimeError):  # lists have no hash, sparse tensors no strides
        return _prepare(kind, x, weight, bias, arguments, plain=False)
    return found or PREPARED.keep(key, _prepare(kind, x, weight, bias, arguments, plain=True))


def cast(
    dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as autocast has them, x with a batch."""
    if dtype is None:
        return x, weight, bias
    x = x if x.dim() == 4 else x[None]
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _type(argument: Any) -> Any:
    return tuple(map(type, argument)) if type(argument) is tuple else type(argument)


def _prepare(
    kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...],
    plain: bool,
) -> Prepared:  # fmt: skip
    facts = given(x, weight, bias, MAP, kind.weight)
    outputs, strides, geometry = kind.resolve(facts, *arguments)
    rest, dtype = (*outputs, *strides), facts.x.cast
    as_given = x.dim() == 4 and all(f is None or f.dtype == dtype for f in facts)
    to = None if as_given else dtype
    if torch.compiler.is_compiling():  # decided inside the raw operators
        return Prepared(rest, False, False, to, None)
    groups, rows = strides.groups, weight.shape[0]
    problem = Problem(
        x.device.type, str(dtype).removeprefix("torch."), x.dim() == 4 and channels_last(x),
        x.shape[0] if x.dim() == 4 else 1, groups, weight.shape[1], rows // groups, geometry,
    )  # fmt: skip
    by_torch = [choose(direction, problem).kernel == "torch" for direction in DIRECTIONS]
    serve = kind.serve_for(x, weight, rest) if plain and as_given else None
    return Prepared(rest, all(by_torch), by_torch[kind.direction], to, serve)
