"""What DeepLab's versions 3 and 3+ share: a dilated backbone by its name, an atrous pyramid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from segfast.models._supervised import DeeplySupervised
from segfast.models.backbones.table import create_dilated
from segfast.nn import ASPP
from segfast.ops import _check


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Where published code differs.

    Attributes:
        output_stride: of the backbone, unless another is asked for.
        multi_grid: of a residual network's last stage.
        rates: of the pyramid; None for the paper's, 6, 12, 18 times 16 over the output stride.
        width: of the pyramid; None for a quarter of the backbone's channels.
        aspp: options of :class:`segfast.nn.ASPP`.
        refine: a 3 x 3 layer follows the pyramid.
        aux: there is a second head, on the third stage.
        align_corners: of all resizes.
    """

    output_stride: int = 8
    multi_grid: tuple[int, ...] = ()
    rates: tuple[int, ...] | None = None
    width: int | None = 256
    aspp: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refine: bool = False
    aux: bool = False
    align_corners: bool = False


def pyramid_rates(output_stride: int) -> tuple[int, ...]:
    """Of "Rethinking Atrous Convolution", section 4.3.

    Example:
        >>> from segfast.models._deeplab import pyramid_rates
        >>> pyramid_rates(16), pyramid_rates(8)
        ((6, 12, 18), (12, 24, 36))
    """
    return tuple(96 // output_stride * k for k in (1, 2, 3))


class PyramidNet(DeeplySupervised):
    """A backbone whose last stages are dilated; what is None is as the layout has it.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        layout: one of those of the backbone; None for its first.
        backbone: one of `backbones`.
        output_stride, multi_grid, copies: of the backbone.
        rates: of the pyramid.
        align_corners: of all resizes.
    """

    backbones: ClassVar[tuple[str, ...]]
    wirings: ClassVar[Mapping[str, Wiring]]

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        layout: str | None,
        backbone: str,
        output_stride: int | None,
        multi_grid: Sequence[int] | None,
        rates: Sequence[int] | None,
        align_corners: bool | None,
        copies: int = 0,
    ) -> None:
        _check.require_choice("backbone", backbone, self.backbones)
        count = 3 if rates is None else len(_check.require_counts("rates", rates))
        super().__init__(num_classes, in_channels, layout, align_corners, (backbone, count))
        wires = self.wirings[self.layout]
        stride = wires.output_stride if output_stride is None else output_stride
        self.backbone, self.picks = create_dilated(
            backbone, in_channels, stride, self.layout, multi_grid, wires.multi_grid, copies
        )
        self.rates = rates or wires.rates or pyramid_rates(stride)
        self.channels = [self.backbone.channels[i] for i in self.picks]  # of low, middle and last
        self.width = wires.width or self.channels[-1] // 4

    def pyramid(self, image_pooling: bool, separable: bool | str = False) -> ASPP:
        """Of the last map, [N, C, h, w] -> [N, width, h, w]."""
        options = self.wirings[self.layout].aspp
        return ASPP(
            self.channels[-1], self.rates, self.width, separable,
            image_pooling=image_pooling, **options,
        )  # fmt: skip
