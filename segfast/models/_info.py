"""What is known of a model: counted, and as published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segfast.models._base import SegmentationModel
from segfast.models._field import ReceptiveField, image_shape, receptive_field
from segfast.models._preprocessing import Preprocessing
from segfast.models._registry import Entry
from segfast.nn import (
    CRFRNN,
    ASPPv2,
    ContextModule,
    DenseCRF,
    DilatedConv2d,
    FixedUnpool2d,
    LinearAttention2d,
    MaxPool2d,
    MaxUnpool2d,
)
from segfast.ops import _check

# Operator -> the modules that run it.
OPERATORS: dict[str, tuple[type[nn.Module], ...]] = {
    "dense_crf": (DenseCRF, CRFRNN),
    "dilated_conv": (DilatedConv2d, ASPPv2, ContextModule),
    "linear_attention": (LinearAttention2d,),
    "max_unpool": (MaxPool2d, MaxUnpool2d, FixedUnpool2d),
}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Of one name of `create_model`.

    Attributes:
        name, source, metrics: as in its table: published figures, not measured here.
        layouts: published ones, the default first.
        num_classes, in_channels, size: what was counted for.
        parameters: learned numbers.
        macs: multiply-accumulates of convolutions and products of matrices, for one image.
        receptive_field: of one score; its strides are the output stride.
        operators: of segfast's, those that its modules run.
        preprocessing: what the published network expects of images; None where nobody says.
    """

    name: str
    source: str
    layouts: tuple[str, ...]
    metrics: Mapping[str, float]
    num_classes: int
    in_channels: int
    size: tuple[int, int]
    parameters: int
    macs: int
    receptive_field: ReceptiveField
    operators: tuple[str, ...]
    preprocessing: Preprocessing | None

    @property
    def output_stride(self) -> float:
        """Pixels from one published score to the next."""
        return self.receptive_field.rows.stride


def describe(
    entry: Entry, model: SegmentationModel, plain: nn.Module, size: tuple[int, int]
) -> ModelInfo:
    """What is known of a model of that entry; plain: the same by PyTorch's operators."""
    modules = list(model.modules())
    return ModelInfo(
        name=entry.name,
        source=entry.source,
        layouts=tuple(model.layouts),
        metrics=dict(entry.metrics),
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        size=_check.pair("size", size, 1),
        parameters=parameters(model),
        macs=macs(plain, size),
        receptive_field=receptive_field(model, size=size),
        operators=tuple(
            name for name, kinds in OPERATORS.items() if any(isinstance(m, kinds) for m in modules)
        ),
        preprocessing=model.preprocessing,
    )


def parameters(model: nn.Module) -> int:
    """Learned numbers, shared ones once."""
    return sum(math.prod(p.shape) for p in model.parameters())


def macs(
    model: nn.Module, size: tuple[int, int] = (512, 512), in_channels: int | None = None
) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one image.

    Counted by `torch.utils.flop_counter` (half its figure) on the meta device: also those by
    padding, as PyTorch counts them. Use `segfast.explain` for what segfast leaves out.

    Args:
        model: any module that takes one image.
        size: (height, width) of the image.
        in_channels: of the image; None means `model.in_channels`, or 3.

    Example:
        >>> from segfast.models import macs
        >>> from torch import nn
        >>> macs(nn.Conv2d(3, 64, 3, padding=1), (10, 20))
        345600
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_check.describe(model)}")
    shape = image_shape(model, size, in_channels)
    state = {key: x.to("meta") for key, x in model.state_dict(keep_vars=True).items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(model, state, (torch.empty(shape, device="meta"),))
    return counter.get_total_flops() // 2
