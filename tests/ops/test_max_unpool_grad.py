"""Gradients of max-pooling and unpooling: PyTorch's where it is right, the last writer's where
windows overlap, and what the graph keeps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segfast.kernels.max_unpool import reference
from segfast.kernels.max_unpool.reference import Windows
from segfast.ops import max_pool2d, max_pool2d_packed, max_unpool2d, unpack_indices
from segfast.ops._max_unpool_op import grouped
from segfast.testing import assert_as_good_as, dtypes
from tests.ops.max_unpool_cases import DTYPES, LAYOUTS, Pool, distinct, identical, laid_out, pools
from tests.ops.max_unpool_cases import maps as ties

# Strict: central differences in float64 of linear functions are good to 1e-9.
NUMERIC: dict[str, Any] = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-6}
OVERLAPPING = {
    "3/2": Pool(3, 2),
    "3/1 padded": Pool(3, 1, 1),
    "dilated": Pool((3, 2), (1, 2), (1, 0), (2, 1)),
    "4/3 ceil": Pool(4, 3, 2, 1, True),
}


def gradient(outputs: Tensor, of: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(outputs, of, weight.to(outputs.dtype), **options)[0]


# ------------------------------------------------------------------------------------- pooling


@settings(max_examples=500)
@given(pools(), st.sampled_from(LAYOUTS), st.integers(0, 9), st.booleans())
def test_pool_gradient_is_pytorch_s(
    case: tuple[Pool, Any], layout: str, seed: int, special: bool
) -> None:
    """Sums of small integers are exact in any order, so every bit must agree."""
    pool, shape = case
    ours, theirs = (
        laid_out(ties(shape, seed, special=special), layout).requires_grad_() for _ in range(2)
    )
    y, expected = max_pool2d(ours, *pool), pool.pytorch(theirs)[0]
    weight = ties(tuple(y.shape), seed + 1)
    assert identical(gradient(y, ours, weight), gradient(expected, theirs, weight))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@dtypes()
def test_sums_over_windows(dtype: torch.dtype, layout: str) -> None:
    """25 windows share the peaks; halves are summed in float32."""
    x = torch.zeros(2, 17, 21, 23)
    x[:, :, ::5, ::5] = 1
    x = laid_out(x.to(dtype), layout)
    pool = Pool(5, 1, 2)
    leaf = x.clone().requires_grad_()
    y = max_pool2d(leaf, *pool)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = gradient(y, leaf, laid_out(weight, layout))
    exact, plain = x.double().requires_grad_(), x.clone().requires_grad_()
    oracle = gradient(pool.pytorch(exact)[0], exact, weight)
    baseline = gradient(pool.pytorch(plain)[0], plain, weight)
    assert_as_good_as(found, oracle, baseline, terms=25, magnitude=25 * float(weight.abs().max()))
    if dtype in (torch.float16, torch.bfloat16):  # as good as float32 rounded once, or nearly
        wide = x.float().requires_grad_()
        best = gradient(pool.pytorch(wide)[0], wide, weight).to(dtype)
        assert (found != best).float().mean() < 0.01


def test_sum_order_is_row_major() -> None:
    """2^24 + 1 - 2^24 in float32 depends on the order: windows are added first to last."""
    x = torch.zeros(1, 1, 3, 1)
    x[0, 0, 1] = 1
    for weights, expected in (((2.0**24, 1.0, -(2.0**24)), 0.0), ((2.0**24, -(2.0**24), 1.0), 1.0)):
        leaf = x.clone().requires_grad_()
        y = max_pool2d(leaf, (3, 1), 1, (1, 0))
        assert y.flatten().tolist() == [1, 1, 1]
        found = gradient(y, leaf, torch.tensor(weights).view(1, 1, 3, 1))
        assert found.flatten().tolist() == [0, expected, 0]


# ----------------------------------------------------------------------------------- unpooling


def winners(indices: Tensor) -> Tensor:
    """True where no later window names the same position."""
    flat = indices.flatten(2)
    later = (flat[..., :, None] == flat[..., None, :]).triu(1)
    return ~later.any(-1).view(indices.shape)


@settings(max_examples=300)
@given(pools(), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 9))
def test_unpool_gradient_goes_to_winners(
    case: tuple[Pool, Any], dtype: torch.dtype, layout: str, seed: int
) -> None:
    pool, shape = case
    packed = max_pool2d_packed(laid_out(ties(shape, seed), layout), *pool)[1]
    indices = unpack_indices(packed, shape, *pool)
    weight = laid_out(ties(shape, seed + 1, dtype), layout)
    there = weight.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    expected = there.where(winners(indices), torch.zeros((), dtype=dtype))
    for where in (packed, indices):
        y = laid_out(ties(tuple(indices.shape), seed + 2, dtype), layout).requires_grad_()
        x = max_unpool2d(y, where, **pool.unpooling(), output_size=shape)
        assert identical(gradient(x, y, weight), expected)
    if pool.disjoint():
        theirs = ties(tuple(indices.shape), seed + 2, dtype).requires_grad_()
        x = torch.ops.aten.max_unpool2d(theirs, indices, list(shape[2:]))
        assert identical(gradient(x, theirs, weight), expected)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_derivatives_of_overlapping_windows(name: str, layout: str) -> None:
    """gradcheck and gradgradcheck, where PyTorch's unpooling fails both."""
    pool, shape = OVERLAPPING[name], (1, 2, 5, 6)
    x = laid_out(distinct(shape), layout).requires_grad_()
    y, packed = max_pool2d_packed(x, *pool)
    indices = unpack_indices(packed, shape, *pool)
    assert not bool(winners(indices).all())
    y = laid_out(distinct(tuple(y.shape), 1), layout).requires_grad_()
    functions = {
        "pool": (lambda x: max_pool2d(x, *pool), x),
        "packed": (
            lambda y: max_unpool2d(y, packed, **pool.unpooling(), output_size=shape[2:]), y),
        "int64": (
            lambda y: max_unpool2d(y, indices, **pool.unpooling(), output_size=shape[2:]), y),
    }  # fmt: skip
    for fn, leaf in functions.values():
        assert torch.autograd.gradcheck(fn, leaf, **NUMERIC)
        assert torch.autograd.gradgradcheck(fn, leaf, **NUMERIC)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(
            lambda y: torch.ops.aten.max_unpool2d(y, indices, list(shape[2:])), y, **NUMERIC
        )


