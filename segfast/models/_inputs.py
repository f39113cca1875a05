"""What networks and backbones refuse of their images, in words about the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.fx
from torch import Tensor, nn

from segfast.nn._shared import require_map
from segfast.ops import _check

# Kernel, stride and padding of a layer, and whether it rounds its size up.
Window = tuple[int, int, int, bool]
ONE_VALUE = "more than 1 value per channel"  # PyTorch's words, and those of segfast.nn.ASPP


def require_image(x: Tensor, net: Any) -> None:
    """Refuses what is no [N, C, H, W] that a network or backbone takes, or is elsewhere than it."""
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            "x must be a tensor, got a proxy: torch.fx does not follow what depends on sizes of "
            "maps; torch.export.export and torch.compile do"
        )
    weight = next(net.parameters(), None)
    require_map(x, net.in_channels, weight)
    if any(n < net.least for n in x.shape[-2:]):
        raise ValueError(
            f"x must be at least {net.least} pixels high and wide, got {_check.describe(x)}"
        )
    if weight is None or x.device == weight.device:
        return
    if not weight.is_meta:
        raise ValueError(
            f"x must be on the device of the model, {weight.device}; it is on {x.device}"
        )
    if not _brought(net):  # PyTorch's convolution would compute with what lies in memory
        raise ValueError(
            "the model is on the meta device, where parameters have no numbers: load_checkpoint "
            "gives it some"
        )


def _brought(net: nn.Module) -> bool:
    """Whether hooks, such as accelerate's, may bring the parameters when they are used."""
    return any(m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in net.modules())


def one_value(x: Tensor) -> ValueError:
    """Of an image one value of a channel was left: what a normalisation says of its map, said of x.

    (One value has no variance.)
    """
    return ValueError(
        "x must be [N, C, H, W] with N > 1 in training, or of larger images where they are not "
        f"pooled whole: a batch normalisation needs {ONE_VALUE}. Got {_check.describe(x)}, which "
        "the model takes in evaluation: model.eval()"
    )


def least_image(layers: Iterable[Window]) -> int:
    """Pixels on a side that layers, in this order, make one value of, or more.

    n values need (n - 1) s + k - 2 p. Where a layer rounds up its last window may end outside, but
    begins in the map or the padding before it: they need (n - 2) s + k - 2 p + 1 and
    (n - 1) s - p + 1.

    Example:
        >>> from segfast.models._inputs import least_image
        >>> least_image([(7, 2, 3, False), (3, 2, 0, True)])  # GoogLeNet's first two
        3
    """
    n = 1
    for kernel, stride, padding, up in reversed([*layers]):
        if up:
            begins = (n - 1) * stride - padding + 1
            n = max((n - 2) * stride + kernel - 2 * padding + 1, begins)
        else:
            n = (n - 1) * stride + kernel - 2 * padding
        n = max(n, 1)
    return n
