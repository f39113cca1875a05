"""The raw operators of linear attention by Triton's interpreter, with the tiles of the table."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.kernels.linear_attention.reference import FEATURE_MAPS
from segfast.ops._linear_attention_cuda import KERNELS, launchers
from segfast.ops._linear_attention_op import REFERENCE
from segfast.testing import dtypes
from tests.ops.linear_attention_cases import kinds
from tests.ops.linear_attention_problems import (
    NAMES,
    OPERATORS,
    Problem,
    by_reference,
    check,
    make,
)


def run(operator: str, problem: Problem) -> tuple[Tensor, ...]:
    assert launchers() is not None
    results = KERNELS[f"_linear_attention_{operator}"](*problem.arguments(operator))
    return results if isinstance(results, tuple) else (results,)


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(("i", "feature_map"), enumerate(FEATURE_MAPS))
@pytest.mark.parametrize(("j", "operator"), enumerate(OPERATORS))
def test_feature_maps(i: int, feature_map: str, j: int, operator: str) -> None:
    """Every map in every operator, every dtype in each of both; on a GPU, all with all."""
    problem = make((1, 5, 20, 70), feature_map, DTYPES[(i + j) % 3])
    check(operator, run(operator, problem), problem)


# B, D, E, N: one of everything; D that fills its tile; several images, blocks and splits.
SHAPES = ((1, 1, 1, 1), (1, 16, 3, 65), (2, 9, 70, 7), (1, 3, 5, 300), (1, 40, 130, 33))


@pytest.mark.parametrize(("i", "shape"), enumerate(SHAPES))
@pytest.mark.parametrize(("j", "operator"), enumerate(OPERATORS))
def test_shapes(i: int, shape: tuple[int, int, int, int], j: int, operator: str) -> None:
    """The maps take turns: taylor's state has a row more."""
    problem = make(shape, ("softplus", "taylor")[(i + j) % 2], fused=False)
    check(operator, run(operator, problem), problem)


@pytest.mark.parametrize("channels", [100, 256])
@pytest.mark.parametrize("operator", OPERATORS)
def test_many_channels(operator: str, channels: int) -> None:
    problem = make((1, channels, 20, 18), "softplus")
    check(operator, run(operator, problem), problem)


@dtypes(torch.float32, torch.float16)
@pytest.mark.parametrize("operator", OPERATORS)
def test_strides(operator: str, dtype: torch.dtype) -> None:
    problem = make((2, 6, 9, 21), "softplus", dtype, strided=True)
    check(operator, run(operator, problem), problem)


@pytest.mark.parametrize("operator", OPERATORS)
def test_offsets_beyond_2_to_the_31(operator: str) -> None:
    """One channel, so that a map with such strides takes no memory."""
    problem = make((1, 1, 1, 20), "softplus", fused=False)
    for x in (problem.q, problem.k, problem.v, problem.grad):
        x.as_strided_(x.shape, (1 << 33, 1 << 31, 1))
    check(operator, run(operator, problem), problem)


@pytest.mark.parametrize("operator", OPERATORS)
def test_twice_the_same_bits(operator: str) -> None:
    problem = make((1, 3, 5, 300), "taylor")
    for a, b in zip(run(operator, problem), run(operator, problem), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 4, 5, 0)], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_compute(operator: str, shape: tuple[int, int, int, int]) -> None:
    problem = make(shape, "softplus")
    for a, b in zip(run(operator, problem), by_reference(operator, problem), strict=True):
        assert torch.equal(a, b)


def far_below(problem: Problem, shift: float) -> Problem:
    return Problem(**vars(problem) | {"q": problem.q + shift, "k": problem.k + shift})


@pytest.mark.parametrize("feature_map", ["softplus", "elu"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_features_far_below_zero(operator: str, feature_map: str) -> None:
    """Where phi is exp: keys at -60, queries at -200, whose exp underflows."""
    shift = -60.0 if operator.startswith("state") else -200.0
    problem = far_below(make((1, 4, 5, 40), feature_map), shift)
    check(operator, run(operator, problem), problem)


@pytest.mark.parametrize(("j", "operator"), enumerate(OPERATORS))
@pytest.mark.parametrize(("i", "feature_map"), enumerate(FEATURE_MAPS))
def test_special_numbers(i: int, feature_map: str, j: int, operator: str) -> None:
    """They go where the reference has them: one in each image, in every tensor by turns.

    (What is multiplied in two parts is NaN where the reference is infinite.)
    """
    problem = make((9, 3, 4, 20), feature_map, DTYPES[(i + j) % 3], fused=False)
    tensors = (x for x in problem.arguments(operator) if isinstance(x, Tensor))
    values = ((2, math.nan), (-1, math.inf), (2, -math.inf))  # -1: of a state, S_1
    for image, (x, (n, value)) in enumerate(itertools.product(tensors, values)):
        x[image, 1, n] = value
    results = zip(run(operator, problem), by_reference(operator, problem), strict=True)
    for name, (actual, expected) in zip(NAMES[operator], results, strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite()), (name, actual, expected)
        if operator in ("state", "read"):
            assert torch.equal(kinds(actual), kinds(expected)), (name, actual, expected)


@pytest.mark.parametrize("feature_map", ["taylor", "relu"])
def test_denominators_of_zero(feature_map: str) -> None:
    """eps = 0, and a query opposite to its one key, or without features: as the reference, 0."""
    problem = make((1, 1, 4, 20), feature_map, fused=False)
    problem.q[0, 0, 3], q = -1.0, problem.q
    state = reference.state(torch.ones(1, 1, 1), torch.ones(1, 4, 1), feature_map)
    for operator, given in (("read", ()), ("read_backward", (problem.grad,))):
        name = f"_linear_attention_{operator}"
        arguments = (*given, q, state, None, *([None] * (operator == "read")), problem.index, 0.0)
        results, expected = KERNELS[name](*arguments), REFERENCE[name](*arguments)
        o = results if operator == "read" else results[0]
        assert not o[0, :, 3].any()
        torch.testing.assert_close(results, expected)  # in float32 both, of one feature


def test_queries_without_features_read_zero() -> None:
    problem = make((1, 3, 4, 20), "relu", fused=False)
    problem.q[0, :, 4] = -1.0
    (o,) = run("read", problem)
    assert (o[0, :, 4] == 0).all()
    grad_q, grad_state, _ = run("read_backward", problem)
    assert (grad_q[0, :, 4] == 0).all()
    assert grad_state.isfinite().all()


def test_short_vectors_have_no_gradient() -> None:
    problem = make((1, 3, 4, 20), "taylor")
    problem.q[0, :, 4], problem.k[0, :, 2] = 1e-8, 0.0
    for operator in OPERATORS:
        results = run(operator, problem)
        if operator.endswith("backward"):
            assert (results[0][0, :, 4 if operator[0] == "r" else 2] == 0).all()
        for actual, expected in zip(results, by_reference(operator, problem), strict=True):
            assert torch.equal(actual.isfinite(), expected.isfinite())
