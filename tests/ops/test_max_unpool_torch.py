"""Max-pooling and unpooling inside PyTorch: torch.func, compile, export, opcheck, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segfast.ops import (
    max_pool2d,
    max_pool2d_packed,
    max_unpool2d,
    pack_indices,
    unpack_indices,
)
from segfast.ops._max_unpool_op import SCHEMAS
from segfast.testing import dtypes, op_battery
from tests.ops.max_unpool_cases import LAYOUTS, Pool, distinct, identical, laid_out, maps

# Windows that overlap, in sizes that are all different: torch.compile takes equal ones for one.
POOL = Pool(3, 2, 1)
SIZE, OTHER = (2, 3, 9, 13), (3, 4, 13, 21)


def pooled(size: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    y, indices = POOL.pytorch(distinct(size, seed))
    return {"y": y, "int64": indices, "packed": pack_indices(indices, size, *POOL)}


@pytest.mark.parametrize("pool", [max_pool2d, max_pool2d_packed])
def test_pools(pool: Any) -> None:
    def fn(x: Tensor) -> Any:
        return pool(x, *POOL)

    op_battery(fn, (distinct(SIZE),), differentiable=(0,), other_args=(distinct(OTHER),))


@pytest.mark.parametrize("kind", ["packed", "int64"])
def test_unpool(kind: str) -> None:
    """The default output size is the pool's odd input size."""
    one, two, other = pooled(SIZE), pooled(SIZE, seed=1), pooled(OTHER)

    def fn(y: Tensor, where: Tensor) -> Tensor:
        return max_unpool2d(y, where, 3, 2, 1)

    op_battery(
        fn,
        (one["y"], one[kind]),
        differentiable=(0,),
        other_args=(other["y"], other[kind]),
        other_sample=(two["y"], two[kind]),
    )


def test_packing() -> None:
    """Not differentiable, and not asked to be; the rest of the battery."""
    one, two = pooled(SIZE), pooled(SIZE, seed=1)

    def pack(indices: Tensor) -> Tensor:
        return pack_indices(indices, SIZE, *POOL)

    def unpack(packed: Tensor) -> Tensor:
        return unpack_indices(packed, SIZE, *POOL)

    op_battery(pack, (one["int64"],), other_sample=(two["int64"],))
    op_battery(unpack, (one["packed"],), other_sample=(two["packed"],))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name: str, layout: str) -> None:
    """Schema, fake (strides included), autograd, AOT with dynamic sizes, of every raw operator."""
    windows = (3, 3, 2, 2, 1, 1, 1, 1)
    x = laid_out(distinct(SIZE), layout)
    y, packed = max_pool2d_packed(x, *POOL)
    indices = laid_out(unpack_indices(packed, SIZE, *POOL), layout)
    small, large = list(y.shape[2:]), list(SIZE[2:])
    arguments = {
        "_max_pool2d": (x, *windows, *small),
        "_max_pool2d_values": (x, *windows, *small),
        "_max_pool2d_backward": (y, packed, *windows, *large),
        "_max_unpool2d": (y, packed, *windows, *large),
        "_max_gather2d": (x, packed, *windows, small[1], True),
        "_max_unpool2d_indices": (y, indices, *large),
        "_max_gather2d_indices": (x, indices, True),
        "_max_pack": (indices, *windows, *large),
        "_max_unpack": (packed, *windows, *large, small[1]),
    }[name]
    operator = getattr(torch.ops.segfast, name).default
    torch.library.opcheck(operator, arguments)
    if arguments[0].is_floating_point():
        leaf = arguments[0].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        torch.library.opcheck(operator, (leaf, *arguments[1:]))
    if name == "_max_gather2d":
        torch.library.opcheck(operator, (*arguments[:-1], False))


def test_gradient_of_the_raw_values() -> None:
    """Exported for inference, differentiated after all: chosen again, and right."""
    x = distinct(SIZE).requires_grad_()
    windows = (3, 3, 2, 2, 1, 1, 1, 1)
    raw = torch.ops.segfast._max_pool2d_values(x, *windows, 5, 7)
    theirs = POOL.pytorch(x)[0]
    weight = theirs.detach().cos()
    assert identical(
        torch.autograd.grad((raw * weight).sum(), x)[0],
        torch.autograd.grad((theirs * weight).sum(), x)[0],
    )


