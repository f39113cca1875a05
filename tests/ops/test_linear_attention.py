"""Linear attention of given q, k and v: accuracy, half precision, layouts, the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segfast import _native
from segfast.kernels.linear_attention import reference
from segfast.ops import linear_attention
from segfast.testing import dtypes
from tests.ops.linear_attention_cases import (
    EPS,
    NAMES,
    Shape,
    assert_right,
    inputs,
    kinds,
    ours,
    theirs,
    with_gradients,
)

MAPS = reference.FEATURE_MAPS
feature_maps = pytest.mark.parametrize("feature_map", MAPS)
ISAS = _native.instruction_sets() or [None]

# Tiles, blocks and chunks of the kernels end in none of these sizes at once.
SHAPES: list[Shape] = [
    (2, 5, 7, 1, 1),
    (1, 1, 1, 3, 5),
    (3, 17, 33, 65, 64),
    (2, 8, 64, 513, 700),
    (1, 32, 256, 600, 1030),
    (1, 130, 300, 210, 190),
    (1, 40, 8, 270, 257),  # blocks of two lengths in one scratch
    (2, 20, 530, 64, 64),  # channels of v in ranges
    (1, 300, 900, 140, 150),  # and chunks of 128
]


# ------------------------------------------------------------------------------------- accuracy


@feature_maps
def test_linear_is_quadratic(feature_map: str) -> None:
    """The oracle: sums first, or every pair of query and key."""
    tensors = inputs((2, 6, 9, 31, 40), feature_map)
    pairs = with_gradients(
        lambda q, k, v, name: reference.quadratic(q, k, v, name, EPS), tensors, feature_map
    )
    for a, b in zip(with_gradients(theirs, tensors, feature_map), pairs, strict=True):
        # float64: some hundred sums of 1e-16 each, in two orders
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@feature_maps
def test_reference_formulas_are_its_derivatives(feature_map: str) -> None:
    """The backward formulas against autograd, gamma included."""
    q, k, v, grad = inputs((2, 4, 3, 7, 8), feature_map)
    q[:, :, 1] -= 40
    gamma = torch.tensor([0.7, -1.3], dtype=torch.float64)
    q, k, v, gamma = (x.requires_grad_() for x in (q, k, v, gamma))
    state = reference.state(k, v, feature_map)
    o = reference.read(q, state, feature_map, EPS, gamma)
    expected = torch.autograd.grad(o, (q, k, v, gamma), grad)
    grad_q, grad_state, grad_gamma = reference.read_backward(
        grad, q, state, feature_map, EPS, gamma
    )
    grad_k, grad_v = reference.state_backward(grad_state, k, v, feature_map)
    for a, b in zip((grad_q, grad_k, grad_v, grad_gamma), expected, strict=True):
        # float64, two formulas; q - 40 makes both cancel some digits
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes()
@feature_maps
def test_accuracy(feature_map: str, dtype: torch.dtype, shape: Shape, isa: str | None) -> None:
    tensors = inputs(shape, feature_map, dtype)
    if isa is None:
        assert_right(tensors, feature_map)
        return
    with _native.use_instruction_set(isa):
        assert_right(tensors, feature_map, isa=isa)


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_chunks_of_many_positions(isa: str) -> None:
    """Blocks of several widths, 480 to 288 backward: 32 chunks of 851 positions, and gradients."""
    for features in (18, 29, 47):
        tensors = inputs((1, features, 96, 27225, 27225), "softplus", torch.float32)
        with _native.use_instruction_set(isa):
            assert_right(tensors, "softplus", isa=isa)


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_softplus_down_to_the_smallest_normal_number(isa: str) -> None:
    """softplus(x) is e^x there: nothing is cut off before."""
    for dtype, x in ((torch.float32, -87.336), (torch.float64, -708.396)):
        k = torch.full((1, 3, 40), x, dtype=dtype)
        with _native.use_instruction_set(isa):
            state = torch.ops.segfast._linear_attention_state(k, k, 0)
        ones = torch.full((1, 3), 40 * math.exp(float(k[0, 0, 0])), dtype=torch.float64)
        # 2e-7 of e^x (kernels/linear_attention/README.md), and a sum of 40 in float32
        torch.testing.assert_close(state[..., -1].double(), ones, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 255, 8, 504, 504), (1, 16, 96, 504, 504)], ids=str)
@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_rows_of_scratch_do_not_overlap(shape: Shape, isa: str) -> None:
    """Blocks that are no whole number of cache lines wide, as whole tiles of SSE may be."""
    tensors = inputs(shape, "softplus", torch.float32)
    with _native.use_instruction_set(isa):
        assert_right(tensors, "softplus", isa=isa)


sizes = st.integers(1, 40)


@settings(max_examples=60)
@given(
    st.sampled_from(MAPS),
    st.tuples(st.integers(1, 3), sizes, sizes, st.integers(1, 700), st.integers(1, 700)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 9),
)
def test_any_size(feature_map: str, shape: Shape, dtype: torch.dtype, seed: int) -> None:
    assert_right(inputs(shape, feature_map, dtype, seed), feature_map)


@dtypes(torch.float16, torch.bfloat16)
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
def test_half_precision_of_large_maps(feature_map: str, dtype: torch.dtype) -> None:
    """65536 positions: sums in half precision overflow (softplus) or lose terms (taylor)."""
    q, k, v, grad = inputs((1, 8, 16, 65536, 65536), feature_map, dtype)
    v = v + 1
    assert_right([q, k, v, grad], feature_map)
    o = ours(q, k, v, feature_map).double()
    assert bool((o - 1).abs().max() < 0.1)  # means of v: about 1, not 0 and not infinite


@dtypes(torch.float32, torch.float64)
def test_features_are_accurate_in_relative_terms(dtype: torch.dtype) -> None:
    """One key and v = 1: the state is phi(k), however small."""
    k = torch.linspace(-80, 40, 6001, dtype=dtype).view(-1, 1, 1)
    ones = torch.ones_like(k)
    # In units of roundoff, with fused multiply-adds: 2 in e^k (argument and polynomial), 3 in the
    # polynomial log(1 + t) / t, whose partial sums add up to that much of it, 1 in their product, 1
    # in k + log; the polynomials themselves are off by less than 1/8 (README.md of the kernels).
    limit = 8 * torch.finfo(dtype).eps / 2
    for index, name in enumerate(MAPS):
        if name in ("softplus", "elu"):
            phi = torch.ops.segfast._linear_attention_state(k, ones, index)[:, 0, 0]
            expected = reference.features(k.double(), name).flatten()
            if name == "softplus":  # whose reference leaves e^-k out from k = 20 on
                expected = torch.nn.functional.softplus(k.double(), threshold=100).flatten()
            assert float(((phi - expected) / expected).abs().max()) < limit, name


# ------------------------------------------------------------- where the published code fails


@feature_maps
@dtypes()
def test_zero_queries_and_keys_are_finite(feature_map: str, dtype: torch.dtype) -> None:
    """0 / |0| is NaN in the published taylor code; relu and identity would divide 0 by 0."""
    q, k, v, grad = inputs((1, 4, 5, 9, 9), feature_map, dtype)
    q[..., 2] = 0
    k[..., 3] = 0
    for x in with_gradients(ours, (q, k, v, grad), feature_map):
        assert bool(x.isfinite().all())
    assert_right([q, k, v, grad], feature_map)
    if feature_map in ("relu", "identity"):
        assert not ours(q, k, v, feature_map)[..., 2].any()
    if feature_map == "taylor":  # attends to all alike
        o = ours(q, k, v, feature_map)[..., 2].double()
        # (o is rounded to the dtype: bfloat16 keeps 2^-9)
        torch.testing.assert_close(o, v.double().mean(-1), rtol=1e-2, atol=1e-2)


@dtypes(torch.float32, torch.float64)
@pytest.mark.parametrize("feature_map", ["softplus", "elu"])
def test_underflow_of_a_query(feature_map: str, dtype: torch.dtype) -> None:
    """exp(-110) is 0 in float32: numerator and denominator, but not their quotient."""
    q, k, v, grad = inputs((1, 4, 5, 6, 9), feature_map)
    assert_right([x.to(dtype) for x in (q - 110, k, v, grad)], feature_map)


@dtypes()
def test_antiparallel_keys(dtype: torch.dtype) -> None:
    """All keys opposite to the query: the taylor denominator is clamped, and its slope is 0."""
    q = torch.full((1, 3, 2), 0.5)
    k = torch.full((1, 3, 8), -0.5)
    v, grad = inputs((1, 3, 4, 2, 8), "taylor", torch.float32)[2:]
    for x in with_gradients(ours, [t.to(dtype) for t in (q, k, v, grad)], "taylor"):
        assert bool(x.isfinite().all())


def test_nothing_divided_by_nothing_is_nothing() -> None:
    """eps = 0: no keys, or one that points the other way; by the oracle, too."""
    q = torch.ones(1, 1, 3, dtype=torch.float64)
    for k in (q[..., :0], -q[..., :1]):
        v = 2 * k
        assert not linear_attention(q.mT, k.mT, v.mT, "taylor", 0.0).any()
        assert not reference.linear(q, k, v, "taylor", 0.0).any()
        assert not reference.quadratic(q, k, v, "taylor", 0.0).any()


def test_short_vectors_have_no_gradient() -> None:
    q, k, v, grad = inputs((1, 3, 4, 2, 5), "taylor")
    q[..., 1] *= 1e-9
    _, grad_q, _, _ = with_gradients(ours, (q, k, v, grad), "taylor")
    assert not grad_q[..., 1].any()
    assert bool(grad_q[..., 0].all())


@feature_maps
def test_nan_and_infinity_stay_where_they_are(feature_map: str) -> None:
    q, k, v, _ = inputs((2, 4, 3, 6, 7), feature_map, torch.float32)
    q[0, 1, 2] = float("nan")
    v[1, 2, 3] = float("inf")
    o = ours(q, k, v, feature_map)
    assert bool(o[0, :, 2].isnan().all())
    assert not o[1, 2].isfinite().any()
    o[0, :, 2] = 0
    o[1, 2] = 0
    assert bool(o.isfinite().all())


SPECIAL = [math.nan, math.inf, -math.inf]


def with_special_numbers(
    feature_map: str, dtype: torch.dtype
) -> Iterator[tuple[str, list[Tensor]]]:
    """One of them in q, k, v or the gradient of o; a query, or a key, of nothing else."""
    for i, name in enumerate(("q", "k", "v", "grad")):
        for value in SPECIAL:
            tensors = inputs((1, 3, 2, 5, 6), feature_map, dtype)
            tensors[0][..., 3] = -1  # where relu is 0
            tensors[i][0, 1, 2] = value
            yield f"{name} {value}", tensors
            if i < 2:
                tensors[i][0, :, 2] = value
                yield f"all of {name} {value}", tensors


@pytest.mark.parametrize("eps", [EPS, 0.0])
@dtypes()
@feature_maps
def test_special_numbers_go_where_the_oracle_has_them(
    feature_map: str, dtype: torch.dtype, eps: float
) -> None:
    """Neither wider nor less. (Two infinities in a gradient are NaN in one order of sums only.)"""

    def attend(q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
        return linear_attention(q.mT, k.mT, v.mT, name, eps).mT

    def by_oracle(q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
        return reference.linear(q, k, v, name, eps)

    for where, tensors in with_special_numbers(feature_map, dtype):
        oracle = with_gradients(by_oracle, [x.double() for x in tensors], feature_map)
        actual = with_gradients(attend, tensors, feature_map)
        assert torch.equal(kinds(actual[0]), kinds(oracle[0])), (where, actual[0], oracle[0])
        for name, a, b in zip(NAMES[1:], actual[1:], oracle[1:], strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), (where, name, a, b)


@feature_maps
def test_special_numbers_in_the_formulas_of_gradients(feature_map: str) -> None:
    """The reference's backward formulas against autograd."""
    for where, (q, k, v, grad) in with_special_numbers(feature_map, torch.float64):
        expected = with_gradients(theirs, (q, k, v, grad), feature_map)[1:]
        state = reference.state(k, v, feature_map)
        grad_q, grad_state, _ = reference.read_backward(grad, q, state, feature_map, EPS)
        grad_k, grad_v = reference.state_backward(grad_state, k, v, feature_map)
        for a, b in zip((grad_q, grad_k, grad_v), expected, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), (where, a, b)


