"""nn.CRFRNN: the published layer's formula, names, start, and what its files hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segfast.kernels.dense_crf import reference
from segfast.nn import CRFRNN, DenseCRF
from segfast.nn.crf_rnn import CONVENTIONS
from segfast.testing import assert_as_good_as

B, L, H, W = 3, 4, 10, 13
NAMES = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tones = torch.randint(0, 256, (B, 3, 5, 7), generator=generator)
    image = tones.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :W]
    return torch.randn(B, L, H, W, generator=generator), image.to(torch.uint8)


def layer(**options: Any) -> CRFRNN:
    """The layer alone, with matrices that are neither symmetric nor diagonal."""
    crf = CRFRNN(nn.Identity(), L, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += torch.rand(L, L, generator=generator) - 0.5
    return crf


# ------------------------------------------------------------------------------ as published


def test_parameters_are_the_published_ones() -> None:
    """3 L^2 of them: 1,323 for the 21 labels of the released network."""
    crf = CRFRNN(nn.Identity(), 21)
    eye = torch.eye(21)
    starts = {"spatial_ker_weights": 3 * eye, "bilateral_ker_weights": 5 * eye,
              "compatibility_matrix": eye}  # fmt: skip
    assert list(crf.state_dict()) == list(starts)
    assert all(torch.equal(p, starts[name]) for name, p in crf.named_parameters())
    assert sum(p.numel() for p in crf.parameters()) == 1323
    assert (crf.training_iterations, crf.iterations) == (5, 10)
    assert (crf.spatial_sigma, crf.bilateral_sigma, crf.color_sigma) == (3, 160, 3)


def test_untrained_it_is_the_preset(inputs: tuple[Tensor, Tensor]) -> None:
    """[L, L] matrices sum in another order than numbers: 1e-5 of scores of at most 12."""
    crf = CRFRNN(nn.Identity(), L)
    for training, iterations in ((True, 5), (False, 10)):
        preset = DenseCRF.from_preset("crf-rnn", iterations=iterations)
        torch.testing.assert_close(crf.train(training)(*inputs), preset(*inputs))


@pytest.mark.parametrize("spatial", ["conv", "lattice"])
@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_an_update_is_the_published_one(
    method: str, spatial: str, inputs: tuple[Tensor, Tensor]
) -> None:
    """logits + C (W_s K_s q + W_b K_b q), each K divided by what it makes of ones."""
    logits, image = inputs
    crf = layer(iterations=1, method=method, spatial=spatial, color_sigma=30).eval()

    def plain(dtype: torch.dtype) -> Tensor:
        ws, wb, c = (p.detach().to(dtype) for p in crf.parameters())
        results = []
        for unary, pixels in zip(logits.to(dtype), image.to(dtype), strict=True):
            q = unary.softmax(0).flatten(1)  # [L, N]
            places = reference.position_features(pixels, 3)
            near = reference.image_features(pixels, 160, 30)
            lattice_s = spatial == "lattice" and method == "lattice"
            blur = reference.lattice_filter if lattice_s else reference.gaussian_filter
            cross = reference.lattice_filter if method == "lattice" else reference.gaussian_filter
            m_s, m_b = blur(q, places, "after"), cross(q, near, "after")
            results.append(unary + (c @ (ws @ m_s + wb @ m_b)).view_as(unary))
        return torch.stack(results)

    # entries of C and of W_s + W_b are below 1.5 and 9: a score sums L^2 products with beliefs
    assert_as_good_as(
        crf(*inputs), plain(torch.float64), plain(torch.float32),
        terms=H * W, magnitude=13.5 * L * L,
    )  # fmt: skip


def test_batches_are_their_images(inputs: tuple[Tensor, Tensor]) -> None:
    """The published layer takes one image at a time."""
    logits, image = inputs
    crf = layer()
    each = [crf(logits[i : i + 1], image[i : i + 1]) for i in range(B)]
    assert torch.equal(crf(*inputs), torch.cat(each))


# ------------------------------------------------------------------------------ any model


class Scores(nn.Module):
    """Gives what `make` makes of logits."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make
        self.classify = nn.Conv2d(3, L, 1)

    def forward(self, x: Tensor) -> Any:
        return self.make(self.classify(x))


def test_tensors_and_dicts(inputs: tuple[Tensor, Tensor]) -> None:
    _, image = inputs
    x = image / 255
    plain = CRFRNN(Scores(lambda scores: scores), L)
    torchvision = CRFRNN(Scores(lambda scores: {"out": scores, "aux": 2 * scores}), L)
    torchvision.load_state_dict(plain.state_dict())
    given = torchvision(x, image)
    assert list(given) == ["out", "aux"]
    assert torch.equal(given["out"], plain(x, image))
    assert torch.equal(given["aux"], 2 * plain.model(x))


