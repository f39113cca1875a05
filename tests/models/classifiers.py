"""Published classifiers without their numbers: each tensor is full of a number of its key."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segfast.models import create_backbone, create_model
from tests.fingerprints import read

State = dict[str, Tensor]


def number(key: str) -> float:
    """Of a key, in float32 and different for different ones."""
    return float(zlib.crc32(key.encode()) % 2**23)


def tagged(shapes: Mapping[str, Any]) -> State:
    """Tensors that take no memory: each is full of its key's number."""
    return {key: torch.tensor(number(key)).expand(tuple(shape)) for key, shape in shapes.items()}


def published(name: str) -> State:
    """torchvision's classifier, or another one of tests/data/state_dicts/."""
    known = {"bvlc_googlenet": "caffe_bvlc_googlenet"}
    return tagged(read("state_dicts", known.get(name, f"torchvision_backbone_{name}")))


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


def classifier(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_backbone(name, classifier=True, **options)


def shapes_of(module: nn.Module, rename: Callable[[str], str] = str) -> dict[str, Any]:
    return {rename(key): x.shape for key, x in module.state_dict().items()}


def resnet(name: str, **options: Any) -> State:
    """The keys of a ResNet's classifier: ours are torchvision's but for fc."""

    def rename(key: str) -> str:
        return re.sub(r"^classifier\.", "fc.", key).removeprefix("backbone.")

    return tagged(shapes_of(classifier(name, **options), rename))


def tags(module: nn.Module) -> dict[str, float | None]:
    """What each tensor is full of; None on the meta device."""
    state = module.state_dict().items()
    return {key: None if x.is_meta else x.flatten()[0].item() for key, x in state}
