"""A call of a public function, looked at once for all calls that look alike.

Small maps take less time than the checks of their arguments and the choice of a kernel. One look-up
gives what a call comes to, by all that this depends on: shapes, strides, dtypes and devices of its
tensors, what autocast does to them, the other arguments and their types (2 == 2.0 == True), and
whether Winograd's kernels are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from segfast.ops import _check
from segfast.ops._autocast import autocast_dtype
from segfast.ops._dilated_conv_faults import odd_batch
from segfast.ops._dilated_conv_geometry import MAP, Resolved, given, resolve, resolve_transposed
from segfast.ops._dilated_conv_kernels import (
    Serve,
    choose,
    conv_for,
    grad_input_for,
    problem,
)
from segfast.ops._dilated_conv_plan import DIRECTIONS, torch_is_wrong
from segfast.ops._dilated_conv_winograd import winograd_setting
from segfast.ops._function import Remembered, kinds, lasting, observer, tracing
from segfast.ops._layout import dtype_name

Answer = TypeVar("Answer")
PLAIN = (Tensor, torch.nn.Parameter)  # of other classes, the operators themselves are called


# A decision is asked whether its tensors are plain and will be again: it may answer with functions
# that take them as they are.
Decide = Callable[[bool], Answer]


def look_up(
    memory: Remembered[Answer],
    decide: Decide[Answer],
    tensors: Sequence[Tensor | None],
    arguments: tuple[Any, ...],
) -> Answer:
    """decide(...), remembered; what it raises is not, and the answer must be true.

    Not for a compiler's eyes.
    """
    found = key = setting = None
    if not tracing():  # where sizes are tensors
        setting = winograd_setting()
        try:
            key = _key(tensors, [arguments, types := kinds(arguments), setting.allowed])
            found = memory.get(key)
        except (TypeError, RuntimeError):  # lists have no hash, sparse tensors no strides
            key = None
    if key is None:
        return decide(False)
    if found:
        return found
    if not lasting(types):
        return decide(False)
    answer = decide(True)  # not remembered where the setting changed meanwhile
    return memory.keep(key, answer) if winograd_setting() == setting else answer


def _key(tensors: Sequence[Tensor | None], facts: list[Any]) -> tuple[Any, ...] | None:
    for x in tensors:
        if x is None:
            facts.append(None)
        elif type(x) in PLAIN:
            facts.append((x.shape, x.stride(), x.dtype, x.device))
        else:
            return None
    if torch._C._is_any_autocast_enabled():
        facts.extend([x if x is None else autocast_dtype(x) for x in tensors])
    return tuple(facts)


# ------------------------------------------------------------------------------ convolutions


class Prepared(NamedTuple):
    """What a call comes to."""

    rest: tuple[int, ...]  # the last arguments of the raw operator
    for_torch: tuple[Any, ...]  # and of PyTorch's function
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
    memory: Remembered[Prepared]


CONV = Kind(resolve, "[O, C / groups, kh, kw]", 0, conv_for, Remembered())
TRANSPOSED = Kind(resolve_transposed, "[C, O / groups, kh, kw]", 1, grad_input_for, Remembered())


def prepare(
    kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> Prepared:
    """Raises what the arguments deserve."""
    if torch.compiler.is_compiling():  # it would watch all that the memory holds
        return _prepare(kind, x, weight, bias, arguments, False)

    def decide(plain: bool) -> Prepared:
        return _prepare(kind, x, weight, bias, arguments, plain)

    return look_up(kind.memory, decide, (x, weight, bias), arguments)


def cast(
    dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as autocast has them, x with a batch."""
    if dtype is None:
        return x, weight, bias
    x = x if x.dim() == 4 else x[None]
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _prepare(
    kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...],
    plain: bool,
) -> Prepared:  # fmt: skip
    facts = given(x, weight, bias, MAP, kind.weight)
    outputs, strides, geometry = kind.resolve(facts, *arguments)
    for_torch = tuple(map(_without_numpy, arguments))
    rest, dtype = (*outputs, *strides), facts.x.cast
    as_given = x.dim() == 4 and all(f is None or f.dtype == dtype for f in facts)
    to = None if as_given else dtype
    if torch.compiler.is_compiling() or observer() or tracing():  # decided elsewhere
        return Prepared(rest, for_torch, False, False, to, None)
    maps = x if x.dim() == 4 else x[None]
    asked = problem(maps, weight.shape, geometry, strides.groups)._replace(dtype=dtype_name(dtype))
    by_torch = [
        choose(direction, asked).kernel == "torch" and not torch_is_wrong(direction, asked)
        for direction in DIRECTIONS
    ]
    serve = kind.serve_for(x, weight, rest) if plain and as_given else None
    always = all(by_torch) and not odd_batch(maps, strides.groups)
    return Prepared(rest, for_torch, always, by_torch[kind.direction], to, serve)


def _without_numpy(argument: Any) -> Any:
    """Integers as Python's."""
    if isinstance(argument, (tuple, list)):
        return tuple(map(_without_numpy, argument))
    return argument if isinstance(argument, str) else _check.integer(argument)
