"""Calls into autograd.Functions and raw operators with as little in between as possible."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

Answer = TypeVar("Answer")


def transformed() -> bool:
    """Whether a compiler or torch.func looks on."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def watched() -> bool:
    """Whether something looks on that must see our operators, not what they call."""
    if transformed():  # asked first: torch.compile does not know the other questions
        return True
    modes: int = torch._C._len_torch_dispatch_stack()  # fake tensors, tracing
    return modes > 0 or tracing()


def tracing() -> bool:
    """Whether torch.jit.trace looks on."""
    return torch._C._get_tracing_state() is not None


def needs_graph(*arguments: Any) -> bool:
    """Whether a derivative of a call may be wanted."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for x in arguments:  # a loop: `any` takes three times as long
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False


_explained = threading.local()


def observer() -> Any:
    """Of the operators that this thread runs into, in `segfast.explain`; else None."""
    return getattr(_explained, "observer", None)


@contextlib.contextmanager
def observed_by(observer: Any) -> Iterator[None]:
    """Kernels are chosen inside the raw operators, as for a compiler, and the observer is told."""
    _explained.observer = observer
    try:
        yield
    finally:
        _explained.observer = None


def call(function: type[Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`, whose 60 us are saved where nothing needs them.

    In forward mode `function.in_forward_mode` takes its place, in a trace `function.in_trace`,
    where there are such.
    """
    if torch.compiler.is_compiling():
        return function.apply(*arguments)
    if tracing():  # a node that can be saved; its gradient is registered
        traced = getattr(function, "in_trace", getattr(function.forward, "operator", None))
        if traced is not None:
            return traced(*arguments)
    if forward_ad._current_level >= 0:
        function = getattr(function, "in_forward_mode", function)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    if needs_graph(*arguments):
        # What Function.apply ends in, without its look at the signature and for torch.func.
        return super(Function, function).apply(*arguments)  # type: ignore[misc]
    below = getattr(function.forward, "below", function.forward)
    return below(*arguments)


def compiled(name: str, device: str) -> bool:
    """Whether a compiled kernel is registered for a kind of device."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"segfast::{name}", key
    )


def forward_of(operator: Any, python: Callable[..., Any] | None = None) -> Any:
    """A raw operator as the forward of a Function, which differentiates in its place.

    `python` is what the operator comes to, where that is Python for every device: the way there
    through the dispatcher takes 25 us.
    """

    inner = getattr(operator, "_op", operator)  # what calling it comes to, 1 us later

    def below(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():  # past the registered formula, in Python
            return inner(*arguments) if python is None or watched() else python(*arguments)

    def forward(*arguments: Any) -> Any:
        return operator(*arguments) if transformed() else below(*arguments)

    names = [argument.name for argument in operator._schema.arguments]
    forward.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
    )  # torch.compile counts the parameters
    forward.below = below  # type: ignore[attr-defined]  # for `call`, which has looked
    forward.operator = operator  # type: ignore[attr-defined]
    return staticmethod(forward)


class Remembered(dict[Any, Answer]):
    """Answers by what was asked; all are forgotten when they are too many.

    Small maps take less time than checks and decisions. `remembered` keeps those of a function of
    plain values, `_dilated_conv_prepared.look_up` those about tensors and settings.
    """

    MOST = 4096

    def keep(self, key: Any, answer: Answer) -> Answer:
        if len(self) >= self.MOST:
            self.clear()
        self[key] = answer
        return answer


def kinds(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Their types, as part of a key: 2 == 2.0 == True."""
    return tuple([tuple(map(type, a)) if isinstance(a, tuple) else type(a) for a in arguments])


def lasting(types: tuple[Any, ...]) -> bool:
    """Whether all are Python's own: torch.compile cannot look at a memory with NumPy's in it."""
    return all(lasting(t) if isinstance(t, tuple) else t.__module__ == "builtins" for t in types)


def remembered(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Its answers, which are true, kept: a network asks for the same few."""
    memory: Remembered[Answer] = Remembered()

    @functools.wraps(function)
    def answer(*arguments: Any) -> Answer:
        if torch.compiler.is_compiling():
            return function(*arguments)
        key = arguments, (types := kinds(arguments))
        try:
            found = memory.get(key)
        except TypeError:  # lists and symbolic sizes have no hash
            return function(*arguments)
        if found:
            return found
        result = function(*arguments)
        return memory.keep(key, result) if lasting(types) else result

    return answer
