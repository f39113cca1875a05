"""The documented conventions, each against the equations in float64; no pydensecrf needed."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import segfast.compat.pydensecrf.densecrf as dcrf
from segfast._native import native
from segfast.compat.pydensecrf import eigen, utils
from segfast.ops._dense_crf_engine import Engine
from segfast.testing import assert_as_good_as

NAMES = ("none", "before", "after", "symmetric")  # by pydensecrf's numbers


def as_tensor(belief: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(belief))


def check(problem: Any, belief: Any, terms: list[Any], iterations: int = 1) -> None:
    """belief against the equations; the baseline is the same in plain float32 PyTorch."""
    oracle = problem.belief(terms, iterations)
    baseline = problem.belief(terms, iterations, torch.float32)
    # K: a message sums over all pixels; belief is at most 1, but messages reach weight * mass.
    size = sum(float(term.energy(torch.ones_like(oracle)).abs().max()) for term in terms)
    assert_as_good_as(as_tensor(belief), oracle, baseline, terms=oracle.shape[1], magnitude=size)


# ------------------------------------------------------------------------------ the model


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_normalizations(problem: Any, number: int, method: str) -> None:
    weight = 0.2 if NAMES[number] == "none" else 10.0  # the raw kernel sums to hundreds
    crf = problem.crf(dcrf)
    crf.addPairwiseBilateral(
        (9, 12), (20, 25, 30), problem.image, weight, normalization=number, method=method
    )
    features = problem.bilateral(9, 12, 20, 25, 30)
    term = problem.term(features, weight, NAMES[number], method)
    check(problem, crf.inference(1), [term])


@pytest.mark.parametrize("kind", ["number", "vector", "matrix"])
def test_signs_and_symmetrising(problem: Any, kind: str) -> None:
    """A number is a Potts weight, vectors and matrices are energies, matrices are symmetrised."""
    rng = np.random.default_rng(3)
    compat = {
        "number": 4.0,
        "vector": rng.normal(0, 3, problem.labels).astype(np.float32),
        "matrix": rng.normal(0, 3, (problem.labels, problem.labels)).astype(np.float32),
    }[kind]
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(3, compat)
    check(problem, crf.inference(1), [problem.term(problem.positions(3, 3), compat)])


def test_number_vector_and_matrix_of_the_same_model_agree(problem: Any) -> None:
    results = []
    for compat in (3.0, np.full(problem.labels, -3.0), -3.0 * np.eye(problem.labels)):
        crf = problem.crf(dcrf)
        crf.addPairwiseGaussian((2, 3), compat)
        results.append(np.array(crf.inference(1)))
    # w * m is fused into the sum or not: each score rounds once more, at most ulp(3 + 3) = 2^-21
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=0, atol=2.0**-21)


def test_an_asymmetric_matrix_is_its_symmetric_part(problem: Any) -> None:
    matrix = np.random.default_rng(0).normal(size=(problem.labels, problem.labels))
    results = []
    for compat in (matrix, matrix.T, (matrix + matrix.T) / 2):
        crf = problem.crf(dcrf)
        crf.addPairwiseGaussian((2, 3), compat)
        results.append(np.array(crf.inference(2)))
    np.testing.assert_array_equal(results[0], results[1])
    # (A + A^T) / 2 is rounded to float32 before or after the sum: 1 ulp of a weight near 1.
    np.testing.assert_allclose(results[0], results[2], rtol=0, atol=4 * 2.0**-23)


def test_terms_add_up_and_x_comes_first(problem: Any) -> None:
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(sxy=(2, 5), compat=3, normalization=dcrf.NORMALIZE_AFTER)
    crf.addPairwiseBilateral(sxy=(30, 8), srgb=(13, 20, 40), rgbim=problem.image, compat=2)
    terms = [
        problem.term(problem.positions(2, 5), 3.0, "after"),
        problem.term(problem.bilateral(30, 8, 13, 20, 40), 2.0),
    ]
    check(problem, crf.inference(1), terms)
    check(problem, crf.inference(2), terms, iterations=2)


@pytest.mark.parametrize("method", ["conv", "exact"])
def test_exact_spatial_methods(problem: Any, method: str) -> None:
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian((2, 5), 3, method=method)
    check(problem, crf.inference(1), [problem.term(problem.positions(2, 5), 3.0, method="exact")])


def test_dense_crf_takes_any_features(problem: Any) -> None:
    features = np.random.default_rng(5).normal(size=(7, problem.energy.shape[1]))
    crf = dcrf.DenseCRF(problem.energy.shape[1], problem.labels)
    crf.setUnaryEnergy(problem.energy)
    crf.addPairwiseEnergy(features=features, compat=5, normalization=dcrf.NORMALIZE_BEFORE)
    terms = [problem.term(features.astype(np.float32), 5.0, "before")]
    check(problem, crf.inference(1), terms)


def test_dense_crf_2d_equals_dense_crf_on_its_features(problem: Any) -> None:
    image_crf = problem.crf(dcrf)
    image_crf.addPairwiseBilateral((30, 8), (13, 20, 40), problem.image, 2)
    crf = dcrf.DenseCRF(problem.energy.shape[1], problem.labels)
    crf.setUnaryEnergy(problem.energy)
    crf.addPairwiseEnergy(problem.bilateral(30, 8, 13, 20, 40), 2)
    np.testing.assert_array_equal(np.array(image_crf.inference(3)), np.array(crf.inference(3)))


def test_width_comes_first() -> None:
    """In a 3 x 2 image pixel 2 ends the first row: it neighbours 1 and 5, not 3."""
    crf = dcrf.DenseCRF2D(3, 2, 2)
    energy = np.zeros((2, 6), np.float32)
    energy[1, 2] = 8  # pixel 2 is sure of label 0, the others know nothing
    crf.setUnaryEnergy(energy)
    crf.addPairwiseGaussian(0.5, 3, normalization=dcrf.NO_NORMALIZATION, method="exact")
    belief = np.array(crf.inference(1))[0].reshape(2, 3)
    assert belief[0, 1] > 0.52
    assert abs(belief[1, 2] - belief[0, 1]) <= 2.0**-22  # the same sum in another order
    assert belief[1, 0] < 0.501


def test_kernel_types_have_no_effect(problem: Any) -> None:
    results = []
    for kernel in (dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL):
        crf = problem.crf(dcrf)
        crf.addPairwiseGaussian(3, 3, kernel)
        results.append(np.array(crf.inference(2)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_unary_forms_agree(problem: Any) -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(problem.labels, 5)).astype(np.float32)
    features = rng.normal(size=(5, problem.energy.shape[1])).astype(np.float32)

    def belief(setter: Any) -> np.ndarray:
        crf = dcrf.DenseCRF2D(problem.width, problem.height, problem.labels)
        setter(crf)
        crf.addPairwiseGaussian(3, 3)
        return np.array(crf.inference(2))

    expected = belief(lambda crf: crf.setUnaryEnergy(weights @ features))
    unary = dcrf.LogisticUnary(weights, features)
    for setter in (
        lambda crf: crf.setUnaryEnergy(weights, features),
        lambda crf: crf.setUnary(unary),
        lambda crf: crf.setUnary(unary),  # pydensecrf moves a unary away; ours may be set again
        lambda crf: crf.setUnary(dcrf.ConstUnary(weights @ features)),
    ):
        np.testing.assert_array_equal(belief(setter), expected)


def test_without_a_unary_energies_are_zero(problem: Any) -> None:
    crf = dcrf.DenseCRF(6, 4)
    crf.addPairwiseEnergy(np.zeros((1, 6)), 3)
    np.testing.assert_array_equal(np.array(crf.inference(2)), np.full((4, 6), 0.25, np.float32))
    # sum Q log Q = 6 log(1/4), and the pairwise part -w K~Q . Q with K~ of mass 1 per pixel
    assert np.isclose(crf.klDivergence(crf.inference(0)), 6 * np.log(0.25) - 3 * 6 / 4)


def test_a_new_unary_or_term_is_seen(problem: Any) -> None:
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(3, 3)
    first = np.array(crf.inference(1))
    crf.setUnaryEnergy(problem.energy[::-1])
    assert not np.array_equal(np.array(crf.inference(1)), first)
    crf.setUnaryEnergy(problem.energy)
    np.testing.assert_array_equal(np.array(crf.inference(1)), first)
    crf.addPairwiseGaussian(1, 2)
    assert not np.array_equal(np.array(crf.inference(1)), first)


def test_lattices_are_built_once(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(dcrf, "Engine", lambda *a: built.append(a) or Engine(*a))
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(3, 3)
    for energy in (problem.energy, problem.energy[::-1], problem.energy):
        crf.setUnaryEnergy(energy)
        belief, tmp1, tmp2 = crf.startInference()
        crf.stepInference(belief, tmp1, tmp2)
        crf.klDivergence(belief)
        crf.inference(2)
    assert len(built) == 1


def test_inputs_are_copied(problem: Any) -> None:
    energy, image = problem.energy.copy(), problem.image.copy()
    features = problem.positions(3, 3)
    crf = dcrf.DenseCRF2D(problem.width, problem.height, problem.labels)
    crf.setUnaryEnergy(energy)
    crf.addPairwiseEnergy(features, 3)
    crf.addPairwiseBilateral(5, 20, image, 3)
    energy[:], image[:], features[:] = 0, 0, 0
    expected = problem.crf(dcrf)
    expected.addPairwiseEnergy(problem.positions(3, 3), 3)
    expected.addPairwiseBilateral(5, 20, problem.image, 3)
    np.testing.assert_array_equal(np.array(crf.inference(1)), np.array(expected.inference(1)))


# ------------------------------------------------------------------------------ stepping


def test_inference_zero_is_the_softmax_of_minus_the_energies(problem: Any) -> None:
    check(problem, problem.crf(dcrf).inference(0), [], iterations=0)


def test_layout_is_label_last_seen_label_first(problem: Any) -> None:
    crf = problem.crf(dcrf)
    for belief in (crf.inference(1), crf.startInference()[0]):
        view = memoryview(belief)
        assert (view.format, view.shape) == ("f", problem.energy.shape)
        assert view.strides == (4, 4 * problem.labels)
        assert not view.readonly
        array = np.array(belief)
        assert array.strides == view.strides
        assert array.flags.owndata
        assert np.shares_memory(np.asarray(belief), belief)
        np.testing.assert_allclose(array.sum(0), 1, rtol=0, atol=2.0**-21)  # 4 roundings of 1


def test_steps_equal_inference(problem: Any) -> None:
    """To rounding: a step sends the float32 belief it is given, inference keeps it in registers."""
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(20, 20, problem.image, 5)
    terms = [
        problem.term(problem.positions(3, 3), 3.0),
        problem.term(problem.bilateral(20, 20, 20, 20, 20), 5.0),
    ]
    belief, tmp1, tmp2 = crf.startInference()
    view = np.asarray(belief)
    for step in range(1, 4):
        assert crf.stepInference(belief, tmp1, tmp2) is None
        check(problem, view, terms, step)
        check(problem, crf.inference(step), terms, step)


@pytest.mark.skipif(native() is None, reason="PyTorch's matrix products depend on the threads")
def test_same_bits_for_any_number_of_threads_and_again() -> None:
    rng = np.random.default_rng(0)
    energy = rng.random((7, 150 * 101), np.float32)  # several chunks of several threads
    image = rng.integers(0, 256, (101, 150, 3), np.uint8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            crf = dcrf.DenseCRF2D(150, 101, 7)
            crf.setUnaryEnergy(energy)
            crf.addPairwiseGaussian(3, 3)
            crf.addPairwiseBilateral(20, 20, image, np.eye(7) - 1)
            state = crf.startInference()
            crf.stepInference(*state)
            crf.stepInference(*state)
            results.append((np.array(crf.inference(3)), np.array(state[0])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0][0], other[0])
        np.testing.assert_array_equal(results[0][1], other[1])


def test_a_step_starts_from_what_the_caller_wrote(problem: Any) -> None:
    crf = problem.crf(dcrf)
    term = problem.term(problem.positions(3, 3), 3.0)
    crf.addPairwiseGaussian(3, 3)
    belief, tmp1, tmp2 = crf.startInference()
    np.asarray(belief)[:] = 1 / problem.labels
    crf.stepInference(belief, tmp1, tmp2)
    uniform = torch.full(problem.energy.shape, 1 / problem.labels, dtype=torch.float64)
    energy = torch.from_numpy(problem.energy)
    oracle = torch.softmax(-energy.double() - term.energy(uniform), 0)
    baseline = torch.softmax(-energy - term.energy(uniform.float()), 0)
    assert_as_good_as(as_tensor(belief), oracle, baseline, terms=oracle.shape[1], magnitude=3.0)
    label_first = np.full(problem.energy.shape, 1 / problem.labels, np.float32)  # another layout
    crf.stepInference(label_first, None, None)
    np.testing.assert_array_equal(label_first, np.asarray(belief))


@pytest.mark.parametrize("number", range(4))
def test_kl_divergence_is_the_documented_sum(problem: Any, number: int) -> None:
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian((2, 3), 2, normalization=number)
    crf.addPairwiseBilateral(20, 20, problem.image, np.full(problem.labels, 1.5))
    terms = [
        problem.term(problem.positions(2, 3), 2.0, NAMES[number]),
        problem.term(problem.bilateral(20, 20, 20, 20, 20), np.full(problem.labels, 1.5)),
    ]
    belief = crf.inference(2)

    def parts(dtype: torch.dtype) -> torch.Tensor:
        q = as_tensor(belief).to(dtype)
        energies = [q.clamp_min(1e-20).log(), torch.from_numpy(problem.energy).to(dtype)]
        return q * torch.stack(energies + [term.energy(q) for term in terms])

    oracle, baseline = parts(torch.float64), parts(torch.float32)
    actual = torch.tensor(crf.klDivergence(belief), dtype=torch.float32)
    # sums of K = 4 L N products of float32; the baseline adds them up in float64
    assert_as_good_as(
        actual,
        oracle.sum(),
        baseline.double().sum().float(),
        terms=oracle.numel(),
        magnitude=oracle.abs().sum(),
    )


def test_kl_divergence_falls(problem: Any) -> None:
    crf = problem.crf(dcrf)
    crf.addPairwiseGaussian(3, 1)
    belief, tmp1, tmp2 = crf.startInference()
    values = [crf.klDivergence(belief)]
    for _ in range(5):
        crf.stepInference(belief, tmp1, tmp2)
        values.append(crf.klDivergence(belief))
    assert all(after < before for before, after in itertools.pairwise(values)), values
    assert isinstance(values[0], float)


# ------------------------------------------------------------------------------ names


def test_names_and_values() -> None:
    kernels = (dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL)
    assert [int(kernel) for kernel in kernels] == [0, 1, 2]
    modes = (
        dcrf.NO_NORMALIZATION,
        dcrf.NORMALIZE_BEFORE,
        dcrf.NORMALIZE_AFTER,
        dcrf.NORMALIZE_SYMMETRIC,
    )
    assert [int(mode) for mode in modes] == [0, 1, 2, 3]
    assert issubclass(dcrf.DenseCRF2D, dcrf.DenseCRF)
    assert issubclass(dcrf.ConstUnary, dcrf.Unary)
    assert issubclass(dcrf.LogisticUnary, dcrf.Unary)
    assert isinstance(dcrf.DenseCRF(2, 2).inference(0), eigen.MatrixXf)


def test_the_issue_s_import_line() -> None:
    module = importlib.import_module("segfast.compat.pydensecrf.densecrf")
    package = importlib.import_module("segfast.compat.pydensecrf")
    assert module is package.densecrf is dcrf
    assert package.utils is utils
