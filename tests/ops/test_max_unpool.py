"""Max-pooling and unpooling against PyTorch, bit for bit: values, winners, layouts, edges."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segfast import _native
from segfast.kernels.max_unpool import reference
from segfast.ops import (
    max_pool2d,
    max_pool2d_packed,
    max_unpool2d,
    pack_indices,
    unpack_indices,
)
from segfast.ops._max_unpool_geometry import windows_of
from segfast.testing import dtypes
from tests.ops.max_unpool_cases import DTYPES, LAYOUTS, Pool, identical, laid_out, maps, pools

ISA = pytest.mark.parametrize("name", _native.instruction_sets() or ["none compiled"])


def check(x: Tensor, pool: Pool) -> None:
    """Pool, indices, and unpooling of one map equal PyTorch's in every bit and in layout."""
    expected, indices = pool.pytorch(x)
    y, packed = max_pool2d_packed(x, *pool)
    assert identical(y, expected)
    assert identical(max_pool2d(x, *pool), expected)
    assert torch.equal(unpack_indices(packed, x.shape, *pool), indices)
    assert torch.equal(pack_indices(indices, x.shape, *pool), packed)
    if x.dim() == 4 and x.numel():
        assert y.stride() == expected.stride()

    again = max_unpool2d(y, packed, **pool.unpooling(), output_size=x.shape)
    by_indices = max_unpool2d(y, indices, **pool.unpooling(), output_size=x.shape)
    assert identical(again, by_indices)
    assert again.shape == x.shape
    if x.dim() == 4 and x.numel():
        layout = torch.channels_last if packed_last(x) else torch.contiguous_format
        assert again.is_contiguous(memory_format=layout)
        assert by_indices.is_contiguous(memory_format=layout)
    # Two windows that name one position have the same maximum there, so PyTorch agrees, too. Its
    # own check of the output size knows no dilation.
    theirs = torch.ops.aten.max_unpool2d(expected, indices, list(x.shape[-2:]))
    assert identical(again, theirs)


def packed_last(x: Tensor) -> bool:
    return reference.memory_format(x) == torch.channels_last


@settings(max_examples=1500)
@given(pools(), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 9))
def test_any_geometry(
    case: tuple[Pool, Any], dtype: torch.dtype, layout: str, special: bool, seed: int
) -> None:
    pool, shape = case
    check(laid_out(maps(shape, seed, dtype, special), layout), pool)


@settings(max_examples=400)
@given(pools(most=16, shape=40), st.sampled_from(LAYOUTS[:2]), st.booleans())
def test_large_windows_and_maps(case: tuple[Pool, Any], layout: str, special: bool) -> None:
    pool, shape = case
    check(laid_out(maps(shape, 1, torch.float32, special), layout), pool)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100])
@pytest.mark.parametrize("pool", [Pool(2), Pool(3, 2), Pool(3, 2, 1), Pool(2, 2, 0, 1, True)])
@dtypes()
def test_every_width_of_the_usual_pools(pool: Pool, width: int, dtype: torch.dtype) -> None:
    """Vector lengths and bytes of packed rows that end anywhere."""
    for height, channels, layout in itertools.product((2, 5), (1, 3, 16), LAYOUTS[:2]):
        if pool.holds_something((height, width)):
            x = maps((2, channels, height, width), width, dtype, special=True)
            check(laid_out(x, layout), pool)


@ISA
@pytest.mark.parametrize("pool", [Pool(2), Pool(3, 2, 1), Pool((5, 4), 3, 2, (1, 2), True)])
def test_every_instruction_set(pool: Pool, name: str, compiled_kernels: None) -> None:
    with _native.use_instruction_set(name):
        for dtype, layout in itertools.product(DTYPES, LAYOUTS[:2]):
            check(laid_out(maps((2, 19, 33, 70), 0, dtype, True), layout), pool)


