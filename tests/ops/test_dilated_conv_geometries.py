"""Thousands of geometries: the functions, and every kernel that can serve, against float64.

Kernels are called past the plan; ours have to give the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from segfast.kernels.dilated_conv import reference
from segfast.ops import _dilated_conv_kernels as kernels
from segfast.ops import dilated_conv1d, dilated_conv2d, dilated_conv_transpose2d
from segfast.ops._dilated_conv_op import SCHEMAS
from segfast.ops._dilated_conv_plan import (
    DIRECTIONS,
    Direction,
    Problem,
    candidates,
    torch_is_wrong,
)
from segfast.ops._layout import gapless
from segfast.testing import assert_as_good_as
from tests.ops.dilated_conv_geometries import GEOMETRIES, Call, Run, calls, runs

pytestmark = pytest.mark.usefixtures("one_thread")  # outside of a `Run`
OPERATORS = dict(zip(DIRECTIONS, SCHEMAS, strict=True))


class Truth(NamedTuple):
    """A result in float64, and what rounding may change of it."""

    exact: Tensor
    sizes: Tensor  # sums of the summands' magnitudes
    terms: int

    def plus(self, bias: Tensor | None) -> Truth:
        if bias is None:
            return self
        b = bias.double()[:, None, None]
        return Truth(self.exact + b, self.sizes + b.abs(), self.terms + 1)

    def check(self, actual: Tensor, theirs: Tensor | None, label: str) -> None:
        """The baseline is PyTorch's own where it served, else the exact result rounded: harder."""
        terms, magnitude = self.terms, self.sizes
        baseline = self.exact.to(actual.dtype) if theirs is None else theirs
        if theirs is not None and actual.dtype in (torch.float16, torch.bfloat16):
            # Its gradients add taps and images in these types, in an order that layouts decide.
            magnitude = magnitude * (torch.finfo(actual.dtype).eps / torch.finfo(torch.float32).eps)
        assert_as_good_as(
            actual, self.exact, baseline, terms=terms, magnitude=magnitude, label=label
        )


Arguments = dict[Direction, tuple[Tensor, Tensor]]
Truths = dict[Direction, Truth]


def arguments_of(x: Tensor, weight: Tensor, grad: Tensor) -> Arguments:
    """Of a convolution's three operators; grad: of its result."""
    return {"forward": (x, weight), "grad_input": (grad, weight), "grad_weight": (grad, x)}


def truths(call: Call, arguments: Arguments) -> Truths:
    """Without a bias. Numbers and magnitudes are groups beside each other: one pass for both."""
    (x, weight), (grad, _), _ = arguments.values()
    x, grad, weight = (
        torch.cat([t.double(), t.double().abs()], dim)
        for t, dim in ((x, 1), (grad, 1), (weight, 0))
    )
    rest = call.geometry, 2 * call.groups
    taps = call.kernel[0] * call.kernel[1]
    summands = call.in_channels * taps
    if all(t.stride(1) == 0 for t in arguments["forward"]):  # equal ones are rounded alike:
        summands *= call.in_channels  # errors grow with their number, not with its root
    found = [
        (reference.conv(x, weight, None, *rest).chunk(2, 1), summands),
        (reference.grad_input(grad, weight, *rest).chunk(2, 1), call.out_channels * taps),
        (reference.grad_weight(grad, x, *rest).chunk(2, 0), call.positions),
    ]
    pairs = zip(DIRECTIONS, found, strict=True)
    return {direction: Truth(*both, terms) for direction, (both, terms) in pairs}


def problem_of(call: Call, arguments: Arguments, direction: Direction) -> Problem:
    laid_out = arguments[direction][direction == "grad_weight"]  # what decides the memory format
    return kernels.problem(laid_out, arguments["forward"][1].shape, call.geometry, call.groups)


