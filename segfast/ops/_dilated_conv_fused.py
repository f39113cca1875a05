"""Several dilated convolutions in one call of the kernels, where nothing differentiates.

The pyramid's branches: on the CPU by csrc/cpu/dilated_conv_dense.cpp, on CUDA in one Triton launch;
the context module's layers on CUDA in one launch, or in one each with its ReLU. Elsewhere, and
where a gradient, a compiler or torch.func looks on, they are composed of convolutions
(dilated_conv.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.kernels.dilated_conv.triton_context_work import Layer
from segfast.kernels.dilated_conv.triton_context_work import choose as choose_launches
from segfast.ops import _check
from segfast.ops._autocast import autocast
from segfast.ops._dilated_conv_chip import chip
from segfast.ops._dilated_conv_cuda import launchers
from segfast.ops._dilated_conv_geometry import (
    Branch,
    require_branches,
    require_channel_factors,
    require_layers,
)
from segfast.ops._dilated_conv_kernels import available, choose, problem
from segfast.ops._dilated_conv_plan import Plan, Problem, candidates
from segfast.ops._dilated_conv_prepared import look_up
from segfast.ops._function import Remembered, compiled, needs_graph, observer, watched
from segfast.ops._layout import dtype_name, gapless

PYRAMID = "_atrous_pyramid_dense"
torch.library.define(
    f"segfast::{PYRAMID}",
    "(Tensor x, Tensor[] weights, Tensor? bias, int[] rates, Tensor? scale, Tensor? shift, "
    "bool relu) -> Tensor",
)


@torch.library.register_fake(f"segfast::{PYRAMID}")
def _(x: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty((n, sum(weight.shape[0] for weight in weights), height, width))


_COMPOSED = "composed"
_PYRAMIDS: Remembered[str] = Remembered()
_CONTEXTS: Remembered[str] = Remembered()


def forget() -> None:
    """All decisions, for tests that change the rules."""
    _PYRAMIDS.clear()
    _CONTEXTS.clear()


def pyramid(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    rates: Sequence[int],
    scale: Tensor | None,  # [O]
    shift: Tensor | None,  # [O]
    activation: str | None,
) -> Tensor | None:  # [N, O, H, W]
    """act(scale ([w_1 *_{r_1} x + b_1, ...]) + shift), or None where the composition must serve.

    Raises what the arguments deserve.
    """

    def decide(plain: bool) -> str:
        branches = require_branches(x, weights, biases, rates)
        outputs = sum(weight.shape[0] for weight in weights)
        require_channel_factors(x, outputs, scale=scale, shift=shift)
        if activation is not None:
            _check.require_choice("activation", activation, ("relu",))
        if not plain:
            return _observed(_kernel_of_pyramid, x, branches)
        return _kernel_of_pyramid(autocast(x), branches)

    given = _lists(weights, biases) and isinstance(rates, _check.SEQUENCES)
    if not given or torch.compiler.is_compiling():  # it would watch all that the memory holds
        decide(False)  # raises, without lists always
        return None
    tensors = (x, scale, shift, *weights, *(biases or ()))
    kernel = look_up(
        _PYRAMIDS, decide, tensors, (len(weights), biases is None, tuple(rates), activation)
    )
    if kernel == _COMPOSED or needs_graph(*tensors) or watched():
        return None
    sums = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (None if f is None else f.to(sums).contiguous() for f in (scale, shift))
    x, weights, biases = _cast(x, weights, biases)
    bias, steps = _side_by_side(x, weights, biases), [operator.index(rate) for rate in rates]
    arguments = bias, steps, scale, shift, activation is not None
    if kernel == "triton":
        y: Tensor = launchers().pyramid(x, weights, *arguments)
        return gapless(y, like=x)
    contiguous = [weight.contiguous() for weight in weights]
    y = getattr(torch.ops.segfast, PYRAMID)(gapless(x), contiguous, *arguments)
    return y


def context_module(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    dilations: Sequence[int],
) -> Tensor | None:
    """x through all layers, or None where the composition must serve.

    Raises what the arguments deserve.
    """

    def decide(plain: bool) -> str:
        layers = require_layers(x, weights, biases, dilations)
        if not plain:
            return _observed(_kernel_of_context, x, layers, _launches)
        return _kernel_of_context(autocast(x), layers)

    given = _lists(weights, biases) and isinstance(dilations, _check.SEQUENCES)
    if not given or torch.compiler.is_compiling():  # it would watch all that the memory holds
        decide(False)  # raises, without lists always
        return None
    tensors = (x, *weights, *(biases or ()))
    kernel = look_up(_CONTEXTS, decide, tensors, (len(weights), biases is None, tuple(dilations)))
    if kernel == _COMPOSED or needs_graph(*tensors) or watched():
        return None
    arguments, rates = _cast(x, weights, biases), [operator.index(rate) for rate in dilations]
    return gapless(launchers().context_module(*arguments, rates), like=arguments[0])


def _observed(
    kernel_of: Callable[..., str], x: Tensor, branches: list[Branch],
    how: Callable[[Tensor, list[Branch]], str] = lambda *_: "all in one call",
) -> str:  # fmt: skip
    """Composed; `segfast.explain` is told what would serve."""
    if (looks_on := observer()) is not None:
        kernel, plan = kernel_of(autocast(x), branches, looks_on.device), None
        if kernel != _COMPOSED:
            plan = Plan(kernel, f"{how(autocast(x), branches)}, where no gradient is wanted")
        looks_on.together(len(branches), plan)
    return _COMPOSED


def _launches(x: Tensor, layers: list[Branch]) -> str:
    """Of a context module's layers on CUDA, whose facts are those of the device that is there."""
    chain = [
        Layer(w.shape[1], w.shape[0], (w.shape[2], w.shape[3]), rate, bias is not None)
        for w, bias, rate in layers
    ]
    size, dtype = (x.shape[2], x.shape[3]), dtype_name(x.dtype)
    choice = choose_launches(chain, x.shape[0], size, dtype, chip(torch.device("cuda")))
    number = "one launch for all layers" if choice.configuration else "a launch for each layer"
    return f"{number}: {choice.why}"


