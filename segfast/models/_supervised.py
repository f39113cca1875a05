"""What networks on a dilated backbone share: a second head, on its third stage, for training.

    image -> backbone -> low, stride 4 ------+
                      -> middle -------------|--> FCN head -> "aux"
                      -> last, dilated ------+--> main -----> "out"

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.3: deep supervision.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import FCNHead
from segfast.ops import _check


class DeeplySupervised(SegmentationModel):
    """The network above.

    A subclass is an architecture: it builds `backbone`, what `main` needs, and `aux_classifier`,
    and says `main`.
    """

    backbone: Any
    aux_classifier: nn.Module | None
    picks: tuple[int, int, int] = (0, 2, -1)  # which of the backbone's maps are low, middle, last

    def auxiliary(self, wanted: bool) -> nn.Module | None:
        """The second head, where it is wanted."""
        _check.require_bool("aux", wanted)
        channels = self.backbone.channels[self.picks[1]]
        return FCNHead(channels, self.num_classes) if wanted else None

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """Maps of the backbone -> "out" [N, L, h, w], with `aux` also what else is supervised."""
        raise NotImplementedError

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, h, w]; "aux" has the size of the third stage."""
        maps = self.backbone(x)
        low, middle, last = (maps[i] for i in self.picks)
        found = self.main(low, last, aux)
        if aux and self.aux_classifier is not None:
            found["aux"] = self.aux_classifier(middle)
        return found
