"""docs/models.md names every model, its layouts and its source."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from segfast.cli.models import table
from segfast.models import create_model, list_models, model_source

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| ([\d,]+) \| (.*) \|$", re.MULTILINE)


def test_every_model_has_its_row() -> None:
    assert [row[0] for row in ROW.findall(PAGE)] == list_models()


def test_rows_say_what_is_built() -> None:
    for name, layouts, count, source in ROW.findall(PAGE):
        with torch.device("meta"):
            model = create_model(name)
        first, *others = model.layouts
        assert layouts == first + (f" ({', '.join(others)})" if others else "")
        assert int(count.replace(",", "")) == sum(p.numel() for p in model.parameters())
        assert source == model_source(name)


def test_the_command_writes_the_rows() -> None:
    assert set(table(["segnet_basic", "unet"])) <= set(PAGE.splitlines())
