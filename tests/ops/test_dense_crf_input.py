"""mean_field: what it must refuse with a clear message, and what it must take as it comes."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.losses import dense_crf_loss
from segfast.nn import DenseCRF
from segfast.ops import _dense_crf_engine, gaussian_filter, mean_field
from segfast.testing import devices, dtypes

Problem = Callable[..., tuple[Tensor, Tensor]]
Oracle = Callable[..., Tensor]

LOGITS, IMAGE = torch.zeros(2, 3, 8, 9), torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
NAN, INF = float("nan"), float("inf")

# options of mean_field (logits and image included): (the error, what its message must say)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "logits no tensor": ({"logits": [[1.0]]}, TypeError, "logits.*list"),
    "logits integers": ({"logits": LOGITS.int()}, TypeError, r"logits.*floating.*int32"),
    "logits complex": ({"logits": LOGITS.to(torch.cfloat)}, TypeError, r"logits.*complex64"),
    "logits 2-D": ({"logits": LOGITS[0, 0]}, ValueError, r"logits.*\[B, L, H, W\].*\(8, 9\)"),
    "logits 5-D": ({"logits": LOGITS[None]}, ValueError, r"logits.*\[B, L, H, W\]"),
    "no labels": ({"logits": LOGITS[:, :0]}, ValueError, r"logits.*L >= 1"),
    "image no tensor": ({"image": "cat.png"}, TypeError, "image.*str"),
    "image boolean": ({"image": IMAGE.bool()}, TypeError, r"image.*bool"),
    "image complex": ({"image": IMAGE.to(torch.cfloat)}, TypeError, "image.*complex"),
    "image of another size": ({"image": IMAGE[..., :8]}, ValueError, r"image.*9\].*\(2, 3, 8, 8\)"),
    "image of another batch": ({"image": IMAGE[:1]}, ValueError, r"image.*\[2, C, 8, 9\].*\(1, 3"),
    "image with channels last": (
        {"image": IMAGE.permute(0, 2, 3, 1)}, ValueError, r"image.*\(2, 8, 9, 3\)"),
    "image unbatched alone": ({"image": IMAGE[0]}, ValueError, r"image.*\(3, 8, 9\)"),
    "too many labels": (
        {"logits": torch.zeros(2, 1, 1, 1).expand(-1, 2**20, -1, -1), "image": IMAGE[..., :1, :1]},
        ValueError, "logits.*at most 1048575 labels.*1048576"),
    "return_steps text": ({"return_steps": "no"}, TypeError, "return_steps.*True or False.*'no'"),
    "return_belief tensor": (
        {"return_belief": torch.ones(2)}, TypeError, r"return_belief.*True or False.*tensor"),
    "weight beyond floats": (
        {"spatial_weight": 10**400}, ValueError, "spatial_weight.*finite in float32.*int 1000"),
    "too many channels": (
        {"image": IMAGE.repeat(1, 11, 1, 1)}, ValueError, "image.*30 channels.*33"),
    "float image alone": ({"image": IMAGE.float()}, ValueError, "color_sigma must be given"),
    "int16 image alone": ({"image": IMAGE.short()}, ValueError, "color_sigma must be given"),
    "spatial_sigma zero": ({"spatial_sigma": 0.0}, ValueError, "spatial_sigma.*positive.*0"),
    "spatial_sigma negative": ({"spatial_sigma": (3, -3)}, ValueError, "spatial_sigma.*positive"),
    "spatial_sigma NaN": ({"spatial_sigma": NAN}, ValueError, "spatial_sigma.*nan"),
    "spatial_sigma infinite": ({"spatial_sigma": INF}, ValueError, "spatial_sigma.*inf"),
    "three spatial sigmas": ({"spatial_sigma": (1, 2, 3)}, ValueError, "spatial_sigma.*2 of them"),
    "bilateral_sigma zero": ({"bilateral_sigma": 0}, ValueError, "bilateral_sigma.*positive"),
    "bilateral_sigma text": ({"bilateral_sigma": "80"}, TypeError, "bilateral_sigma.*'80'"),
    "color_sigma zero": ({"color_sigma": 0.0}, ValueError, "color_sigma.*positive"),
    "color_sigma per channel": ({"color_sigma": (1, 2)}, ValueError, "color_sigma.*3 of them"),
    "weight text": ({"spatial_weight": "3"}, TypeError, "spatial_weight.*'3'"),
    "weight NaN": ({"bilateral_weight": NAN}, ValueError, "bilateral_weight.*finite.*nan"),
    "weight per 4 labels": (
        {"spatial_weight": torch.ones(4)}, ValueError, r"spatial_weight.*\[3\].*\(4,\)"),
    "weight not square": (
        {"bilateral_weight": torch.ones(3, 4)}, ValueError, r"bilateral_weight.*\(3, 4\)"),
    "weight integers": (
        {"bilateral_weight": torch.ones(3, 3).int()}, TypeError, "bilateral_weight.*int32"),
    "compatibility vector": (
        {"compatibility": torch.ones(3)}, ValueError, r"compatibility.*\[3, 3\].*\(3,\)"),
    "compatibility of 4 labels": (
        {"compatibility": torch.eye(4)}, ValueError, r"compatibility.*\[3, 3\].*\(4, 4\)"),
    "compatibility number": ({"compatibility": 1.0}, TypeError, "compatibility.*float 1.0"),
    "iterations negative": ({"iterations": -1}, ValueError, "iterations.*-1"),
    "iterations float": ({"iterations": 2.0}, TypeError, "iterations.*2.0"),
    "normalization": ({"normalization": "SYMMETRIC"}, ValueError, "normalization.*symmetric.*SYMM"),
    "normalization None": ({"normalization": None}, ValueError, "normalization.*None"),
    "method": ({"method": "permutohedral"}, ValueError, "method.*lattice, exact.*permutohedral"),
    "spatial": ({"spatial": "exact"}, ValueError, "spatial.*conv.*exact"),
    "tolerance": ({"tolerance": INF}, ValueError, "tolerance.*inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case: str) -> None:
    options, error, message = WRONG[case]
    given = {"logits": LOGITS, "image": IMAGE, **options}
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        mean_field(given.pop("logits"), given.pop("image"), **given)


def test_the_good_input_of_the_test_above() -> None:
    assert mean_field(LOGITS, IMAGE).shape == LOGITS.shape


def test_probabilities_warn(problem: Problem) -> None:
    logits, image = problem(4, 3, 16, 15)
    with pytest.warns(UserWarning, match="probabilities"):
        mean_field(logits.softmax(1), image, iterations=1)


def test_labels_are_told_from_probabilities() -> None:
    labels = torch.randint(0, 3, (2, 9, 15), generator=torch.Generator().manual_seed(0))
    one_hot, image = F.one_hot(labels, 3).movedim(-1, 1), torch.rand(2, 3, 9, 15)
    with pytest.raises(TypeError, match=r"got torch.int64 .*; of labels, one_hot\(.* times log\(p"):
        mean_field(one_hot, image, color_sigma=0.1)
    with pytest.warns(UserWarning, match=r"look like labels; multiply them by log\(p \(L - 1\)"):
        mean_field(one_hot.float(), image, color_sigma=0.1, iterations=1)
    sure = 0.9
    scores = one_hot * math.log(sure * 2 / (1 - sure))  # as the message says
    torch.testing.assert_close(scores.softmax(1).amax(1), torch.full((2, 9, 15), sure))


class Refined(torch.nn.Module):
    """A user's module around ours."""

    def __init__(self) -> None:
        super().__init__()
        self.crf = DenseCRF(iterations=1, color_sigma=13, trainable=True)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        return self.crf(logits, image)


