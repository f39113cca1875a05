"""utils: values worked out by hand, and every input that pydensecrf's utils stumble over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from segfast.compat.pydensecrf import densecrf, utils

LABELS = np.array([[0, 1, 2], [2, 1, 0]])


def close(energy: np.ndarray, probabilities: Any) -> None:
    assert energy.dtype == np.float32
    assert energy.flags.c_contiguous
    # one logarithm rounded to float32
    np.testing.assert_allclose(energy, -np.log(probabilities), rtol=2.0**-23, atol=0)


def test_unary_from_labels() -> None:
    close(
        utils.unary_from_labels(LABELS, 2, 0.7),
        [[0.5, 0.7, 0.3, 0.3, 0.7, 0.5], [0.5, 0.3, 0.7, 0.7, 0.3, 0.5]],
    )
    rest = 0.3 / 2
    close(
        utils.unary_from_labels(LABELS, 3, 0.7, zero_unsure=False),
        [
            [0.7, rest, rest, rest, rest, 0.7],
            [rest, 0.7, rest, rest, 0.7, rest],
            [rest, rest, 0.7, 0.7, rest, rest],
        ],
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_unary_from_labels_of_any_integer_dtype(dtype: Any) -> None:
    expected = utils.unary_from_labels(LABELS, 2, 0.7)
    for labels in (LABELS.astype(dtype), LABELS.tolist(), torch.from_numpy(LABELS)):
        np.testing.assert_array_equal(utils.unary_from_labels(labels, 2, 0.7), expected)


def test_unary_from_a_boolean_mask_and_one_label() -> None:
    mask = LABELS > 0
    for given in (mask, mask.tolist(), torch.from_numpy(mask)):
        close(
            utils.unary_from_labels(given, 2, 0.9, zero_unsure=False),
            [[0.9, 0.1, 0.1, 0.1, 0.1, 0.9], [0.1, 0.9, 0.9, 0.9, 0.9, 0.1]],
        )
    close(utils.unary_from_labels(mask, 1, 0.9), [[1, 0.9, 0.9, 0.9, 0.9, 1]])


def test_unary_from_softmax() -> None:
    probs = np.array([[[0.25, 1.0]], [[0.75, 0.0]]])
    close(utils.unary_from_softmax(probs), [[0.25, 1], [0.75, 1e-5]])
    close(utils.unary_from_softmax(probs, scale=0.5), [[0.375, 0.75], [0.625, 0.25]])
    close(utils.unary_from_softmax(probs, clip=0.5), [[0.5, 1], [0.75, 0.5]])
    close(utils.unary_from_softmax(probs, 0.5, None), [[0.375, 0.75], [0.625, 0.25]])
    assert np.isinf(utils.unary_from_softmax(probs, clip=None)[1, 1])


def test_unary_from_softmax_rounding_of_half_is_no_error() -> None:
    probs = torch.softmax(torch.randn(5, 40, 40), 0)
    for rounded in (probs.half(), probs.bfloat16()):
        expected = utils.unary_from_softmax(rounded.float())
        np.testing.assert_array_equal(utils.unary_from_softmax(rounded), expected)
    assert utils.unary_from_softmax(np.float32([[1.0001], [-0.0001]])).shape == (2, 1)


def test_pairwise_gaussian_puts_the_first_axis_first() -> None:
    expected = [[0, 0, 0, 1 / 3, 1 / 3, 1 / 3], [0, 0.5, 1, 0, 0.5, 1]]
    for sdims in ((3, 2), [3.0, 2.0], np.array([3, 2])):
        features = utils.create_pairwise_gaussian(sdims, (2, 3))
        np.testing.assert_array_equal(features, np.float32(expected))
    assert utils.create_pairwise_gaussian(3, (2, 3, 4)).shape == (3, 24)  # a scalar serves all axes


def test_pairwise_bilateral() -> None:
    image = np.arange(12).reshape(2, 3, 2)  # [H, W, C]
    features = utils.create_pairwise_bilateral((3, 2), (2, 4), image, chdim=2)
    positions = utils.create_pairwise_gaussian((3, 2), (2, 3))
    np.testing.assert_array_equal(features[:2], positions)
    np.testing.assert_array_equal(features[2], np.float32([0, 1, 2, 3, 4, 5]))
    np.testing.assert_array_equal(features[3], np.float32([0.25, 0.75, 1.25, 1.75, 2.25, 2.75]))
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    for axis in (0, 1):
        moved = np.moveaxis(image, 2, axis)
        np.testing.assert_array_equal(
            utils.create_pairwise_bilateral((3, 2), (2, 4), moved, axis), features
        )
    grey = utils.create_pairwise_bilateral((3, 2), 2, image[:, :, 0])  # chdim=-1: no channels
    np.testing.assert_array_equal(grey, features[:3])


def test_features_of_utils_and_of_dense_crf_2d_are_one_model() -> None:
    """The axes' order changes the lattice but not the model: exact messages are equal."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 7, 3), np.uint8)
    energy = rng.random((3, 42), np.float32)
    first, second = densecrf.DenseCRF2D(7, 6, 3), densecrf.DenseCRF2D(7, 6, 3)
    for crf in (first, second):
        crf.setUnaryEnergy(energy)
    first.addPairwiseBilateral((9, 5), (20, 30, 40), image, 4, method="exact")
    features = utils.create_pairwise_bilateral((5, 9), (20, 30, 40), image, chdim=2)
    second.addPairwiseEnergy(features, 4, method="exact")
    difference = np.abs(np.array(first.inference(1)) - np.array(second.inference(1))).max()
    assert difference <= 42 * 2.0**-24 * 4  # sums of 42 float32 in another order, weight 4


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "labels float": (
        lambda: utils.unary_from_labels(LABELS / 1.0, 2, 0.7),
        TypeError, ("labels", "integers", "float64")),
    "labels negative": (  # pydensecrf wraps around
        lambda: utils.unary_from_labels(LABELS - 1, 2, 0.7),
        ValueError, ("labels", "0 (unsure) and 1..2", "-1..1")),
    "labels negative, no unsure": (
        lambda: utils.unary_from_labels(LABELS - 1, 2, 0.7, zero_unsure=False),
        ValueError, ("labels", "0..1", "-1..1")),
    "labels large": (
        lambda: utils.unary_from_labels(LABELS * 255, 2, 0.7),
        ValueError, ("labels", "1..2", "0..510", "void")),
    "labels large, no unsure": (
        lambda: utils.unary_from_labels(LABELS, 2, 0.7, zero_unsure=False),
        ValueError, ("labels", "0..1", "n_labels=2", "0..2")),
    "labels text": (lambda: utils.unary_from_labels("map", 2, 0.7), TypeError, ("labels", "map")),
    "n_labels": (lambda: utils.unary_from_labels(LABELS, 0, 0.7), ValueError, ("n_labels", "0")),
    "gt_prob 1": (lambda: utils.unary_from_labels(LABELS, 2, 1.0), ValueError, ("gt_prob", "1.0")),
    "gt_prob 0": (lambda: utils.unary_from_labels(LABELS, 2, 0), ValueError, ("gt_prob", "0")),
    "gt_prob NaN": (
        lambda: utils.unary_from_labels(LABELS, 2, float("nan")), ValueError, ("gt_prob", "nan")),
    "sm logits": (  # pydensecrf clips them
        lambda: utils.unary_from_softmax(np.array([[4.0], [-2.0]])),
        ValueError, ("sm", "[0, 1]", "-2..4", "softmax")),
    "sm NaN": (
        lambda: utils.unary_from_softmax(np.array([[np.nan], [1]])), ValueError, ("sm", "NaN")),
    "sm number": (lambda: utils.unary_from_softmax(0.5), ValueError, ("sm", "n_labels")),
    "sm text": (lambda: utils.unary_from_softmax("p"), TypeError, ("sm", "'p'")),
    "scale 0": (lambda: utils.unary_from_softmax(np.eye(2), 0), ValueError, ("scale", "(0, 1]")),
    "scale 2": (lambda: utils.unary_from_softmax(np.eye(2), 2.0), ValueError, ("scale", "2.0")),
    "clip": (
        lambda: utils.unary_from_softmax(np.eye(2), clip=-1), ValueError, ("clip", "[0, 1)", "-1")),
    "sdims many": (
        lambda: utils.create_pairwise_gaussian((3, 2, 1), (2, 3)),
        ValueError, ("sdims", "2", "per axis", "(2, 3)")),
    "sdims 0": (
        lambda: utils.create_pairwise_gaussian((3, 0), (2, 3)), ValueError, ("sdims", "positive")),
    "shape number": (lambda: utils.create_pairwise_gaussian(3, 5), TypeError, ("shape", "5")),
    "shape 0": (lambda: utils.create_pairwise_gaussian(3, (5, 0)), ValueError, ("shape", ">= 1")),
    "colour image, no chdim": (
        lambda: utils.create_pairwise_bilateral((3, 2), 13, np.zeros((4, 5, 3))),
        ValueError, ("sdims", "(4, 5, 3)", "chdim=-1 says that no axis holds channels")),
    "schan short": (
        lambda: utils.create_pairwise_bilateral((3, 2), (1, 2), np.zeros((4, 5, 3)), 2),
        ValueError, ("schan", "3", "per channel")),
    "chdim": (
        lambda: utils.create_pairwise_bilateral((3, 2), 1, np.zeros((4, 5, 3)), 3),
        ValueError, ("chdim", "3", "(4, 5, 3)")),
    "img NaN": (
        lambda: utils.create_pairwise_bilateral((3, 2), 1, np.full((4, 5), np.nan)),
        ValueError, ("img", "NaN")),
    "img None": (
        lambda: utils.create_pairwise_bilateral((3, 2), 1, None), TypeError, ("img", "None")),
    "scale text": (
        lambda: utils.unary_from_softmax([[0.5], [0.5]], scale="x"), TypeError, ("scale", "'x'")),
    "clip text": (
        lambda: utils.unary_from_softmax([[0.5], [0.5]], clip="x"), TypeError, ("clip", "'x'")),
    "gt_prob none": (
        lambda: utils.unary_from_labels([0, 1], 2, None), TypeError, ("gt_prob", "None")),
    "gt_prob list": (
        lambda: utils.unary_from_labels([0, 1], 2, [0.5]), TypeError, ("gt_prob", "[0.5]")),
    "chdim none": (
        lambda: utils.create_pairwise_bilateral(3, 13, np.ones((4, 5, 3)), chdim=None), TypeError,
        ("chdim", "None")),
    "chdim fraction": (
        lambda: utils.create_pairwise_bilateral(3, 13, np.ones((4, 5, 3)), chdim=1.5), ValueError,
        ("chdim", "1.5")),
    "schan vanishing": (
        lambda: utils.create_pairwise_bilateral(3, 1e-44, np.ones((4, 5))),
        ValueError, ("schan", "too small")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message(case: str) -> None:
    call, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message


def test_tensors_are_numbers_of_utils() -> None:
    half = torch.tensor(0.5)
    for name in ("scale", "clip"):
        np.testing.assert_array_equal(
            utils.unary_from_softmax([[0.25], [0.75]], **{name: half}),
            utils.unary_from_softmax([[0.25], [0.75]], **{name: 0.5}),
        )
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    bilateral = utils.create_pairwise_bilateral
    np.testing.assert_array_equal(
        bilateral((3, 3), 13, image, chdim=2.0), bilateral((3, 3), 13, image, chdim=2)
    )


def test_an_unclipped_zero_is_refused_later_with_the_remedy() -> None:
    energy = utils.unary_from_softmax(np.eye(3), clip=None)
    with pytest.raises(ValueError, match=r"u must be finite.*clip"):
        densecrf.DenseCRF(3, 3).setUnaryEnergy(energy)


def test_deprecated_names_warn_and_work() -> None:
    probs = np.full((2, 3), 0.5)
    with pytest.warns(DeprecationWarning, match="compute_unary is deprecated"):
        energy = utils.compute_unary(LABELS, 2)
    np.testing.assert_array_equal(energy, utils.unary_from_labels(LABELS, 2, 0.5))
    with pytest.warns(DeprecationWarning, match="softmax_to_unary is deprecated"):
        energy = utils.softmax_to_unary(probs, 0.7)
    np.testing.assert_array_equal(energy, utils.unary_from_softmax(probs, 0.7, None))
