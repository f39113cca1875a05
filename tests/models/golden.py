"""Our networks against the published code: both filled by the rule of tests/fingerprints.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segfast.models import create_model, load_checkpoint
from segfast.models._base import SegmentationModel
from tests.fingerprints import assert_outputs, filled_input, filled_tensor, read


def published_state(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A checkpoint with the published keys and shapes of tests/data/state_dicts/NAME.json."""
    shapes = read("state_dicts", name)
    gain = 3.0 if any(key.endswith("running_mean") for key in shapes) else 6.0
    return {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else filled_tensor(key, tuple(shape), gain).to(dtype)
        for key, shape in shapes.items()
    }


def golden_model(
    model_name: str, published: str, dtype: torch.dtype = torch.float64, **options: Any
) -> SegmentationModel:
    """The model with the published checkpoint, in evaluation mode; strict about keys and shapes."""
    with torch.device("meta"):
        model = create_model(model_name, **options)
    return load_checkpoint(model, published_state(published, dtype)).eval()


def assert_golden(
    model: SegmentationModel, published: str, at_input_size: bool, after: str | None = None
) -> None:
    """Its outputs (main, then auxiliary ones) are the fingerprint's, in the model's dtype."""
    dtype = next(model.parameters()).dtype
    fingerprint = read("fingerprints", published)
    x = filled_input(fingerprint["input_shape"]).to(dtype)
    wants_aux = len(fingerprint["outputs"]) > 1
    with torch.no_grad():
        if at_input_size:
            out, aux = model(x, return_aux=True)
            maps = [out, *aux.values()]
        else:
            maps = list(model.scores(x, wants_aux).values())
    if after is not None:
        maps = [getattr(y, after)(1) for y in maps]
    assert_outputs(maps[: len(fingerprint["outputs"])], fingerprint, published)


def parameters(model: torch.nn.Module) -> int:
    """How many numbers are learned."""
    return sum(math.prod(p.shape) for p in model.parameters())
