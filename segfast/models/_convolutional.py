"""Classifiers made fully convolutional, and the dense output of a strided network by shifts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segfast.ops import _check


def convolutionalize(
    classifier: nn.Sequential, in_channels: int, size: tuple[int, int] | None = None
) -> nn.Sequential:
    """Fully connected layers as convolutions, which take maps of any size.

    The first layer, of in_channels h w inputs, becomes an h x w convolution, the others 1 x 1:

        (W x)_o = sum_{c,i,j} W[o, c h w + i w + j] x[c, i, j]

    Long, Shelhamer and Darrell, CVPR 2015, section 3.1.

    Args:
        classifier: `torch.nn.Linear` layers and what works element by element between them; a
            leading `torch.nn.Flatten` is dropped. It is not changed, and shares no parameters.
        in_channels: C of the map that it is applied to.
        size: (h, w) of that map; None means a square one.

    Returns:
        A module: map [N, C, H, W] -> [N, O, H - h + 1, W - w + 1]; at (h, w) what the classifier
        gives. Names of the layers stay.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from segfast.models import convolutionalize
        >>> head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 5), nn.ReLU())
        >>> convolutionalize(head, 8)(torch.randn(1, 8, 10, 12)).shape
        torch.Size([1, 5, 5, 7])
    """
    if not isinstance(classifier, nn.Sequential):
        raise TypeError(
            f"classifier must be a torch.nn.Sequential, got {_check.describe(classifier)}"
        )
    _check.require_count("in_channels", in_channels, 1)
    layers = nn.Sequential()
    first = True
    for name, layer in classifier.named_children():
        if isinstance(layer, nn.Flatten):
            if not first:
                raise ValueError(f"classifier must flatten before its layers, {name} comes later")
            continue
        if not isinstance(layer, nn.Linear):
            _require_elementwise(name, layer)
            layers.add_module(name, layer)
            continue
        kernel, channels = (1, 1), layer.in_features
        if first:
            kernel, channels = _kernel(layer.in_features, in_channels, size), in_channels
            first = False
        layers.add_module(name, _as_convolution(layer, channels, kernel))
    if first:
        raise ValueError("classifier must have a torch.nn.Linear, it has none")
    return layers


# What would work along other axes of a map than of a vector.
ACROSS = (
    nn.Linear, nn.Bilinear, nn.Flatten, nn.Unflatten, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.BatchNorm1d, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU,
)  # fmt: skip


def _require_elementwise(name: str, layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, ACROSS) and getattr(module, "dim", None) != 1:
            raise ValueError(
                f"classifier must have torch.nn.Linear and what works element by element (or along "
                f"dim=1), its {name} has {_check.describe(module)}"
            )


def _kernel(features: int, channels: int, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        side = math.isqrt(features // channels)
        size = (side, side)
    height, width = _check.pair("size", size, 1)
    if height * width * channels != features:
        raise ValueError(
            f"classifier takes {features} values, not in_channels x height x width = "
            f"{channels} x {height} x {width}"
        )
    return height, width


def _as_convolution(layer: nn.Linear, channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    weight = layer.weight
    conv = nn.Conv2d(
        channels, layer.out_features, kernel, bias=layer.bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        if conv.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv.train(layer.training)


def shift_and_stitch(net: Callable[[Tensor], Tensor], x: Tensor, stride: int) -> Tensor:
    """The output of a strided network at every pixel: it runs on stride^2 shifted images.

        y[i s + a, j s + b] = net(x[a:, b:])[i, j]

    Long, Shelhamer and Darrell, CVPR 2015, section 3.2. A network without padding gives what the
    same network gives with its strides taken out and its layers dilated, to rounding, at s^2 times
    the cost of one run.

    Args:
        net: maps images [N, C, H, W] to [N, L, h, w] at distance `stride`, without padding.
        x: [N, C, H, W], large enough for one value from every shifted image.
        stride: s, the product of all strides of the network.

    Returns:
        [N, L, H - k + 1, W - k + 1] for a network that sees k x k pixels.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or the network has another stride.
            Padding is not seen.

    Example:
        >>> import torch
        >>> from segfast.models import shift_and_stitch
        >>> from torch import nn
        >>> x = torch.rand(1, 1, 7, 8)
        >>> torch.equal(shift_and_stitch(nn.MaxPool2d(2), x, 2), nn.MaxPool2d(2, 1)(x))
        True
    """
    _check.require_tensor("x", x, "[N, C, H, W]")
    if x.dim() != 4:
        raise ValueError(f"x must be [N, C, H, W], got {_check.describe(x)}")
    _check.require_count("stride", stride, 1)
    if not callable(net):
        raise TypeError(f"net must be callable, got {_check.describe(net)}")
    last = _smallest(net, x, stride)
    parts = [
        [last if a == b == stride - 1 else net(x[..., a:, b:]) for b in range(stride)]
        for a in range(stride)
    ]
    _require_stride(net, x, parts[0][0], stride)
    height = sum(row[0].shape[-2] for row in parts)
    width = sum(part.shape[-1] for part in parts[0])
    y = parts[0][0].new_empty((*parts[0][0].shape[:2], height, width))
    for a, row in enumerate(parts):
        for b, part in enumerate(row):
            y[..., a::stride, b::stride] = part
    return y


def _smallest(net: Callable[[Tensor], Tensor], x: Tensor, stride: int) -> Tensor:
    """Of the image that is shifted most: at least one value."""
    wanted = (
        f"x must be an image that net takes, also when its first {stride - 1} rows and columns "
        f"are cut off; got {_check.describe(x)}"
    )
    if min(x.shape[-2:]) < stride:
        raise ValueError(wanted)
    try:
        y = net(x[..., stride - 1 :, stride - 1 :])
    except (
        RuntimeError,
        ValueError,
    ) as error:  # layers say no more
        raise ValueError(f"{wanted}: {error}") from error
    _check.require_tensor("the result of net", y, "[N, L, h, w]")
    if y.dim() != 4 or 0 in y.shape[-2:]:
        raise ValueError(f"{wanted}: it gives a {_check.describe(y)}")
    return y


def _require_stride(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, stride: int) -> None:
    """An image that is smaller by several strides gives as many values less."""
    less = min(y.shape[-2:]) - 1
    try:
        smaller = net(x[..., less * stride :, less * stride :]).shape[-2:]
    except RuntimeError:  # too small for it
        smaller = torch.Size()
    if list(smaller) != [n - less for n in y.shape[-2:]]:
        raise ValueError(
            f"net must have stride {stride}: an image that is {less} strides smaller must give "
            f"{less} rows and columns less than {tuple(y.shape[-2:])}, got {tuple(smaller)}"
        )