@ISA
@dtypes()
def test_channels_of_two_by_two_windows(
    name: str, dtype: torch.dtype, compiled_kernels: None
) -> None:
    """A vector's bytes of channels at once, the last ones perhaps again; bytes begun and filled."""
    with _native.use_instruction_set(name):
        for channels, width in itertools.product((16, 32, 47, 64, 100), (3, 8, 14)):
            x = maps((2, channels, 5, width), channels, dtype, special=True)
            check(laid_out(x, "channels_last"), Pool(2))


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (1, 4), (1, 5), (4, 4), (17, 1), (16, 16)])
def test_packed_layout(kernel: tuple[int, int]) -> None:
    """Offset of column wo: byte wo * bits // 8, low bits first, unused bits zero."""
    each = 2 if kernel[0] * kernel[1] <= 4 else 4 if kernel[0] * kernel[1] <= 16 else 8
    x = maps((2, 3, 3 * kernel[0], 7 * kernel[1]))
    packed = max_pool2d_packed(x, kernel)[1]
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, 3, -(-7 * each // 8))
    rows = torch.arange(3)[:, None] * kernel[0]
    columns = torch.arange(7) * kernel[1]
    indices = F.max_pool2d(x, kernel, return_indices=True)[1]
    offset = (indices // x.shape[3] - rows) * kernel[1] + indices % x.shape[3] - columns
    expected = torch.zeros_like(packed, dtype=torch.long)
    for wo in range(7):
        expected[..., wo * each // 8] |= offset[..., wo] << (wo * each % 8)
    assert torch.equal(packed.long(), expected)


def test_bytes_mean_the_same_in_any_layout() -> None:
    x = maps((2, 6, 9, 13))
    packed = max_pool2d_packed(x, 2)[1]
    last = max_pool2d_packed(laid_out(x, "channels_last"), 2)[1]
    assert torch.equal(packed, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    y = max_pool2d(x, 2)
    part = max_unpool2d(y[1:, 2:5], last[1:, 2:5], 2, output_size=(9, 13))  # slices keep meaning
    assert torch.equal(part, max_unpool2d(y, packed, 2, output_size=(9, 13))[1:, 2:5])


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 1, 5, 4), (2, 1, 1, 6), (1, 4, 6, 1)])
def test_ambiguous_layouts(shape: tuple[int, ...], layout: str) -> None:
    """One channel or one pixel: strides alone tell the layout, PyTorch's way."""
    x = torch.empty(shape, memory_format=torch.channels_last if layout == "channels_last"
                    else torch.contiguous_format).copy_(maps(shape))  # fmt: skip
    for pool in (Pool(1), Pool(2, 1, 1), Pool(3, 2, 1)):
        check(x, pool)


def test_unbatched() -> None:
    for pool in (Pool(2), Pool(3, 2, 1)):
        check(maps((3, 9, 8)), pool)
        y, packed = max_pool2d_packed(maps((3, 9, 8)), *pool)
        assert y.dim() == packed.dim() == 3


def test_arguments_as_pytorch_takes_them() -> None:
    x = maps((1, 2, 9, 8))
    for pool in (Pool([2, 3], [2, 1], [1, 0], [1, 2]), Pool((2, 2), None), Pool(2, (1, 2), 1)):
        check(x, pool)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_empty_batch(layout: str) -> None:
    x = laid_out(torch.empty(0, 3, 8, 6), layout)
    y, packed = max_pool2d_packed(x, 3, 2, 1)
    assert y.shape == (0, 3, 4, 3)
    assert packed.shape == (0, 3, 4, 2)
    indices = unpack_indices(packed, x.shape, 3, 2, 1)
    assert (indices.shape, indices.dtype) == ((0, 3, 4, 3), torch.int64)
    assert pack_indices(indices, x.shape, 3, 2, 1).shape == packed.shape
    for where in (packed, indices):
        assert max_unpool2d(y, where, 3, 2, 1, output_size=(8, 6)).shape == x.shape


# ---------------------------------------------------------------------------------- unpooling


@settings(max_examples=500)
@given(pools(), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 9))
def test_unpool_of_other_values(
    case: tuple[Pool, Any], dtype: torch.dtype, layout: str, seed: int
) -> None:
    """Any values at the pool's winners: PyTorch's result without overlap, else the last wins."""
    pool, shape = case
    _, packed = max_pool2d_packed(maps(shape, seed), *pool)
    indices = unpack_indices(packed, shape, *pool)
    y = laid_out(maps(tuple(indices.shape), seed + 10, dtype, special=True), layout)
    expected = torch.zeros(shape, dtype=dtype)
    for at in range(indices.shape[2] * indices.shape[3]):  # row-major: the last one stays
        one = indices.flatten(2)[..., at : at + 1]
        expected.flatten(2).scatter_(2, one, y.flatten(2)[..., at : at + 1])
    for where in (packed, indices):
        x = max_unpool2d(y, where, **pool.unpooling(), output_size=shape)
        assert identical(x, expected)
    if pool.disjoint():
        assert identical(x, torch.ops.aten.max_unpool2d(y, indices, list(shape[2:])))


def test_output_sizes_as_pytorch_takes_them() -> None:
    """Default, (H, W), the whole shape; packed positions do not move with the width."""
    y, indices = Pool(2).pytorch(maps((2, 3, 8, 6)))
    packed = pack_indices(indices, (8, 6), 2)
    for size in (None, (8, 6), [9, 7], (7, 5), (2, 3, 9, 6), torch.Size([2, 3, 8, 7])):
        try:
            expected = F.max_unpool2d(y, indices, 2, output_size=size)
        except RuntimeError:  # an index beyond a smaller plane
            with pytest.raises(RuntimeError, match="indices"):
                max_unpool2d(y, indices, 2, output_size=size)
            continue
        assert torch.equal(max_unpool2d(y, indices, 2, output_size=size), expected)
    whole = max_unpool2d(y, packed, 2)
    for height, width in itertools.product((7, 8, 9), (5, 6, 7)):
        x = max_unpool2d(y, packed, 2, output_size=(height, width))
        expected = F.pad(whole, (0, width - 6, 0, height - 8))
        assert torch.equal(x, expected)
    one, where = y[0], packed[0]
    assert torch.equal(max_unpool2d(one, where, 2, output_size=(3, 8, 6)), whole[0])


