"""What pydensecrf rejects obscurely, miscomputes or crashes on: works, or says what is wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import segfast.compat.pydensecrf.densecrf as dcrf
from segfast.compat.pydensecrf import eigen
from segfast.ops import _dense_crf_engine

W, H, L = 5, 4, 3
N = W * H
U = np.random.default_rng(0).random((L, N), np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
F = np.random.default_rng(2).random((2, N), np.float32)


def crf(energy: Any = U) -> dcrf.DenseCRF2D:
    result = dcrf.DenseCRF2D(W, H, L)
    result.setUnaryEnergy(energy)
    return result


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[7] = value
    return array


# ------------------------------------------------------------------------------ what works


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda a: a.astype(np.float64),
    "Fortran order": np.asfortranarray,
    "strided": strided,
    "negative strides": lambda a: a[::-1].copy()[::-1],
    "read-only": read_only,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "nested lists": lambda a: a.tolist(),
    "torch": lambda a: torch.from_numpy(a.copy()),
    "torch with gradient": lambda a: torch.from_numpy(a.astype(np.float32)).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_array_of_the_same_numbers(form: str) -> None:
    expected = crf()
    expected.addPairwiseEnergy(F, np.float32([1, 2, 3]))
    expected.addPairwiseBilateral(3, 20, IMAGE, 2)
    expected_kl = expected.klDivergence(expected.inference(1))
    change = FORMS[form]
    actual = crf(change(U))
    actual.addPairwiseEnergy(change(F), change(np.float32([1, 2, 3])))
    actual.addPairwiseBilateral(3, 20, change(IMAGE), 2)
    belief = actual.inference(2)
    np.testing.assert_array_equal(np.array(belief), np.array(expected.inference(2)))
    assert actual.klDivergence(actual.inference(1)) == expected_kl


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8])
def test_any_real_dtype(dtype: Any) -> None:
    energy = (10 * U).astype(dtype)
    expected = crf(energy.astype(np.float32)).inference(1)
    np.testing.assert_array_equal(np.array(crf(energy).inference(1)), np.array(expected))


def test_bfloat16_tensors() -> None:
    energy = torch.from_numpy(U).bfloat16()
    expected = crf(energy.float()).inference(1)
    np.testing.assert_array_equal(np.array(crf(energy).inference(1)), np.array(expected))


def test_unary_with_image_axes() -> None:
    np.testing.assert_array_equal(
        np.array(crf(U.reshape(L, H, W)).inference(0)), np.array(crf().inference(0))
    )
    flat = dcrf.DenseCRF(N, L)
    flat.setUnaryEnergy(U.reshape(L, 2, 2, 5))
    np.testing.assert_array_equal(np.array(flat.inference(0)), np.array(crf().inference(0)))


def test_one_label() -> None:
    single = dcrf.DenseCRF2D(W, H, 1)
    single.setUnaryEnergy(U[:1])
    single.addPairwiseGaussian(3, 3)
    single.addPairwiseBilateral(3, 20, IMAGE, np.float32([-2]))
    np.testing.assert_array_equal(np.array(single.inference(3)), np.ones((1, N), np.float32))


def test_one_pixel() -> None:
    single = dcrf.DenseCRF2D(1, 1, L)
    single.setUnaryEnergy(U[:, :1])
    single.addPairwiseGaussian(3, 3, method="conv")
    single.addPairwiseBilateral(3, 20, IMAGE[:1, :1], 2)
    belief = np.array(single.inference(2))
    assert belief.argmax() == U[:, 0].argmin()
    assert abs(belief.sum() - 1) <= 2.0**-22


@pytest.mark.parametrize("channels", [None, 1, 2, 4, 7])
def test_any_number_of_channels(channels: int | None) -> None:
    shape = (H, W) if channels is None else (H, W, channels)
    image = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    by_image, by_features = crf(), crf()
    by_image.addPairwiseBilateral((3, 2), 20, image, 2)
    y, x = np.mgrid[:H, :W].reshape(2, -1).astype(np.float32)
    colors = image.reshape(N, -1).T / np.float32(20)
    features = np.stack([x / np.float32(3), y / np.float32(2), *colors])
    by_features.addPairwiseEnergy(features, 2)
    np.testing.assert_array_equal(
        np.array(by_image.inference(2)), np.array(by_features.inference(2))
    )


def test_float_images() -> None:
    by_bytes, by_floats = crf(), crf()
    by_bytes.addPairwiseBilateral(3, 16, IMAGE, 2)
    by_floats.addPairwiseBilateral(3, 0.0625, IMAGE.astype(np.float64) / 256, 2)  # powers of two
    np.testing.assert_array_equal(np.array(by_bytes.inference(2)), np.array(by_floats.inference(2)))


def test_float_image_with_a_byte_sigma_warns() -> None:
    with pytest.warns(UserWarning, match=r"^rgbim spans .*srgb is 13:"):
        crf().addPairwiseBilateral(80, 13, IMAGE / 255.0, 10)


def test_numbers_of_other_types() -> None:
    expected = crf()
    expected.addPairwiseGaussian(3, 3, dcrf.DIAG_KERNEL, dcrf.NORMALIZE_AFTER)
    for number in (3.0, np.float32(3), np.int64(3), np.array(3.0), torch.tensor(3)):
        other = dcrf.DenseCRF2D(np.int32(W), float(H), np.float64(L))
        other.setUnaryEnergy(U)
        other.addPairwiseGaussian(number, number, np.int64(1), np.int64(2))
        np.testing.assert_array_equal(
            np.array(other.inference(2.0)), np.array(expected.inference(np.int8(2)))
        )


def test_slow_jobs_are_warned_of_whenever_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an engine that was prepared for a short one."""
    seconds = dict.fromkeys(_dense_crf_engine.SECONDS, 6.0 / (L * N))
    monkeypatch.setattr(_dense_crf_engine, "SECONDS", seconds)
    model = crf()
    model.addPairwiseGaussian(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        belief, *rest = model.startInference()
        model.stepInference(belief, *rest)
    with pytest.warns(UserWarning, match="dense CRF, 20 iterations, of .*about 2 minutes"):
        model.inference(20)


@pytest.mark.parametrize("sigma", [1e-2, 1e-3])
def test_tiny_srgb(sigma: float) -> None:
    """pydensecrf's 16-bit lattice keys overflow and it corrupts memory (its issue 98)."""
    half = W // 2
    image = np.zeros((H, W, 3), np.uint8)
    image[:, half:] = 255  # no message crosses this edge
    beliefs = {}
    for method in ("exact", "lattice"):
        model = crf()
        model.addPairwiseBilateral(50, sigma, image, 10, method=method)
        beliefs[method] = np.array(model.inference(1)).reshape(L, H, W)
    # Within a half K is nearly 1 everywhere: the symmetric normalisation cancels the lattice's
    # smaller mass, and what is left is the shape of its kernel, a few per cent.
    assert np.abs(beliefs["exact"] - beliefs["lattice"]).max() < 0.05
    alone = dcrf.DenseCRF2D(half, H, L)
    alone.setUnaryEnergy(U.reshape(L, H, W)[:, :, :half])
    alone.addPairwiseBilateral(50, sigma, image[:, :half], 10)
    left = np.array(alone.inference(1)).reshape(L, H, half)
    assert np.abs(beliefs["lattice"][:, :, :half] - left).max() <= 10 * N * 2.0**-24  # sum order


def test_vanishing_srgb() -> None:
    """What float32 can no longer place on a lattice is refused; the exact method still serves."""
    model = crf()
    model.addPairwiseBilateral(3, 1e-9, IMAGE, 10)
    with pytest.raises(ValueError, match=r"features .* too far for torch\.float32.*sigma"):
        model.inference(1)
    exact, unary = crf(), crf()
    exact.addPairwiseBilateral(3, 1e-9, IMAGE, 10, method="exact")
    alone = np.array(unary.inference(0))  # every pixel hears only itself: K = I
    scores = np.log(alone) + 10 * alone
    expected = np.exp(scores) / np.exp(scores).sum(0)
    np.testing.assert_allclose(np.array(exact.inference(1)), expected, rtol=0, atol=16 * 2.0**-24)


def test_many_labels_and_features() -> None:
    big = dcrf.DenseCRF(N, 150)
    big.setUnaryEnergy(np.random.default_rng(5).random((150, N)))
    big.addPairwiseEnergy(np.random.default_rng(6).random((14, N)), 3)
    belief = np.array(big.inference(2))
    np.testing.assert_allclose(belief.sum(0), 1, rtol=0, atol=150 * 2.0**-24)  # 150 roundings


def test_the_exact_method_takes_any_number_of_features() -> None:
    """Those beyond the second say nothing: all are alike."""
    results = []
    for features in (F, np.concatenate([F, np.ones((38, N))])):
        model = crf()
        model.addPairwiseEnergy(features, 3, method="exact")
        results.append(np.array(model.inference(2)))
    np.testing.assert_array_equal(*results)


@pytest.mark.filterwarnings("error")
def test_beliefs_of_any_strides() -> None:
    model = crf()
    model.addPairwiseGaussian(1, 3)
    start, expected = np.array(model.inference(1), order="C"), np.array(model.inference(1))
    model.stepInference(expected, None, None)
    divergence = model.klDivergence(start)
    for form in (np.asfortranarray, strided, FORMS["negative strides"]):
        given = form(start.copy())
        assert model.klDivergence(given) == divergence
        model.stepInference(given, None, None)
        np.testing.assert_array_equal(given, expected)
    assert model.klDivergence(read_only(start)) == divergence


def test_a_unary_outlives_its_crf_and_its_array() -> None:
    energy = U.copy()
    unary = dcrf.ConstUnary(energy)
    energy[:] = 0
    beliefs = []
    for _ in range(2):
        other = dcrf.DenseCRF(N, L)
        other.setUnary(unary)
        beliefs.append(np.array(other.inference(0)))
        del other
    np.testing.assert_array_equal(beliefs[0], np.array(crf().inference(0)))
    np.testing.assert_array_equal(beliefs[0], beliefs[1])


# ------------------------------------------------------------------------------ what is refused


def belief() -> np.ndarray:
    return np.array(crf().inference(0))


# (call, exception, words that its message must hold)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "nvar 0": (lambda: dcrf.DenseCRF(0, 2), ValueError, ("nvar", ">= 1", "got 0")),
    "nlabels negative": (lambda: dcrf.DenseCRF(3, -1), ValueError, ("nlabels", "got -1")),
    "nvar fraction": (lambda: dcrf.DenseCRF(3.5, 2), ValueError, ("nvar", "whole", "3.5")),
    "nvar NaN": (lambda: dcrf.DenseCRF(float("nan"), 2), (ValueError, TypeError), ("nvar", "nan")),
    "w text": (lambda: dcrf.DenseCRF2D("5", 4, 2), (ValueError, TypeError), ("w must", "'5'")),
    "h None": (lambda: dcrf.DenseCRF2D(5, None, 2), TypeError, ("h must", "None")),
    "unary transposed": (
        lambda: crf(U.T), ValueError, ("u must", "(3, 20)", "got shape (20, 3)")),
    "unary short": (lambda: crf(U[:, :5]), ValueError, ("u must", "(3, 20)", "(3, 5)")),
    "unary labels": (lambda: crf(U[:2]), ValueError, ("u must", "(2, 20)")),
    "unary w, h": (
        lambda: crf(U.reshape(L, W, H)), ValueError, ("u must", "h, w", "(3, 4, 5)", "(3, 5, 4)")),
    "unary label last": (
        lambda: crf(U.T.reshape(H, W, L)), ValueError, ("nlabels, h, w", "(4, 5, 3)")),
    "unary flat": (lambda: crf(U.ravel()), ValueError, ("u must", "(60,)")),
    "unary NaN": (
        lambda: crf(with_value(U, np.nan)), ValueError, ("u must be finite", "1 NaN", "(0, 7)")),
    "unary infinite": (
        lambda: crf(with_value(U, np.inf)), ValueError, ("u must be finite", "clip", "inf")),
    "unary overflows": (
        lambda: crf(with_value(U.astype(float), 1e300)), ValueError, ("u must be finite",)),
    "unary text": (lambda: crf("energies"), TypeError, ("u must", "'energies'")),
    "unary None": (lambda: crf(None), TypeError, ("u must", "None")),
    "unary ragged": (lambda: crf([[1, 2], [3]]), TypeError, ("u must", "list")),
    "unary complex": (lambda: crf(U + 1j), TypeError, ("u must", "real", "complex")),
    "unary bool": (lambda: crf(U > 0.5), TypeError, ("u must", "real", "bool")),
    "setUnary None": (
        lambda: crf().setUnary(None), TypeError, ("u must", "ConstUnary", "None")),
    "setUnary array": (lambda: crf().setUnary(U), TypeError, ("u must", "ConstUnary")),
    "setUnary empty": (lambda: crf().setUnary(dcrf.Unary()), TypeError, ("ConstUnary", "empty")),
    "setUnary size": (
        lambda: crf().setUnary(dcrf.ConstUnary(U[:, :3])), ValueError, ("u must", "(3, 3)")),
    "logistic shapes": (
        lambda: dcrf.LogisticUnary(np.ones((3, 4)), F), ValueError, ("L [", "f [", "(3, 4)")),
    "logistic size": (
        lambda: crf().setUnaryEnergy(np.ones((2, 2)), F), ValueError, ("u must", "(2, 20)")),
    "logistic NaN": (
        lambda: dcrf.LogisticUnary(np.full((3, 2), np.nan), F), ValueError, ("L must", "NaN")),
    "logistic overflows": (
        lambda: crf().setUnaryEnergy(np.full((3, 2), 1e30), 1e30 * (1 + F)),
        ValueError, ("L @ f must be finite",)),
    "features count": (
        lambda: crf().addPairwiseEnergy(F[:, :9], 3), ValueError, ("features", "20", "(2, 9)")),
    "features none": (
        lambda: crf().addPairwiseEnergy(F[:0], 3), ValueError, ("features", "d >= 1", "(0, 20)")),
    "features flat": (
        lambda: crf().addPairwiseEnergy(F[0], 3), ValueError, ("features", "(20,)")),
    "features NaN": (
        lambda: crf().addPairwiseEnergy(with_value(F, np.nan), 3), ValueError, ("features", "NaN")),
    "features many": (
        lambda: crf().addPairwiseEnergy(np.zeros((33, N)), 3),
        ValueError, ("features", "at most 32", "got 33", "method='exact' takes more")),
    "channels many": (
        lambda: crf().addPairwiseBilateral(3, 20, np.zeros((H, W, 31)), 3),
        ValueError, ("features", "positions included", "got 33")),
    "features method": (
        lambda: crf().addPairwiseEnergy(F, 3, method="conv"),
        ValueError, ("method", "lattice, exact", "'conv'")),
    "compat text": (lambda: crf().addPairwiseGaussian(3, "x"), TypeError, ("compat", "'x'")),
    "compat None": (lambda: crf().addPairwiseGaussian(3, None), TypeError, ("compat", "None")),
    "compat complex": (lambda: crf().addPairwiseGaussian(3, 1j), TypeError, ("compat", "1j")),
    "compat long": (  # pydensecrf reads past its end
        lambda: crf().addPairwiseGaussian(3, np.ones(4)), ValueError, ("compat", "[3]", "(4,)")),
    "compat square": (
        lambda: crf().addPairwiseGaussian(3, np.eye(4)), ValueError, ("compat", "(4, 4)")),
    "compat axes": (
        lambda: crf().addPairwiseGaussian(3, np.ones((3, 3, 3))), ValueError, ("compat", "(3, 3")),
    "compat NaN": (
        lambda: crf().addPairwiseGaussian(3, float("nan")), ValueError, ("compat", "nan")),
    "kernel": (lambda: crf().addPairwiseGaussian(3, 3, 3), ValueError, ("kernel", "DIAG", "got 3")),
    "normalization": (
        lambda: crf().addPairwiseGaussian(3, 3, 1, 7),
        ValueError, ("normalization", "NORMALIZE_SYMMETRIC (3)", "got 7")),
    "normalization text": (
        lambda: crf().addPairwiseGaussian(3, 3, 1, "after"),
        ValueError, ("normalization", "'after'")),
    "method": (
        lambda: crf().addPairwiseGaussian(3, 3, method="fft"),
        ValueError, ("method", "lattice, conv, exact", "'fft'")),
    "sxy 0": (  # pydensecrf crashes
        lambda: crf().addPairwiseGaussian(0, 3), ValueError, ("sxy", "positive", "got 0")),
    "sxy negative": (
        lambda: crf().addPairwiseGaussian((3, -1), 3), ValueError, ("sxy", "positive", "-1")),
    "sxy NaN": (
        lambda: crf().addPairwiseGaussian(float("nan"), 3), ValueError, ("sxy", "finite", "nan")),
    "sxy three": (
        lambda: crf().addPairwiseGaussian((1, 2, 3), 3),
        ValueError, ("sxy", "sx, sy", "(1, 2, 3)")),
    "sxy text": (lambda: crf().addPairwiseGaussian("3", 3), TypeError, ("sxy", "'3'")),
    "sxy vanishing": (
        lambda: crf().addPairwiseGaussian(1e-44, 3), ValueError, ("sxy", "too small", "float32")),
    "srgb 0": (
        lambda: crf().addPairwiseBilateral(3, 0, IMAGE, 3), ValueError, ("srgb", "positive")),
    "srgb two": (
        lambda: crf().addPairwiseBilateral(3, (1, 2), IMAGE, 3),
        ValueError, ("srgb", "per channel", "3", "(1, 2)")),
    "image w, h": (
        lambda: crf().addPairwiseBilateral(3, 3, IMAGE.transpose(1, 0, 2), 3),
        ValueError, ("rgbim", "[4, 5, channels]", "(5, 4, 3)", "width first")),
    "image channels first": (
        lambda: crf().addPairwiseBilateral(3, 3, IMAGE.transpose(2, 0, 1), 3),
        ValueError, ("rgbim", "(3, 4, 5)")),
    "image NaN": (
        lambda: crf().addPairwiseBilateral(3, 3, with_value(IMAGE / 255, np.nan), 3),
        ValueError, ("rgbim", "NaN")),
    "image None": (
        lambda: crf().addPairwiseBilateral(3, 3, None, 3), TypeError, ("rgbim", "None")),
    "image without channels": (
        lambda: crf().addPairwiseBilateral(3, 3, IMAGE[:, :, :0], 3), ValueError, ("rgbim", "0)")),
    "iterations negative": (lambda: crf().inference(-1), ValueError, ("n_iterations", "-1")),
    "iterations fraction": (lambda: crf().inference(2.5), ValueError, ("n_iterations", "2.5")),
    "iterations None": (lambda: crf().inference(None), TypeError, ("n_iterations", "None")),
    "step list": (
        lambda: crf().stepInference(U.tolist(), None, None), TypeError, ("Q must", "list")),
    "step float64": (
        lambda: crf().stepInference(belief().astype(float), None, None),
        TypeError, ("Q must", "float32", "float64")),
    "step shape": (
        lambda: crf().stepInference(belief().T, None, None),
        ValueError, ("Q must", "(3, 20)", "(20, 3)")),
    "step read-only": (
        lambda: crf().stepInference(read_only(belief()), None, None),
        ValueError, ("Q", "writable", "read-only")),
    "step NaN": (
        lambda: crf().stepInference(with_value(belief(), np.nan), None, None),
        ValueError, ("Q must be finite", "NaN")),
    "divergence shape": (
        lambda: crf().klDivergence(belief()[:, :5]), ValueError, ("Q must", "(3, 5)")),
    "divergence NaN": (
        lambda: crf().klDivergence(with_value(belief(), np.nan)), ValueError, ("Q must", "NaN")),
    "iterations too many": (
        lambda: crf().inference(2**63), ValueError, ("n_iterations", "below 2^31", "9223")),
    "matrix axes": (lambda: eigen.matrixXf(np.ones(3)), ValueError, ("arr", "(3,)")),
    "vector axes": (lambda: eigen.vectorXf(np.ones((3, 1))), ValueError, ("arr", "(3, 1)")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message(case: str) -> None:
    call, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message


def test_a_refused_call_changes_nothing() -> None:
    model = crf()
    model.addPairwiseGaussian(3, 3)
    before = np.array(model.inference(2))
    terms = copy.copy(model._terms)
    for call in (
        lambda: model.addPairwiseGaussian(3, np.ones(4)),
        lambda: model.addPairwiseBilateral(3, 3, IMAGE[:1], 3),
        lambda: model.addPairwiseEnergy(F, 3, 9),
        lambda: model.setUnaryEnergy(with_value(U, np.nan)),
        lambda: model.setUnaryEnergy(U[:1]),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
    assert model._terms == terms
    np.testing.assert_array_equal(np.array(model.inference(2)), before)
