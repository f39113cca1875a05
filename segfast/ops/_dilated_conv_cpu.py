"""The C++ kernels of dilated convolution, called as the raw operators that they implement.

Families "direct" and "dense" implement the three operators of _dilated_conv_op.py each, "winograd"
the first two, for dense maps [N, C, H, W] on the CPU; csrc/cpu/dilated_conv*.cpp registers them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segfast._native import instruction_sets, native
from segfast.ops._dilated_conv_plan import Problem, Strides
from segfast.ops._function import compiled

NAMES = ("_dilated_conv", "_dilated_conv_grad_input", "_dilated_conv_grad_weight")
FAMILIES = {"direct": NAMES, "dense": NAMES, "winograd": NAMES[:2]}  # what each implements


def define(schemas: dict[str, str]) -> None:
    for family, names in FAMILIES.items():
        for name in names:
            plain = schemas[name].replace("SymInt", "int")
            torch.library.define(f"segfast::{operator_of(family, name)}", plain)


def operator_of(family: str, name: str) -> str:
    """_dilated_conv_grad_input -> _dilated_conv_direct_grad_input"""
    return name.replace("_dilated_conv", f"_dilated_conv_{family}")


def families() -> list[str]:
    """Those that were compiled."""
    if native() is None:
        return []
    return [f for f in FAMILIES if compiled(operator_of(f, "_dilated_conv"), "cpu")]


def available(winograd: bool) -> list[str]:
    """The families that may serve, and what is known of the processor (the plan's words)."""
    facts = {
        "avx512": "avx512" in instruction_sets(),
        "fast bfloat16": torch.cpu._is_avx512_bf16_supported(),
    }
    usable = [family for family in families() if winograd or family != "winograd"]
    return [*usable, *(fact for fact, true in facts.items() if true)]


class Family:
    """The operators of a family, as _dilated_conv_kernels.py calls them."""

    def __init__(self, family: str) -> None:
        self.family = family

    @functools.cached_property
    def operators(self) -> list[Any]:
        names = (operator_of(self.family, name) for name in FAMILIES[self.family])
        found = (getattr(torch.ops.segfast, name) for name in names)
        return [operator.default for operator in found]

    def forward(self, problem: Problem, strides: Strides) -> Callable[..., Tensor]:
        operator, (rows, columns) = self.operators[0], problem.geometry
        rest = rows.output, columns.output, *strides

        def serve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y: Tensor = operator(x, weight, None if bias is None else bias.contiguous(), *rest)
            return y

        return serve

    def grad_input(self, problem: Problem, strides: Strides) -> Callable[..., Tensor]:
        rows, columns = problem.geometry
        return _with(self.operators[1], rows.input, columns.input, *strides)

    def grad_weight(self, problem: Problem, strides: Strides) -> Callable[..., Tensor]:
        rows, columns = problem.geometry
        return _with(self.operators[2], rows.taps, columns.taps, *strides)


def _with(operator: Any, *rest: int) -> Callable[..., Tensor]:
    """Its function of two tensors."""

    def serve(a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = operator(a, b, *rest)
        return result

    return serve
