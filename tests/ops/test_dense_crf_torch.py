"""The dense CRF inside PyTorch: derivatives, torch.func, compile, export, autocast."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segfast.ops import gaussian_filter, mean_field
from segfast.testing import op_battery

Problem = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_gaussian_filter(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 2, 6, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)

    def fn(values: Tensor, features: Tensor) -> Tensor:
        return gaussian_filter(values, features, method, "after")

    op_battery(
        fn,
        (values, features),
        differentiable=(0, 1) if method == "exact" else (0,),
        second_order=False,
        other_args=(values.repeat(2, 2, 3), features.repeat(2, 1, 3)),
        opcheck_op=torch.ops.segfast.gaussian_filter.default,
        opcheck_args=(values, features, method, "after", 1e-7),
    )


@pytest.mark.parametrize("options", [{}, {"method": "exact", "return_belief": True}])
def test_mean_field(problem: Problem, options: dict[str, Any]) -> None:
    logits, image = problem(3, 3, 4, 5, 2)
    weight = torch.eye(3, dtype=torch.float64) - 0.1

    def fn(logits: Tensor, image: Tensor, weight: Tensor) -> Tensor:
        return mean_field(logits, image, bilateral_weight=weight, iterations=2, **options)

    sigmas = [torch.tensor(s).double() for s in ([3.0, 3.0], [80.0, 80.0], [13.0])]
    raw = (
        *(logits.double(), image, torch.tensor(3.0).double(), weight, *sigmas, 2, "symmetric"),
        *(options.get("method", "lattice"), options.get("spatial", "conv"), 1e-7, False),
        options.get("return_belief", False),
    )
    op_battery(
        fn,
        (logits.double(), image, weight),
        differentiable=(0, 2),
        second_order=False,
        other_args=(logits.double().repeat(2, 1, 1, 2), image.repeat(2, 1, 1, 2), weight),
        opcheck_op=torch.ops.segfast.mean_field.default,
        opcheck_args=raw,
    )


def test_mean_field_steps(problem: Problem) -> None:
    """Scores and beliefs of each step are outputs like any other."""
    logits, image = problem(2, 3, 3, 4)

    def fn(logits: Tensor, image: Tensor) -> Any:
        return mean_field(logits, image, iterations=2, return_steps=True)

    op_battery(fn, (logits.double(), image), differentiable=(0,), second_order=False)


def test_what_places_the_pixels(problem: Problem) -> None:
    """Float images and deviations, through the exact method."""
    logits, image = problem(2, 2, 4, 3)
    sigmas = [torch.tensor(s, dtype=torch.float64) for s in (1.5, [30.0, 20.0], [13.0, 17.0])]

    def fn(logits: Tensor, image: Tensor, *sigmas: Tensor) -> Tensor:
        spatial, bilateral, color = sigmas
        return mean_field(
            logits, image, spatial_sigma=spatial, bilateral_sigma=bilateral, color_sigma=color,
            iterations=2, method="exact",
        )  # fmt: skip

    arguments = (logits.double(), image.double(), *sigmas)
    op_battery(fn, arguments, differentiable=range(5), second_order=False)


@pytest.mark.parametrize("argument", ["image", "spatial_sigma", "bilateral_sigma", "color_sigma"])
def test_the_lattice_refuses_gradients_of_pixels(problem: Problem, argument: str) -> None:
    logits, image = problem(3, 3, 8, 7)
    options: dict[str, Any] = {"image": image.float(), "color_sigma": 13.0}
    given = {**options, argument: options.get(argument, torch.tensor(5.0))}
    given[argument] = torch.as_tensor(given[argument]).requires_grad_()
    with pytest.raises(ValueError, match=f"^{argument} must not require a gradient .*exact"):
        mean_field(logits, iterations=1, **given)
    with torch.no_grad():
        mean_field(logits, iterations=1, **given)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="inductor cannot link torch in such a path")
def test_inductor(problem: Problem) -> None:
    logits, image = problem(4, 3, 13, 12)

    def refine(logits: Tensor, image: Tensor) -> Tensor:
        return mean_field(logits * 2, image, iterations=2).softmax(1)

    compiled = torch.compile(refine, fullgraph=True)
    torch.testing.assert_close(compiled(logits, image), refine(logits, image))
    torch._dynamo.reset()


def test_fake_tensors_and_empty_vmaps(problem: Problem) -> None:
    """Shapes alone, with and without a gradient; no sample at all."""
    logits, image = problem(2, 3, 6, 5)
    for learn in (False, True):
        with FakeTensorMode() as mode:
            x = mode.from_tensor(logits).requires_grad_(learn)
            assert mean_field(x, mode.from_tensor(image), iterations=2).shape == logits.shape
    mapped = torch.vmap(mean_field)(logits[:0, None], image[:0, None])
    assert mapped.shape == (0, 1, *logits.shape[1:])
