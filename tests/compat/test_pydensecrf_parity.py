"""Against the real pydensecrf where it is importable: same names, same calls, same numbers."""

from __future__ import annotations

import importlib
import inspect
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import segfast.compat.pydensecrf.densecrf as ours
from segfast.compat.pydensecrf import utils

theirs = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
their_utils = pytest.importorskip("pydensecrf.utils")

ONE_STEP = 1e-5  # max |dQ| after one iteration, the project's acceptance number
SAME_ARGMAX = 0.999  # share of pixels after ten iterations, likewise
DEPRECATED = ("compute_unary", "softmax_to_unary")


def both(problem: Any, add: Any) -> tuple[Any, Any]:
    crfs = problem.crf(ours), problem.crf(theirs)
    for crf in crfs:
        add(crf)
    return crfs


def agree(mine: Any, real: Any) -> None:
    one, real_one = np.array(mine.inference(1)), np.array(real.inference(1))
    assert np.abs(one - real_one).max() <= ONE_STEP
    assert one.strides == real_one.strides
    assert one.dtype == real_one.dtype
    ten, real_ten = np.array(mine.inference(10)), np.array(real.inference(10))
    assert (ten.argmax(0) == real_ten.argmax(0)).mean() >= SAME_ARGMAX


@pytest.mark.parametrize("module", ["densecrf", "eigen", "utils"])
def test_every_public_name_is_there(module: str) -> None:
    real = importlib.import_module(f"pydensecrf.{module}")
    mine = importlib.import_module(f"segfast.compat.pydensecrf.{module}")
    imported = {"Number", "np", "warning"}  # theirs, by accident public
    names = {name for name in vars(real) if not name.startswith("_")} - imported
    assert names
    assert names <= set(vars(mine))


@pytest.mark.parametrize("name", ["KernelType", "NormalizationType"])
def test_constants_have_the_same_values(name: str) -> None:
    real, mine = getattr(theirs, name), getattr(ours, name)
    assert {m.name: int(m) for m in real} == {m.name: int(m) for m in mine}
    assert all(int(getattr(ours, m.name)) == int(m) for m in real)


@pytest.mark.parametrize("name", ["DenseCRF", "DenseCRF2D"])
def test_every_method_is_there(name: str) -> None:
    methods = {m for m in dir(getattr(theirs, name)) if not m.startswith("_")}
    assert methods
    assert methods <= set(dir(getattr(ours, name)))


def test_utils_have_the_same_parameters() -> None:
    for name in (
        "compute_unary",
        "create_pairwise_bilateral",
        "create_pairwise_gaussian",
        "softmax_to_unary",
        "unary_from_labels",
        "unary_from_softmax",
    ):
        real = inspect.signature(getattr(their_utils, name)).parameters
        mine = inspect.signature(getattr(utils, name)).parameters
        assert [(p.name, p.default) for p in real.values()] == [
            (p.name, p.default) for p in mine.values()
        ], name


def test_calls_by_keyword_and_by_position(problem: Any) -> None:
    def by_keyword(crf: Any) -> None:
        crf.addPairwiseGaussian(sxy=3, compat=3, kernel=1, normalization=3)
        crf.addPairwiseBilateral(
            sxy=9, srgb=20, rgbim=problem.image, compat=5, kernel=1, normalization=3
        )
        crf.addPairwiseEnergy(features=problem.positions(2, 2), compat=1, kernel=0, normalization=1)

    def by_position(crf: Any) -> None:
        crf.addPairwiseGaussian(3, 3, 1, 3)
        crf.addPairwiseBilateral(9, 20, problem.image, 5, 1, 3)
        crf.addPairwiseEnergy(problem.positions(2, 2), 1, 0, 1)

    agree(*both(problem, by_keyword))
    mine, real = both(problem, by_position)
    agree(mine, real)
    keyword, _ = both(problem, by_keyword)
    np.testing.assert_array_equal(np.array(mine.inference(2)), np.array(keyword.inference(2)))


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["number", "vector", "matrix"])
def test_inference(problem: Any, number: int, kind: str) -> None:
    scale = 0.1 if number == 0 else 4.0  # the raw kernel sums to hundreds
    rng = np.random.default_rng(11)
    compat = {
        "number": scale,
        "vector": np.float32(-scale) * rng.random(problem.labels, np.float32),
        "matrix": np.float32(scale) * rng.random((problem.labels, problem.labels), np.float32),
    }[kind]

    def add(crf: Any) -> None:
        crf.addPairwiseGaussian((2, 3), compat, normalization=number)
        crf.addPairwiseBilateral((30, 20), (13, 20, 30), problem.image, compat, 1, number)

    agree(*both(problem, add))


def test_published_parameters(problem: Any) -> None:
    def add(crf: Any) -> None:
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=problem.image, compat=10)

    agree(*both(problem, add))


