"""Convolutions that PyTorch 2.13's own kernels get wrong on some processors: ways round them.

kernels/dilated_conv/README.md, "Where PyTorch serves", says which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import (
    _dilated_conv_kernels,
    _dilated_conv_torch,
    dilated_conv2d,
    dilated_conv_transpose2d,
)
from segfast.ops._dilated_conv_faults import odd_batch
from segfast.ops._function import Remembered
from segfast.testing import assert_as_good_as, dtypes
from tests.ops.dilated_conv_geometries import laid_out

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers for a test alone and after others."""
    torch.manual_seed(0)


@LAYOUTS
@dtypes()
def test_columns_that_read_nothing_but_padding(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """PyTorch's kernel reads beyond its tensors there, and may end the process."""
    options: dict[str, Any] = {"stride": 3, "padding": (4, 7), "dilation": (8, 3)}
    x, y, weight, bias = (
        torch.randn(shape).to(dtype)
        for shape in ((2, 8, 9, 2), (2, 19, 3, 4), (19, 8, 2, 3), (19,))
    )
    x, y, weight = (t.contiguous(memory_format=layout) for t in (x, y, weight))
    expected = bias[:, None, None].expand(y.shape)
    assert torch.equal(dilated_conv2d(x, weight, bias, **options), expected)
    for leaf in (x, y, weight, bias):
        leaf.requires_grad_()
    found = dilated_conv2d(x, weight, bias, **options)
    assert torch.equal(found, expected)
    assert not any(g.any() for g in torch.autograd.grad(found.sum(), (x, weight)))
    found = dilated_conv_transpose2d(y, weight, None, output_padding=(2, 0), **options)
    assert found.shape == x.shape
    assert not found.any()
    assert not any(g.any() for g in torch.autograd.grad(found.sum(), (y, weight)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("columns", [1, 2])
@dtypes()
def test_fewer_columns_than_the_stride(dtype: torch.dtype, columns: int, layout: str) -> None:
    """PyTorch's gradient of a bfloat16 weight has whatever was in memory there."""
    for _ in range(5):
        x, weight, grad = (
            laid_out(torch.randn(shape).to(dtype), layout)
            for shape in ((2, 16, 7, columns), (8, 16, 3, 3), (2, 8, 4, 1))
        )
        leaf = weight.requires_grad_()
        y = dilated_conv2d(x, leaf, None, (2, 3), 1)
        (found,) = torch.autograd.grad(y, leaf, grad)
        geometry = Geometry.of((7, columns), (4, 1), (3, 3), (2, 3), (1, 1), (1, 1))
        truth = reference.grad_weight(grad.double(), x.double(), geometry, 1)
        sizes = reference.grad_weight(grad.double().abs(), x.double().abs(), geometry, 1)
        assert_as_good_as(found, truth, truth.to(dtype), terms=8, magnitude=sizes)


def is_plain(x: Tensor) -> bool:
    """PyTorch cannot take it for channels_last: of the strides of a map with one channel or one
    position, those along sizes of 1 decide."""
    return x.stride() == torch.empty(x.shape).stride()


def in_channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    """`contiguous` would leave maps of one channel as they are."""
    return torch.randn(shape).to(dtype).clone(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (8, 1), (15, 1), (8, 2)])
def test_one_tap_and_a_stride_over_few_channels(
    channels: int, groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's gradient of a channels_last map writes beyond its memory there, unseen."""
    formats = []

    def backward(*arguments: Any) -> Callable[..., Tensor]:
        serve = unwatched(*arguments)

        def watched(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
            formats.extend([is_plain(grad), is_plain(x)])
            return serve(grad, x, weight)

        return watched

    unwatched = _dilated_conv_torch._backward
    monkeypatch.setattr(_dilated_conv_torch, "_backward", backward)
    monkeypatch.setattr(_dilated_conv_kernels, "SERVING", Remembered())
    x = in_channels_last(3, groups * channels, 12, 12, dtype=dtype)
    weight = in_channels_last(4, channels, 1, 1, dtype=dtype).requires_grad_()
    dilated_conv2d(x, weight, None, 2, groups=groups).sum().backward()
    assert formats == [True, True]
    read = x.double()[:, :, ::2, ::2]
    truth, sizes = (
        t.sum((0, 2, 3)).reshape(groups, channels).repeat_interleave(4 // groups, 0)
        for t in (read, read.abs())
    )
    truth, sizes = truth[..., None, None], sizes[..., None, None]
    assert weight.grad is not None
    assert_as_good_as(weight.grad, truth, truth.to(dtype), terms=108, magnitude=sizes)


# x, weight; stride, padding, dilation, groups; dtypes
MISREAD = {
    "one column of groups of one channel": (
        (2, 2, 9, 3), (16, 1, 3, 3), ((1, 2), 0, 1, 2), (torch.float32, torch.bfloat16)),
    "one column of one channel": (
        (3, 1, 7, 3), (4, 1, 3, 3), ((1, 2), (1, 0), 1, 1), (torch.float32, torch.bfloat16)),
    "the last column ends with the map": (
        (1, 16, 15, 15), (8, 16, 7, 7), (8, 3, 1, 1), (torch.bfloat16,)),
    "some columns read padding alone": (
        (1, 8, 1, 1), (17, 8, 1, 3), (2, (0, 9), (1, 3), 1), (torch.float32, torch.bfloat16)),
    "many columns read padding alone": (
        (3, 17, 1, 4), (1, 17, 1, 1), (1, (0, 31), 1, 1), (torch.float32, torch.bfloat16)),
}  # fmt: skip
MISREAD_CASES = [
    pytest.param(*case, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name, (*case, dtypes_) in MISREAD.items()
    for dtype in dtypes_
]


@pytest.mark.parametrize(("shape", "kernel", "options", "dtype"), MISREAD_CASES)
def test_results_that_are_misread(
    shape: tuple[int, ...], kernel: tuple[int, ...], options: tuple[Any, ...], dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """PyTorch's results of channels_last maps or weights have what was in memory there, or it
    writes beyond its own."""
    formats = []

    def conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        formats.extend([is_plain(x), is_plain(weight)])
        return unwatched(x, weight, *rest)

    unwatched = F.conv2d
    monkeypatch.setattr(F, "conv2d", conv2d)
    x, weight = in_channels_last(*shape, dtype=dtype), in_channels_last(*kernel, dtype=dtype)
    bias = torch.randn(kernel[0]).to(dtype)
    for learns in (False, True):  # with a gradient it is never handed over whole
        y = dilated_conv2d(x, weight.requires_grad_(learns), bias, *options)
        assert formats == [True, True]
        formats.clear()
        oracle, sizes = (
            unwatched(*(f(t.detach().double()).contiguous() for t in (x, weight, bias)), *options)
            for f in (Tensor.clone, Tensor.abs)
        )
        terms = weight[0].numel() + 1
        assert_as_good_as(y, oracle, oracle.to(dtype), terms=terms, magnitude=sizes)


def test_which_batches_are_odd() -> None:
    permuted = torch.empty(5, 6, 4).permute(2, 0, 1)[None]
    assert odd_batch(permuted, 2)
    assert not odd_batch(permuted, 1)
    assert not odd_batch(permuted.contiguous(), 2)
    assert not odd_batch(torch.empty(2, 9, 5, 6)[:, :4], 2)  # two images tell PyTorch their stride


@dtypes()
@pytest.mark.parametrize("batched", [True, False])
def test_permuted_images_in_groups(batched: bool, dtype: torch.dtype) -> None:
    """PyTorch's gradient of a channels_last weight goes by the stride of a batch of one."""
    image = torch.randn(20, 20, 32).to(dtype).permute(2, 0, 1)
    x = image[None] if batched else image
    weight = in_channels_last(32, 16, 3, 3, dtype=dtype).requires_grad_()
    y = dilated_conv2d(x, weight, None, 1, 1, 1, 2)
    (found,) = torch.autograd.grad(y.sum(), weight)
    geometry = Geometry.of((20, 20), (20, 20), (3, 3), (1, 1), (1, 1), (1, 1))
    maps, ones = image[None].double(), torch.ones(1, 32, 20, 20).double()
    truth, sizes = (reference.grad_weight(ones, t, geometry, 2) for t in (maps, maps.abs()))
    assert_as_good_as(found, truth, truth.to(dtype), terms=400, magnitude=sizes)