@pytest.mark.parametrize(
    "call",
    [
        partial(mean_field, iterations=1, color_sigma=13),
        DenseCRF(iterations=1, color_sigma=13),
        partial(mean_field, iterations=1, color_sigma=13, method="exact"),
        Refined(),  # through autograd
        torch.no_grad()(partial(dense_crf_loss, color_sigma=15)),  # through a decorator
    ],
)
def test_warnings_name_the_user_s_line(call: Callable[..., Tensor], problem: Problem) -> None:
    logits, image = problem(4, 3, 16, 15)
    with pytest.warns(UserWarning, match="image spans|look like probabilities") as caught:
        call(logits.softmax(1), image / 255)
    assert {warning.filename for warning in caught} == {__file__}


def test_colour_switched_off_warns(problem: Problem) -> None:
    logits, image = problem(4, 3, 16, 15)
    with pytest.warns(UserWarning, match=r"color_sigma"):
        mean_field(logits, image / 255, color_sigma=13.0, iterations=1)
    normalised = (image / 255 - 0.45) / 0.225  # what networks take, and CRF-RNN's sigma
    with pytest.warns(UserWarning, match=r"spans 4\.\d+ and color_sigma is 3: .*pass the photo"):
        mean_field(logits, normalised, color_sigma=3, iterations=1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("learn", [False, True])
def test_slow_jobs_say_so_once(
    batch: int, learn: bool, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image forwards takes 36 s here: a batch of them or their gradients more than a minute."""
    monkeypatch.setattr(
        _dense_crf_engine, "SECONDS", dict.fromkeys(_dense_crf_engine.SECONDS, 18 / (16 * 15) ** 2)
    )
    logits, image = (x[:1].expand(batch, -1, -1, -1) for x in problem(4, 3, 16, 15))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean_field(logits.clone().requires_grad_(learn), image, iterations=2, method="exact")
    said = [str(w.message) for w in caught if "minutes" in str(w.message)]
    minutes = batch * 0.6 * (2.5 if learn else 1)
    assert len(said) == (minutes > 1)
    assert all(f"up to about {minutes:.0f} minutes" in message for message in said)
    assert all(("4 images" in message) == (batch > 1) for message in said)
    assert all(("backward" in message) == learn for message in said)


@pytest.mark.parametrize("kernels", ["reference", "compiled"])
def test_a_slow_filter_says_so_once(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the batch, in its own terms, and in a unit that can be read."""
    if kernels == "reference":
        monkeypatch.setattr(_dense_crf_engine, "native", lambda: None)
    seconds = dict.fromkeys(_dense_crf_engine.SECONDS, 3600.0 / 50**2)
    monkeypatch.setattr(_dense_crf_engine, "SECONDS", seconds)
    with pytest.warns(UserWarning, match="gaussian_filter of 3 images of 50 positions, 2 channels: "
                      "up to about 3 hours") as caught:  # fmt: skip
        gaussian_filter(torch.ones(3, 2, 50), torch.rand(3, 1, 50))
    assert len(caught) == 1
    assert ("compiled kernels are missing" in str(caught[0].message)) == (kernels == "reference")


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.uint32, torch.uint64, torch.float64]
)
def test_large_numbers_that_all_pixels_share(problem: Problem, dtype: torch.dtype) -> None:
    """The exact kernel depends on differences, which float32 would have rounded away."""
    logits, image = problem(4, 3, 16, 15)
    far = (image.to(torch.int64) + 2**29).to(dtype)
    options: dict[str, Any] = {"color_sigma": 13.0, "method": "exact", "iterations": 2}
    expected = mean_field(logits, image.to(dtype), **options)
    torch.testing.assert_close(mean_field(logits, far, **options), expected)
    belief, options = logits.softmax(1), {"color_sigma": 15.0, "method": "exact"}
    expected = dense_crf_loss(belief, image.to(dtype), **options)
    torch.testing.assert_close(dense_crf_loss(belief, far, **options), expected)


