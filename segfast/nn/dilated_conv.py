"""Dilated and separable convolutions as modules, and atrous rates for residual stages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from segfast.ops import _check, dilated_conv2d
from segfast.ops._check import IntOrPair

torch.fx.wrap("dilated_conv2d")  # one node of what torch.fx traces, as torch.nn.Conv2d is


class DilatedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` by segfast's kernels, which multiply no padding.

        y[o, p] = bias[o] + sum_{c, t} weight[o, c, t] x[c, p s - b + t r]

    Arguments, defaults, initialisation and state are those of `torch.nn.Conv2d`: weights of one
    load into the other. A `padding_mode` other than "zeros" pads first, as there. In what
    `torch.jit.script` compiles, PyTorch's convolution serves.

    Shape:
        x [N, C, H, W] or [C, H, W] -> y [N, O, Ho, Wo] or [O, Ho, Wo], in the memory format that
        `segfast.ops.dilated_conv2d` says.

    Raises:
        TypeError, ValueError: as `torch.nn.Conv2d`, at construction; as
            `segfast.ops.dilated_conv2d`, when called.

    Example:
        >>> import torch
        >>> from segfast.nn import DilatedConv2d
        >>> conv = DilatedConv2d(16, 8, 3, padding=12, dilation=12)
        >>> conv(torch.randn(1, 16, 33, 33)).shape
        torch.Size([1, 8, 33, 33])
    """

    def forward(self, x: Tensor) -> Tensor:
        """x -> y."""
        if torch.jit.is_scripting():  # which knows no Python
            return self._conv_forward(x, self.weight, self.bias)
        return self._dilated(x)

    @torch.jit.unused
    def _dilated(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode)
            padding = 0  # type: ignore[assignment]
        return dilated_conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> DilatedConv2d:
        """The same convolution with the same parameters: not copies, an optimiser keeps them.

        Args:
            conv: a `torch.nn.Conv2d` and no class derived from it, whose forward may differ.

        Raises:
            TypeError: it is something else.
            ValueError: it has what the new one would lose: hooks, a computed weight.

        Example:
            >>> from torch import nn
            >>> from segfast.nn import DilatedConv2d
            >>> conv = nn.Conv2d(4, 4, 3, dilation=2)
            >>> DilatedConv2d.from_conv(conv).weight is conv.weight
            True
        """
        if type(conv) not in (nn.Conv2d, DilatedConv2d):
            raise TypeError(f"conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        if why := _not_plain(conv):
            raise ValueError(f"conv must be a plain convolution, got one with {why}")
        return sharing(cls, conv, conv.stride, conv.padding, conv.dilation)


Conv = TypeVar("Conv", bound=nn.Conv2d)


def sharing(cls: type[Conv], conv: nn.Conv2d, stride: Any, padding: Any, dilation: Any) -> Conv:
    """conv's parameters in another class and geometry."""
    new = cls(
        conv.in_channels, conv.out_channels, conv.kernel_size, stride, padding, dilation,  # type: ignore[arg-type]
        conv.groups, conv.bias is not None, conv.padding_mode, device="meta",
    )  # fmt: skip
    new.weight, new.bias = conv.weight, conv.bias
    return new.train(conv.training)


def all_dilated(convs: Iterable[nn.Module]) -> bool:
    """Whether all are as built: what became a torch.nn.Conv2d is computed by itself."""
    return all(isinstance(conv, DilatedConv2d) for conv in convs)


class SeparableDilatedConv2d(nn.Sequential):
    """A k x k convolution of every channel by itself, then a 1 x 1 over the channels.

        z[c, p] = sum_t depthwise[c, t] x[c, p s - b + t r]
        y[o, p] = bias[o] + sum_c pointwise[o, c] act(norm(z))[c, p]

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, section 3.1. It
    multiplies k^2 C + C O times per position, a dense convolution k^2 C O times.

    Args:
        in_channels, out_channels: C and O.
        kernel_size, stride, padding, dilation: of the depthwise convolution.
        bias: of the 1 x 1 convolution; the depthwise one has none.
        batch_norm: between the two.
        activation: None or "relu", between the two, after the batch normalisation.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [N, C, H, W] or, without batch norm, [C, H, W] -> y [N, O, Ho, Wo] or [O, Ho, Wo].
        State: 0 (depthwise), 1 (pointwise), as published by segmentation_models.pytorch, and bn
        with `batch_norm`. What other code publishes differs in names only: conv1, bn, pointwise
        (jfzhang95), depthwise_conv.conv, depthwise_conv.bn, pointwise_conv.conv (mmseg).

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import SeparableDilatedConv2d
        >>> conv = SeparableDilatedConv2d(16, 32, 3, padding=12, dilation=12, activation="relu")
        >>> conv(torch.randn(1, 16, 33, 33)).shape
        torch.Size([1, 32, 33, 33])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        bias: bool = False,
        batch_norm: bool = False,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_channels = _check.require_count("in_channels", in_channels, 1)
        out_channels = _check.require_count("out_channels", out_channels, 1)
        kernel_size = _check.pair("kernel_size", kernel_size, 1)
        steps = _check.pair("stride", stride, 1)
        if isinstance(padding, str):
            _check.require_choice("padding", padding, ("same", "valid"))
            if padding == "same" and steps != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, got {steps}")
        else:
            padding = _check.pair("padding", padding, 0)
        dilation = _check.pair("dilation", dilation, 1)
        _check.require_bool("bias", bias)
        _check.require_bool("batch_norm", batch_norm)
        if activation is not None:
            _check.require_choice("activation", activation, ("relu",))
        factory: Any = {"device": device, "dtype": dtype}
        parts = OrderedDict[str, nn.Module]()
        parts["0"] = DilatedConv2d(
            in_channels, in_channels, kernel_size, steps, padding, dilation,
            groups=in_channels, bias=False, **factory,
        )  # fmt: skip
        if batch_norm:
            parts["bn"] = nn.BatchNorm2d(in_channels, **factory)
        if activation is not None:
            parts["relu"] = nn.ReLU()
        parts["1"] = nn.Conv2d(in_channels, out_channels, 1, bias=bias, **factory)
        super().__init__(parts)


# ------------------------------------------------------------------------ residual networks


def multi_grid(rate: int, units: Sequence[int] = (1, 2, 4)) -> tuple[int, ...]:
    """The rates of a stage's blocks: its rate, times a unit rate for each block.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section
    3.2.1.

    Args:
        rate: of the stage: 2 where output stride 16 is kept, 4 where 8 is.
        units: one of each block.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> from segfast.nn import multi_grid
        >>> multi_grid(2)
        (2, 4, 8)
    """
    rate = _check.require_count("rate", rate, 1)
    return tuple(rate * unit for unit in _check.require_counts("units", units))


def dilate_stage(stage: nn.Module, rates: Sequence[int]) -> nn.Module:
    """Takes the strides out of a residual stage and gives its blocks atrous rates, in place.

    The children of the stage are its blocks, in order, as torchvision's and timm's ResNets have
    them. Of every block, convolutions larger than 1 x 1 become :class:`DilatedConv2d` of its rate
    with the padding that keeps sizes; all strides become 1. Parameters stay the same objects under
    the same names.

    Args:
        stage: for example `resnet.layer4`.
        rates: one for each block, for example of :func:`multi_grid`.

    Returns:
        The stage.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or the stage has what cannot be
            dilated (even kernels, strided pooling, transposed convolutions); nothing was changed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from segfast.nn import dilate_stage
        >>> stage = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1))
        >>> dilate_stage(stage, [2])(torch.randn(1, 8, 33, 33)).shape
        torch.Size([1, 8, 33, 33])
    """
    blocks = [(name, block) for name, block in stage._modules.items() if block is not None]
    rates = _check.require_counts("rates", rates)
    if len(rates) != len(blocks):
        raise ValueError(f"rates must be {len(blocks)}, one for each block; got {len(rates)}")
    places = [
        (parent, name, child, rate)
        for (block_name, block), rate in zip(blocks, rates, strict=True)
        for parent, name, child in _children_below(stage, block_name, block)
    ]
    seen: set[nn.Module] = set()
    for _, name, child, _ in places:
        _require_dilatable(name, child)
        if isinstance(child, nn.Conv2d) and child in seen:
            raise ValueError(f"stage must not use {name} twice, in one block or in several")
        seen.add(child)
    for parent, name, child, rate in places:
        if isinstance(child, nn.Conv2d):
            setattr(parent, name, _dilated(child, rate))
    return stage


def _not_plain(conv: nn.Conv2d) -> str | None:
    """What a copy of the convolution would lose."""
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks:
        return "hooks (weight_norm, pruning and the like have one)"
    if not isinstance(conv._parameters.get("weight"), nn.Parameter):
        return "a computed weight (a parametrization)"
    return None


def _children_below(
    parent: nn.Module, name: str, module: nn.Module
) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name there, module) of it and all in it."""
    below = [
        place
        for child_name, child in module._modules.items()  # a child under two names twice
        if child is not None
        for place in _children_below(module, child_name, child)
    ]
    return [(parent, name, module), *below]


