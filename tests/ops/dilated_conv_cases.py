"""Dilated convolutions to test: random geometries, and the oracle of each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.testing import assert_as_good_as

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A convolution: sizes, and the seed of its numbers."""

    batch: int
    groups: int
    in_channels: int  # of a group
    out_channels: int  # of a group
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    seed: int = 0

    @property
    def outputs(self) -> Pair:
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def geometry(self) -> Geometry:
        sizes = self.size, self.outputs, self.kernel
        return Geometry.of(*sizes, self.stride, self.padding, self.dilation)

    @property
    def strides(self) -> tuple[int, ...]:
        """The last arguments of the raw operators."""
        return *self.stride, *self.padding, *self.dilation, self.groups

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, weight, bias and the gradient of y in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs, outputs = self.groups * self.in_channels, self.groups * self.out_channels
        shapes = (
            (self.batch, inputs, *self.size),
            (outputs, self.in_channels, *self.kernel),
            (outputs,),
            (self.batch, outputs, *self.outputs),
        )
        x, weight, bias, grad = (
            torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes
        )
        return x, weight, bias, grad


def random_cases(count: int, seed: int, *, largest: int = 12) -> list[Case]:
    """Cases with at least one output, small and mean."""
    return list(itertools.islice(_random_cases(seed, largest), count))


def _random_cases(seed: int, largest: int) -> Iterator[Case]:
    draw = random.Random(seed)

    def pair(least: int, most: int) -> Pair:
        return draw.randint(least, most), draw.randint(least, most)

    while True:
        case = Case(
            batch=draw.choice((0, 1, 1, 2, 3)),
            groups=draw.choice((1, 1, 1, 2, 5)),
            in_channels=draw.choice((1, 1, 2, 3, 8)),
            out_channels=draw.choice((1, 1, 2, 7)),
            size=pair(1, largest),
            kernel=pair(1, 4),
            stride=draw.choice(((1, 1), (1, 1), pair(1, 3))),
            padding=pair(0, draw.choice((1, largest + 3))),
            dilation=pair(1, draw.choice((2, largest + 3))),
            seed=draw.randrange(10**6),
        )
        if min(case.outputs) >= 1:
            yield case


def check(
    case: Case,
    dtype: torch.dtype,
    actual: tuple[Tensor, Tensor, Tensor],  # y and the gradients of x and the weight
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],  # of `dtype`: x, weight, bias, grad
    baselines: tuple[Tensor | None, ...] = (None, None, None),
) -> None:
    """Three results against the oracle.

    Baselines are the results rounded once to `dtype`, which is harder than PyTorch's own, unless
    others are given.
    """
    truths = _results(case, *(t.double() for t in inputs))
    sizes = _results(case, *(t.double().abs() for t in inputs))  # sums of the summands' magnitudes
    rounded = _results(case, *(t if t.itemsize > 2 else t.float() for t in inputs))
    taps = case.kernel[0] * case.kernel[1]
    positions = case.batch * case.outputs[0] * case.outputs[1]
    terms = (case.in_channels * taps + 1, case.out_channels * taps, positions)
    names = ("y", "grad_x", "grad_weight")
    for name, got, truth, size, once, given, count in zip(
        names, actual, truths, sizes, rounded, baselines, terms, strict=True
    ):
        magnitude = size if size.numel() else None
        assert_as_good_as(
            got,
            truth,
            once.to(dtype) if given is None else given,
            terms=max(1, count),
            magnitude=magnitude,
            label=f"{name} of {case}",
        )


def _results(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        reference.conv(x, weight, bias, case.geometry, case.groups),
        reference.grad_input(grad, weight, case.geometry, case.groups),
        reference.grad_weight(grad, x, case.geometry, case.groups),
    )