def forced(
    kernel: str, direction: Direction, call: Call, arguments: Arguments, bias: Tensor | None
) -> Tensor:
    """What one kernel gives, whatever the plan says."""
    a, b = arguments[direction]
    compute = getattr(kernels.KERNELS[kernel], direction)
    maps = (
        (gapless(a, like=b), gapless(b))
        if direction == "grad_weight"
        else (gapless(a), b.contiguous())
    )
    more = (bias,) if direction == "forward" else ()
    return compute(problem_of(call, arguments, direction), call.strides)(*maps, *more)


def check_kernels(
    call: Call, run: Run, arguments: Arguments, known: Truths, bias: Tensor | None,
    theirs: Sequence[Tensor],
) -> None:  # fmt: skip
    """Every kernel in every direction. theirs: PyTorch's own results, which judge PyTorch's."""
    for (direction, truth), pytorch in zip(known.items(), theirs, strict=True):
        added = bias if direction == "forward" else None
        problem = problem_of(call, arguments, direction)
        for kernel in candidates(direction, problem, kernels.available("cpu")):
            label = f"{kernel} {direction} of {call}, {run}"
            with run():
                actual = forced(kernel, direction, call, arguments, added)
            baseline = pytorch if kernel == "torch" else None
            truth.plus(added).check(actual, baseline, label)
            if kernel != "torch":
                with replace(run, threads=1)():
                    alone = forced(kernel, direction, call, arguments, added)
                assert torch.equal(actual, alone), f"{run.threads} threads change {label}"


Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def results(
    function: Function, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> list[Tensor]:
    """The result, and the gradients of x, of the weight, of the bias if there is one."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves, *(() if bias is not None else (None,)))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def by_pytorch(
    function: Function, call: Call, arguments: Arguments,
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor,
) -> list[Tensor]:  # fmt: skip
    """`results` of PyTorch's function, past its kernels that read beyond their tensors."""
    dtype = x.dtype
    if any(torch_is_wrong(d, problem_of(call, arguments, d)) for d in DIRECTIONS):
        x, weight, grad = (t.double() for t in (x, weight, grad))
        bias = None if bias is None else bias.double()
    return [t.to(dtype) for t in results(function, x, weight, bias, grad)]


def check_function(
    call: Call, run: Run, arguments: Arguments, known: Truths, bias: Tensor | None,
    ours: Sequence[Tensor], theirs: Sequence[Tensor], order: Sequence[Direction] = DIRECTIONS,
) -> None:  # fmt: skip
    """`results` of our function and of PyTorch's. order: the operator of each result."""
    by_torch = plain(call, arguments, order[0])
    rounded = known[order[0]].exact.to(run.dtype)
    for i, direction in enumerate(order):
        truth = known[direction].plus(None if i else bias)
        kernel = kernels.choose(direction, problem_of(call, arguments, direction)).kernel
        baseline = theirs[i] if by_torch or kernel == "torch" else None
        if baseline is None and direction == "grad_input" and i == 0 and bias is not None:
            baseline = rounded + bias[:, None, None]  # a sum that was rounded, as PyTorch has it
        names = "result", "gradient of x", "gradient of the weight"
        truth.check(ours[i], baseline, f"{names[i]} ({kernel}) of {call}, {run}")
    if bias is not None:
        grad = arguments["forward" if order[0] == "grad_input" else "grad_input"][0]
        exact, sizes = (t.sum((0, 2, 3)) for t in (grad.double(), grad.double().abs()))
        truth = Truth(exact, sizes, max(1, grad[:, 0].numel()))
        baseline = theirs[3] if by_torch else None
        truth.check(ours[3], baseline, f"gradient of the bias of {call}, {run}")


def plain(call: Call, arguments: Arguments, result: Direction) -> bool:
    """Whether the function is PyTorch's own: the memory format of its input decides."""
    x, weight = arguments[result]
    problem = kernels.problem(x, weight.shape, call.geometry, call.groups)
    return all(kernels.choose(direction, problem).kernel == "torch" for direction in DIRECTIONS)


def shares(part: float) -> settings:
    return settings(max_examples=round(part * GEOMETRIES))


def bias_of(call: Call, bias: Tensor) -> Tensor | None:
    return bias if call.bias else None


@shares(0.5)
@given(calls(), runs())
def test_conv2d(call: Call, run: Run) -> None:
    x, weight, bias, grad = call.tensors(run)
    options = call.stride, call.named or call.padding, call.dilation, call.groups
    tensors = x, weight, bias_of(call, bias), grad
    arguments = arguments_of(x, weight, grad)
    known = truths(call, arguments)

    def pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *options)

    theirs = by_pytorch(pytorch, call, arguments, *tensors)
    with run():
        ours = results(lambda x, w, b: dilated_conv2d(x, w, b, *options), *tensors)
    check_function(call, run, arguments, known, tensors[2], ours, theirs)
    if call.batch:  # the operators answer for empty ones
        check_kernels(call, run, arguments, known, tensors[2], theirs[:3])


