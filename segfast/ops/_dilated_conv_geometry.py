"""Arguments of the dilated convolutions: what is accepted, and the sizes that follow.

Decided by facts about the tensors, not by tensors, so that answers can be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _check
from segfast.ops._autocast import autocast_dtype
from segfast.ops._check import IntOrPair, Pair, pair
from segfast.ops._dilated_conv_plan import Strides

MAP, MAP1 = "[N, C, H, W] or [C, H, W]", "[N, C, L] or [C, L]"


class Facts(NamedTuple):
    """Of a tensor."""

    shape: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    cast: torch.dtype  # after autocast

    def __str__(self) -> str:
        return f"{self.dtype} tensor of shape {tuple(self.shape)}"


def facts(name: str, x: Any, contract: str) -> Facts:
    _check.require_floating(name, x, contract)
    return Facts(x.shape, x.dtype, x.device, autocast_dtype(x))


class Given(NamedTuple):
    """The tensors of a convolution."""

    x: Facts
    weight: Facts
    bias: Facts | None


def given(x: Any, weight: Any, bias: Any, map_: str, kernel: str) -> Given:
    return Given(
        facts("x", x, map_),
        facts("weight", weight, kernel),
        None if bias is None else facts("bias", bias, "or None"),
    )


NAMES = ("x", "weight", "bias")


def require_channels(
    given: Given, groups: int, *, transposed: bool = False, names: tuple[str, ...] = NAMES
) -> int:
    """Dimensions, channels, dtypes and devices of a convolution in two dimensions; the groups."""
    groups = _check.require_count("groups", groups, 1)
    x, weight, bias = given
    contract = "[C, O / groups, kh, kw]" if transposed else "[O, C / groups, kh, kw]"
    if len(x.shape) not in (3, 4):
        raise ValueError(f"{names[0]} must be {MAP}, got {x}")
    if len(weight.shape) != 4 or min(weight.shape) < 1:
        raise ValueError(f"{names[1]} must be {contract}, nothing 0, got {weight}")
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} rows of {names[1]}, got groups={groups}"
        )
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        inputs, outputs = outputs, inputs
    if x.shape[-3] != inputs:
        raise ValueError(
            f"{names[0]} must have {inputs} channels for {names[1]} {tuple(weight.shape)} and "
            f"groups={groups}, got {x}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"{names[2]} must be [{outputs}], got {bias}")
    for name, fact in zip(names, given, strict=True):
        if fact is None:
            continue
        if fact.dtype not in _check.DTYPES:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {fact}")
        if fact.device != x.device:
            raise ValueError(f"{name} is on {fact.device}, expected {x.device}, where x is")
        if fact.cast != x.cast:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}; got {fact.dtype}")
    return groups


class Resolved(NamedTuple):
    """A convolution, or its transpose, as the raw operators take it."""

    outputs: Pair  # the size of the result
    strides: Strides
    geometry: Geometry


def resolve(
    given: Given, stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair, groups: int
) -> Resolved:
    """A convolution."""
    groups = require_channels(given, groups)
    x, weight, _ = given
    size, kernel = _last_two(x), _last_two(weight)
    steps, rates = pair("stride", stride, 1), pair("dilation", dilation, 1)
    if isinstance(padding, str):
        before, both = _named_padding(padding, kernel, steps, rates)
    else:
        before = pair("padding", padding, 0)
        both = (2 * before[0], 2 * before[1])
    outputs = [
        (n + p - d * (k - 1) - 1) // s + 1
        for n, p, k, s, d in zip(size, both, kernel, steps, rates, strict=True)
    ]
    if outputs[0] < 1 or outputs[1] < 1 or min(size) < 1:
        raise ValueError(
            f"x of {size[0]} x {size[1]} with padding {padding} is smaller than the kernel: "
            f"{kernel} at dilation {rates}"
        )
    strides = Strides(*steps, *before, *rates, groups)
    return Resolved((outputs[0], outputs[1]), strides, strides.geometry(size, outputs, kernel))


def resolve_transposed(
    given: Given, stride: IntOrPair, padding: IntOrPair, output_padding: IntOrPair, groups: int,
    dilation: IntOrPair,
) -> Resolved:  # fmt: skip
    """A transposed convolution: x is as the output of the convolution."""
    groups = require_channels(given, groups, transposed=True)
    x, weight, _ = given
    size, kernel = _last_two(x), _last_two(weight)
    steps, rates = pair("stride", stride, 1), pair("dilation", dilation, 1)
    before, behind = pair("padding", padding, 0), pair("output_padding", output_padding, 0)
    for extra, s, d in zip(behind, steps, rates, strict=True):
        if extra >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than stride {steps} or dilation {rates}, "
                f"got {behind}"
            )
    outputs = [
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, s, p, d, k, extra in zip(size, steps, before, rates, kernel, behind, strict=True)
    ]
    if outputs[0] < 1 or outputs[1] < 1 or min(size) < 1:
        raise ValueError(f"x of {size[0]} x {size[1]} and padding {before} leave no output")
    strides = Strides(*steps, *before, *rates, groups)
    return Resolved((outputs[0], outputs[1]), strides, strides.geometry(outputs, size, kernel))


def _last_two(fact: Facts) -> Pair:
    return fact.shape[-2], fact.shape[-1]


def _named_padding(padding: str, kernel: Pair, steps: Pair, rates: Pair) -> tuple[Pair, Pair]:
    """(before, before and behind together)"""
    _check.require_choice("padding", padding, ("same", "valid"))
    if padding == "valid":
        return (0, 0), (0, 0)
    if steps != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got {steps}")
    if isinstance(kernel[0], Tensor):  # torch.jit.trace
        kernel = (int(kernel[0]), int(kernel[1]))
    both = (rates[0] * (kernel[0] - 1), rates[1] * (kernel[1] - 1))
    return pair("padding", (both[0] // 2, both[1] // 2), 0), both


Branch = tuple[Tensor, Tensor | None, int]  # weight, bias, atrous rate


def require_branches(x: Any, weights: Any, biases: Any, rates: Any) -> list[Branch]:
    """Convolutions of x that keep its size."""
    branches = _zipped("rates", weights, biases, rates)
    for i, (weight, bias, rate) in enumerate(branches):
        _require_same_sized(facts("x", x, "[N, C, H, W]"), weight, bias, rate, "x", i)
    return branches


def require_layers(x: Any, weights: Any, biases: Any, dilations: Any) -> list[Branch]:
    """Convolutions after one another that keep the size of x."""
    layers = _zipped("dilations", weights, biases, dilations)
    current = facts("x", x, "[N, C, H, W]")
    for i, (weight, bias, rate) in enumerate(layers):
        name = f"the map after layer {i - 1}" if i else "x"
        _require_same_sized(current, weight, bias, rate, name, i)
        n, _, height, width = current.shape
        current = current._replace(shape=(n, weight.shape[0], height, width))
    return layers


def require_channel_factors(x: Tensor, channels: int, **factors: Any) -> None:
    for name, factor in factors.items():
        if factor is None:
            continue
        _check.require_floating(name, factor, f"[{channels}] or None")
        if tuple(factor.shape) != (channels,):
            raise ValueError(f"{name} must be [{channels}], got {_check.describe(factor)}")
        if factor.device != x.device:
            raise ValueError(f"{name} is on {factor.device}, expected {x.device}, where x is")


def _zipped(name: str, weights: Any, biases: Any, rates: Any) -> list[Branch]:
    for what, values in {"weights": weights, "biases": [] if biases is None else biases}.items():
        if not isinstance(values, (tuple, list)):
            raise TypeError(f"{what} must be a list of tensors, got {_check.describe(values)}")
    if not weights:
        raise ValueError(f"weights must hold at least one tensor, got {_check.describe(weights)}")
    rates = _check.require_counts(name, rates)
    biases = [None] * len(weights) if biases is None else biases
    for what, values in {"biases": biases, name: rates}.items():
        if len(values) != len(weights):
            raise ValueError(f"{what} must be {len(weights)}, as weights are; got {len(values)}")
    return list(zip(weights, biases, rates, strict=True))


def _require_same_sized(x: Facts, weight: Any, bias: Any, rate: int, name: str, i: int) -> None:
    names = (name, f"weights[{i}]", f"biases[{i}]")
    if len(x.shape) != 4:
        raise ValueError(f"x must be [N, C, H, W], got {x}")
    kernel = facts(names[1], weight, "[O, C, kh, kw]")
    summand = None if bias is None else facts(names[2], bias, "or None")
    require_channels(Given(x, kernel, summand), 1, names=names)
    if any(k % 2 == 0 for k in kernel.shape[-2:]):
        raise ValueError(f"{names[1]} must have an odd kernel, got {kernel}")
    _named_padding("same", _last_two(kernel), (1, 1), (rate, rate))