def test_a_photograph() -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    image = np.ascontiguousarray(data.coffee()[100:340:2, 100:420:2])  # [120, 160, 3]
    height, width, labels = 120, 160, 21
    rng = np.random.default_rng(0)
    blocks = rng.normal(0, 1.5, (labels, height // 8, width // 8)).repeat(8, 1).repeat(8, 2)
    scores = blocks + rng.normal(0, 1, blocks.shape)
    probs = np.exp(scores) / np.exp(scores).sum(0)
    crfs = []
    for module, module_utils in ((ours, utils), (theirs, their_utils)):
        crf = module.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(module_utils.unary_from_softmax(probs))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
        crfs.append(crf)
    agree(*crfs)


@pytest.mark.parametrize("sigma", [(1, 1), (5, 1), (120, 5), (0.3, 80)])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_positions_on_the_boundary_of_a_simplex(problem: Any, sigma: Any, number: int) -> None:
    """Scale 1 is exactly 2 in five dimensions: its last bit decides where whole numbers belong."""

    def add(crf: Any) -> None:
        crf.addPairwiseGaussian(sigma, 3, normalization=number)
        crf.addPairwiseBilateral(sigma, (13, 3, 1), problem.image, 10, normalization=number)

    agree(*both(problem, add))


def test_steps_and_divergence(problem: Any) -> None:
    def add(crf: Any) -> None:
        crf.addPairwiseGaussian((2, 3), 2.0)
        crf.addPairwiseBilateral(20, 20, problem.image, 3.0, normalization=ours.NORMALIZE_AFTER)

    mine, real = both(problem, add)
    state, real_state = mine.startInference(), real.startInference()
    for _ in range(2):
        mine.stepInference(*state)
        real.stepInference(*real_state)
    assert np.abs(np.array(state[0]) - np.array(real_state[0])).max() <= 2 * ONE_STEP
    for matrix, real_matrix in zip(state, real_state, strict=True):
        assert np.array(matrix).shape == np.array(real_matrix).shape
    value, real_value = mine.klDivergence(state[0]), real.klDivergence(real_state[0])
    # the divergence is stationary near the optimum: dQ moves each of 4 L N summands by about dQ
    assert abs(value - real_value) <= 4 * state[0].size * ONE_STEP
    assert abs(value - real_value) <= 1e-5 * abs(real_value)


def test_kl_divergence_of_the_same_belief(problem: Any) -> None:
    crfs = both(problem, lambda crf: crf.addPairwiseGaussian(3, 3))
    start = [crf.startInference()[0] for crf in crfs]
    assert np.abs(np.array(start[0]) - np.array(start[1])).max() <= 2.0**-22
    values = [crf.klDivergence(q) for crf, q in zip(crfs, start, strict=True)]
    # float32 messages: 2 u per operation, some 16 of them one after another
    assert abs(values[0] - values[1]) <= 32 * 2.0**-24 * problem.energy.size


def test_features_and_unaries_are_equal_bit_for_bit(problem: Any) -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, (6, 5))
    probs = rng.random((3, 6, 5))
    probs /= probs.sum(0)
    volume = 100 * rng.random((4, 5, 6, 2))
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("unary_from_labels", (labels, 3, 0.7), {}),
        ("unary_from_labels", (labels, 4, 0.5, False), {}),
        ("unary_from_labels", (labels.astype(np.int8), 5, 0.9), {"zero_unsure": True}),
        ("compute_unary", (labels, 3), {}),
        ("compute_unary", (labels, 3, 0.8), {}),
        ("unary_from_softmax", (probs,), {}),
        ("unary_from_softmax", (probs.astype(np.float32),), {}),
        ("unary_from_softmax", (probs, 0.7), {}),
        ("unary_from_softmax", (np.eye(3), 0.7, None), {}),
        ("unary_from_softmax", (np.eye(3), 0.5, 0.2), {}),
        ("unary_from_softmax", (np.eye(3, dtype=int),), {"clip": 1e-3}),
        ("softmax_to_unary", (probs,), {}),
        ("softmax_to_unary", (probs, 0.6), {}),
        ("create_pairwise_gaussian", ((3, 7), (6, 5)), {}),
        ("create_pairwise_gaussian", ((3, 7, 1.3), (6, 5, 4)), {}),
        ("create_pairwise_bilateral", ((3, 7), (13, 14, 15), problem.image, 2), {}),
        ("create_pairwise_bilateral", ((3, 7), 13, problem.image), {"chdim": 2}),
        ("create_pairwise_bilateral", ((3, 7), (1.3,), problem.image[:, :, 0]), {}),
        ("create_pairwise_bilateral", ((3, 7, 2), (1.3, 3.1), volume), {"chdim": 3}),
        ("create_pairwise_bilateral", ((3, 7, 2), (1.3, 3.1), np.moveaxis(volume, 3, 0), 0), {}),
    ]
    for name, arguments, options in calls:
        with pytest.warns(DeprecationWarning, match=name) if name in DEPRECATED else nullcontext():
            mine = getattr(utils, name)(*arguments, **options)
        real = getattr(their_utils, name)(*arguments, **options)
        np.testing.assert_array_equal(mine, real, err_msg=f"{name} {options}")
        assert (mine.dtype, mine.flags.c_contiguous) == (real.dtype, True), name
