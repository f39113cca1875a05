"""CRF-RNN: the published FCN-8s, the published mean field after it, learned together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfast.models import CRFRNNFCN8s, create_model, load_checkpoint
from segfast.ops import mean_field
from tests.fingerprints import assert_outputs, fill, filled_input, read
from tests.models.golden import golden_model, parameters


@pytest.fixture
def image() -> Tensor:
    """Two areas of different colour, with noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-20, 21, (2, 3, 33, 42), generator=generator)
    return (90 + 80 * (torch.arange(42) > 20) + noise).to(torch.uint8)


def small(**options: Any) -> CRFRNNFCN8s:
    """On a smaller backbone, with scores that are not zero."""
    model = CRFRNNFCN8s(3, backbone="googlenet", **options).eval()
    fill(model.fcn, {key: key for key in model.fcn.state_dict()})
    return model


@pytest.mark.giant
def test_its_fcn_is_the_published_one() -> None:
    model = golden_model("crfrnn_fcn8s", "sadeepj_crfasrnn")  # strict about the CRF's keys, too
    fingerprint = read("fingerprints", "sadeepj_crfasrnn")
    x = filled_input(fingerprint["input_shape"])
    with torch.no_grad():
        assert_outputs([model.scores(x, aux=True)["fcn"]], fingerprint, "sadeepj_crfasrnn")


def test_parameters() -> None:
    with torch.device("meta"):
        model = create_model("crfrnn_fcn8s")
    assert parameters(model) == 134_491_103
    shapes = read("state_dicts", "sadeepj_crfasrnn")
    load_checkpoint(model, {k: torch.empty(shape, device="meta") for k, shape in shapes.items()})


@pytest.mark.parametrize("mode", [True, False])
def test_is_fcn_and_mean_field(image: Tensor, mode: bool) -> None:
    """5 iterations in training, 10 afterwards, with the published widths and weights."""
    model = small().double().train(mode)
    model.fcn.eval()  # no dropout
    x = image.double() - 110
    with torch.no_grad():
        out, aux = model(x, return_aux=True)
        fcn = model.fcn(x)
        expected = mean_field(
            fcn,
            x,
            spatial_weight=3.0,
            spatial_sigma=3.0,
            bilateral_weight=5.0,
            bilateral_sigma=160.0,
            color_sigma=3.0,
            iterations=5 if mode else 10,
            normalization="after",
        )
    assert torch.equal(aux["fcn"], fcn)
    torch.testing.assert_close(out, expected)
    assert (out - fcn).abs().max() > 1


def test_image(image: Tensor) -> None:
    """x may be the image less its mean; otherwise the image itself is given."""
    model = small(method="exact").double()  # the lattice's error depends on where colours are
    with torch.no_grad():
        x = image.double() - 110
        torch.testing.assert_close(model(x, image=image), model(x))
        x = x / 56  # about as for ImageNet
        with pytest.warns(UserWarning, match=r"image spans .* and color_sigma is 3"):
            model(x)
        fcn = model.fcn(x)
        torch.testing.assert_close(model(x, image=image), model.crfrnn(fcn, image))
    with pytest.raises(ValueError, match="image's size"):
        model(x, image=image[..., :-1])


def test_end_to_end(image: Tensor) -> None:
    """Gradients reach every parameter of the FCN and of the CRF."""
    model = small(training_iterations=2).train()
    out = model(image / 127.5 - 1, image=image)
    nn.functional.cross_entropy(out, (image[:, 0] > 130).long()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_caffe_state() -> None:
    """Every name of the released prototxt has its place; the matrix is subtracted there."""
    with torch.device("meta"):
        model = create_model("crfrnn_fcn8s", layout="caffe")
    shapes = read("state_dicts", "caffe_crfrnn_tvg")
    shapes |= {f"inference1/{i}": [1, 1, 21, 21] for i in range(3)}
    load_checkpoint(model, {k: torch.empty(shape, device="meta") for k, shape in shapes.items()})
    matrices = {f"inference1/{i}": torch.full((2, 2), float(i)) for i in range(3)}
    assert {k: x[0, 0].item() for k, x in model.layouts["caffe"].apply(matrices).items()} == {
        "crfrnn.spatial_ker_weights": 0.0,
        "crfrnn.bilateral_ker_weights": 1.0,
        "crfrnn.compatibility_matrix": -2.0,
    }


def test_refusals() -> None:
    with pytest.raises(ValueError, match="layout must be one of crfasrnn_pytorch, caffe"):
        CRFRNNFCN8s(layout="keras")
    with pytest.raises(TypeError, match=r"options of 'crfrnn_fcn8s'.*unexpected keyword"):
        create_model("crfrnn_fcn8s", backbone="googlenet", sigma=3)
