"""segfast.allow_winograd: when Winograd's kernels serve, and what everything else sees of it.

What they compute: tests/kernels/test_dilated_conv_winograd.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import segfast
from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import (
    _dilated_conv_kernels,
    atrous_pyramid2d,
    dilated_conv2d,
    dilated_conv_transpose2d,
)
from segfast.ops._dilated_conv_winograd import winograd_setting

SIZE, RATE, CHANNELS = (25, 27), 2, (96, 128)
REST = (1, 1, RATE, RATE, RATE, RATE, 1)  # of the raw operators
raw = torch.ops.segfast


@pytest.fixture(autouse=True)
def off(compiled_kernels: None) -> Iterator[None]:
    with segfast.allow_winograd(False):
        yield


def tensors(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of y."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = CHANNELS
    shapes = (
        (batch, inputs, *SIZE),
        (outputs, inputs, 3, 3),
        (outputs,),
        (batch, outputs, *SIZE),
    )
    x, weight, bias, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias, grad


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return dilated_conv2d(x, weight, bias, padding=RATE, dilation=RATE)


def by_winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = raw._dilated_conv_winograd(x, weight, bias, *SIZE, *REST)
    return y


def test_off_is_the_default_and_every_change_is_seen() -> None:
    x, weight, bias, _ = tensors()
    before, fast = conv(x, weight, bias), by_winograd(x, weight, bias)
    assert not torch.equal(before, fast)
    for _ in range(2):  # what was remembered under one setting does not serve the other
        with segfast.allow_winograd():
            assert torch.equal(conv(x, weight, bias), fast)
            with segfast.allow_winograd(False):
                assert torch.equal(conv(x, weight, bias), before)
            assert torch.equal(conv(x, weight, bias), fast)
        assert torch.equal(conv(x, weight, bias), before)


def test_a_decision_in_the_midst_of_a_change_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, *_ = tensors(batch=3)
    available = _dilated_conv_kernels.available

    def meanwhile(device: str) -> frozenset[str]:
        with segfast.allow_winograd():  # by another thread
            return available(device)

    monkeypatch.setattr(_dilated_conv_kernels, "available", meanwhile)
    assert torch.equal(conv(x, weight), by_winograd(x, weight))
    monkeypatch.undo()
    assert not torch.equal(conv(x, weight), by_winograd(x, weight))


def test_setting_without_a_block_and_after_errors() -> None:
    segfast.allow_winograd()
    assert winograd_setting().allowed
    with pytest.raises(ZeroDivisionError), segfast.allow_winograd(False):
        raise ZeroDivisionError
    assert winograd_setting().allowed
    segfast.allow_winograd(False)
    assert not winograd_setting().allowed
    with pytest.raises(TypeError, match="allowed must be a bool, got"):
        segfast.allow_winograd(1)  # type: ignore[arg-type]
    assert not winograd_setting().allowed


def test_explained() -> None:
    x, weight, *_ = tensors()

    def kernels() -> list[str]:
        found = segfast.explain(dilated_conv2d, x, weight, padding=RATE, dilation=RATE)
        return [plan.kernel for plan in found.convolutions[0].kernels.values()]

    assert "winograd" not in kernels()
    off = "dense, winograd (off: segfast.allow_winograd): C++"
    assert off in segfast.info()["served_by"]["dilated_conv"]["cpu"]
    with segfast.allow_winograd():
        assert kernels()[:2] == ["winograd", "winograd"]
        assert kernels()[2] != "winograd"
        assert "dense, winograd: C++" in segfast.info()["served_by"]["dilated_conv"]["cpu"]


def test_gradients() -> None:
    x, weight, bias, grad = tensors()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    exact = torch.autograd.grad(conv(*leaves), leaves, grad)
    with segfast.allow_winograd():
        y = conv(*leaves)
        found = torch.autograd.grad(y, leaves, grad)
    assert torch.equal(y, by_winograd(x, weight, bias))
    assert torch.equal(found[0], raw._dilated_conv_winograd_grad_input(grad, weight, *SIZE, *REST))
    assert torch.equal(found[1], exact[1])
    assert torch.equal(found[2], exact[2])
    # A gradient is a function of its arguments: differentiated again, it is these kernels again.
    with segfast.allow_winograd():
        first = torch.autograd.grad(conv(*leaves), x, grad.requires_grad_(), create_graph=True)[0]
        second = torch.autograd.grad(first, grad, x)[0]
    assert torch.equal(second, by_winograd(x, weight))


def test_transposed() -> None:
    x, weight, _, grad = tensors()
    with segfast.allow_winograd():
        y = dilated_conv_transpose2d(grad, weight, padding=RATE, dilation=RATE)
    assert torch.equal(y, raw._dilated_conv_winograd_grad_input(grad, weight, *SIZE, *REST))
    assert y.shape == x.shape


def test_vmap_and_func() -> None:
    x, weight, *_ = tensors()
    with segfast.allow_winograd():
        mapped = torch.vmap(conv, (0, None))(x[:, None], weight)
        tangent = torch.func.vjp(lambda x: conv(x, weight), x)[1](by_winograd(x, weight))[0]
    assert torch.equal(mapped[:, 0], by_winograd(x, weight))
    expected = raw._dilated_conv_winograd_grad_input(by_winograd(x, weight), weight, *SIZE, *REST)
    assert torch.equal(tangent, expected)


@pytest.mark.usefixtures("inductor")
def test_compiled() -> None:
    x, weight, bias, _ = tensors()
    compiled = torch.compile(conv, fullgraph=True)
    before = compiled(x, weight, bias)
    assert torch.equal(before, conv(x, weight, bias))
    with segfast.allow_winograd():  # not compiled again: the operator asks when it runs
        assert torch.equal(compiled(x, weight, bias), by_winograd(x, weight, bias))
    assert torch.equal(compiled(x, weight, bias), before)


def test_not_inside_of_what_is_compiled() -> None:
    def inside(x: Tensor) -> Tensor:
        with segfast.allow_winograd():
            return x + 1

    message = "outside of what torch.compile compiles"
    with pytest.raises(Exception, match=message):
        torch.compile(inside, fullgraph=True, backend="eager")(torch.ones(2))
    assert not winograd_setting().allowed


def test_pyramid_composes_what_winograd_serves() -> None:
    x, weight, bias, _ = tensors()
    with segfast.allow_winograd():
        y = atrous_pyramid2d(x, [weight, weight], [bias, None], (RATE, 20))
        far = dilated_conv2d(x, weight, padding=20, dilation=20)
    assert torch.equal(y[:, : CHANNELS[1]], by_winograd(x, weight, bias))
    assert torch.equal(y[:, CHANNELS[1] :], far)


def test_what_else_there_is_stays_as_it_was() -> None:
    x, weight, bias, _ = tensors()
    last = x.contiguous(memory_format=torch.channels_last)
    for given in (x.double(), x.bfloat16(), last):
        before = conv(given, weight.to(given.dtype), bias.to(given.dtype))
        with segfast.allow_winograd():
            after = conv(given, weight.to(given.dtype), bias.to(given.dtype))
        assert torch.equal(before, after)


def test_the_error_is_what_is_stated() -> None:
    """n u / (1 - n u) (176 max |x| sum |w| + |b|)"""
    x, weight, bias, _ = tensors()
    with segfast.allow_winograd():
        y = conv(x, weight, bias)
    pair = (RATE, RATE)
    geometry = Geometry.of(SIZE, SIZE, (3, 3), (1, 1), pair, pair)
    truth = reference.conv(x.double(), weight.double(), bias.double(), geometry, 1)
    error = (y.double() - truth).abs().amax((0, 2, 3))
    n, unit = CHANNELS[0] + 27, torch.finfo(torch.float32).eps / 2
    size = 176 * x.abs().max() * weight.abs().sum((1, 2, 3)) + bias.abs()
    assert bool((error <= n * unit / (1 - n * unit) * size).all())


def test_no_decorator() -> None:
    """It would count for the first call only."""
    with pytest.raises(TypeError), segfast.allow_winograd(False) as _:
        segfast.allow_winograd(False)(lambda: None)  # type: ignore[operator]