def _lists(weights: Any, biases: Any) -> bool:
    lists = (tuple, list)
    return isinstance(weights, lists) and (biases is None or isinstance(biases, lists))


def _kernel_of_pyramid(x: Tensor, branches: list[Branch], device: str | None = None) -> str:
    if x.numel() == 0:
        return _COMPOSED
    device = device or x.device.type
    asked = [_problem(x, weight, rate, device) for weight, _, rate in branches]
    kernels = {choose("forward", each).kernel for each in asked}
    if "triton" in kernels and all(map(_triton_can, asked)):
        return "triton"
    there = native() is not None and compiled(PYRAMID, device)
    dense_serves = there and "dense" in kernels and "winograd" not in kernels
    return "dense" if dense_serves else _COMPOSED


def _kernel_of_context(x: Tensor, layers: list[Branch], device: str | None = None) -> str:
    device = device or x.device.type
    like = (x[:, :1].expand(-1, weight.shape[1], -1, -1) for weight, _, _ in layers)
    asked = [
        _problem(maps, w, rate, device) for maps, (w, _, rate) in zip(like, layers, strict=True)
    ]
    served = x.numel() and x.dtype.itemsize <= 2 and all(map(_triton_can, asked))
    return "triton" if served else _COMPOSED


def _cast(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """As autocast has them."""
    summands: Sequence[Tensor | None] = [None] * len(weights) if biases is None else biases
    if not torch._C._is_any_autocast_enabled():
        return x, list(weights), list(summands)
    cast = [None if bias is None else autocast(bias) for bias in summands]
    return autocast(x), [autocast(weight) for weight in weights], cast


def _triton_can(problem: Problem) -> bool:
    return "triton" in candidates("forward", problem, available(problem.device))


def _problem(x: Tensor, weight: Tensor, rate: int, device: str) -> Problem:
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    return problem(x, weight.shape, Geometry.same(size, kernel, rate), 1)._replace(device=device)


def _side_by_side(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    """[O_1 + O_2 + ...], zeros for the branches without; None where no branch has one."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([x.new_zeros(w.shape[0]) if b is None else b for w, b in pairs])
