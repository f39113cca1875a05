"""The exact CRF on a GPU, by Triton's interpreter: waits, and weights of 0 for pixels nowhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segfast.ops import _dense_crf_exact_cuda as cuda
from segfast.ops import _dense_crf_exact_op, _dense_crf_op
from segfast.ops._dense_crf_options import Each, Options
from segfast.testing import assert_as_good_as
from tests.ops.host_waits import HostWaits

OPTIONS = Options(1, "symmetric", "exact", tolerance=1e-7)


def given(bad: float | None = None) -> list[Tensor]:
    """What segfast::mean_field takes: weight 0 for the bilateral kernel where the image is bad."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    image = 255 * torch.rand(2, 2, 5, 7, generator=generator)
    weights = [torch.tensor(3.0), torch.tensor(10.0)]
    if bad is not None:
        image[1, 0, 2, 3] = bad
        weights[1] = torch.zeros(3)
    sigmas = [torch.tensor(s, dtype=torch.float64) for s in ([1.3, 2.1], [4.7, 5.3], [60.0])]
    return [logits, image, *weights, *sigmas]


@pytest.mark.parametrize("recording", [False, True])
def test_waits(monkeypatch: pytest.MonkeyPatch, recording: bool) -> None:
    """Once a call; not at all while a CUDA graph is recorded."""
    monkeypatch.setattr(cuda, "serves", lambda x, method: True)
    monkeypatch.setattr(_dense_crf_exact_op, "is_recording", lambda: recording)
    tensors = given()
    grad = torch.ones(1, *tensors[0].shape)
    waits = [] if recording else ["tolist"]
    problem = _dense_crf_op.Problem(tensors, OPTIONS)  # sigmas that are numbers are on the CPU
    with HostWaits(*problem.sigmas) as seen:
        _dense_crf_exact_op.refine(problem)
        assert seen.seen == waits
        wanted = Each(*[True] * 4, *[False] * 3)
        _dense_crf_exact_op.gradients(problem, grad, wanted)
        assert seen.seen == 2 * waits


@pytest.mark.parametrize("recording", [False, True])
def test_weight_zero_and_pixels_that_stand_nowhere(
    monkeypatch: pytest.MonkeyPatch, recording: bool
) -> None:
    tensors = given(math.nan if recording else -math.inf)
    options = (1, "symmetric", "exact", "conv", 1e-7, False, False, None)
    wanted = [True] * 7
    grad = torch.randn(1, *tensors[0].shape, generator=torch.Generator().manual_seed(1))

    def run(dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype) for x in tensors[:4]] + tensors[4:]
        y = torch.ops.segfast.mean_field(*given, *options)
        back = torch.ops.segfast._mean_field_backward(grad.to(dtype), *given, *options, wanted)
        return [y, *back]

    truth, single = run(torch.float64), run(torch.float32)
    monkeypatch.setattr(cuda, "serves", lambda x, method: True)
    monkeypatch.setattr(_dense_crf_exact_op, "is_recording", lambda: recording)
    found = run(torch.float32)
    assert found[0].isfinite().all()
    assert found[4].isnan().all()  # of the weight
    for x, oracle, baseline in zip(found, truth, single, strict=True):
        # Gradients of parameters sum over 2 images, 3 labels and 35 pixels.
        assert_as_good_as(x.float(), oracle.double(), baseline.float(), terms=210)