def test_the_lattice_stands_where_the_colours_are(problem: Problem) -> None:
    """As pydensecrf's: the same bits of the same numbers in any dtype, no offset taken away."""
    logits, image = problem(4, 3, 16, 15)
    shifted = image + 7
    expected = mean_field(logits, shifted, color_sigma=13.0, iterations=2)
    for dtype in (torch.int64, torch.float64):
        result = mean_field(logits, shifted.to(dtype), color_sigma=13.0, iterations=2)
        assert torch.equal(result, expected)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_a_finite_image_beyond_float32_is_refused(problem: Problem, method: str) -> None:
    logits, image = problem(4, 3, 16, 15)
    for factor, sigma in ((1e300, 1e300), (1.0, 1e-38)):
        for call in (mean_field, dense_crf_loss):
            given = logits if call is mean_field else logits.softmax(1)
            with pytest.raises(ValueError, match=re.escape(f"and {sigma:.3g} overflow torch.f")):
                call(given, image.double() * factor, color_sigma=sigma, method=method)


def test_numpy_s_numbers_are_numbers(problem: Problem) -> None:
    logits, image = problem(4, 3, 16, 15)
    given = {"color_sigma": 20.0, "bilateral_weight": 4.0, "tolerance": 0.125, "spatial_sigma": 2.0}
    for kind in (np.float32, np.float64, np.int64):
        options = {name: kind(number) for name, number in given.items()}
        same = {name: float(number) for name, number in options.items()}
        result = mean_field(logits, image, **options)
        assert torch.equal(result, mean_field(logits, image, **same))
        assert torch.equal(result, DenseCRF(**options)(logits, image))
    for name in given:
        with pytest.raises(ValueError, match=rf"{name} must be .*finite.*inf"):
            mean_field(logits, image, **{name: np.float32("inf")})
    with pytest.raises(TypeError, match=r"logits .*got float32 NumPy array of shape \(.*15\)$"):
        mean_field(logits.numpy(), image)  # type: ignore[arg-type]


