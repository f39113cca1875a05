"""Photographs into what published networks expect."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segfast.models import _ENTRIES, Preprocessing, UNet, create_model, model_info
from segfast.models._preprocessing import CAFFE_VGG, DEEPLAB, FCN, IMAGENET
from tests.models.networks import layouts

# What the networks' own code does of one pixel (10, 100, 250) of red, green and blue, by hand.
ROUNDINGS = 4 * 2.0**-24  # of float32, of the largest value: scale, mean, std, the expected one
PIXEL = torch.tensor([10, 100, 250], dtype=torch.uint8).reshape(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("fcn8s_vgg16", "caffe", (250 - 104.00698793, 100 - 116.66876762, 10 - 122.67891434)),
        ("fcn16s_vgg16", "wkentaro", (250 - 104.00698793, 100 - 116.66876762, 10 - 122.67891434)),
        ("segnet_basic", "caffe", (250, 100, 10)),
        ("deeplabv2_resnet101", "deeplab-pytorch", (250 - 104.008, 100 - 116.669, 10 - 122.675)),
        ("pspnet_resnet50", "caffe", (250 - 103.939, 100 - 116.779, 10 - 123.68)),
        ("dilation8_camvid", "caffe", (250 - 110.70313, 100 - 108.77809, 10 - 105.41213)),
        (
            "fcn_resnet50",
            "torchvision",
            ((10 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (250 / 255 - 0.406) / 0.225),
        ),
        (  # in its units: images from 0 to 255, RGB
            "fcn_resnet50",
            "mmseg",
            ((10 - 123.675) / 58.395, (100 - 116.28) / 57.12, (250 - 103.53) / 57.375),
        ),
        ("unet", "milesial", (10 / 255, 100 / 255, 250 / 255)),
    ],
)
def test_a_pixel(name: str, layout: str, expected: tuple[float, ...]) -> None:
    with torch.device("meta"):
        model = create_model(name, layout=layout)
    found = model.preprocess(PIXEL)
    assert found.dtype == torch.float32
    limit = ROUNDINGS * 255 / min(model.preprocessing.std)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected).float(), atol=limit, rtol=0)
    floating = model.preprocess(PIXEL.double() / 255)
    assert floating.dtype == torch.float64
    torch.testing.assert_close(floating, found.double(), atol=limit, rtol=0)


def test_pixels_from_0_to_255_stay_exact() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(Preprocessing("BGR", 255.0)(every), every.float())
    assert torch.equal(Preprocessing()(every), every / 255)


def test_a_batch_keeps_its_shape() -> None:
    images = torch.rand(2, 3, 5, 7)
    for preprocessing in (IMAGENET, FCN, DEEPLAB, CAFFE_VGG):
        y = preprocessing(images)
        assert y.shape == images.shape
        back = y * y.new_tensor(preprocessing.std).reshape(3, 1, 1)
        back = (back + y.new_tensor(preprocessing.mean).reshape(3, 1, 1)) / preprocessing.scale
        back = back.flip(1) if preprocessing.channels == "BGR" else back
        torch.testing.assert_close(back, images, atol=4 * ROUNDINGS, rtol=0)  # there and back


def test_known_of_a_name() -> None:
    info = model_info("danet_resnet34", size=(64, 64), layout="mmseg")
    assert info.preprocessing == IMAGENET
    assert model_info("manet_resnet50", size=(64, 64)).preprocessing is None
    assert str(IMAGENET) == "RGB 0..1 - (0.485, 0.456, 0.406), / (0.229, 0.224, 0.225)"


def test_numbers_are_plausible() -> None:
    """Means lie within the range; standard deviations are smaller than it."""
    for name, entry in _ENTRIES.items():
        assert set(entry.images) <= {*layouts(name), "caffe"}
        for layout in layouts(name):
            if found := entry.preprocessing(layout):
                assert found.channels in ("RGB", "BGR")
                assert found.scale in (1, 255)
                assert all(0 <= mean < found.scale / 1.5 for mean in found.mean)
                assert all(0 < std <= max(found.scale / 2, 1) for std in found.std)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (3, TypeError, r"image must be a tensor \[N, 3, H, W\], got int 3"),
        (PIXEL[0], ValueError, r"image must be \[N, 3, H, W\], RGB, got torch.uint8 tensor"),
        (torch.rand(1, 1, 4, 4), ValueError, r"image must be \[N, 3, H, W\], RGB"),
        (PIXEL.int(), TypeError, "image must be uint8 or floating, got torch.int32 tensor"),
        (PIXEL.float(), ValueError, r"image must be from 0 to 1 \(or uint8\), got .* 10 to 250"),
        (-torch.rand(1, 3, 2, 2), ValueError, "image must be from 0 to 1"),
    ],
)
def test_refused_images(image: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        IMAGENET(image)


def test_unknown_images() -> None:
    with torch.device("meta"):
        models = create_model("unet"), UNet(width=8), create_model("unet", 2, 1, layout="milesial")
    for model in models[:2]:
        with pytest.raises(ValueError, match=r"UNet of layout .* has no published preprocessing"):
            model.preprocess(PIXEL)
    with pytest.raises(ValueError, match="image must have the 1 channels of this network"):
        models[2].preprocess(PIXEL)


def test_compiles() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(FCN, backend="eager", fullgraph=True)
    image = torch.rand(1, 3, 4, 5)
    torch.testing.assert_close(compiled(image), FCN(image))