@shares(0.1)
@given(calls(largest=(1, 60)), runs())
def test_conv1d(call: Call, run: Run) -> None:
    x, weight, bias, grad = call.tensors(run)
    padding = call.named or call.padding[1]
    options = call.stride[1], padding, call.dilation[1], call.groups
    tensors = x[:, :, 0], weight[:, :, 0], bias_of(call, bias), grad[:, :, 0]
    arguments = arguments_of(x, weight, grad)

    def pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(x, weight, bias, *options)

    theirs = by_pytorch(pytorch, call, arguments, *tensors)
    with run():
        ours = results(lambda x, w, b: dilated_conv1d(x, w, b, *options), *tensors)
    for found in (ours, theirs):
        found[:3] = [t.unsqueeze(-2) for t in found[:3]]
    check_function(call, run, arguments, truths(call, arguments), tensors[2], ours, theirs)


@shares(0.25)
@given(calls(largest=(7, 12), transposed=True), runs())
def test_transposed(call: Call, run: Run) -> None:
    grad, weight, bias, x = call.tensors(run)
    options = call.stride, call.padding, call.extra, call.groups, call.dilation
    tensors = x, weight, bias_of(call, bias), grad
    arguments = arguments_of(grad, weight, x)
    known = truths(call, arguments)

    def pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, weight, bias, *options)

    theirs = by_pytorch(pytorch, call, arguments, *tensors)
    with run():
        ours = results(lambda x, w, b: dilated_conv_transpose2d(x, w, b, *options), *tensors)
    order: tuple[Direction, ...] = "grad_input", "forward", "grad_weight"
    check_function(call, run, arguments, known, tensors[2], ours, theirs, order)
    if call.batch:
        plain = by_pytorch(pytorch, call, arguments, x, weight, None, grad)
        check_kernels(call, run, arguments, known, None, [plain[1], plain[0], plain[2]])


@shares(0.15)
@given(calls(), runs())
def test_what_the_compiler_is_told_of_strides(call: Call, run: Run) -> None:
    """Of the raw operators, for any layouts: a batch, channel, row or column of one fits many."""
    x, weight, bias, grad = call.tensors(run)
    tails = {
        "forward": (bias_of(call, bias), *call.outputs),
        "grad_input": call.size,
        "grad_weight": call.kernel,
    }
    for direction, tensors in arguments_of(x, weight, grad).items():
        operator, tail = getattr(torch.ops.segfast, OPERATORS[direction]), tails[direction]
        shapes = (
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors
        )
        told = operator(*shapes, *tail, *call.strides)
        made = operator(*tensors, *tail, *call.strides)
        assert told.shape == made.shape
        assert significant(told) == significant(made), f"{direction} of {call}, {run}"


def significant(x: Tensor) -> list[int]:
    """The strides that decide where elements lie."""
    return [s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] if x.numel() else []
