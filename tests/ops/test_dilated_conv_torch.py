"""Everything PyTorch may do to the dilated convolutions: gradients, torch.func, compile, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segfast import explain
from segfast._native import native
from segfast.ops import (
    atrous_pyramid2d,
    context_module2d,
    dilated_conv1d,
    dilated_conv2d,
    dilated_conv_transpose2d,
)
from segfast.testing import op_battery

# Sizes of one call differ from each other wherever they may change: torch.compile takes equal ones
# for one size.


def randn(*shape: int) -> Tensor:
    seed = sum(shape)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_conv2d() -> None:
    def fn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dilated_conv2d(x, weight, bias, (2, 1), (2, 1), (2, 3))

    weight, bias = randn(6, 3, 3, 1), randn(6)
    op_battery(
        fn,
        (randn(2, 3, 5, 4), weight, bias),
        differentiable=(0, 1, 2),
        other_args=(randn(4, 3, 8, 9), weight, bias),
        opcheck_op=torch.ops.segfast._dilated_conv.default,
        opcheck_args=(randn(2, 3, 5, 4), weight, bias, 3, 6, 2, 1, 2, 1, 2, 3, 1),
        autocast="cast",
    )


def test_grouped() -> None:
    def fn(x: Tensor, weight: Tensor) -> Tensor:
        return dilated_conv2d(x, weight, None, 1, "same", 2, 4)

    op_battery(fn, (randn(2, 4, 3, 5), randn(4, 1, 3, 3)), differentiable=(0, 1), autocast="cast")


def test_conv1d() -> None:
    def fn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dilated_conv1d(x, weight, bias, 1, "same", 3)

    args = randn(2, 3, 7), randn(4, 3, 2), randn(4)
    op_battery(fn, args, differentiable=(0, 1, 2), autocast="cast")


def test_transposed() -> None:
    def fn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dilated_conv_transpose2d(x, weight, bias, (2, 1), 1, (1, 0), 1, (2, 1))

    weight, bias = randn(3, 6, 3, 1), randn(6)
    op_battery(
        fn,
        (randn(2, 3, 4, 5), weight, bias),
        differentiable=(0, 1, 2),
        other_args=(randn(4, 3, 8, 9), weight, bias),
        autocast="cast",
    )


@pytest.mark.parametrize(
    ("name", "shapes", "size"),
    [
        ("_dilated_conv_grad_input", ((2, 6, 3, 6), (6, 3, 3, 1)), (5, 4)),
        ("_dilated_conv_grad_weight", ((2, 6, 3, 6), (2, 3, 5, 4)), (3, 1)),
    ],
)
def test_raw_gradients(
    name: str, shapes: tuple[tuple[int, ...], ...], size: tuple[int, int]
) -> None:
    operator = getattr(torch.ops.segfast, name).default
    arguments = (*(randn(*shape) for shape in shapes), *size, 2, 1, 2, 1, 2, 3, 1)
    torch.library.opcheck(operator, arguments)


FORWARD = {
    "direct": (randn(1, 2, 3, 4), randn(2, 1, 3, 2), 2),
    "dense": (randn(1, 2, 3, 4), randn(3, 2, 1, 3), 1),
    "torch": (
        randn(1, 4, 2, 3).contiguous(memory_format=torch.channels_last), randn(2, 2, 2, 3), 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("kernel", FORWARD)
def test_forward_mode(kernel: str) -> None:
    """Whatever serves: forward mode, forward over reverse, batches of tangents, dual numbers."""

    x, weight, groups = FORWARD[kernel]
    served_by = explain(dilated_conv2d, x, weight, None, 1, 2, 2, groups).served_by
    assert native() is None or served_by == kernel

    def fn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = dilated_conv2d(x, weight, bias, 1, 2, 2, groups)
        return dilated_conv_transpose2d(y, weight, None, 1, 2, 0, groups, 2)

    args = [t.clone().requires_grad_() for t in (x, weight, randn(weight.shape[0]))]
    checks = {"check_forward_ad": True, "check_batched_forward_grad": True}
    torch.autograd.gradcheck(fn, args, **checks, atol=1e-7, rtol=1e-6)
    torch.autograd.gradgradcheck(fn, args, check_fwd_over_rev=True, atol=1e-7, rtol=1e-6)
    values, tangents = tuple(args), tuple(torch.ones_like(a) for a in args)
    _, expected = torch.autograd.functional.jvp(fn, values, tangents)  # by two backwards
    torch.testing.assert_close(torch.func.jvp(fn, values, tangents)[1], expected)


CALLS = {
    "conv1d": lambda x, w: dilated_conv1d(x[:, :, 0], w[:, :, 0], None, 1, 2, 2),
    "conv2d": lambda x, w: dilated_conv2d(x, w, None, 1, 2, 2),
    "transposed": lambda x, w: dilated_conv_transpose2d(x, w, None, 1, 2, 0, 1, 2),
    "pyramid": lambda x, w: atrous_pyramid2d(x, [w, w], None, (1, 2)),
    "context": lambda x, w: context_module2d(x, [w, w], None, (1, 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_eager_calls_leave_behind_is_not_compiled(name: str) -> None:
    """Compiled once, whatever other calls are remembered in between."""
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    x, weight = randn(1, 3, 4, 5), randn(3, 3, 3, 3)
    torch.compiler.reset()
    run = torch.compile(CALLS[name], fullgraph=True, backend=backend)
    for width in (6, 7):
        assert torch.equal(run(x, weight), CALLS[name](x, weight))
        CALLS[name](randn(2, 3, 4, width), weight)
    assert len(graphs) == 1


def test_pyramid() -> None:
    def fn(x: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        return atrous_pyramid2d(x, [a, b], None, (2, 7), scale, scale, "relu")

    scale = randn(3).bfloat16().double()  # autocast leaves it, the battery's cast changes nothing
    args = randn(2, 3, 4, 5), randn(2, 3, 3, 3), randn(1, 3, 1, 1), scale
    op_battery(fn, args, differentiable=(0, 1, 2, 3), autocast="cast")


def test_context_module() -> None:
    def fn(x: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        return context_module2d(x, [a, b], [None, bias], (2, 1))

    args = randn(2, 3, 4, 5), randn(2, 3, 3, 3), randn(4, 2, 1, 1), randn(4)
    op_battery(fn, args, differentiable=(0, 1, 2, 3), autocast="cast")


@pytest.mark.parametrize("height", [4, 3])  # all that PyTorch computes, and less
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_raw_results_may_be_changed_in_place(height: int, layout: torch.memory_format) -> None:
    """Exported programs do so: the operator must not return a view."""
    x, weight, groups = FORWARD["torch"]
    x, weight = x.contiguous(memory_format=layout), weight.clone().requires_grad_()
    y = torch.ops.segfast._dilated_conv(x, weight, None, height, 3, 1, 1, 2, 2, 2, 2, groups)
    y.relu_().sum().backward()
    assert weight.grad is not None