def test_odd_maps_come_back_to_their_size() -> None:
    """45 -> 22 -> 45, SegNet's fourth level, which PyTorch users lose a row at."""
    x = maps((1, 2, 45, 61))
    y, packed = max_pool2d_packed(x, 2)
    assert max_unpool2d(y, packed, 2, output_size=x.shape).shape == x.shape
    assert max_unpool2d(y, packed, 2).shape == (1, 2, 44, 60)


def test_duplicate_indices_keep_the_last() -> None:
    y = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    indices = torch.tensor([[[[5, 0], [5, 0]]]])
    x = max_unpool2d(y, indices, 2)
    assert x.flatten().tolist() == [4.0, 0, 0, 0, 0, 3.0] + [0] * 10


@pytest.mark.parametrize("bad", [-1, 16, 2**40, -(2**63)])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_indices_out_of_range(bad: int, layout: str) -> None:
    indices = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
    indices[0, 1, 1, 0] = bad
    with pytest.raises(RuntimeError, match="indices") as error:
        max_unpool2d(laid_out(torch.ones(1, 3, 2, 2), layout), indices, 2)
    assert "16" in str(error.value)  # the range, or what came


def test_packed_bytes_may_hold_anything() -> None:
    """Damaged bytes give what the reference makes of them: nothing outside is read or written."""
    generator = torch.Generator().manual_seed(0)
    for pool, layout in itertools.product(
        (Pool(2), Pool((1, 3)), Pool(3, 2, 1), Pool(3, 1, 1), Pool(5, 2, 2, 3)), LAYOUTS[:2]
    ):
        x = laid_out(maps((2, 3, 17, 19)), layout)
        y, packed = max_pool2d_packed(x, *pool)
        noise = torch.randint(0, 256, packed.shape, generator=generator, dtype=torch.uint8)
        y.requires_grad_()
        found = max_unpool2d(y, noise, **pool.unpooling(), output_size=x.shape)
        windows = windows_of(pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        assert identical(found, reference.max_unpool2d(y.detach(), noise, windows, (17, 19)))
        (gradient,) = torch.autograd.grad((found * x).sum(), y)
        gathered = reference.max_gather2d(x, noise, windows, y.shape[3], True)
        assert identical(gradient, gathered)
        indices = reference.max_unpack(noise, windows, (17, 19), y.shape[3])
        assert torch.equal(unpack_indices(noise, x.shape, *pool), indices)


# ------------------------------------------------------------------------------- reproducible


def test_same_bits_for_any_number_of_threads(restored_threads: None) -> None:
    for layout, pool in itertools.product(LAYOUTS[:2], (Pool(2), Pool(3, 2, 1), Pool(3, 1, 1))):
        x = laid_out(torch.randn(3, 40, 61, 67, generator=torch.Generator().manual_seed(0)), layout)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y, packed = max_pool2d_packed(leaf, *pool)
            again = max_unpool2d(y * 1.1, packed, **pool.unpooling(), output_size=x.shape)
            gradient = torch.autograd.grad((again * x.cos()).sum() + (y * y.sin()).sum(), leaf)[0]
            indices = unpack_indices(packed, x.shape, *pool)
            by_indices = max_unpool2d(y, indices, **pool.unpooling(), output_size=x.shape)
            results.append((y, packed, again, gradient, indices, by_indices))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_deterministic_algorithms_are_taken_as_they_are() -> None:
    """PyTorch's unpooling refuses here, even for indices of a pool."""
    x = maps((2, 3, 8, 6)).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        for pool in (Pool(2), Pool(3, 2, 1)):
            y, packed = max_pool2d_packed(x, *pool)
            indices = unpack_indices(packed, x.shape, *pool)
            for where in (packed, indices):
                again = max_unpool2d(y, where, **pool.unpooling(), output_size=x.shape)
                assert torch.autograd.grad(again.sum(), x, retain_graph=True)[0].any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_fresh_memory_is_written_everywhere() -> None:
    for layout, pool in itertools.product(LAYOUTS[:2], (Pool(2), Pool(3, 2, 1), Pool(2, 3))):
        x = laid_out(maps((2, 5, 11, 13)), layout)
        check(x, pool)
        leaf = x.clone().requires_grad_()
        y, packed = max_pool2d_packed(leaf, *pool)
        again = max_unpool2d(y, packed, **pool.unpooling(), output_size=x.shape)
        assert torch.autograd.grad(again.sum(), leaf)[0].isfinite().all()