def test_duplicate_indices() -> None:
    y = torch.arange(4.0).view(1, 1, 2, 2).requires_grad_()
    indices = torch.tensor([[[[5, 0], [5, 3]]]])
    x = max_unpool2d(y, indices, 2)
    weight = torch.arange(16.0).view(1, 1, 4, 4) + 1
    assert gradient(x, y, weight).flatten().tolist() == [0, 1, 6, 4]


def test_a_position_beyond_the_output_has_no_gradient() -> None:
    """Unpooled to a smaller map, some values are nowhere."""
    y, packed = max_pool2d_packed(torch.arange(36.0).view(1, 1, 6, 6), 2)
    y.requires_grad_()
    x = max_unpool2d(y, packed, 2, output_size=(5, 5))  # every maximum is bottom right
    assert x.shape == (1, 1, 5, 5)
    assert gradient(x, y, torch.ones(1, 1, 5, 5)).flatten().tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_gradients_keep_the_layout(layout: str) -> None:
    """Whatever layout the gradient comes in: that of x for the pool's."""
    x = laid_out(ties((2, 5, 8, 6)), layout).requires_grad_()
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for other in LAYOUTS:
        y = max_pool2d(x, 2)
        found = gradient(y, x, laid_out(torch.ones(y.shape), other))
        assert found.is_contiguous(memory_format=wanted)
        assert found.sum() == y.numel()


# ---------------------------------------------------------------------------- what is remembered


