"""The dilated context module: a chain of convolutions whose rates double."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segfast.nn._shared import chosen, require_map
from segfast.nn.dilated_conv import DilatedConv2d, all_dilated
from segfast.ops import _check, context_module2d

CONTEXT_DILATIONS = {
    "pascal": (1, 1, 2, 4, 8, 16, 1),
    "camvid": (1, 1, 2, 4, 8, 16, 1),
    "cityscapes": (1, 1, 2, 4, 8, 16, 32, 64, 1),
    "kitti": (1, 1, 2, 4, 8, 1),
}
SIZES = ("basic", "large")
INITIALIZATIONS = ("identity", "random")
PADDINGS = ("each", "first")


class ContextModule(nn.Module):
    r"""Yu and Koltun's context module: 3 x 3 convolutions at growing rates, ReLU between, a 1 x 1.

        x_i = max(w_i *_{r_i} x_{i-1} + b_i, 0),   y = w_n x_{n-1} + b_n

    Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, section 3.
    With the rates of "pascal" a value of y sees 67 x 67 positions. `initialization="identity"` is
    its equation 5: with C_i channels in layer i, C at both ends,

        w_i[b, a] at the centre = C / C_i   where floor(a C / C_{i-1}) = floor(b C / C_i)

    and N(0, (noise C / C_i)^2) everywhere else, biases 0. Without noise the module returns a map
    that is nowhere negative as it is (Large: but for the rounding of its averages).

    Args:
        classes: C, the channels of x and y.
        size: "basic" (C channels in every layer) or "large" (2C, 2C, 4C, 8C, 16C, 32C, 32C: twice
            the largest rate so far).
        dilations: rates of the 3 x 3 convolutions: "pascal" or "camvid" (1, 1, 2, 4, 8, 16, 1),
            "cityscapes" (32 and 64 more), "kitti" (without 16), or the rates.
        initialization: "identity", or "random" (that of `torch.nn.Conv2d`).
        noise: of the identity.
        padding: "each" layer, by its rate, or all of it before the "first", as their network for
            PASCAL VOC has it: then no layer sees zeros in place of what the one before made of
            them.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [N, C, H, W] -> y [N, C, H, W]. State: convs.i (weight and bias), the layers in order.
        28,392 parameters (basic, 21 classes) or 6,803,139 (large).

    The layers are one `segfast.ops.context_module2d`, unless the first has the padding or one of
    them is no :class:`DilatedConv2d` any more: hooks on them are not called.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import ContextModule
        >>> context, x = ContextModule(21, noise=0.0), torch.rand(1, 21, 64, 64)
        >>> torch.equal(context(x), x)
        True
    """

    def __init__(
        self,
        classes: int,
        size: str = "basic",
        dilations: str | Sequence[int] = "pascal",
        initialization: str = "identity",
        noise: float = 0.01,
        padding: str = "each",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        classes = _check.require_count("classes", classes, 1)
        _check.require_choice("size", size, SIZES)
        _check.require_choice("initialization", initialization, INITIALIZATIONS)
        _check.require_choice("padding", padding, PADDINGS)
        noise = _check.not_negative("noise", noise)
        rates = chosen("dilations", dilations, CONTEXT_DILATIONS)
        self.classes, self.size, self.dilations = classes, size, (*rates, 1)
        self.padding = padding
        widths = [classes, *(classes * m for m in multipliers(size, rates)), classes]
        kernels = [3] * len(rates) + [1]
        margins = [*rates, 0] if padding == "each" else [sum(rates)] + [0] * len(rates)
        self.convs = nn.ModuleList(
            DilatedConv2d(c, o, k, padding=margin, dilation=rate, device=device, dtype=dtype)
            for (c, o), k, margin, rate in zip(
                itertools.pairwise(widths), kernels, margins, self.dilations, strict=True
            )
        )
        if initialization == "identity":
            for conv in self.convs:
                initialize_as_identity(conv, classes, noise)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, C, H, W]."""
        convs: Any = self.convs
        require_map(x, self.classes, convs[0].weight)
        if self.padding == "first" or not all_dilated(convs):
            *layers, last = convs
            for conv in layers:
                x = conv(x).relu_()
            return last(x)
        return context_module2d(
            x, [c.weight for c in convs], [c.bias for c in convs], self.dilations
        )

    def extra_repr(self) -> str:
        """The arguments."""
        shown = f"{self.classes}, size={self.size!r}, dilations={self.dilations[:-1]}"
        return shown + (", padding='first'" if self.padding == "first" else "")


def multipliers(size: str, rates: Sequence[int]) -> list[int]:
    """Channels of the 3 x 3 layers, in classes.

    Example:
        >>> from segfast.nn.context import multipliers
        >>> multipliers("large", (1, 1, 2, 4, 8, 16, 1))
        [2, 2, 4, 8, 16, 32, 32]
    """
    if size == "basic":
        return [1] * len(rates)
    return [2 * rate for rate in itertools.accumulate(rates, max)]


def initialize_as_identity(conv: Any, groups: int, noise: float) -> None:
    """Every output is the mean of the inputs of its group of channels, times groups / outputs.

    Both sides are cut into `groups` groups of channels that follow each other; all other taps are
    N(0, (noise groups / outputs)^2), the bias is zero.
    """
    outputs, inputs, height, width = conv.weight.shape
    strength = groups / outputs
    group_of_output = torch.arange(outputs) * groups // outputs
    group_of_input = torch.arange(inputs) * groups // inputs
    same = (group_of_output[:, None] == group_of_input).to(conv.weight.device)
    nn.init.normal_(conv.weight, std=noise * strength)
    with torch.no_grad():
        conv.weight[..., height // 2, width // 2].masked_fill_(same, strength)
        if conv.bias is not None:
            conv.bias.zero_()
