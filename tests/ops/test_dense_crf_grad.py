"""Gradients of the dense CRF: against finite differences, and against float64 autograd.

The oracle is autograd through reference.mean_field and reference.gaussian_filter in float64, which
shares no formula with what is tested: those write the derivatives out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast import _native
from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter, mean_field
from segfast.testing import assert_as_good_as

Problem = Callable[..., tuple[Tensor, Tensor]]
NORMALIZATIONS = reference.NORMALIZATIONS
NUMERIC = {"atol": 1e-7, "rtol": 1e-6}  # of central differences, see segfast/_op_battery.py


def parameters(labels: int, seed: int = 0) -> dict[str, list[Tensor]]:
    """Weights of every shape, and a penalty, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return {
        "scalars": [0.3 + draw(), 0.5 + draw()],
        "vectors": [draw(labels), draw(labels)],
        "matrices": [draw(labels, labels) - 0.3, draw(labels, labels) - 0.3],
        "compatibility": [0.3 + draw(), draw(labels), draw(labels, labels)],
    }


SIGMAS = [torch.tensor(s, dtype=torch.float64) for s in (1.3, [21.0, 33.0], [9.0, 14.0, 11.0])]
NAMES = ("spatial_weight", "bilateral_weight", "compatibility")
SIGMA_NAMES = ("spatial_sigma", "bilateral_sigma", "color_sigma")
OUTPUTS: tuple[dict[str, Any], ...] = ({}, {"return_belief": True}, {"return_steps": True})


def flat(output: Any) -> list[Tensor]:
    """Every tensor of mean_field's result."""
    if isinstance(output, Tensor):
        return [output]
    return [output[0], *itertools.chain.from_iterable(output[1])]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def weighted(outputs: Sequence[Tensor]) -> Tensor:
    """A sum in which no two elements can stand in for each other."""
    total = torch.zeros((), dtype=torch.float64)
    for x in outputs:
        total = total + (x * torch.linspace(1, 9, x.numel()).sin().reshape(x.shape)).sum()
    return total


# ------------------------------------------------------------------------------ finite differences


