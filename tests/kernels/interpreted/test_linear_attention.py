"""The raw operators of linear attention by Triton's interpreter, with the tiles of the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segfast.kernels.linear_attention.reference import FEATURE_MAPS
from segfast.ops._linear_attention_cuda import KERNELS, launchers
from segfast.testing import dtypes
from tests.ops.linear_attention_problems import OPERATORS, Problem, by_reference, check, make

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def run(operator: str, problem: Problem) -> tuple[Tensor, ...]:
    assert launchers() is not None
    results = KERNELS[f"_linear_attention_{operator}"](*problem.arguments(operator))
    return results if isinstance(results, tuple) else (results,)


@dtypes(torch.float32, torch.float16, torch.bfloat16)
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_feature_maps(operator: str, feature_map: str, dtype: torch.dtype) -> None:
    problem = make((1, 5, 20, 70), feature_map, dtype)
    check(operator, run(operator, problem), problem)


# B, D, E, N: one of everything; D that fills its tile; several images, blocks and splits.
SHAPES = ((1, 1, 1, 1), (1, 16, 3, 65), (2, 9, 70, 7), (1, 3, 5, 300), (1, 40, 130, 33))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_shapes(operator: str, feature_map: str, shape: tuple[int, int, int, int]) -> None:
    problem = make(shape, feature_map, fused=False)
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


@pytest.mark.parametrize("operator", ["state", "read"])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_special_numbers(operator: str, feature_map: str) -> None:
    problem = make((1, 3, 4, 20), feature_map, fused=False)
    problem.q[0, 1, 3], problem.q[0, 0, 5] = float("nan"), float("-inf")
    problem.k[0, 2, 7] = float("nan")
    (actual,), (expected,) = run(operator, problem), by_reference(operator, problem)
    assert torch.equal(actual.isnan(), expected.isnan())


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
