"""A small network with four layouts: what tests of checkpoints load into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from segfast.models import SegmentationModel, _sources
from segfast.models._keys import Rules

RULES = {
    "published": Rules((r"^first\.", "stem."), (r"^last\.", "fc."), drop=(r"\.junk$",)),
    "other": Rules((r"^a\.", "stem."), (r"^b\.", "norm."), (r"^c\.", "fc.")),
    "renamed": Rules((r"^ours\.", "")),
    "caffe": Rules(
        (r"^conv\.", "stem."),
        (r"^bn\.", "norm."),
        absent={r"running_mean$": 0.0, r"running_var$": 1.0},
    ),
}


class Net(SegmentationModel):
    """Two convolutions and a normalisation."""

    rules = RULES
    wirings: ClassVar[dict[str, int]] = {"published": 1, "renamed": 1, "other": 2, "caffe": 3}

    def __init__(self, in_channels: int = 3, layout: str | None = None) -> None:
        super().__init__(2, in_channels, layout)
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Conv2d(4, 2, 2)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        return {"out": self.fc(self.norm(self.stem(x)))}


def published(model: Net, **renamed: str) -> dict[str, Tensor]:
    """The model's state as the first layout has it."""
    names = {"stem": "first", "fc": "last", **renamed}
    state = {}
    for key, x in model.state_dict().items():
        head, _, tail = key.partition(".")
        state[f"{names.get(head, head)}.{tail}"] = x
    return state


def assert_same(a: Net, b: Net) -> None:
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), key


def trained() -> Net:
    """All its numbers are drawn, none as it starts."""
    torch.manual_seed(1)
    model = Net()
    for x in model.state_dict().values():
        if x.is_floating_point():
            x.uniform_(0.5, 1.5)
    return model


def refusals(contents: Iterable[bytes], path: Path) -> list[str]:
    """What reading a file says that it refuses, of each content; any other error comes through."""
    refused = []
    for content in contents:
        path.write_bytes(content)
        try:
            _sources.read(path)
        except ValueError as error:
            refused.append(str(error))
    return refused