def _require_dilatable(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        if any(k % 2 == 0 for k in module.kernel_size):
            raise ValueError(f"{name} has an even kernel, {module.kernel_size}: not dilated")
        if type(module) not in (nn.Conv2d, DilatedConv2d):
            raise TypeError(f"{name} must be a torch.nn.Conv2d, got {type(module).__name__}")
        if why := _not_plain(module):
            raise ValueError(f"{name} must be a plain convolution, got one with {why}")
    elif _computes(module) and _largest_stride(module) != 1:
        raise ValueError(f"{name} has a stride and is no convolution: {module}")
    elif isinstance(module, _ConvTransposeNd):
        raise ValueError(f"{name} is a transposed convolution: not dilated")


def _computes(module: nn.Module) -> bool:
    """Whether it is more than a frame of others: torchvision's and timm's blocks keep a `stride`,
    a record of what their convolutions were made with."""
    children = any(child is not None for child in module._modules.values())
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return not children or any(tensor is not None for tensor in tensors)


def _largest_stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    return max(stride) if isinstance(stride, (tuple, list)) else stride


def _dilated(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    if conv.kernel_size == (1, 1):
        conv.stride = (1, 1)
        return conv
    padding = tuple(rate * (k // 2) for k in conv.kernel_size)
    return sharing(DilatedConv2d, conv, 1, padding, rate)
