"""What every architecture is: scores at the network's own stride, resized to the input."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._keys import OURS, Rules
from segfast.nn._shared import require_map
from segfast.ops import _check


class SegmentationModel(nn.Module):
    """One score per class and pixel.

    A subclass is an architecture: it says `scores`, what the published network computes at its own
    stride; `forward` resizes that to the input. Where images are padded before, or scores are not
    spread evenly over the image, it says `prepared` and `at_input_size`, too.

    Args:
        num_classes: L of the scores.
        in_channels: C of the images.
        align_corners: of the final bilinear resize: as the layout published it.

    Attributes:
        layouts, layout: published key names that `load_checkpoint` knows, and whose wiring this is;
            of a network that `create_model` did not build, none but our own.
    """

    layouts: Mapping[str, Rules] = MappingProxyType({})
    layout: str = OURS

    def __init__(self, num_classes: int, in_channels: int, align_corners: bool = False) -> None:
        super().__init__()
        _check.require_count("num_classes", num_classes, 1)
        _check.require_count("in_channels", in_channels, 1)
        _check.require_bool("align_corners", align_corners)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.align_corners = align_corners

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """The published outputs: "out" first, and with `aux` the auxiliary ones by their names.

        Args:
            x: [N, C, H, W].
            aux: whether auxiliary scores are wanted too; they are not computed otherwise.

        Returns:
            maps [N, L, h, w] at the network's own stride.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, return_aux: bool = False, **guides: Any) -> Any:
        """Scores at the size of the input.

        Args:
            x: [N, C, H, W], floating, in the dtype of the parameters.
            return_aux: also return the auxiliary scores, each resized alike.
            guides: what else this network's `scores` takes; most take nothing.

        Returns:
            [N, L, H, W], or that and a dict of the auxiliary scores (empty where there are none).
        """
        require_map(x, self.in_channels, next(self.parameters()))
        maps = {
            name: self.at_input_size(y, x.shape[-2:])
            for name, y in self.scores(self.prepared(x), return_aux, **guides).items()
        }
        out = maps.pop("out")
        return (out, maps) if return_aux else out

    def prepared(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> what `scores` takes: the same."""
        return x

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """Scores [N, L, h, w] of the network -> [N, L, *size]."""
        return resize(y, size, self.align_corners)


def resize(x: Tensor, size: Any, align_corners: bool) -> Tensor:
    """Bilinear; a map that has the size already is returned as it is.

    x [N, C, h, w] -> [N, C, *size]
    """
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
