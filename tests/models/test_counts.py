"""Published numbers of parameters, and published keys, of variants without a golden file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from segfast.models import create_model, load_checkpoint
from tests.fingerprints import read
from tests.models.golden import parameters
from tests.models.networks import MMSEG


class Count(NamedTuple):
    """A variant: its name for `create_model`, learned numbers, options, tests/data/state_dicts/."""

    model: str
    params: int
    options: Mapping[str, Any] = {}
    published: str | None = None


COUNTS = (
    Count("deeplabv1_resnet101", 42_543_189),
    Count("fcn_resnet101", 54_314_346),
    Count("fcn_resnet101", 68_489_862, MMSEG),
)


@pytest.mark.parametrize("count", COUNTS, ids=str)
def test_parameters_and_keys(count: Count) -> None:
    with torch.device("meta"):
        model = create_model(count.model, **count.options)
    assert parameters(model) == count.params
    if count.published:
        shapes = read("state_dicts", count.published)
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        load_checkpoint(model, state)  # strict