@pytest.mark.parametrize("kind", parameters(3))
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("model", ["lattice", "two lattices", "exact"])
def test_finite_differences(problem: Problem, model: str, normalization: str, kind: str) -> None:
    """Everything that has a gradient, for all weights, normalisations and outputs."""
    logits, image = problem(3, 3, 3, 4, 2)
    exact = model == "exact"
    weights = parameters(3)[kind]
    output = OUTPUTS[(NORMALIZATIONS.index(normalization) + len(kind)) % 3]
    options: dict[str, Any] = {
        "iterations": 3, "normalization": normalization, "tolerance": 0.0,
        "method": "exact" if exact else "lattice",
        "spatial": "lattice" if model == "two lattices" else "conv", **output,
    }  # fmt: skip
    pixels = [image.double(), *SIGMAS]
    names = NAMES[: len(weights)]

    def run(logits: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        parts = dict(zip(names, given, strict=False))
        place = given[len(names) :] or pixels
        arguments = dict(zip(SIGMA_NAMES, place[1:], strict=True))
        return tuple(flat(mean_field(logits, place[0], **parts, **arguments, **options)))

    inputs = leaves(logits.double(), *weights, *(pixels if exact else []))
    torch.autograd.gradcheck(run, inputs, fast_mode=True, **NUMERIC)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_filter_finite_differences(normalization: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 4, 7, dtype=torch.float64, generator=generator)

    def exact(values: Tensor, features: Tensor) -> Tensor:
        return gaussian_filter(values, features, "exact", normalization, 0.0)

    def lattice(values: Tensor) -> Tensor:
        return gaussian_filter(values, features, "lattice", normalization)

    torch.autograd.gradcheck(exact, leaves(values, features), **NUMERIC)
    torch.autograd.gradcheck(lattice, leaves(values), **NUMERIC)


# ------------------------------------------------------------------------------ float64 autograd


def oracle_gradients(
    logits: Tensor, image: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    given = leaves(*(x.to(dtype) for x in (logits, *weights)))
    scores = [
        reference.mean_field(x, y, **dict(zip(NAMES, given[1:], strict=False)), **options)
        for x, y in zip(given[0], image, strict=True)
    ]
    return list(torch.autograd.grad(weighted([torch.stack(scores)]), given))


IMAGES: dict[str, dict[str, Any]] = {
    "photograph": {"noise": 20.0},
    "noise": {"noise": 90.0},
    "constant": {"noise": 0.0},
}


@pytest.mark.parametrize("labels", [1, 2, 21, 45])
@pytest.mark.parametrize("picture", IMAGES)
@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize("kind", ["scalars", "matrices"])
def test_as_good_as_autograd(
    problem: Problem, method: str, picture: str, labels: int, kind: str
) -> None:
    logits, image = problem(labels, 3, 13, 19, 2, **IMAGES[picture])
    if picture == "constant":
        image = torch.full_like(image, 77)
    weights = [x / labels for x in parameters(labels)[kind]]
    # No round sigmas: pixels on the faces of a lattice's simplices belong to either side.
    options: dict[str, Any] = {
        "iterations": 2, "method": method, "bilateral_sigma": 23.7, "color_sigma": 13.3,
        "normalization": "symmetric",
    }  # fmt: skip
    truth = oracle_gradients(logits, image, weights, torch.float64, **options)
    plain = oracle_gradients(logits, image, weights, torch.float32, **options)
    given = leaves(logits, *(w.float() for w in weights))
    scores = mean_field(given[0], image, **dict(zip(NAMES, given[1:], strict=False)), **options)
    found = torch.autograd.grad(weighted([scores]), given)
    for name, x, oracle, baseline in zip(("logits", *NAMES), found, truth, plain, strict=False):
        assert_as_good_as(x, oracle, baseline, terms=13 * 19 * labels, label=name)


@pytest.mark.parametrize("isa", _native.instruction_sets() or ["none compiled"])
@pytest.mark.parametrize("kind", ["vectors", "matrices"])
def test_instruction_sets(problem: Problem, compiled_kernels: None, isa: str, kind: str) -> None:
    """Lines of more than a chunk, several bands, labels that fill no vector."""
    logits, image = problem(5, 3, 40, 150)
    weights = parameters(5)[kind]
    options: dict[str, Any] = {"iterations": 2, "bilateral_sigma": 23.7, "color_sigma": 13.3}
    truth = oracle_gradients(logits, image, weights, torch.float64, **options)
    given = leaves(logits.double(), *weights)
    with _native.use_instruction_set(isa):
        scores = mean_field(given[0], image, **dict(zip(NAMES, given[1:], strict=False)), **options)
        found = torch.autograd.grad(weighted([scores]), given)
    torch.testing.assert_close(list(found), truth)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_pixels_as_good_as_autograd(problem: Problem, normalization: str) -> None:
    """Image and sigmas in float32: more pixels than a tile, deep inside the image's range."""
    logits, image = problem(5, 3, 17, 23)
    options: dict[str, Any] = {
        "iterations": 2, "method": "exact", "normalization": normalization,
        "spatial_weight": 0.3, "bilateral_weight": 0.05,
    }  # fmt: skip

    def plain(dtype: torch.dtype) -> list[Tensor]:
        given = leaves(image[0].to(dtype), *(s.to(dtype) for s in SIGMAS))
        scores = reference.mean_field(
            logits[0].to(dtype), given[0], **dict(zip(SIGMA_NAMES, given[1:], strict=True)),
            **options,
        )  # fmt: skip
        return list(torch.autograd.grad(weighted([scores]), given))

    given = leaves(image.float(), *(s.float() for s in SIGMAS))
    sigmas = dict(zip(SIGMA_NAMES, given[1:], strict=True))
    found = torch.autograd.grad(
        weighted([mean_field(logits, given[0], **sigmas, **options)]), given
    )
    truth, baseline = plain(torch.float64), plain(torch.float32)
    # d/d color_sigma = -sum image . d/d image / color_sigma: its summands cancel each other.
    magnitudes = {"color_sigma": (truth[0] * image[0]).abs().sum((1, 2)) / SIGMAS[2]}
    for name, x, a, b in zip(("image", *SIGMA_NAMES), found, truth, baseline, strict=True):
        assert_as_good_as(
            x.reshape(a.shape), a, b, terms=17 * 23 * 5, magnitude=magnitudes.get(name), label=name
        )


# ------------------------------------------------------------------------------ the exact filter


@pytest.mark.parametrize("isa", _native.instruction_sets() or ["none compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 33), (67, 2, 1100), (3, 7, 700)], ids=str)
def test_features(
    compiled_kernels: None, isa: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Channels, dimensions and pixels that nothing divides; several groups of tiles."""
    channels, dims, pixels = shape
    generator = torch.Generator().manual_seed(pixels)
    values = torch.randn(1, channels, pixels, generator=generator).to(dtype)
    features = (2 * torch.randn(1, dims, pixels, generator=generator) + 40).to(dtype)

    def plain(dtype: torch.dtype) -> list[Tensor]:
        given = leaves(values[0].to(dtype), features[0].to(dtype))
        y = reference.gaussian_filter(*given, "after")
        return list(torch.autograd.grad(weighted([y]), given))

    given = leaves(values, features)
    with _native.use_instruction_set(isa):
        found = torch.autograd.grad(
            weighted([gaussian_filter(*given, "exact", "after", 0.0)]), given
        )
    truth, baseline = plain(torch.float64), plain(dtype)
    # What is summed for df is larger than df: sum_j K_ij |G_i . V_j| |f_i - f_j|, with n >= 1.
    terms = channels * pixels
    for x, a, b in zip(found, truth, baseline, strict=True):
        assert_as_good_as(x[0], a, b, terms=terms, magnitude=max(1.0, float(a.abs().max())))


def test_features_within_the_tolerance(compiled_kernels: None) -> None:
    """|df - exact| <= tolerance max|G_i . V_j + V_i . G_j|, and tiles are indeed left out."""
    generator = torch.Generator().manual_seed(3)
    g, v = torch.randn(2, 1, 4, 1500, dtype=torch.float64, generator=generator)
    features = 6 * torch.rand(1, 2, 1500, dtype=torch.float64, generator=generator)

    def gradient(tolerance: float) -> Tensor:
        (f,) = leaves(features)
        return torch.autograd.grad(gaussian_filter(v, f, "exact", "none", tolerance), f, g)[0]

    largest = (g[0].T @ v[0] + v[0].T @ g[0]).abs().max()
    for tolerance in (1e-4, 1e-2, 1.0):
        error = (gradient(tolerance) - gradient(0.0)).abs().max()
        assert 0 < error <= tolerance * largest


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dims", [1, 5, 7])
def test_lattice_transpose(normalization: str, dims: int) -> None:
    """<K v, g> = <v, K^T g>, with vertices missing, so that K is not symmetric."""
    generator = torch.Generator().manual_seed(dims)
    v, g = torch.randn(2, 1, 3, 150, dtype=torch.float64, generator=generator)
    features = 1.5 * torch.randn(1, dims, 150, dtype=torch.float64, generator=generator)
    (leaf,) = leaves(v)
    y = gaussian_filter(leaf, features, "lattice", normalization)
    (back,) = torch.autograd.grad(y, leaf, g)
    # 150 products of order 1, each of some 24 roundings of 1e-16: 4e-13.
    torch.testing.assert_close((y * g).sum(), (v * back).sum(), rtol=1e-12, atol=1e-12)
    if normalization in ("none", "symmetric"):
        forth = gaussian_filter(g, features, "lattice", normalization)
        assert dims == 1 or (forth - back).abs().max() > 1e-6


# ------------------------------------------------------------------------------ what must hold


def gradients(logits: Tensor, image: Tensor, **options: Any) -> list[Tensor]:
    """Of logits, matrices as weights, a penalty and, if the image is floating, of the pixels."""
    labels = logits.shape[1]
    weights = [*parameters(labels)["matrices"], parameters(labels, 5)["matrices"][0]]
    pixels = [image, *SIGMAS] if image.is_floating_point() else []
    given = leaves(logits, *weights, *pixels)
    parts = dict(zip(NAMES, given[1:4], strict=True))
    parts |= dict(zip(SIGMA_NAMES, given[5:], strict=False))
    scores = mean_field(given[0], given[4] if pixels else image, **parts, **options)
    return list(torch.autograd.grad(weighted(flat(scores)), given))


@pytest.mark.parametrize("output", OUTPUTS[1:])
@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.usefixtures("restored_threads", "compiled_kernels")
def test_same_bits_for_any_number_of_threads(
    problem: Problem, method: str, output: dict[str, Any]
) -> None:
    logits, image = problem(21, 3, 37, 70)
    pixels = image.float() if method == "exact" else image
    options: dict[str, Any] = {"iterations": 3, "method": method, **output}
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(gradients(logits, pixels, **options))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_weight_zero_is_learned(problem: Problem, method: str) -> None:
    """A term without weight takes no part, but its weight has a gradient."""
    logits, image = problem(3, 3, 9, 11)
    weights = [torch.zeros(()), torch.zeros(3, 3)]
    truth = oracle_gradients(
        logits, image, weights, torch.float64, iterations=2, method=method, bilateral_sigma=23.7
    )
    given = leaves(logits.double(), *weights)
    scores = mean_field(
        given[0], image, spatial_weight=given[1], bilateral_weight=given[2], iterations=2,
        method=method, bilateral_sigma=23.7,
    )  # fmt: skip
    found = torch.autograd.grad(weighted([scores]), given)
    for x, a in zip(found, truth, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(x, a.to(x.dtype))


@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (0, 3)])
def test_hardly_any_pixels(problem: Problem, method: str, size: tuple[int, int]) -> None:
    logits, image = torch.randn(2, 3, *size), torch.randint(0, 256, (2, 3, *size)).byte()
    for options in OUTPUTS:
        found = gradients(logits, image, iterations=2, method=method, **options)
        assert all(g.isfinite().all() for g in found)
    assert gradients(logits[:0], image[:0], iterations=2, method=method)[1].abs().max() == 0


def test_tiny_sigmas(problem: Problem) -> None:
    """Pixels that see nothing but themselves."""
    logits, image = problem(3, 3, 5, 6)
    sigmas = {"spatial_sigma": 1e-3, "bilateral_sigma": 1e-3, "color_sigma": 1e-3}
    for method in ("lattice", "exact"):
        (leaf,) = leaves(logits.double())
        scores = mean_field(leaf, image, method=method, iterations=1, **sigmas)
        (found,) = torch.autograd.grad(weighted([scores]), leaf)
        (own,) = leaves(logits.double())
        oracle = own + 13 * own.softmax(1)  # K~ = I
        torch.testing.assert_close(found, torch.autograd.grad(weighted([oracle]), own)[0])


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_iterations(problem: Problem, output: dict[str, Any]) -> None:
    logits, image = problem(3, 3, 5, 6)
    (leaf,) = leaves(logits.double())
    result = mean_field(leaf, image, iterations=0, **output)
    expected = leaf.softmax(1) if "return_belief" in output else leaf
    torch.testing.assert_close(
        torch.autograd.grad(weighted(flat(result)), leaf),
        torch.autograd.grad(weighted([expected]), leaf),
    )


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_nan_passes_on(problem: Problem, method: str) -> None:
    """A NaN score of one pixel reaches every pixel in an iteration, and every gradient in two."""
    logits, image = problem(2, 3, 6, 7)
    logits[0, 0, 2, 3] = torch.nan
    found = gradients(logits, image, iterations=2, method=method)
    assert all(g.isnan().all() for g in found)


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_weight_zero_of_an_undefined_kernel(problem: Problem, method: str) -> None:
    """It says nothing, so only its weight's gradient is undefined."""
    logits, image = problem(3, 3, 6, 7)
    pixels = image.float()
    pixels[0, 1, 4, 5] = torch.nan
    leaf, weight = leaves(logits, torch.zeros(()))
    options: dict[str, Any] = {"iterations": 2, "method": method, "color_sigma": 13.0}
    with_kernel = mean_field(leaf, pixels, bilateral_weight=weight, **options)
    without = mean_field(leaf, pixels, bilateral_weight=0.0, **options)
    assert torch.equal(with_kernel, without)
    found = torch.autograd.grad(weighted([with_kernel]), (leaf, weight))
    assert torch.equal(found[0], torch.autograd.grad(weighted([without]), leaf)[0])
    assert found[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(problem: Problem, dtype: torch.dtype) -> None:
    """Computed in float32, rounded once; gradients have the dtypes of their tensors."""
    logits, image = problem(3, 3, 9, 11)
    given = leaves(logits.to(dtype), torch.tensor(2.0, dtype=dtype))
    scores = mean_field(given[0], image, bilateral_weight=given[1], iterations=2)
    found = torch.autograd.grad(scores.float().sum() + weighted([scores]), given)
    assert [g.dtype for g in found] == [dtype, dtype]
    single = leaves(given[0].detach().float(), torch.tensor(2.0))
    result = mean_field(single[0], image, bilateral_weight=single[1], iterations=2)
    expected = torch.autograd.grad(result.sum() + weighted([result]), single)
    for x, y in zip(found, expected, strict=True):
        # Rounded upstream, and rounded itself: two units of the dtype, of values of order 1
        # (bfloat16: 2 times 2^-7).
        torch.testing.assert_close(x.float(), y, rtol=2 * torch.finfo(dtype).eps, atol=2e-2)


def test_forward_is_the_same_with_a_gradient(problem: Problem) -> None:
    logits, image = problem(5, 3, 17, 23, 2)
    for options in ({}, {"method": "exact"}, {"spatial": "lattice"}):
        (leaf,) = leaves(logits)
        for output in OUTPUTS:
            kept = flat(mean_field(leaf, image, iterations=3, **options, **output))
            plain = flat(mean_field(logits, image, iterations=3, **options, **output))
            assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))


def test_second_derivatives_are_refused(problem: Problem) -> None:
    logits, image = problem(3, 3, 5, 6)
    (leaf,) = leaves(logits)
    scores = mean_field(leaf, image, iterations=1)
    (grad,) = torch.autograd.grad(weighted([scores]), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


def test_an_image_without_channels() -> None:
    sigma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    color = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64)

    def refined(sigma: Tensor, color: Tensor) -> Tensor:
        options = {"bilateral_sigma": sigma, "color_sigma": color, "iterations": 2}
        return mean_field(logits, logits[:, :0], method="exact", **options)

    assert torch.autograd.gradcheck(refined, (sigma, color))