def test_the_image_may_be_what_the_model_takes(inputs: tuple[Tensor, Tensor]) -> None:
    x = inputs[1].float()
    net = CRFRNN(Scores(lambda scores: scores), L)
    assert torch.equal(net(x), net(x, x))
    with pytest.warns(UserWarning, match=r"image spans 1 and color_sigma is 3: .*pass the photo"):
        net((x - x.min()) / (x.max() - x.min()))


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_gradients_reach_everything(method: str, inputs: tuple[Tensor, Tensor]) -> None:
    image = inputs[1].float().requires_grad_(method == "exact")
    net = CRFRNN(Scores(lambda scores: scores), L, method=method, color_sigma=30)
    net(inputs[1] / 255, image).square().mean().backward()
    for name, parameter in [*net.named_parameters(), ("image", image)]:
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_compiles(inputs: tuple[Tensor, Tensor]) -> None:
    """In one graph, gradients too."""
    logits, image = inputs
    crf = layer()
    compiled = torch.compile(crf, backend="aot_eager", fullgraph=True)
    found = []
    for net in (crf, compiled):
        scores = net(logits, image)
        found.append([scores, *torch.autograd.grad(scores.square().sum(), list(crf.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_state_and_copies(inputs: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    crf = layer(iterations=2).eval()
    assert torch.equal(copy.deepcopy(crf)(*inputs), crf(*inputs))
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    other = CRFRNN(nn.Identity(), L, iterations=2).eval()
    assert not torch.equal(other(*inputs), crf(*inputs))
    other.load_state_dict(torch.load(tmp_path / "crf.pt", weights_only=True))
    assert torch.equal(other(*inputs), crf(*inputs))
    assert "labels=4, spatial_sigma=3, bilateral_sigma=160, color_sigma=3" in repr(crf)


# ------------------------------------------------------------------------------ published files


def published(convention: str) -> dict[str, Any]:
    """One network's file, by each implementation's names, layout and sign; C is not symmetric."""
    ws, wb, c = (p.detach().clone() for p in layer().parameters())
    if convention == "pytorch":
        found = {"conv1_1.weight": torch.ones(2), **dict(zip(
            (f"crfrnn.{name}" for name in NAMES), (ws, wb, c), strict=True))}  # fmt: skip
        return found
    if convention == "keras":
        keys = [f"crfrnn/{name}:0" for name in NAMES]
        return dict(zip(keys, (x.numpy() for x in (ws, wb, -c)), strict=True))
    blobs = [x[None, None].double().numpy() for x in (ws, wb, -c)]  # Caffe's are [1, 1, L, L]
    return {f"inference1/{i}": blob for i, blob in enumerate(blobs)}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_published_files_load(convention: str, inputs: tuple[Tensor, Tensor]) -> None:
    crf, expected = CRFRNN(nn.Identity(), L), layer()
    rest = crf.load_published(published(convention), convention)
    assert list(rest) == (["conv1_1.weight"] if convention == "pytorch" else [])
    for name in NAMES:
        assert torch.equal(getattr(crf, name), getattr(expected, name)), name
        assert getattr(crf, name).requires_grad
    assert torch.equal(crf(*inputs), expected(*inputs))


def test_files_are_read_without_running_them(tmp_path: Path) -> None:
    torch.save(published("pytorch"), tmp_path / "crfasrnn_weights.pth")
    crf = CRFRNN(nn.Identity(), L)
    crf.load_published(tmp_path / "crfasrnn_weights.pth")
    assert torch.equal(crf.compatibility_matrix, layer().compatibility_matrix)
    torch.save(Scores(print), tmp_path / "pickled.pth")
    (tmp_path / "TVG.caffemodel").write_bytes(b"\n\x04fcn8" * 20)
    (tmp_path / "empty.h5").touch()
    for name in ("pickled.pth", "TVG.caffemodel", "empty.h5"):
        with pytest.raises(ValueError, match=rf"state must be .*{name}.* safely; .*Caffe or Keras"):
            crf.load_published(str(tmp_path / name))


def test_prefixes_do_not_matter() -> None:
    state = {f"module.{key}": value for key, value in published("pytorch").items()}
    assert list(CRFRNN(nn.Identity(), L).load_published(state)) == ["module.conv1_1.weight"]


def test_another_sign_is_noticed() -> None:
    caffe = {f"inference1/{i}": m * np.eye(L) for i, m in enumerate((3, 5, -1))}
    crf = CRFRNN(nn.Identity(), L)
    crf.load_published(caffe, "caffe")
    named = dict(zip(NAMES, caffe.values(), strict=True))
    with pytest.warns(UserWarning, match=r"sign.*convention='pytorch'"):
        crf.load_published(named)


def bad(key: str, value: Any) -> dict[str, Any]:
    return {**published("pytorch"), key: value}


BAD_FILES: dict[str, tuple[Any, type[Exception], str]] = {
    "other names": (published("caffe"), ValueError, r"spatial_ker_weights'.*got 0: 'inference1/0'"),
    "empty": ({}, ValueError, "got 0: no keys"),
    "twice": (
        bad("ema.crfrnn.compatibility_matrix", torch.eye(L)),
        ValueError, r"compatibility_matrix'.*got 2: 'crfrnn.*'ema\."),
    "shape": (
        bad("crfrnn.compatibility_matrix", torch.eye(21)),
        ValueError, r"state\['crfrnn.compatibility_matrix'\].*\[4, 4\].*\(21, 21\)"),
    "integers": (bad("crfrnn.compatibility_matrix", np.eye(L, dtype=int)), TypeError, "floating"),
    "NaN": (bad("crfrnn.compatibility_matrix", torch.full((L, L), torch.nan)), ValueError, "finit"),
    "a list": ([1, 2], TypeError, r"state must hold tensors by name, got list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_change_nothing(case: str) -> None:
    state, error, pattern = BAD_FILES[case]
    crf = CRFRNN(nn.Identity(), L)
    with pytest.raises(error, match=pattern):
        crf.load_published(state)
    assert torch.equal(crf.spatial_ker_weights, 3 * torch.eye(L))
    assert torch.equal(crf.compatibility_matrix, torch.eye(L))


def test_unknown_conventions() -> None:
    with pytest.raises(ValueError, match=r"convention.*pytorch, keras, caffe.*'tf'"):
        CRFRNN(nn.Identity(), L).load_published({}, "tf")


# ------------------------------------------------------------------------------ refusals

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": "fcn"}, TypeError, r"model must be a torch.nn.Module.*'fcn'"),
    "labels": ({"labels": 0}, ValueError, r"labels.*at least 1.*0"),
    "labels float": ({"labels": 21.0}, TypeError, r"labels.*integer.*21\.0"),
    "training_iterations": ({"training_iterations": -1}, ValueError, r"training_iterations.*-1"),
    "iterations": ({"iterations": 2.5}, TypeError, r"iterations.*2\.5"),
    "weight": (
        {"spatial_weight": torch.eye(L)}, ValueError,
        r"spatial_weight.*number.*copied into the parameters.*tensor"),
    "sigma array": (
        {"color_sigma": np.ones(3)}, TypeError, r"color_sigma.*tuple of numbers.*float64 NumPy"),
    "sigma tensor": (
        {"bilateral_sigma": torch.ones(())}, TypeError,
        r"bilateral_sigma.*number.*tensor.*trainable=\['bilateral_sigma'\], method='exact'"),
    "weight NaN": ({"bilateral_weight": float("nan")}, ValueError, r"bilateral_weight.*finite"),
    "sigma": ({"bilateral_sigma": -160}, ValueError, r"bilateral_sigma.*positive"),
    "color": ({"color_sigma": (3, 0, 3)}, ValueError, r"color_sigma.*positive"),
    "method": ({"method": "fast"}, ValueError, r"method.*lattice.*'fast'"),
    "spatial": ({"spatial": "fft"}, ValueError, r"spatial.*conv.*'fft'"),
    "tolerance": ({"tolerance": "0"}, TypeError, r"tolerance.*number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_construction(case: str) -> None:
    options, error, pattern = REFUSED[case]
    with pytest.raises(error, match=pattern):
        CRFRNN(**{"model": nn.Identity(), "labels": L, **options})


def test_refused_at_the_call(inputs: tuple[Tensor, Tensor]) -> None:
    logits, image = inputs
    crf = CRFRNN(nn.Identity(), L)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        ({"aux": logits}, image, TypeError, r'dict with one under "out".*None'),
        ([logits], image, TypeError, r"model must give a tensor.*list"),
        (logits[:, 1:], image, ValueError, r"L = 4.*\(3, 3, 10, 13\)"),
        (logits[0], image[0], ValueError, r"\[B, L, H, W\].*\(4, 10, 13\)"),
        (logits, image.movedim(1, 3), ValueError, r"image \[B, C, H, W\] of shape \(3, 10, 13, "),
        (logits[..., ::2, ::2], image, ValueError, r"size \(10, 13\).*\(3, 4, 5, 7\).*interpolat"),
        (logits, "image", TypeError, r"image must be a tensor.*'image'"),
    ]
    for x, pixels, error, pattern in cases:
        with pytest.raises(error, match=pattern):
            crf(x, pixels)
