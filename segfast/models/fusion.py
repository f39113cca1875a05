"""Late fusion: a network for each modality, their scores summed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.ops import _check


class LateFusion(SegmentationModel):
    """s(x) = sum_m w_m s_m(x_m): the channels of x are those of all modalities, one after another.

    Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
    2015, section 5, of colour and of depth as HHA. (Their network sums before the interpolation,
    which is the same where all interpolate alike.)

    Args:
        models: one for each modality, with the same classes.
        weights: w_m; None means 1 each. The released network has 1/2 each.

    Shape:
        x [N, C_1 + C_2 + ..., H, W] -> [N, L, H, W]; with `return_aux` also every modality's own
        scores, s_m, under "model_0", "model_1", ... State: models.0, models.1, ...

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import create_model
        >>> from segfast.models import LateFusion
        >>> colour = create_model("fcn32s_googlenet", num_classes=40)
        >>> depth = create_model("fcn32s_googlenet", num_classes=40, in_channels=1)
        >>> LateFusion([colour, depth])(torch.randn(1, 4, 32, 48)).shape
        torch.Size([1, 40, 32, 48])
    """

    def __init__(
        self, models: Sequence[SegmentationModel], weights: Sequence[float] | None = None
    ) -> None:
        if not isinstance(models, (list, tuple)) or not models:
            raise TypeError(f"models must be a list of networks, got {_check.describe(models)}")
        for model in models:
            if not isinstance(model, SegmentationModel):
                raise TypeError(f"models must be SegmentationModels, got {type(model).__name__}")
        classes = {model.num_classes for model in models}
        if len(classes) > 1:
            raise ValueError(f"models must have the same num_classes, got {sorted(classes)}")
        weights = [1.0] * len(models) if weights is None else weights
        numbers = (
            [_check.real(w) for w in weights] if isinstance(weights, (list, tuple)) else [None]
        )
        if None in numbers:
            raise TypeError(f"weights must be numbers, got {_check.describe(weights)}")
        if len(numbers) != len(models):
            raise ValueError(f"weights must be {len(models)}, one per model; got {len(numbers)}")
        super().__init__(classes.pop(), sum(model.in_channels for model in models))
        self.models = nn.ModuleList(models)
        self.weights = tuple(numbers)
        self.widths = [model.in_channels for model in models]

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H, W], and with `aux` "model_0", ..."""
        parts = [m(part) for m, part in zip(self.models, x.split(self.widths, 1), strict=True)]
        first, *others = (w * part for w, part in zip(self.weights, parts, strict=True))
        found = {"out": sum(others, first)}
        named = {f"model_{i}": part for i, part in enumerate(parts)}
        return {**found, **named} if aux else found
