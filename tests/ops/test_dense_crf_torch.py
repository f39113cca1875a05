"""The dense CRF inside PyTorch: refused gradients, torch.func, compile, export, autocast."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.ops import gaussian_filter, mean_field
from segfast.testing import op_battery

# torch.export calls a deprecated function of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")

Problem = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_gaussian_filter(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 20, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 4, 20, dtype=torch.float64, generator=generator)

    def fn(values: Tensor, features: Tensor) -> Tensor:
        return gaussian_filter(values, features, method, "after")

    op_battery(
        fn,
        (values, features),
        other_args=(values.repeat(2, 2, 3), features.repeat(2, 1, 3)),
        opcheck_op=torch.ops.segfast.gaussian_filter.default,
        opcheck_args=(values, features, method, "after", 1e-7),
    )


@pytest.mark.parametrize(
    "options", [{}, {"method": "exact"}, {"spatial": "lattice"}, {"return_belief": True}]
)
def test_mean_field(problem: Problem, options: dict[str, Any]) -> None:
    logits, image = problem(4, 3, 9, 11, 2)
    weight = torch.eye(4, dtype=torch.float64) - 0.1

    def fn(logits: Tensor, image: Tensor, weight: Tensor) -> Tensor:
        return mean_field(logits, image, bilateral_weight=weight, iterations=2, **options)

    raw = (logits.double(), image, torch.tensor(3.0), weight, None, [3.0, 3.0], [80.0, 80.0],
           [13.0, 13.0, 13.0], 2, "symmetric", options.get("method", "lattice"),
           options.get("spatial", "conv"), 1e-7, False,
           options.get("return_belief", False))  # fmt: skip
    op_battery(
        fn,
        (logits.double(), image, weight),
        other_args=(logits.double().repeat(2, 1, 1, 2), image.repeat(2, 1, 1, 2), weight),
        opcheck_op=torch.ops.segfast.mean_field.default,
        opcheck_args=raw,
    )


def test_mean_field_steps(problem: Problem) -> None:
    """Scores and beliefs of each step are outputs like any other."""
    logits, image = problem(3, 3, 8, 7)

    def fn(logits: Tensor, image: Tensor) -> Any:
        return mean_field(logits, image, iterations=2, return_steps=True)

    op_battery(fn, (logits.double(), image))


def test_float_image_refuses_its_gradient(problem: Problem) -> None:
    logits, image = problem(3, 3, 8, 7)

    def fn(logits: Tensor, image: Tensor) -> Tensor:
        return mean_field(logits, image, color_sigma=13.0, iterations=1)

    op_battery(fn, (logits.double(), image.double()))


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="inductor cannot link torch in such a path")
def test_inductor(problem: Problem) -> None:
    logits, image = problem(4, 3, 13, 12)

    def refine(logits: Tensor, image: Tensor) -> Tensor:
        return mean_field(logits * 2, image, iterations=2).softmax(1)

    compiled = torch.compile(refine, fullgraph=True)
    torch.testing.assert_close(compiled(logits, image), refine(logits, image))
    torch._dynamo.reset()
