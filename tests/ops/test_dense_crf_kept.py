"""What mean field keeps for its gradient: what may change meanwhile, and until when it is held."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segfast.ops import _dense_crf_grad, mean_field

METHODS = ["lattice", "exact"]


def scene(batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    image = 255 * torch.rand(batch, 3, 6, 7, generator=generator)
    return torch.randn(batch, 3, 6, 7, generator=generator).requires_grad_(), image


def refined(x: Tensor, image: Tensor, **options: Any) -> Tensor:
    result: Tensor = mean_field(x, image, color_sigma=20.0, iterations=2, **options)
    return result


def gradient(y: Tensor, x: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(y.square().sum(), x, **options)[0]


@pytest.mark.parametrize("batch", [1, 2])
def test_checkpoints_and_changes_in_place(batch: int) -> None:
    x, image = scene(batch)
    expected = gradient(refined(x, image), x)
    y = checkpoint(refined, x, image, use_reentrant=False)
    assert torch.equal(gradient(y, x), expected)
    changed = refined(x, image)
    changed *= 2
    assert torch.equal(gradient(changed / 2, x), expected)


def test_logits_that_were_written_to_are_noticed() -> None:
    x, image = scene()
    given = x * 1
    scores = refined(given, image)
    given.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


def test_an_image_may_be_overwritten_unless_its_pixels_are_compared_again() -> None:
    x, image = scene()
    expected = gradient(refined(x, image), x)
    scores = refined(x, image)
    image.zero_()
    assert torch.equal(gradient(scores, x), expected)
    scores = refined(x, image, method="exact")
    image.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_kept_is_freed_with_the_graph(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engines = []

    def watched(*arguments: Any) -> Any:
        result, records = refine(*arguments)
        engines.extend(weakref.ref(record.engine) for record in records)
        return result, records

    refine = _dense_crf_grad.refine
    monkeypatch.setattr(_dense_crf_grad, "refine", watched)
    x, image = scene(2)
    scores = refined(x, image, method=method)
    first = gradient(scores, x, retain_graph=True)
    gc.collect()
    assert [engine() is None for engine in engines] == [False, False]
    assert torch.equal(gradient(scores, x), first)
    gc.collect()
    assert [engine() is None for engine in engines] == [True, True]
    with pytest.raises(RuntimeError, match="a second time"):
        gradient(scores, x)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_saved_elsewhere(method: str) -> None:
    x, image = scene(2)
    expected = gradient(refined(x, image, method=method), x)
    with torch.autograd.graph.save_on_cpu():
        scores = refined(x, image, method=method)
    assert torch.equal(gradient(scores, x), expected)
