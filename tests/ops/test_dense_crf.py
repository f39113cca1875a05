"""Mean field by the exact method against the float64 oracle, and what holds for every method.

After one iteration beliefs agree to 1e-5 with the oracle in the normalised modes (float32 features
of a few hundred pixels' reach are good to about 1e-6); without normalisation scores reach hundreds,
and the measure is a brute force in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast import _native
from segfast.kernels.dense_crf import reference
from segfast.ops import _dense_crf_engine, _dense_crf_op, mean_field
from segfast.ops._dense_crf_options import Options
from segfast.testing import assert_as_good_as, dtypes

Problem = Callable[..., tuple[Tensor, Tensor]]
Oracle = Callable[..., Tensor]

ONE_ITERATION = 1e-5  # max |dQ| that the project promises after one iteration in float32
NORMALIZED = ("before", "after", "symmetric")

# labels, channels, height, width, batch: 1 to 150 labels, grey to 5 channels, sizes no multiple of
# anything.
SHAPES = {
    "one label": (1, 3, 13, 17, 1),
    "two labels, grey, B = 3": (2, 1, 23, 19, 3),
    "RGB": (5, 3, 31, 37, 1),
    "VOC's labels": (21, 3, 17, 29, 2),
    "five channels": (4, 5, 19, 11, 3),
    "150 labels": (150, 3, 11, 13, 1),
    "one line": (3, 3, 1, 41, 1),
    "one column": (7, 2, 37, 1, 1),
    "one pixel": (6, 3, 1, 1, 2),
}

generator = torch.Generator().manual_seed(6)
MATRIX = torch.rand(5, 5, generator=generator)
MODELS: dict[str, dict[str, Any]] = {
    "scalars": {"spatial_weight": 3.0, "bilateral_weight": 10.0},
    "vectors": {"spatial_weight": 3 * MATRIX[0], "bilateral_weight": 10 * MATRIX[1]},
    "matrices": {"spatial_weight": 2 * MATRIX, "bilateral_weight": 3 * MATRIX.T - 1},
    "number and matrix": {"spatial_weight": 2.0, "bilateral_weight": 3 * MATRIX},
    "Potts penalty": {"compatibility": 1 - torch.eye(5)},
    "symmetric penalty": {"compatibility": MATRIX + MATRIX.T - 1},
    "asymmetric penalty": {"compatibility": MATRIX - 0.5},
    "vector and penalty": {"bilateral_weight": 9 * MATRIX[2], "compatibility": MATRIX - 0.7},
    "matrix and penalty": {"spatial_weight": 2 * MATRIX, "compatibility": MATRIX.T - 0.4},
    "spatial alone": {"bilateral_weight": 0.0},
    "bilateral alone": {"spatial_weight": 0.0},
    "other widths": {"spatial_sigma": 0.7, "bilateral_sigma": 9.5, "color_sigma": 31.0},
    "widths per axis": {
        "spatial_sigma": (1.5, 6.0), "bilateral_sigma": (40.0, 11.0),
        "color_sigma": (5.0, 20.0, 60.0)},
    "wider than the image": {"spatial_sigma": 90.0, "bilateral_sigma": 500.0, "color_sigma": 900.0},
}  # fmt: skip


def belief(scores: Tensor) -> Tensor:
    return scores.double().softmax(1)


def assert_scores(
    scores: Tensor, logits: Tensor, image: Tensor, oracle: Oracle, **options: Any
) -> None:
    truth = oracle(logits, image, **options)
    if options.get("normalization") == "none":
        baseline = oracle(logits, image, scores.dtype, **options)
        terms = image.shape[2] * image.shape[3]
        assert_as_good_as(scores, truth, baseline, terms=terms, label="scores")
    else:
        assert (belief(scores) - belief(truth)).abs().max() <= ONE_ITERATION


@pytest.mark.parametrize("normalization", ["none", *NORMALIZED])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_exact_one_iteration(
    problem: Problem, oracle: Oracle, shape: tuple[int, ...], normalization: str
) -> None:
    logits, image = problem(*shape)
    options: dict[str, Any] = {
        "method": "exact", "iterations": 1, "normalization": normalization}  # fmt: skip
    assert_scores(mean_field(logits, image, **options), logits, image, oracle, **options)


@pytest.mark.parametrize("normalization", ["none", *NORMALIZED])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_exact_weights_and_compatibilities(
    problem: Problem, oracle: Oracle, model: dict[str, Any], normalization: str
) -> None:
    logits, image = problem(5, 3, 14, 19)
    options = {"method": "exact", "iterations": 1, "normalization": normalization, **model}
    assert_scores(mean_field(logits, image, **options), logits, image, oracle, **options)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_models_differ(problem: Problem, method: str) -> None:
    """Each of the models above is another function, so the tests with them are not one test."""
    logits, image = problem(5, 3, 14, 19)
    options: dict[str, Any] = {"method": method, "iterations": 1}
    found = {k: belief(mean_field(logits, image, **options, **m)) for k, m in MODELS.items()}
    alike = [
        {a, b}
        for a, b in itertools.combinations(found, 2)
        if (found[a] - found[b]).abs().max() < 1e-3
    ]
    assert alike == [{"scalars", "Potts penalty"}]  # the same up to a constant per pixel


def test_exact_ten_iterations_decide_alike(problem: Problem, oracle: Oracle) -> None:
    """Ten steps of a nearly hard threshold amplify rounding: what counts is who wins."""
    logits, image = problem(21, 3, 23, 31)
    scores = mean_field(logits, image, method="exact")
    agree = scores.argmax(1) == oracle(logits, image, method="exact").argmax(1)
    assert agree.float().mean() >= 0.999


@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("spatial", ["conv", "lattice"])
def test_float64(problem: Problem, oracle: Oracle, method: str, spatial: str) -> None:
    """float64 in, float64 computed: 1e-10 where float32 is good to 1e-6."""
    logits, image = problem(5, 3, 21, 26, 2)
    options: dict[str, Any] = {"method": method, "spatial": spatial, "iterations": 1}
    scores = mean_field(logits.double(), image, tolerance=0.0, **options)
    assert scores.dtype == torch.float64
    truth = oracle(logits, image, **options)
    assert (belief(scores) - belief(truth)).abs().max() <= 1e-10


@pytest.mark.parametrize("method", ["exact", "lattice"])
@dtypes(torch.float16, torch.bfloat16)
def test_half_is_computed_in_float32(
    compiled_kernels: None, problem: Problem, dtype: torch.dtype, method: str
) -> None:
    logits, image = problem(4, 3, 15, 18)
    rounded = logits.to(dtype)
    scores = mean_field(rounded, image, method=method)
    assert scores.dtype == dtype
    assert torch.equal(scores, mean_field(rounded.float(), image, method=method).to(dtype))


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_images_of_a_batch_do_not_meet(
    compiled_kernels: None, problem: Problem, method: str
) -> None:
    logits, image = problem(3, 3, 18, 25, 3)
    together = mean_field(logits, image, method=method)
    for b in range(3):
        alone = mean_field(logits[b], image[b], method=method)
        assert alone.shape == logits[b].shape
        assert torch.equal(together[b], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8])
def test_image_dtypes(compiled_kernels: None, problem: Problem, dtype: torch.dtype) -> None:
    logits, image = problem(3, 3, 18, 25)
    expected = mean_field(logits, image, iterations=3)
    assert torch.equal(
        mean_field(logits, image.to(dtype), color_sigma=13.0, iterations=3), expected
    )


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_steps(problem: Problem, method: str) -> None:
    logits, image = problem(3, 3, 12, 15, 2)
    scores, steps = mean_field(logits, image, method=method, iterations=4, return_steps=True)
    assert len(steps) == 4
    for i, (at, believed) in enumerate(steps, 1):
        direct = mean_field(logits, image, method=method, iterations=i)
        # rounding grows up to tenfold per iteration
        assert (believed - direct.softmax(1)).abs().max() <= ONE_ITERATION * 10 ** (i - 1)
        torch.testing.assert_close(believed, at.softmax(1), rtol=0, atol=1e-6)
    assert torch.equal(scores, steps[-1][0])


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"spatial": "lattice"}])
@pytest.mark.parametrize(("labels", "width"), [(1, 9), (3, 15), (21, 70)])
def test_belief(
    problem: Problem, labels: int, width: int, options: dict[str, Any], iterations: int
) -> None:
    """The belief is the scores' softmax; native kernels take it while the scores are at hand."""
    logits, image = problem(labels, 3, 12, width, 2)
    options = options | {"iterations": iterations}
    belief = mean_field(logits, image, return_belief=True, **options)
    scores = mean_field(logits, image, **options)
    assert_as_good_as(belief, scores.double().softmax(1), scores.softmax(1))
    last, steps = mean_field(logits, image, return_steps=True, return_belief=True, **options)
    assert torch.equal(last, steps[-1][1] if steps else logits.softmax(1))


