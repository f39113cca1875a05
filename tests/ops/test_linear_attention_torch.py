"""Linear attention inside PyTorch: torch.func, compile, export, opcheck, autocast; refusals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.ops import linear_attention, linear_attention2d
from segfast.testing import op_battery
from tests.ops.linear_attention_cases import EPS, block_weights, inputs, ours


def tokens(seed: int = 0, n: int = 6, feature_map: str = "softplus") -> tuple[Tensor, ...]:
    """q [2, N, 3], k [2, 5, 3], v [2, 5, 4] in float64, views of maps."""
    return tuple(x.mT for x in inputs((2, 3, 4, n, 5), feature_map, seed=seed)[:3])


@pytest.mark.parametrize(
    "feature_map",
    [
        # Formulas of all maps are compared elsewhere. The state of taylor has a row more: the
        # battery of the block has that one.
        pytest.param(f, marks=() if f == "softplus" else pytest.mark.thorough)
        for f in reference.FEATURE_MAPS
    ],
)
def test_battery(feature_map: str) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v, feature_map)

    op_battery(
        fn,
        tokens(feature_map=feature_map),
        differentiable=(0, 1, 2),
        other_args=tokens(n=7, feature_map=feature_map),
        other_sample=tokens(seed=1, feature_map=feature_map),
        autocast="cast",
    )


def test_battery_of_the_block() -> None:
    """Under autocast it computes in bfloat16, though x is added, and y given, in float32."""
    weights = block_weights(3, 2, torch.float64)

    def fn(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, gamma: Tensor) -> Tensor:
        b_q, b_k, b_v = (weights[i].to(x.dtype) for i in (1, 3, 5))
        y = linear_attention2d(x, w_q, b_q, w_k, b_k, w_v, b_v, gamma, "taylor", residual=False)
        return y.bfloat16() if torch.is_autocast_enabled("cpu") else y

    generator = torch.Generator().manual_seed(0)

    def args(height: int, width: int) -> tuple[Tensor, ...]:
        x = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
        return (x, weights[0], weights[2], weights[4], torch.full_like(weights[6], 0.75))

    op_battery(
        fn, args(4, 5), differentiable=(0, 1, 2, 3, 4), other_args=args(7, 9), autocast="cast"
    )


@pytest.mark.parametrize("name", ["softplus", "taylor"])  # whose state has one row more
@pytest.mark.parametrize("grad", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_opcheck(name: str, grad: bool, request: pytest.FixtureRequest) -> None:
    """Schema, fake, autograd, AOT with dynamic sizes, of every raw operator; each call with one of
    the maps, but with --all.
    """
    feature_map = reference.FEATURE_MAPS.index(name)
    q, k, v, grad_o = inputs((2, 3, 4, 6, 5), name)
    state = torch.ops.segfast._linear_attention_state(k, v, feature_map)
    gamma = torch.ones(2, dtype=torch.float64)
    residual = torch.ones_like(grad_o)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("state", (k, v, feature_map)),
        ("state_backward", (state, k, v, feature_map)),
        ("read", (q, state, gamma, residual, feature_map, 1e-6)),
        ("read", (q, state, None, None, feature_map, 1e-6)),
        ("read_backward", (grad_o, q, state, gamma, feature_map, 1e-6)),
        ("read_backward", (grad_o, q, state, None, feature_map, 1e-6)),
    ]
    every, half = request.config.getoption("--all"), ("taylor", "softplus").index(name)
    for suffix, arguments in calls if every else calls[half::2]:
        operator = getattr(torch.ops.segfast, f"_linear_attention_{suffix}").default
        leaves = [
            x.detach().clone().requires_grad_(grad) if isinstance(x, Tensor) else x
            for x in arguments
        ]
        torch.library.opcheck(operator, leaves)


@pytest.mark.parametrize("value", [0.0, 100.0, 800.0])
@pytest.mark.parametrize("feature_map", ["softplus", "elu"])
def test_second_derivatives_where_formulas_branch(feature_map: str, value: float) -> None:
    """At 0 two formulas meet, and e^800 overflows in the one that is not chosen."""
    q, k, v, grad = inputs((1, 3, 2, 5, 6), feature_map)
    q[:, :, 1] = value + (feature_map == "elu")  # that one has no second derivative at 0
    directions = inputs((1, 3, 2, 5, 6), feature_map, seed=1)

    def by_pairs(q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
        return reference.quadratic(q, k, v, name, EPS)

    def second(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        o = function(*given, feature_map)
        first = torch.autograd.grad(o, given, grad, create_graph=True)
        along = sum((a * b).sum() for a, b in zip(first, directions, strict=False))
        return torch.autograd.grad(along, given)

    for a, b in zip(second(ours), second(by_pairs), strict=True):
        # float64: a few hundred sums of 1e-16 each, in two orders; terms of up to some 100 cancel
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_traced() -> None:
    """torch.jit.trace, where sizes are tensors; maps of another size after."""
    weights = block_weights(4, 3, torch.float64)
    small, large = torch.randn(1, 4, 5, 6).double(), torch.randn(2, 4, 9, 3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and warns of every check of a size
        traced = torch.jit.trace(lambda x: linear_attention2d(x, *weights), small)
    assert torch.equal(traced(large), linear_attention2d(large, *weights))


@pytest.mark.usefixtures("inductor")
def test_inductor() -> None:
    q, k, v = (x.float().requires_grad_() for x in tokens())

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (linear_attention(q, k, v * 2) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True)
    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_the_graph_keeps() -> None:
    """q, k, v and the state: no features, no output."""
    q, k, v = (x.requires_grad_() for x in tokens(n=50))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        linear_attention(q, k, v)
    assert sum(x.numel() for x in kept) == q.numel() + k.numel() + v.numel() + 2 * 3 * 5


GOOD: dict[str, Any] = {
    "q": torch.zeros(2, 6, 3),
    "k": torch.zeros(2, 5, 3),
    "v": torch.zeros(2, 5, 4),
}
BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("q", [[1.0]], TypeError, "q must be a tensor"),
    ("q", torch.zeros(6), ValueError, r"q must be \[..., N, D\]"),
    ("q", torch.zeros(2, 6, 0), ValueError, "with channels"),
    ("k", torch.zeros(2, 5, 2), ValueError, "k must have the channels of q, 3"),
    ("k", torch.zeros(2, 5, 3).double(), TypeError, "k must have the dtype of q"),
    ("v", torch.zeros(2, 4, 4), ValueError, "v must have the positions of k, 5"),
    ("v", torch.zeros(2, 5, 4).int(), TypeError, "v must be a floating-point tensor"),
    ("v", torch.zeros(3, 5, 4), ValueError, "must broadcast"),
    ("v", torch.zeros(2, 5, 4).to(torch.float8_e5m2), TypeError, "v must be float32"),
    ("feature_map", "gelu", ValueError, "feature_map must be one of softplus"),
    ("eps", -1.0, ValueError, "eps must be finite and not negative"),
    ("eps", "small", TypeError, "eps must be a number"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD, ids=lambda x: str(x)[:30])
def test_refusals(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_attention(**{**GOOD, name: value})


BLOCK_NAMES = ("x", "w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "gamma")
BAD_BLOCKS: list[tuple[str, Any, type[Exception], str]] = [
    ("x", torch.zeros(4, 2, 3), ValueError, r"x must be \[B, C, H, W\]"),
    ("w_q", torch.zeros(3, 5), ValueError, r"w_q must be \[D, 4\]"),
    ("w_q", torch.zeros(3, 4, 3, 3), ValueError, r"w_q must be \[D, 4\]"),
    ("w_k", torch.zeros(2, 4), ValueError, "w_k must have the rows of w_q, 3"),
    ("w_v", torch.zeros(5, 4), ValueError, "w_v must have 4 rows"),
    ("b_q", torch.zeros(4), ValueError, r"b_q must be \[3\]"),
    ("w_q", torch.tensor(1.0), ValueError, r"w_q must be \[D, 4\] .* of shape \(\)"),
    ("w_v", torch.zeros(4, 4, 1), ValueError, r"w_v must be \[D, 4\] .* of shape \(4, 4, 1\)"),
    (
        "w_k",
        torch.zeros(3, 4).half(),
        TypeError,
        "w_k must have the dtype of x, torch.float32; got",
    ),
    ("b_q", torch.zeros(3).double(), TypeError, "b_q must have the dtype of x, torch.float32; got"),
    ("gamma", torch.zeros(1).half(), TypeError, "gamma must have the dtype of x, torch.float32; "),
    ("residual", "no", TypeError, "residual must be True or False, got str 'no'"),
    ("b_v", 1.0, TypeError, "b_v must be a tensor"),
    ("gamma", torch.zeros(2), ValueError, "gamma must have one element"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), BAD_BLOCKS, ids=lambda x: str(x)[:30]
)
def test_refusals_of_the_block(name: str, value: Any, error: type[Exception], message: str) -> None:
    given = [torch.zeros(1, 4, 2, 3), *block_weights(4, 3, torch.float32)]
    with pytest.raises(error, match=message):
        linear_attention2d(**{**dict(zip(BLOCK_NAMES, given, strict=True)), name: value})


@pytest.mark.usefixtures("compiled_kernels")
def test_the_kernels_refuse_other_dtypes() -> None:
    """What guards memory behind the public functions."""
    q, k, v, _ = inputs((2, 3, 4, 6, 5), "relu", torch.float32)
    state = torch.ops.segfast._linear_attention_state(k, v, 2)
    with pytest.raises(RuntimeError, match=r"state must be \[2, 3, 5\]"):
        torch.ops.segfast._linear_attention_read(q, state.reshape(1, 6, 5), None, None, 2, 0.0)
    with pytest.raises(RuntimeError, match="state must be Float, got Double"):
        torch.ops.segfast._linear_attention_read(q, state.double(), None, None, 2, 0.0)
    with pytest.raises(RuntimeError, match=r"maps must be float32, .* or bfloat16, got Long"):
        torch.ops.segfast._linear_attention_state(k.long(), v.long(), 2)