@feature_maps
@dtypes()
def test_empty(feature_map: str, dtype: torch.dtype) -> None:
    for shape in ((0, 4, 5, 6, 7), (2, 4, 5, 0, 7), (2, 4, 5, 6, 0)):
        tensors = inputs(shape, feature_map, dtype)
        o, *gradients = with_gradients(ours, tensors, feature_map)
        assert o.shape == (shape[0], 5, shape[3])
        assert not o.any()
        assert [x.shape for x in gradients] == [x.shape for x in tensors[:3]]
        assert all(bool(x.isfinite().all()) for x in gradients)


# -------------------------------------------------------------------------------------- layouts


@dtypes(torch.float32, torch.bfloat16)
def test_any_strides(dtype: torch.dtype) -> None:
    """Positions or channels next to each other, every second one, expanded; the same result."""
    q, k, v, _ = (x.mT for x in inputs((2, 5, 6, 30, 40), "softplus", dtype))
    expected = linear_attention(q, k, v)
    assert expected.stride(-2) == 1  # laid out as v
    rows = linear_attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert rows.is_contiguous()
    assert torch.equal(rows, expected)
    spread = [x.repeat_interleave(2, -2)[..., ::2, :] for x in (q, k, v)]
    assert torch.equal(linear_attention(*spread), expected)
    shared = linear_attention(q[:1].expand(2, -1, -1), k[:1], v)
    alone = torch.cat([linear_attention(q[:1], k[:1], v[i : i + 1]) for i in range(2)])
    assert torch.equal(shared, alone)


