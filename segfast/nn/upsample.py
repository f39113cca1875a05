"""The other ways up: nearest, bilinear and bicubic interpolation, transposed convolution.

Thin modules over PyTorch. All take the size that is wanted, as :class:`segfast.nn.MaxUnpool2d`
does, so that a decoder can change one for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.ops import _check


class _Interpolate2d(nn.Module):
    """Resizing by PyTorch, by a factor or to a given size."""

    mode: str
    align_corners: bool | None = None

    def __init__(self, scale_factor: int = 2) -> None:
        super().__init__()
        self.scale_factor = _check.require_count("scale_factor", scale_factor, 1)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """x [N, C, H, W] -> [N, C, H * scale_factor, W * scale_factor] or `output_size`."""
        size = [n * self.scale_factor for n in x.shape[-2:]]
        if output_size is not None:
            size = list(output_size[-2:])
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        """The arguments."""
        corners = "" if self.align_corners is None else f", align_corners={self.align_corners}"
        return f"scale_factor={self.scale_factor}{corners}"


class NearestUpsample2d(_Interpolate2d):
    """Nearest neighbour: y[h, w] = x[floor(h H / H'), floor(w W / W')] for an H' x W' output.

    Args:
        scale_factor: of both axes, unless `output_size` is given when called.

    Shape:
        x [N, C, H, W] -> [N, C, H * scale_factor, W * scale_factor], or `output_size`: (H', W') or
        a whole shape of which the last two count.

    Example:
        >>> import torch
        >>> from segfast.nn import NearestUpsample2d
        >>> NearestUpsample2d(2)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[1., 1., 2., 2.],
                  [1., 1., 2., 2.]]]])
    """

    mode = "nearest"


class _SmoothUpsample2d(_Interpolate2d):
    def __init__(self, scale_factor: int = 2, align_corners: bool = False) -> None:
        super().__init__(scale_factor)
        _check.require_bool("align_corners", align_corners)
        self.align_corners = align_corners


class BilinearUpsample2d(_SmoothUpsample2d):
    """Bilinear interpolation: on each axis between the two neighbours, weighted by distance.

    Args:
        scale_factor: of both axes, unless `output_size` is given when called.
        align_corners: True maps the centres of the corner pixels onto each other; False (the
            default) the corners of the map. DeepLab's and PSPNet's published code has True.

    Shape:
        x [N, C, H, W] -> [N, C, H * scale_factor, W * scale_factor], or `output_size`.

    Example:
        >>> import torch
        >>> from segfast.nn import BilinearUpsample2d
        >>> BilinearUpsample2d(2)(torch.tensor([[[[0.0, 4.0]]]]))
        tensor([[[[0., 1., 3., 4.],
                  [0., 1., 3., 4.]]]])
    """

    mode = "bilinear"


class BicubicUpsample2d(_SmoothUpsample2d):
    """Bicubic convolution over 4x4 neighbours (Keys 1981, a = -0.75); may overshoot.

    Arguments and shapes are those of :class:`BilinearUpsample2d`.

    Example:
        >>> import torch
        >>> from segfast.nn import BicubicUpsample2d
        >>> BicubicUpsample2d(3)(torch.zeros(1, 2, 5, 4), output_size=(14, 12)).shape
        torch.Size([1, 2, 14, 12])
    """

    mode = "bicubic"


class BilinearConvTranspose2d(nn.ConvTranspose2d):
    """Learned up-sampling that begins as a bilinear one: FCN's transposed convolution.

    Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
    2015, section 4.2. For a factor s the kernel has k = 2 s - s mod 2 taps on each axis and
    padding ceil((s - 1) / 2); each channel of the result starts as that channel alone, filtered by

        w[i, j] = (1 - |i - c| / f) (1 - |j - c| / f),   c = (k - 1) / 2,  f = ceil(k / 2)

    (their surgery.py), which inside the map is bilinear interpolation with ``align_corners=False``.

    Args:
        in_channels, out_channels: `out_channels` None means `in_channels`; with other numbers the
            channels without a partner start as zero.
        scale_factor: s.
        groups, bias, device, dtype: those of `torch.nn.ConvTranspose2d`; FCN has no bias.
        kernel_size, padding: k and another padding; None means those above. FCN has padding 0 and
            crops.

    Shape:
        x [N, C, H, W] -> [N, out_channels, H s, W s], or `output_size` (H', W') or a whole shape,
        with H s <= H' < (H + 1) s. With `kernel_size` or `padding`: (H - 1) s - 2 padding + k.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import BilinearConvTranspose2d
        >>> up = BilinearConvTranspose2d(21, scale_factor=2)
        >>> up(torch.ones(1, 21, 8, 8))[0, 0, 4:6, 4:6].detach()
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        scale_factor: int = 2,
        groups: int = 1,
        bias: bool = False,
        *,
        kernel_size: int | None = None,
        padding: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        scale_factor = _check.require_count("scale_factor", scale_factor, 1)
        if kernel_size is not None:
            kernel_size = _check.require_count("kernel_size", kernel_size, 1)
        if padding is not None:
            padding = _check.require_count("padding", padding)
        self.scale_factor = scale_factor
        super().__init__(
            in_channels,
            in_channels if out_channels is None else out_channels,
            kernel_size=2 * scale_factor - scale_factor % 2 if kernel_size is None else kernel_size,
            stride=scale_factor,
            padding=scale_factor // 2 if padding is None else padding,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Bilinear filters on the diagonal of the channels, zeros elsewhere; the bias zero."""
        filter_1d = bilinear_filter(self.kernel_size[0])
        filter_2d = torch.outer(filter_1d, filter_1d)
        each = self.out_channels // self.groups
        with torch.no_grad():
            self.weight.zero_()  # [in_channels, out_channels / groups, k, k]
            for c in range(min(self.in_channels, self.out_channels)):
                group = c // (self.in_channels // self.groups)
                if group == c // each:
                    self.weight[c, c % each] = filter_2d
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """x -> H s x W s, or `output_size`."""
        return super().forward(x, None if output_size is None else list(output_size[-2:]))


def bilinear_filter(taps: int) -> Tensor:
    """1 - |i - c| / f for i < taps in float64, with c = (taps - 1) / 2 and f = ceil(taps / 2).

    Example:
        >>> from segfast.nn.upsample import bilinear_filter
        >>> bilinear_filter(4)
        tensor([0.2500, 0.7500, 0.7500, 0.2500], dtype=torch.float64)
    """
    i = torch.arange(taps, dtype=torch.float64)
    return 1 - (i - (taps - 1) / 2).abs() / ((taps + 1) // 2)