def test_ordinary_input_does_not_warn(problem: Problem) -> None:
    logits, image = problem(4, 3, 16, 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean_field(logits, image, iterations=1)
        mean_field(logits.log_softmax(1), image, iterations=1)
        mean_field(logits, image / 255, color_sigma=0.05, iterations=1)
        mean_field(logits, torch.full_like(image, 7), iterations=1)
        mean_field(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4).byte(), iterations=1)


@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0)])
def test_empty(method: str, shape: tuple[int, ...]) -> None:
    image = torch.zeros(shape, dtype=torch.uint8)
    assert mean_field(torch.zeros(shape), image, method=method).shape == shape
    scores, steps = mean_field(torch.zeros(shape), image, iterations=2, return_steps=True)
    assert scores.shape == shape
    assert len(steps) == 2


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_no_channels_is_a_second_spatial_kernel(
    problem: Problem, oracle: Oracle, method: str
) -> None:
    logits, image = problem(3, 3, 11, 13)
    options: dict[str, Any] = {"method": method, "iterations": 1, "bilateral_sigma": 4.0}
    scores = mean_field(logits, image[:, :0], **options)
    truth = oracle(logits, image[:, :0], color_sigma=[], **options)
    assert (scores.softmax(1) - truth.softmax(1)).abs().max() <= 1e-5  # one iteration's promise


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"spatial": "lattice"}])
def test_layouts(compiled_kernels: None, problem: Problem, options: dict[str, Any]) -> None:
    """Same bits whatever the strides."""
    logits, image = problem(5, 3, 14, 18, 2)
    expected = mean_field(logits, image, iterations=3, **options)
    layouts = {
        "channels_last": (
            logits.contiguous(memory_format=torch.channels_last),
            image.contiguous(memory_format=torch.channels_last),
        ),
        "transposed": (
            logits.mT.contiguous().mT,
            image.mT.contiguous().mT,
        ),
        "strided": (
            logits.repeat_interleave(2, 3)[..., ::2],
            image.repeat(1, 1, 2, 2)[..., 14:, 18:],
        ),
        "flipped back": (logits.flip(2).flip(2), image.flip(3).flip(3)),
    }  # fmt: skip
    for name, (x, y) in layouts.items():
        assert torch.equal(mean_field(x, y, iterations=3, **options), expected), name
    same = mean_field(logits[:1].expand(3, -1, -1, -1), image[:1].expand(3, -1, -1, -1), **options)
    assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"spatial": "lattice"}])
def test_one_channel_one_label_layouts(
    compiled_kernels: None, problem: Problem, options: dict[str, Any]
) -> None:
    """A size of one has no stride to speak of: PyTorch reports any."""
    logits, image = problem(1, 1, 9, 1)
    expected = mean_field(logits, image, **options)
    logits = logits.as_strided(logits.shape, (1, 77, 1, 5))
    image = image.as_strided(image.shape, (3, 1, 1, 2))
    assert torch.equal(mean_field(logits, image, **options), expected)


@devices()
def test_devices(problem: Problem, device: str) -> None:
    """Results stay where the logits are; tensors on two devices are refused."""
    logits, image = problem(3, 3, 14, 18)
    scores = mean_field(logits.to(device), image.to(device), iterations=3)
    assert scores.device.type == device
    expected = mean_field(logits, image, iterations=3)
    # 1e-6 after one iteration, up to tenfold in each of two more
    torch.testing.assert_close(scores.cpu().softmax(1), expected.softmax(1), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="image must be on the device of logits"):
        mean_field(logits.to(device), image.to("meta"))


