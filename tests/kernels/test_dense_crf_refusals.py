"""What the raw CPU operators of the dense CRF refuse: nothing out of bounds, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segfast.ops  # noqa: F401  (defines the operators)

pytestmark = pytest.mark.usefixtures("compiled_kernels")

LABELS, HEIGHT, WIDTH = 3, 4, 5
PIXELS = HEIGHT * WIDTH


def refuses(message: str, name: str, *arguments: Any) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.segfast, name)(*arguments)


def lattice(**changes: Tensor) -> list[Tensor]:
    """The tensors of a lattice term in two dimensions, some of them changed."""
    features = torch.randn(2, PIXELS, generator=torch.Generator().manual_seed(1))
    span = torch.ops.segfast._feature_range(features)
    names = ("vertex", "local_start", "merge_start", "merge_local", "neighbours", "before")
    built = zip(names, torch.ops.segfast._lattice_build(features, span, WIDTH), strict=True)
    term = dict(built)
    term |= {"after": term["before"], "mixing": torch.ones(())} | changes
    return list(term.values())


def convolution(**changes: Tensor) -> list[Tensor]:
    """Those of a convolution."""
    term = {"taps_y": torch.ones(2), "taps_x": torch.ones(3)}
    for side in ("before", "after"):
        term |= {f"{side}_y": torch.ones(HEIGHT), f"{side}_x": torch.ones(WIDTH)}
    term |= {"mixing": torch.ones(())} | changes
    return list(term.values())


def test_mean_field() -> None:
    logits = torch.zeros(LABELS, PIXELS)

    def run(
        message: str,
        lattices: list[Tensor],
        convs: list[Tensor],
        belief: Tensor | None = None,
        states: Tensor | None = None,
        iterations: int = 1,
        width: int = WIDTH,
    ) -> None:
        rest = (width, lattices, convs, iterations, False, False)
        refuses(message, "_mean_field", logits, belief, states, *rest)

    run("a belief to start from needs an iteration", [], [], belief=logits, iterations=0)
    run("belief must have 60 elements, got 40", [], [], belief=logits[:2].clone())
    run("states must be of all iterations but the last", [], [], states=logits[None])
    run("logits must be .* not empty", [], [], width=0)
    run("terms are malformed", lattice()[:-1], [])
    run("terms are malformed", [], convolution()[:-1])

    vertex, *_, before, _, _ = lattice()
    run("vertex must have 2 to 33 columns, got 36", lattice(vertex=vertex.repeat(1, 12)), [])
    run("vertex must have 2 to 33 columns, got 1", lattice(vertex=vertex[:, :1].contiguous()), [])
    run("vertex must have 60 elements, got 57", lattice(vertex=vertex[:-1]), [])
    run("vertex must be Int, got Long", lattice(vertex=vertex.long()), [])
    run("in_weight must be contiguous", lattice(before=before.t().contiguous().t()), [])
    run("mixing must have 3 elements, got 2", lattice(mixing=torch.ones(2)), [])
    run("mixing must have 9 elements, got 6", lattice(mixing=torch.ones(2, 3)), [])

    run("taps must not be empty", [], convolution(taps_y=torch.ones(0)))
    run("scale_x must have 5 elements, got 4", [], convolution(before_x=torch.ones(4)))
    run("taps_x must be Float, got Double", [], convolution(taps_x=torch.ones(3).double()))
    wide = {f"{side}_x": torch.ones(7) for side in ("before", "after")}
    tall = {f"{side}_y": torch.ones(3) for side in ("before", "after")}
    run("a convolution needs whole lines", [], convolution(**wide, **tall), width=7)


def test_reverse() -> None:
    logits = torch.zeros(LABELS, PIXELS)

    def run(message: str, upstream: Tensor, **changes: Any) -> None:
        given = {"states": logits[None], "planes": [], "mixings": []} | changes
        terms = (given["states"], WIDTH, [], [], given["planes"], given["mixings"])
        refuses(message, "_mean_field_run_backward", upstream, None, logits, *terms, 2, True, True)

    grad = torch.zeros(1, LABELS, PIXELS)
    run(r"upstream must be \[1 or iterations, L, N\]", grad.repeat(3, 1, 1))
    run("upstream must have 60 elements, got 40", grad[:, :2].contiguous())
    run("states must be of all iterations but the last", grad, states=None)
    run("every plane must have a mixing", grad, planes=[logits])
    run("plane must have 60 elements, got 20", grad, planes=[logits[:1]], mixings=[torch.ones(())])


def test_exact() -> None:
    values, features, order = torch.zeros(2, 6), torch.zeros(3, 6), torch.arange(6)
    refuses("features must be .* at least one row", "_exact_order", features[:0])
    refuses("features must be float32 or float64", "_exact_order", features.half())
    for name in ("_exact_filter", "_exact_gradient"):
        refuses("order must have 6 elements, got 5", name, values, features, order[:5], 0.0)
        refuses("features must have 18 elements, got 15", name, values, features[:, :5].clone(),
                order, 0.0)  # fmt: skip
        refuses("features must have at least one row", name, values, features[:0], order, 0.0)
        for tolerance in (-1.0, torch.nan):
            refuses("tolerance must be at least 0", name, values, features, order, tolerance)
    refuses("G and V, of as many channels", "_exact_gradient", values[:1], features, order, 0.0)


def test_lattice_and_softmax() -> None:
    features = torch.zeros(2, 6)
    span = torch.zeros(2, 2, dtype=torch.float64)
    build = "_lattice_build"
    refuses(r"shape \[1..32, N\]", build, torch.zeros(33, 6), span, 3)
    refuses("there must be a pixel and a width", build, features, span, 0)
    refuses("there must be a pixel and a width", build, features[:, :0], span, 3)
    refuses("range must have 4 elements, got 2", build, features, span[0], 3)
    for bad in (torch.nan, 1e9):
        refuses("features reach too far for their dtype", build, features, span + bad, 3)
    refuses(r"features must be \[d, N >= 1\]", "_feature_range", features[:, :0])
    refuses(r"scores must be \[L, N\]", "_softmax", features[None])
    refuses("scores must be float32 or float64", "_softmax", features.half())
