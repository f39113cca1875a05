"""The few combinations of layers that every network repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from segfast.nn import DilatedConv2d, SeparableDilatedConv2d
from segfast.nn._shared import wide
from segfast.ops import _check


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: int | None = None,
) -> nn.Conv2d:
    """A convolution that keeps the size (before its stride); segfast's if dilated or grouped.

    `padding` None means dilation * (kernel_size // 2).
    """
    kind = DilatedConv2d if dilation > 1 or groups > 1 else nn.Conv2d
    padding = dilation * (kernel_size // 2) if padding is None else padding
    return kind(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=bias
    )


def conv_bn_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    act: Callable[..., nn.Module] | None = nn.ReLU,
    **options: Any,
) -> nn.Sequential:
    """relu(norm(conv x)): children 0, 1 and 2; another activation, or none, by `act`."""
    conv = conv2d(in_channels, out_channels, kernel_size, stride, **options)
    last = () if act is None else (act(inplace=True),)
    return nn.Sequential(conv, norm(out_channels), *last)


def separable_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, act: bool = False
) -> nn.Sequential:
    """relu(norm(conv_1x1(depthwise x))): children 0 (both convolutions), 1 and 2.

    `act` puts a normalisation and ReLU between the convolutions as well.
    """
    inner: dict[str, Any] = {"batch_norm": True, "activation": "relu"} if act else {}
    conv = SeparableDilatedConv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, **inner
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def gaussian(conv: Any, std: float = 0.01) -> Any:
    """The convolution, its weights drawn from N(0, std^2) and its bias zero."""
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
    return conv


class LocalResponseNorm(nn.LocalResponseNorm):
    """Over five channels, with Caffe's constants; in float32 or wider.

    Squares of an image from 0 to 255 overflow float16, and PyTorch has no half types for it on CPU.
    """

    def __init__(self) -> None:
        super().__init__(5, alpha=1e-4, beta=0.75)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape and dtype."""
        return super().forward(wide(x)).to(x.dtype)


class FCNHead(nn.Sequential):
    """Scores of one map: 3 x 3 to a quarter of the channels, dropout, 1 x 1 (children 0 to 4).

    What FCNs on residual networks end in, and the auxiliary head of most networks.

    x [N, C, H, W] -> [N, L, H, W]
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        width = in_channels // 4
        scores = nn.Conv2d(width, num_classes, 1)
        super().__init__(*conv_bn_relu(in_channels, width, 3), nn.Dropout(0.1), scores)


def msra(module: nn.Module) -> None:
    """Convolutions in it: weights from N(0, 2 / fan_in), biases zero (Caffe's "msra")."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def image_scales(scales: Sequence[float]) -> list[float]:
    """Scales of an image: positive numbers, one at least, no two alike."""
    if not isinstance(scales, (tuple, list)) or not scales:
        raise TypeError(f"scales must be numbers, got {_check.describe(scales)}")
    if len(set(scales)) < len(scales):
        raise ValueError(f"scales must differ, got {scales}")
    return _check.positive_floats("scales", scales, len(scales))