def test_unbatched_inside_vmap() -> None:
    """vmap over unbatched maps is the batched call."""
    x = distinct(SIZE)
    y, packed = torch.func.vmap(lambda one: max_pool2d_packed(one, *POOL))(x)
    assert torch.equal(y, max_pool2d(x, *POOL))
    again = torch.func.vmap(lambda y, p: max_unpool2d(y, p, 3, 2, 1))(y, packed)
    assert torch.equal(again, max_unpool2d(y, packed, 3, 2, 1))

    def loss(one: Tensor) -> Tensor:
        return (max_pool2d(one, *POOL) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss))(x)
    assert torch.equal(each, torch.func.grad(loss)(x))
    assert torch.func.vmap(loss)(x[:0]).shape == (0,)


class Spy(TorchDispatchMode):
    """Counts the raw operators; all tensors of a call are dense and of one memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "segfast":
            self.seen.add(func._opname)
            tensors = [a for a in args if isinstance(a, Tensor)]
            formats = (torch.contiguous_format, torch.channels_last)
            assert any(all(t.is_contiguous(memory_format=f) for t in tensors) for f in formats)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_operators_are_given_dense_tensors(layout: str) -> None:
    x, weight = laid_out(distinct(SIZE), layout), laid_out(distinct(SIZE, 1), "strided")

    def loss(x: Tensor) -> Tensor:
        y, packed = max_pool2d_packed(x, *POOL)
        indices = unpack_indices(packed, SIZE[2:], *POOL)  # contiguous, whatever packed is
        again = max_unpool2d(y, packed.repeat(1, 1, 1, 2)[..., ::2], 3, 2, 1)
        by_indices = max_unpool2d(y, indices, 3, 2, 1)
        return ((again * by_indices + max_pool2d(again, 1)) * weight[: len(x)]).square().sum()

    with Spy() as spy:
        leaf = x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        gradient.square().sum().backward()
        torch.func.vmap(torch.func.grad(loss), in_dims=2)(x.detach().unsqueeze(2))
        one = pooled((1, *SIZE[1:]))
        torch.func.vmap(lambda y, p: max_unpool2d(y, p, 3, 2, 1), (4, None))(
            distinct((1, 3, 5, 7, 2)), one["packed"]
        )
        for where in (one["packed"], one["int64"]):
            y = laid_out(one["y"], layout).requires_grad_()
            torch.autograd.grad(max_unpool2d(y, where, 3, 2, 1), y, weight[:1])
        pack_indices(laid_out(pooled(SIZE)["int64"], layout), SIZE, *POOL)
    assert spy.seen == set(SCHEMAS) - {"_max_pool2d_values"}


def test_forward_mode_refuses() -> None:
    """Clearly, in torch.func and in dual levels; a silent zero would be the alternative."""
    x = distinct(SIZE)
    y, packed = max_pool2d_packed(x, *POOL)
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda x: max_pool2d(x, *POOL), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual
        with pytest.raises(NotImplementedError, match="forward mode"):
            max_pool2d(dual(x, x), *POOL)
        with pytest.raises(NotImplementedError, match="forward mode"):
            max_unpool2d(dual(y, y), packed, 3, 2, 1)


@dtypes()
def test_autocast_keeps_the_dtype(dtype: torch.dtype) -> None:
    """PyTorch's unpooling would turn bfloat16 into float32 under autocast on the CPU."""
    x = maps(SIZE, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, packed = max_pool2d_packed(x, *POOL)
        again = max_unpool2d(y, packed, 3, 2, 1)
        by_indices = max_unpool2d(y, unpack_indices(packed, SIZE, *POOL), 3, 2, 1)
    assert {y.dtype, again.dtype, by_indices.dtype, max_pool2d(x, *POOL).dtype} == {dtype}


@pytest.mark.usefixtures("inductor")
@pytest.mark.parametrize(
    "layout", [pytest.param(LAYOUTS[0], marks=pytest.mark.thorough), LAYOUTS[1]]
)
def test_inductor(layout: str) -> None:
    """Encoder and decoder step with gradients, compiled once, against eager."""

    def step(x: Tensor) -> Tensor:
        y, packed = max_pool2d_packed(x.relu() - 0.5, 2)
        return max_unpool2d(y.sin(), packed, 2, output_size=x.shape).square()

    compiled = torch.compile(step, fullgraph=True)
    x = laid_out(distinct((2, 8, 15, 12), dtype=torch.float32), layout)
    one, two = (x.clone().requires_grad_() for _ in range(2))
    expected, found = step(one), compiled(two)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride()
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
    torch._dynamo.reset()