def kept_by(function: Any) -> tuple[int, Any]:
    """Bytes of the tensors that autograd saves, each storage once; and the result."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = function()
    return sum(storages.values()), result


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize(("pool", "bits"), [(Pool(2), 2), (Pool(3, 2, 1), 4), (Pool(5, 4, 2), 8)])
def test_the_graph_keeps_packed_indices_only(pool: Pool, bits: int, layout: str) -> None:
    x = laid_out(torch.randn(2, 16, 64, 64), layout).requires_grad_()
    windows = pool.pytorch(x)[0].numel()
    for function in (lambda: max_pool2d(x * 1, *pool), lambda: max_pool2d_packed(x * 1, *pool)):
        kept, _ = kept_by(function)
        assert kept == windows * bits // 8
    kept, _ = kept_by(lambda: pool.pytorch(x * 1))
    assert kept >= x.numel() * 4 + windows * 8  # PyTorch: the whole input, 64 bits per window


def test_unpool_keeps_packed_indices_only() -> None:
    y, packed = max_pool2d_packed(torch.randn(2, 16, 64, 64), 2)
    y.requires_grad_()
    kept, x = kept_by(lambda: max_unpool2d(y, packed, 2))
    assert kept == packed.nbytes
    kept, _ = kept_by(lambda: gradient(x, y, torch.ones_like(x), create_graph=True))
    assert kept <= packed.nbytes  # nor does the gradient's own graph keep maps


def test_the_input_is_freed() -> None:
    import weakref

    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    middle = x * 2
    gone = weakref.ref(middle)
    y = max_pool2d(middle, 2)
    del middle
    assert gone() is None
    y.sum().backward()
    assert x.grad is not None


def test_segnet_keeps_16_mb() -> None:
    """Batch 12 at 360x480, five pools: 16 MB of indices where PyTorch keeps 505 MB.

    Measured: the five index tensors themselves. bfloat16 and channels_last, which PyTorch pools
    fastest, and one level after the other, as what indices take depends on none of that.
    """
    levels = ((64, 360, 480), (128, 180, 240), (256, 90, 120), (512, 45, 60), (512, 22, 30))
    ours = theirs = 0
    for shape in levels:
        x = torch.zeros(12, *shape[1:], shape[0], dtype=torch.bfloat16).movedim(3, 1)
        for indices in (max_pool2d_packed(x, 2)[1], Pool(2).pytorch(x)[1]):
            assert indices.device.type == "cpu"
            assert indices.untyped_storage().nbytes() == indices.nbytes  # all of what is kept
            if indices.dtype == torch.uint8:
                ours += indices.nbytes
            else:
                theirs += indices.nbytes
            del indices
    assert round(ours / 1e6) == 16
    assert round(theirs / 1e6) == 505


# ---------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_reference_agrees_with_the_kernels(layout: str) -> None:
    """The oracle in float64, on each raw operator: what compiled kernels compute, bit for bit."""
    pool = Pool((3, 2), (2, 1), (1, 1), (1, 2), True)
    x = laid_out(distinct((2, 5, 9, 11)), layout)
    y, packed = max_pool2d_packed(x, *pool)
    windows = Windows.of((3, 2), (2, 1), (1, 1), (1, 2))
    small, large = list(y.shape[2:]), list(x.shape[2:])
    indices = laid_out(unpack_indices(packed, x.shape, *pool), layout)
    raw: dict[str, tuple[Any, ...]] = {
        "max_pool2d": (x, *windows, *small),
        "max_pool2d_values": (x, *windows, *small),
        "max_pool2d_backward": (y, packed, *windows, *large),
        "max_unpool2d": (y, packed, *windows, *large),
        "max_gather2d": (x, packed, *windows, small[1], True),
        "max_unpool2d_indices": (y, indices, *large),
        "max_gather2d_indices": (x, indices, True),
        "max_pack": (indices, *windows, *large),
        "max_unpack": (packed, *windows, *large, small[1]),
    }
    cases = [*raw.items(), ("max_gather2d", (*raw["max_gather2d"][:-1], False))]
    for (name, arguments), shift in itertools.product(cases, (0, 1)):
        if shift and name in ("max_unpool2d", "max_pool2d_backward"):  # other sizes than the pool's
            arguments = (*arguments[:-2], arguments[-2] + 1, arguments[-1] - 1)
        found = getattr(torch.ops.segfast, f"_{name}")(*arguments)
        expected = getattr(reference, name)(*grouped(f"_{name}", arguments))
        for a, b in zip(torch.utils._pytree.tree_leaves(found),
                        torch.utils._pytree.tree_leaves(expected), strict=True):  # fmt: skip
            assert torch.equal(a, b), name
            assert a.stride() == b.stride(), name
