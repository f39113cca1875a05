"""Convolutions that PyTorch 2.13's own kernels get wrong on some processors: ways round them.

kernels/dilated_conv/README.md, "Where PyTorch serves", says which.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_torch, dilated_conv2d, dilated_conv_transpose2d
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tap_and_a_stride_over_few_channels(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's gradient of a channels_last map writes beyond its memory there, unseen."""
    formats = []

    def backward(grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
        formats.extend([grad.is_contiguous(), x.is_contiguous()])
        return unwatched(grad, x, *rest)

    unwatched = _dilated_conv_torch._backward
    monkeypatch.setattr(_dilated_conv_torch, "_backward", backward)
    x = torch.randn(3, 8, 12, 12).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 8, 1, 1).to(dtype).requires_grad_()
    dilated_conv2d(x, weight, None, 2).sum().backward()
    assert formats == [True, True]
    read = x.double()[:, :, ::2, ::2]
    truth, sizes = (t.sum((0, 2, 3)).expand(4, 8)[..., None, None] for t in (read, read.abs()))
    assert weight.grad is not None
    assert_as_good_as(weight.grad, truth, truth.to(dtype), terms=108, magnitude=sizes)


def test_one_column_of_groups_of_one_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's bfloat16 result of a channels_last map has what was in memory there."""
    formats = []

    def conv2d(x: Tensor, *rest: Any) -> Tensor:
        formats.append(x.is_contiguous())
        return unwatched(x, *rest)

    unwatched = F.conv2d
    monkeypatch.setattr(F, "conv2d", conv2d)
    x = torch.randn(2, 2, 9, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 1, 3, 3).bfloat16()
    y = dilated_conv2d(x, weight, None, (1, 2), 0, 1, 2)
    assert formats == [True]
    geometry = Geometry.of((9, 3), (7, 1), (3, 3), (1, 2), (0, 0), (1, 1))
    truth, sizes = (
        reference.conv(a.double(), b.double(), None, geometry, 2)
        for a, b in ((x, weight), (x.abs(), weight.abs()))
    )
    assert_as_good_as(y, truth, truth.to(y.dtype), terms=9, magnitude=sizes)