def test_heads_and_broadcasting() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 1, 20, 4), (2, 25, 4), (3, 2, 25, 6))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    o = linear_attention(q, k, v, "elu")
    assert o.shape == (3, 2, 20, 6)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(o[i, j], linear_attention(q[i, 0], k[j], v[i, j], "elu"))


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
def test_same_bits(feature_map: str, threads: int) -> None:
    tensors = inputs((2, 12, 20, 3000, 2500), feature_map, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(ours, tensors, feature_map)
        torch.set_num_threads(threads)
        for _ in range(2):
            for a, b in zip(with_gradients(ours, tensors, feature_map), one, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_kept_memory_serves_again(compiled_kernels: None) -> None:
    """Without poison scratch memory is kept between calls: the same bits from the same blocks."""
    tensors = inputs((1, 40, 300, 2000, 2000), "softplus", torch.float32)
    poisoned = with_gradients(ours, tensors, "softplus")
    module = _native.native()
    assert module is not None
    module.poison(False)  # until the fixture of all these tests gives back what was
    for _ in range(3):
        for a, b in zip(with_gradients(ours, tensors, "softplus"), poisoned, strict=True):
            assert torch.equal(a, b)


@feature_maps
def test_every_element_is_written(feature_map: str) -> None:
    tensors = inputs((2, 6, 7, 70, 90), feature_map, torch.float32)
    for x in with_gradients(ours, tensors, feature_map):
        assert bool(x.isfinite().all())
