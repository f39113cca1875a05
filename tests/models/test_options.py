"""Arguments that every architecture has: wrong ones are refused by their names."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from segfast import models
from segfast.models import (
    LateFusion,
    SegmentationModel,
    aggregate,
    create_backbone,
    create_model,
    macs,
    receptive_field,
    save_checkpoint,
)

WRONG: dict[str, tuple[Any, ...]] = {
    "num_classes": (0, 1.5, "2", True),
    "in_channels": (0, None),
    "layout": ("nobody", 1, [], {}),
    "depth": (7, "50", None, []),
    "output_stride": (0, 12, "8", []),
    "aux": ("yes", 1, ()),
    "dropout": (-1, 2, "half", [], None),
    "align_corners": (1, "no"),
    "scales": (1, (), (1, 0), (1, 1), ("1",)),
    "multi_grid": (2, (1, 2), "124"),
}
ARCHITECTURES = [
    kind
    for kind in map(models.__dict__.get, models.__all__)
    if isinstance(kind, type)
    and issubclass(kind, SegmentationModel)
    and kind not in (SegmentationModel, LateFusion)
]
CASES = [
    (kind, name, value)
    for kind in ARCHITECTURES
    for name in inspect.signature(kind).parameters
    for value in WRONG.get(name, ())
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_refused_by_name(kind: type[SegmentationModel], name: str, value: Any) -> None:
    with torch.device("meta"), pytest.raises((TypeError, ValueError)) as caught:
        kind(**{name: value})
    assert name in str(caught.value)


def test_a_crf_sees_everything() -> None:
    with torch.device("meta"):
        model = create_model("crfrnn_fcn8s", 2, backbone="googlenet")
    assert receptive_field(model, size=(64, 64)).rows.size == torch.inf
    assert receptive_field(model, "fcn.head", size=(64, 64)).rows.size < torch.inf


def test_one_class_in_training() -> None:
    """HRNet-OCR normalises a feature for each class and image."""
    with torch.device("meta"):
        model = create_model("hrnet_w18_ocr", num_classes=1, size="w18_small")
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 1, 64, 64)
        with pytest.raises(ValueError, match=r"^x must be .* N > 1 in training.* \(1, 3, 64, 64\)"):
            model(torch.empty(1, 3, 64, 64))


def test_weights_of_a_fusion() -> None:
    class One(SegmentationModel):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.conv = nn.Conv2d(3, 2, 1)

    for wrong in (3, "1", ["1"], [True]):
        with pytest.raises(TypeError, match=r"^weights must be numbers, got"):
            LateFusion([One()], wrong)  # type: ignore[arg-type]


CONV = nn.Conv2d(3, 2, 1)
MAPS, BOXES = torch.ones(1, 1, 2, 2), [(0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate(5, BOXES, (4, 4)), "score_maps must be a tensor or a list, got int 5"),
        (lambda: aggregate([1], BOXES, (4, 4)), "score_maps must be a"),
        (lambda: aggregate(MAPS, 5, (4, 4)), "boxes must be a tensor or a list, got int 5"),
        (lambda: create_backbone("resnet18", output_stride="8"), ".* 8, 16, 32; got '8'$"),
        (lambda: create_backbone("mobilenet_v2", output_stride="8"), ".* 8, 16 or 32, got '8'$"),
        (lambda: aggregate(MAPS, [3], (4, 4)), "boxes must be of four integers, got int 3"),
        (lambda: receptive_field(CONV, "head"), "layer must be the name of a submodule"),
        (lambda: macs(5), "model must be a torch.nn.Module, got int 5"),
        (lambda: save_checkpoint(create_model("segnet_basic"), 5), "path must be a path, got int"),
    ],
)
def test_tools_refuse_by_name(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()
