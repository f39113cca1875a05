"""Max-pooling that keeps packed indices, and the unpoolings that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from segfast.ops import max_pool2d, max_pool2d_packed, max_unpool2d
from segfast.ops._check import IntOrPair, pair
from segfast.ops._max_unpool_geometry import require_map
from segfast.ops._max_unpool_op import packed_width

for _name in ("max_pool2d", "max_pool2d_packed", "max_unpool2d"):
    torch.fx.wrap(_name)  # one node each of what torch.fx traces, as torch.nn's are


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` by segfast's kernels; ``return_indices=True`` returns packed ones.

        y[o] = max_t x[p(o, t)]

    Arguments, defaults and state (none) are those of `torch.nn.MaxPool2d`.

    Shape:
        x [N, C, H, W] or [C, H, W] -> y [N, C, Ho, Wo] or [C, Ho, Wo], or ``(y, packed)`` with
        packed uint8 as `segfast.ops.max_pool2d_packed` gives it, for :class:`MaxUnpool2d`.
        `segfast.ops.unpack_indices` makes PyTorch's indices of it.

    Raises:
        TypeError, ValueError: as `segfast.ops.max_pool2d`, when called.

    Example:
        >>> import torch
        >>> from segfast.nn import MaxPool2d
        >>> y, packed = MaxPool2d(2, return_indices=True)(torch.randn(1, 3, 360, 480))
        >>> y.shape, packed.shape
        (torch.Size([1, 3, 180, 240]), torch.Size([1, 3, 180, 60]))
    """

    def forward(self, x: Tensor) -> Any:
        """x -> y, or (y, packed)."""
        pool = max_pool2d_packed if self.return_indices else max_pool2d
        return pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxUnpool2d(nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` for packed indices and PyTorch's alike: `segfast.ops.max_unpool2d`.

        x[q] = y[o] of the last window o whose maximum was at q, else 0

    Args:
        kernel_size, stride, padding: those of the pool; stride None means `kernel_size`.
        dilation: that of the pool (`torch.nn.MaxUnpool2d` has none).

    Shape:
        y [N, C, Ho, Wo] or [C, Ho, Wo], indices packed (uint8) or int64 -> x [N, C, H, W] or
        [C, H, W] with (H, W) from `output_size`, which several pools need to be undone exactly.

    Raises:
        TypeError, ValueError: `kernel_size` is wrong, at construction.
        TypeError, ValueError, RuntimeError: as `segfast.ops.max_unpool2d`, when called.

    Example:
        >>> import torch
        >>> from segfast.nn import MaxPool2d, MaxUnpool2d
        >>> pool, unpool = MaxPool2d(2, return_indices=True), MaxUnpool2d(2)
        >>> x = torch.randn(1, 3, 45, 60)
        >>> unpool(*pool(x), output_size=x.shape).shape
        torch.Size([1, 3, 45, 60])
    """

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = None,
        padding: IntOrPair = 0,
        *,
        dilation: IntOrPair = 1,
    ) -> None:
        super().__init__(pair("kernel_size", kernel_size, 1), stride, padding)  # type: ignore[arg-type]
        self.dilation = dilation

    def forward(
        self, y: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """y, indices -> x of `output_size`."""
        return max_unpool2d(
            y, indices, self.kernel_size, self.stride, self.padding, output_size,
            dilation=self.dilation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, dilation={self.dilation}"


class FixedUnpool2d(nn.Module):
    """Unpooling without indices: every value at the top left of its cell, zeros between.

        x[ho * sh, wo * sw] = y[ho, wo], else 0

    The "unpooling" of Dosovitskiy, Springenberg and Brox, "Learning to Generate Chairs with
    Convolutional Neural Networks", CVPR 2015, section 3, and of Laina et al., "Deeper Depth
    Prediction with Fully Convolutional Residual Networks", 3DV 2016, section 3.1.

    Args:
        kernel_size: size of a cell, one number or (vertical, horizontal), at most 256 positions.
        stride: distance of the cells; None means `kernel_size`.

    Shape:
        y [N, C, Ho, Wo] or [C, Ho, Wo] -> x [N, C, H, W] or [C, H, W]: (Ho - 1) * stride +
        kernel_size, or `output_size` within a stride of that.

    Raises:
        TypeError, ValueError: as `segfast.ops.max_unpool2d`.

    Example:
        >>> import torch
        >>> from segfast.nn import FixedUnpool2d
        >>> FixedUnpool2d(2)(torch.tensor([[[1.0, 2.0]]]))
        tensor([[[1., 0., 2., 0.],
                 [0., 0., 0., 0.]]])
    """

    def __init__(self, kernel_size: IntOrPair, stride: IntOrPair | None = None) -> None:
        super().__init__()
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("stride", stride, 1)

    def forward(self, y: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """y -> x of `output_size`."""
        require_map("y", y)
        shape = (*y.shape[:-1], packed_width(y.shape[-1], self.kernel_size))
        first = torch.zeros(shape, dtype=torch.uint8, device=y.device)  # the first of each window
        return max_unpool2d(y, first, self.kernel_size, self.stride, 0, output_size)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