def test_inputs_are_left_alone(problem: Problem) -> None:
    logits, image = problem(3, 3, 14, 18)
    before = logits.clone(), image.clone()
    scores = mean_field(logits, image, iterations=2)
    scores.zero_()
    assert torch.equal(logits, before[0])
    assert torch.equal(image, before[1])


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"spatial": "lattice"}])
@dtypes(torch.float32, torch.float64)
def test_minus_infinity_rules_a_label_out(
    problem: Problem, oracle: Oracle, options: dict[str, Any], dtype: torch.dtype
) -> None:
    logits, image = problem(4, 3, 15, 17)
    logits[0, 1, 3:9] = -INF
    logits[0, 2] = -INF
    found = mean_field(logits.to(dtype), image, iterations=1, **options)
    truth = oracle(logits, image, iterations=1, **options)
    assert torch.equal(found == -INF, truth == -INF)
    assert (found.double().softmax(1) - truth.softmax(1)).abs().max() <= 1e-5


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"spatial": "lattice"}])
@pytest.mark.parametrize("special", [NAN, INF])
def test_nan_and_infinity_show(problem: Problem, options: dict[str, Any], special: float) -> None:
    """softmax of NaN or +inf is NaN: so is everything that hears from that pixel."""
    logits, image = problem(4, 3, 15, 17)
    logits[0, 2, 7, 8] = special
    found = mean_field(logits, image, iterations=2, **options)
    assert found[0, :, 6:9, 7:10].isnan().all()  # the neighbours hear it, too
    logits[0, 2, 7, 8] = 0.0
    assert mean_field(logits, image, iterations=2, **options).isfinite().all()  # it was that value


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_nan_in_the_image_shows(problem: Problem, method: str) -> None:
    logits, image = problem(4, 3, 15, 17)
    broken = image.float()
    broken[0, 1, 7, 8] = NAN
    found = mean_field(logits, broken, color_sigma=13.0, method=method, iterations=2)
    assert found[0, :, 7, 8].isnan().all()


@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
def test_huge_logits_do_not_overflow(problem: Problem, normalization: str) -> None:
    logits, image = problem(4, 3, 15, 17)
    scores = mean_field(1e30 * logits, image, normalization=normalization)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), logits.argmax(1))


def test_deviations_too_small_for_the_dtype_are_refused(problem: Problem) -> None:
    logits, image = problem(3, 3, 8, 9)
    with pytest.raises(ValueError, match="sigma"):
        mean_field(logits, image, bilateral_sigma=1e-30)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("color_sigma", 1e-37, "color_sigma must be larger"),
        ("bilateral_sigma", 1e-46, "bilateral_sigma .* must be larger"),
        ("bilateral_weight", 1e39, "bilateral_weight must be finite in float32"),
        ("spatial_sigma", 10**400, "spatial_sigma must be positive and finite"),
        ("tolerance", 10**400, "tolerance"),
        ("iterations", 2**70, "iterations must be below 2"),
    ],
)
def test_extreme_numbers_are_refused(argument: str, value: float, message: str) -> None:
    """Nothing finite becomes NaN silently, and no error is a bare overflow."""
    logits, image = torch.zeros(1, 2, 4, 5), torch.arange(60).reshape(1, 3, 4, 5).byte()
    with pytest.raises(ValueError, match=message):
        mean_field(logits, image, **{argument: value})


def test_a_huge_spatial_sigma_is_the_mean() -> None:
    logits, image = torch.randn(1, 2, 4, 5), torch.zeros(1, 3, 4, 5).byte()
    options = {"bilateral_weight": 0.0, "normalization": "after", "iterations": 1}
    scores = mean_field(logits, image, spatial_sigma=1e308, spatial_weight=1.0, **options)
    mean = logits.softmax(1).mean((2, 3), keepdim=True)
    torch.testing.assert_close(scores, logits + mean)


@pytest.mark.parametrize("labels", [1, 2, 3, 5, 21])
@pytest.mark.parametrize("sigma", [0.05, 0.18, 11.7])
def test_padding_does_not_reach_the_next_chunk(labels: int, sigma: float) -> None:
    """What is sent from one chunk of pixels must not touch what the next has still to read."""
    torch.manual_seed(0)
    logits, image = torch.randn(1, labels, 2, 200).double(), torch.zeros(1, 3, 2, 200).byte()
    options = {"iterations": 3, "spatial_sigma": sigma, "bilateral_weight": 0.0}
    expected = reference.mean_field(logits[0], image[0], **options)
    # float64 rounding, and the 2e-16 of the kernel beyond 8.5 sigma
    torch.testing.assert_close(
        mean_field(logits, image, **options)[0], expected, rtol=0, atol=1e-12
    )