def test_belief_without_kernels_lies_as_announced(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch.compile was told of its strides holds."""
    monkeypatch.setattr(_dense_crf_engine, "native", lambda: None)
    belief = mean_field(*problem(3, 3, 12, 15), return_belief=True)
    assert belief.is_contiguous()


def test_features_of_images_without_channels(problem: Problem) -> None:
    """What the exact method on a GPU starts from: positions alone."""
    logits, image = problem(2, 0, 4, 5)
    sigmas = [torch.tensor(sigma) for sigma in ((3.0, 3.0), (2.0, 4.0), ())]
    tensors = [logits, image, torch.eye(2), torch.eye(2), *sigmas]
    found = _dense_crf_op.Problem(tensors, Options(1)).features()
    assert torch.equal(found[0], reference.position_features(image.float()[0], (2.0, 4.0)))


def test_half_belief_is_rounded_once(problem: Problem) -> None:
    logits, image = problem(3, 3, 12, 15)
    belief = mean_field(logits.half(), image, return_belief=True)
    exact = mean_field(logits.half().float(), image, return_belief=True)
    assert torch.equal(belief, exact.half())


def test_no_iterations_returns_the_logits(problem: Problem) -> None:
    logits, image = problem(3, 3, 12, 15)
    scores = mean_field(logits, image, iterations=0)
    assert torch.equal(scores, logits)
    assert scores.data_ptr() != logits.data_ptr()
    scores, steps = mean_field(logits, image, iterations=0, return_steps=True)
    assert torch.equal(scores, logits)
    assert steps == []


@pytest.mark.parametrize(
    ("pixels", "normalization", "chosen"),
    [
        ((12, 12), "symmetric", "exact"),
        ((12, 12), "none", "exact"),
        ((129, 128), "symmetric", "lattice"),
        ((129, 128), "after", "lattice"),
    ],
)
def test_auto(
    compiled_kernels: None,
    problem: Problem,
    pixels: tuple[int, int],
    normalization: str,
    chosen: str,
) -> None:
    logits, image = problem(2, 3, *pixels)
    options: dict[str, Any] = {"iterations": 1, "normalization": normalization}
    auto, named = (mean_field(logits, image, method=m, **options) for m in ("auto", chosen))
    assert torch.equal(auto, named)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("noise", [20.0, 200.0])
@pytest.mark.parametrize("options", [
    {}, {"spatial": "lattice"}, {"bilateral_weight": torch.eye(7) - 0.2}, {"method": "exact"},
    {"method": "exact", "bilateral_weight": torch.eye(7) - 0.2},
])  # fmt: skip
def test_same_bits_for_any_number_of_threads(
    compiled_kernels: None, problem: Problem, options: dict[str, Any], noise: float
) -> None:
    size = (61, 83) if "method" in options else (157, 211)
    logits, image = problem(7, 3, *size, noise=noise)
    results = []
    for threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(threads)
        results.append(mean_field(logits, image, iterations=3, **options))
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("normalization", ["none", *NORMALIZED])
@pytest.mark.parametrize("name", _native.instruction_sets() or ["none compiled"])
def test_every_instruction_set(
    compiled_kernels: None, problem: Problem, oracle: Oracle, name: str, normalization: str
) -> None:
    logits, image = problem(11, 3, 22, 27)
    matrix = torch.rand(11, 11, generator=torch.Generator().manual_seed(0))
    for method, dtype, weight in (
        ("exact", torch.float32, 10.0),
        ("exact", torch.float64, matrix),
        ("lattice", torch.float32, matrix),
        ("lattice", torch.float64, 10.0),
    ):
        options: dict[str, Any] = {
            "method": method, "spatial": "lattice", "iterations": 1,
            "normalization": normalization, "bilateral_weight": weight,
        }  # fmt: skip
        with _native.use_instruction_set(name):
            scores = mean_field(logits.to(dtype), image, tolerance=0.0, **options)
        assert_scores(scores, logits, image, oracle, **options)
