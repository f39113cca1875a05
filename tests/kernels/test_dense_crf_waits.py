"""The lattice on CUDA: how often a call waits, and weights of 0 for pixels that stand nowhere."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from dense_crf_host import Host
from torch import Tensor

from segfast.ops import _dense_crf_lattice_op as batch
from segfast.ops import mean_field
from segfast.testing import assert_as_good_as
from tests.ops.host_waits import HostWaits

SIGMAS: dict[str, Any] = {"spatial_sigma": (1.3, 2.1), "bilateral_sigma": (4.7, 5.3)}
CAPACITY = 2000


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(image: Tensor, *weights: Tensor, **options: Any) -> batch.BatchModel:
    given = {"normalization": "symmetric", "spatial": "conv", "capacity": None} | options
    return batch.BatchModel(image, weights, *SIGMAS.values(), [21.7], **given)


def scene() -> tuple[Tensor, Tensor]:
    return random(2, 3, 5, 7), 255 * random(2, 2, 5, 7, seed=1).sigmoid()


@pytest.mark.parametrize(
    ("options", "waits"),
    [({}, 1), ({"spatial": "lattice"}, 2), ({"capacity": CAPACITY}, 0)],
    ids=str,
)
def test_waits(options: dict[str, Any], waits: int) -> None:
    logits, image = scene()
    given = model(image, torch.tensor(3.0), torch.tensor(10.0), **options)
    with HostWaits() as seen:
        batch.mean_field(logits, given, 2, ops=Host())
        assert seen.seen == ["tolist"] * waits
        batch.mean_field_gradients(logits[None], logits, given, 2, False, (True, True), Host())
        assert seen.seen == ["tolist"] * (2 * waits)


def test_warnings_come_with_the_one_look() -> None:
    logits, image = scene()
    weights = torch.tensor(3.0), torch.tensor(10.0)
    with pytest.warns(UserWarning, match="look like probabilities"):
        batch.mean_field(logits.softmax(1), model(image, *weights), 1, ops=Host())
    with pytest.warns(UserWarning, match="image spans"):
        batch.mean_field(logits, model(image / 255, *weights), 0, ops=Host())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = model(image / 255, *weights, capacity=CAPACITY)
        batch.mean_field(logits.softmax(1), given, 1, ops=Host())


@pytest.mark.parametrize("capacity", [None, CAPACITY])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weight_zero_and_pixels_that_stand_nowhere(bad: float, capacity: int | None) -> None:
    """No kernel, no NaN; the gradient of such a weight is none. As on the CPU."""
    logits, image = scene()
    image[1, 0, 2, 3] = bad
    weights = torch.tensor(3.0).double(), torch.zeros(3).double()
    given = model(image, *weights, capacity=capacity)
    found = batch.mean_field(logits, given, 2, ops=Host())[0]
    grad = random(*logits.shape, seed=2)
    back, parts = batch.mean_field_gradients(
        grad[None], logits, given, 2, False, (True, True), Host()
    )
    expected = []
    for dtype in (torch.float64, torch.float32):
        leaves = [x.detach().clone().requires_grad_() for x in (logits.to(dtype), *weights)]
        y = mean_field(
            leaves[0], image, spatial_weight=leaves[1], bilateral_weight=leaves[2],
            color_sigma=21.7, iterations=2, **SIGMAS,
        )  # fmt: skip
        expected.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    assert parts[0] is not None
    for x, truth, single in zip((found, back, parts[0]), *(e[:3] for e in expected), strict=True):
        assert truth.isfinite().all()
        # A weight's gradient sums over 2 iterations, 2 images, 3 labels and 35 pixels.
        assert_as_good_as(x.float(), truth, single.float(), terms=420)
    assert parts[1] is not None
    assert parts[1].isnan().all()
    assert expected[0][3].isnan().all()
