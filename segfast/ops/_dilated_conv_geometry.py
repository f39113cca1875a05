"""Arguments of the dilated convolutions: what is accepted, and the sizes that follow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segfast.ops import _check
from segfast.ops._autocast import autocast_dtype
from segfast.ops._check import IntOrPair, Pair, pair
from segfast.ops._dilated_conv_op import Strides


def require_channels(
    x: Any, weight: Any, bias: Any, groups: Any, spatial: int, *, transposed: bool = False
) -> None:
    """x, weight, bias of a convolution over `spatial` dimensions, their dtypes and channels."""
    space = ("L",) if spatial == 1 else ("H", "W")
    map_ = f"[N, C, {', '.join(space)}] or [C, {', '.join(space)}]"
    kernel = "k" if spatial == 1 else "kh, kw"
    shape = f"[C, O / groups, {kernel}]" if transposed else f"[O, C / groups, {kernel}]"
    _check.require_floating("x", x, map_)
    _check.require_floating("weight", weight, shape)
    _check.require_count("groups", groups, 1)
    if x.dim() not in (spatial + 1, spatial + 2):
        raise ValueError(f"x must be {map_}, got {_check.describe(x)}")
    if weight.dim() != spatial + 2 or min(weight.shape) < 1:
        raise ValueError(f"weight must be {shape}, nothing 0, got {_check.describe(weight)}")
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} rows of weight, got groups={groups}"
        )
    channels = x.shape[-spatial - 1]
    expected = weight.shape[0] if transposed else weight.shape[1] * groups
    if channels != expected:
        raise ValueError(
            f"x must have {expected} channels for weight {tuple(weight.shape)} and "
            f"groups={groups}, got {_check.describe(x)}"
        )
    if bias is not None:
        outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        _check.require_floating("bias", bias, f"[{outputs}] or None")
        if tuple(bias.shape) != (outputs,):
            raise ValueError(f"bias must be [{outputs}], got {_check.describe(bias)}")
    for name, value in {"x": x, "weight": weight, "bias": bias}.items():
        if value is None:
            continue
        _check.require_dtype(name, value)
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, expected {x.device}, where x is")
        if autocast_dtype(value) != autocast_dtype(x):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}; got {value.dtype}")


def last_two(x: Tensor) -> Pair:
    return x.shape[-2], x.shape[-1]


def conv_strides(
    size: Pair,  # of the input
    kernel: Pair,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Pair, Strides]:
    """The output's size and the geometry of a convolution."""
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
    return (outputs[0], outputs[1]), Strides(*steps, *before, *rates, groups)


def _named_padding(padding: str, kernel: Pair, steps: Pair, rates: Pair) -> tuple[Pair, Pair]:
    """(before, before and behind together)"""
    _check.require_choice("padding", padding, ("same", "valid"))
    if padding == "valid":
        return (0, 0), (0, 0)
    if steps != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got {steps}")
    both = (rates[0] * (kernel[0] - 1), rates[1] * (kernel[1] - 1))
    return (both[0] // 2, both[1] // 2), both


def transposed_strides(
    size: Pair,  # of the input, which is the output of the convolution
    kernel: Pair,
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair,
    groups: int,
    dilation: IntOrPair,
) -> tuple[Pair, Strides]:
    """The output's size and the geometry of a transposed convolution."""
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
    return (outputs[0], outputs[1]), Strides(*steps, *before, *rates, groups)


Branch = tuple[Tensor, Tensor | None, int]  # weight, bias, atrous rate


def require_branches(x: Any, weights: Any, biases: Any, rates: Any) -> list[Branch]:
    """Convolutions of x that keep its size."""
    branches = _zipped("rates", weights, biases, rates)
    for weight, bias, _ in branches:
        _require_same_sized(x, weight, bias)
    return branches


def require_layers(x: Any, weights: Any, biases: Any, dilations: Any) -> list[Branch]:
    """Convolutions after one another that keep the size of x."""
    layers = _zipped("dilations", weights, biases, dilations)
    for weight, bias, _ in layers:
        _require_same_sized(x, weight, bias)
        x = x[:, :1].expand(-1, weight.shape[0], -1, -1)  # like what this layer gives
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
    if not isinstance(weights, (tuple, list)) or not weights:
        raise TypeError(f"weights must be a list of tensors, got {_check.describe(weights)}")
    biases = [None] * len(weights) if biases is None else biases
    for what, given in {"biases": biases, name: rates}.items():
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"{what} must be a list, got {_check.describe(given)}")
        if len(given) != len(weights):
            raise ValueError(f"{what} must be {len(weights)}, as weights are; got {len(given)}")
    for rate in rates:
        _check.require_count(name, rate, 1)
    return list(zip(weights, biases, rates, strict=True))


def _require_same_sized(x: Any, weight: Any, bias: Any) -> None:
    require_channels(x, weight, bias, 1, 2)
    if x.dim() != 4:
        raise ValueError(f"x must be [N, C, H, W], got {_check.describe(x)}")
    if any(k % 2 == 0 for k in weight.shape[-2:]):
        raise ValueError(f"weights must have odd kernels, got {_check.describe(weight)}")
