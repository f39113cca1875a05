"""The raw dense operators: any geometry and size on any instruction set, and what threads change.

Inputs lie between NaN: what is read beside them shows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import segfast.ops  # noqa: F401  (defines the operators)
from segfast import _native
from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.testing import assert_as_good_as, dtypes, poison_empty
from tests.kernels.pages import at_the_end, guarded, in_a_process

Pair = tuple[int, int]
NAMES = ("y", "grad_x", "grad_weight")


@dataclass(frozen=True)
class Problem:
    batch: int
    in_channels: int
    out_channels: int
    size: Pair
    outputs: Pair  # any: what lies behind the input is zero
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def geometry(self) -> Geometry:
        sizes = self.size, self.outputs, self.kernel
        return Geometry.of(*sizes, self.stride, self.padding, self.dilation)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """x, weight, bias and the gradient of y."""
        generator = torch.Generator().manual_seed(0)
        shapes = (
            (self.batch, self.in_channels, *self.size),
            (self.out_channels, self.in_channels, *self.kernel),
            (self.out_channels,),
            (self.batch, self.out_channels, *self.outputs),
        )
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return (
            reference.conv(x, weight, bias, self.geometry, 1),
            reference.grad_input(grad, weight, self.geometry, 1),
            reference.grad_weight(grad, x, self.geometry, 1),
        )

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        strides = (*self.stride, *self.padding, *self.dilation, 1)
        ops = torch.ops.segfast
        return (
            ops._dilated_conv_dense(x, weight, bias, *self.outputs, *strides),
            ops._dilated_conv_dense_grad_input(grad, weight, *self.size, *strides),
            ops._dilated_conv_dense_grad_weight(grad, x, *self.kernel, *strides),
        )


def same_size(channels: Pair, size: Pair, rate: int, batch: int = 1) -> Problem:
    pair = (rate, rate)
    return Problem(batch, *channels, size, size, padding=pair, dilation=pair)


def random_problems(count: int, seed: int) -> list[Problem]:
    draw = random.Random(seed)

    def pair(least: int, most: int) -> Pair:
        return draw.randint(least, most), draw.randint(least, most)

    return [
        Problem(
            batch=draw.choice((1, 1, 2, 3)),
            in_channels=draw.choice((1, 2, 7, 13, 33, 130)),
            out_channels=draw.choice((1, 3, 8, 9, 17, 40, 130)),
            size=pair(1, 20),
            outputs=pair(1, 20),
            kernel=pair(1, 4),
            stride=draw.choice(((1, 1), (1, 1), pair(1, 3))),
            padding=pair(0, 9),
            dilation=pair(1, draw.choice((2, 9, 40))),
        )
        for _ in range(count)
    ]


# Where the kernels change their ways: several blocks of channels, of positions, of terms.
LARGE = (
    same_size((300, 20), (9, 33), 6),
    same_size((40, 290), (13, 15), 3),
    same_size((257, 257), (5, 7), 2),
    same_size((127, 5), (33, 33), 12),
    same_size((128, 5), (33, 33), 12),
    replace(same_size((3, 4), (40, 40), 2), kernel=(9, 7)),  # many taps
    replace(same_size((2, 5), (20, 20), 1), kernel=(20, 19), padding=(9, 9), dilation=(1, 1)),
    Problem(2, 5, 6, (1, 700), (1, 700), (1, 3), (1, 1), (0, 31), (1, 31)),
    Problem(2, 5, 6, (700, 1), (700, 1), (3, 1), (1, 1), (31, 0), (31, 1)),
    Problem(1, 140, 4, (23, 24), (12, 12), (3, 3), (2, 2), (2, 2), (2, 2)),
    Problem(3, 1, 1, (512, 512), (512, 512), (1, 3), padding=(0, 4), dilation=(1, 4)),
    Problem(1, 6, 9, (8, 8), (8, 8), padding=(50, 50), dilation=(50, 50)),  # one tap is live
    Problem(1, 6, 9, (8, 8), (3, 3), padding=(90, 90), dilation=(2, 2)),  # none is
)


def check(problem: Problem, inputs: tuple[Tensor, ...]) -> None:
    """All three operators against the oracle; the baseline is the reference, rounded once."""
    x, _, _, grad = inputs
    with poison_empty():
        actual = problem.computed(*(guarded(t) for t in inputs))
    truths = problem.expected(*(t.double() for t in inputs))
    magnitudes = problem.expected(*(t.double().abs() for t in inputs))
    baselines = problem.expected(*(t if t.itemsize > 2 else t.float() for t in inputs))
    taps = problem.kernel[0] * problem.kernel[1]
    positions = grad.shape[0] * grad.shape[2] * grad.shape[3]
    terms = (x.shape[1] * taps + 1, grad.shape[1] * taps, positions)
    for name, got, truth, size, baseline, count in zip(
        NAMES, actual, truths, magnitudes, baselines, terms, strict=True
    ):
        finite = size.nan_to_num(0, 0, 0)
        label = f"{name} of {problem}"
        rounded = baseline.to(got.dtype)
        assert_as_good_as(got, truth, rounded, terms=count, magnitude=finite, label=label)


@dtypes()
@pytest.mark.parametrize("seed", range(4))
def test_any_geometry(instruction_set: str, seed: int, dtype: torch.dtype) -> None:
    for problem in random_problems(25, seed):
        check(problem, problem.tensors(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_any_size(instruction_set: str, problem: Problem, dtype: torch.dtype) -> None:
    check(problem, problem.tensors(dtype))


@pytest.mark.parametrize("channels", [(6, 17), (140, 17)])
def test_what_is_not_finite_stays_where_it_belongs(instruction_set: str, channels: Pair) -> None:
    problem = same_size(channels, (11, 13), 4)
    x, weight, bias, grad = problem.tensors(torch.float32)
    x[0, 1, 0, 0], x[0, 2, 5, 12], x[0, 0, 10, 3] = torch.nan, torch.inf, -torch.inf
    grad[0, 3, 10, 12], grad[0, 5, 4, 4] = torch.nan, -torch.inf
    check(problem, (x, weight, bias, grad))
    x, weight, bias, grad = problem.tensors(torch.float32)
    weight[2, 1, 0, 2], weight[4, 3, 1, 1], bias[7] = torch.inf, torch.nan, torch.nan
    check(problem, (x, weight, bias, grad))


def test_no_bias_and_no_image(compiled_kernels: None) -> None:
    problem = same_size((3, 4), (5, 6), 2)
    x, weight, *_ = problem.tensors(torch.float32)
    arguments = (5, 6, 1, 1, 2, 2, 2, 2, 1)
    without = torch.ops.segfast._dilated_conv_dense(x, weight, None, *arguments)
    zero = torch.ops.segfast._dilated_conv_dense(x, weight, torch.zeros(4), *arguments)
    assert torch.equal(without, zero)
    empty = replace(problem, batch=0)
    with poison_empty():
        y, grad_x, grad_weight = empty.computed(*empty.tensors(torch.float32))
    assert y.shape == (0, 4, 5, 6)
    assert grad_x.shape == (0, 3, 5, 6)
    assert torch.equal(grad_weight, torch.zeros(4, 3, 3, 3))


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(
    "problem",
    [
        same_size((150, 300), (33, 33), 12, batch=2),
        same_size((150, 40), (19, 19), 2),  # blocks of another size with four threads
        same_size((21, 21), (40, 37), 2, batch=2),
        same_size((3, 5), (60, 50), 7),
        Problem(2, 9, 20, (31, 30), (16, 15), (3, 4), (2, 2), (1, 1), (3, 2)),
    ],
    ids=str,
)
def test_threads_change_no_bit(instruction_set: str, problem: Problem) -> None:
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        results.append(problem.computed(*problem.tensors(torch.float32)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def read_to_the_end() -> None:
    for isa in _native.instruction_sets():
        with _native.use_instruction_set(isa):
            for problem in (*random_problems(30, seed=9), same_size((130, 20), (9, 33), 2)):
                for dtype in (torch.float32, torch.bfloat16):
                    problem.computed(*(at_the_end(t) for t in problem.tensors(dtype)))


def test_nothing_is_read_behind_the_tensors(compiled_kernels: None) -> None:
    in_a_process(__name__, "read_to_the_end()")


def test_refusals(compiled_kernels: None) -> None:
    problem = same_size((4, 6), (5, 5), 1)
    x, weight, bias, grad = problem.tensors(torch.float32)
    size, rest = (5, 5), (1, 1, 1, 1, 1, 1)

    def refuses(message: str, name: str, *arguments: Any) -> None:
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.segfast, f"_dilated_conv_dense{name}")(*arguments)

    refuses("no groups, got 2", "", x, weight, bias, *size, *rest, 2)
    refuses(
        "weight must have the channels of x", "", x[:, :3].clone(), weight, bias, *size, *rest, 1
    )
    refuses("weight must be Float, got Double", "", x, weight.double(), bias, *size, *rest, 1)
    refuses("bias must have 6 elements, got 5", "", x, weight, bias[:5].clone(), *size, *rest, 1)
    refuses("x must be contiguous", "", x.transpose(2, 3), weight, bias, *size, *rest, 1)
    refuses("channels of grad", "_grad_input", grad[:, :3].clone(), weight, *size, *rest, 1)
    refuses("batch of x", "_grad_weight", grad, x.expand(2, -1, -1, -1).clone(), 3, 3, *rest, 1)
