"""What every network owes its users, whichever paper it is from."""

from __future__ import annotations

import copy
import functools
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import segfast
from segfast.models import _ENTRIES, CRFRNNFCN8s, SegmentationModel, create_model, list_models

ODD = (97, 131)
LARGER = {"deconvnet": (225, 257)}  # halved five times, then a layer of 7 x 7
# |difference| / |scores|, of chains of up to a hundred layers whose errors add like noise: in
# float32 SegNet's is 3e-6 from float64; in bfloat16 a layer rounds by 0.002.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# Why another memory format comes out than went in.
ATTENDS = "linear attention returns channels first"
ENLARGED = "a 1 x 1 map is enlarged channels first"
MIRRORED = "mirrored borders come channels first"
WEIGHTED = "a sum weighted by maps comes channels first"


class Family(NamedTuple):
    """How a class of networks is built small.

    Attributes:
        name, options: for `create_model`.
        size: of the images.
        scale: of their values; a dense CRF compares colours up to 255.
        channels_last: None where outputs keep that memory format, else why they do not.
        unpools: rounding moves values to other pixels of their windows.
        one_size: sizes are reckoned with in Python, which torch.jit.trace does not see.
        traced: is compiled and exported always, others with --all.
        giant: has over 100 million parameters: run with --giants.
    """

    name: str
    options: Mapping[str, Any] = {}
    size: tuple[int, int] = (33, 49)
    scale: float = 1.0
    channels_last: str | None = None
    unpools: bool = False
    one_size: bool = False
    traced: bool = False
    giant: bool = False


FAMILIES = (
    Family("abcnet_resnet18", channels_last=ATTENDS),
    Family("attention_to_scale_vgg16", channels_last=WEIGHTED, one_size=True),
    Family(
        "crfrnn_fcn8s",
        {"backbone": "googlenet", "iterations": 2},
        scale=255,
        channels_last="the dense CRF returns channels first",
    ),
    Family("danet_resnet34", {"depth": 18}),
    Family("deconvnet", size=(193, 225), unpools=True, giant=True),
    Family("deeplabv1_largefov"),
    Family("deeplabv2_resnet101", {"depth": 18}),
    Family("deeplabv2_vgg16_aspp_s"),
    Family("deeplabv3_resnet18"),
    Family("deeplabv3plus_resnet18"),
    Family("dilation8_voc", channels_last=MIRRORED, giant=True),
    Family("fcdensenet57", channels_last=ENLARGED, one_size=True),
    Family("fcn32s_googlenet"),
    Family("fcn_resnet50", {"depth": 18}),
    Family("fpn_resnet50", {"depth": 18}),
    Family("hrnet_w18_small"),
    Family("hrnet_w18_small_ocr"),
    Family("lraspp_mobilenet_v3_large"),
    Family("manet_resnet50", {"depth": 18}, channels_last=ATTENDS),
    Family("maresunet_resnet18", channels_last=ATTENDS, traced=True),
    Family("pspnet_resnet34", {"depth": 18}, channels_last=ENLARGED),
    Family("refinenet_resnet50_light", {"depth": 18, "widths": (64, 32, 32, 32)}),
    Family("segnet", unpools=True),
    Family("segnet_basic", unpools=True, traced=True),
    Family("unet", {"width": 8}, channels_last=MIRRORED, traced=True),
    Family("unet_resnet34", {"depth": 18}),
)


def each(trace: bool = False) -> Any:
    """Runs a test for every family; to `trace` takes seconds."""
    marks = {
        f.name: [pytest.mark.giant] * f.giant + [pytest.mark.thorough] * (trace and not f.traced)
        for f in FAMILIES
    }
    cases = [pytest.param(f, id=f.name, marks=marks[f.name]) for f in FAMILIES]
    return pytest.mark.parametrize("case", cases, indirect=True, scope="module")


def test_every_class_has_a_row() -> None:
    assert {_ENTRIES[family.name].build for family in FAMILIES} == {
        entry.build for entry in _ENTRIES.values()
    }


# ------------------------------------------------------------------------------- without numbers


@functools.cache
def without_numbers(name: str, layout: str | None = None) -> Any:
    """It stays as it is."""
    with torch.device("meta"):
        return create_model(name, 5, 4, layout=layout).eval()


@pytest.mark.parametrize("name", list_models())
def test_layouts_are_built(name: str) -> None:
    default = without_numbers(name)
    first, *others = default.layouts
    for layout, model in ((first, default), *((n, without_numbers(name, n)) for n in others)):
        assert (model.num_classes, model.in_channels, model.layout) == (5, 4, layout)


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", list_models())
def test_shape(name: str, others: bool) -> None:
    """Of any number of classes and channels, and of a size that no stride divides."""
    model = without_numbers(name)
    for layout in [*model.layouts][1:] if others else [model.layout]:
        assert_shape(name, without_numbers(name, layout))


def assert_shape(name: str, model: Any) -> None:
    if isinstance(model, CRFRNNFCN8s):
        model = model.fcn  # the size of a CRF's lattice depends on the values
    height, width = LARGER.get(name, ODD)
    with torch.no_grad():
        y = model(torch.empty(2, 4, height, width, device="meta"))
    assert y.shape == (2, 5, height, width)
    assert y.dtype == torch.float32


# ---------------------------------------------------------------------------------- with numbers


class Case(NamedTuple):
    """A small network in evaluation mode, two images, and its scores of them."""

    family: Family
    model: SegmentationModel
    x: Tensor
    y: Tensor

    def error(self, found: Tensor, y: Tensor | None = None) -> float:
        """|found - y| / |y|, y the scores unless given; infinite where a number is not finite."""
        y = self.y if y is None else y
        assert found.shape == y.shape
        finite = found.isfinite().all()
        return float((found.float() - y).norm() / y.norm()) if finite else math.inf

    def by_pytorch(self) -> nn.Module:
        """The same network by PyTorch's operators."""
        theirs = copy.deepcopy(self.model)
        segfast.swap(theirs, to="torch")
        return theirs

    def half_error(self, model: nn.Module) -> float:
        """Of the first image alone: where a processor knows no bfloat16 it takes long."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.error(model(self.x[:1]), self.y[:1])


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    family = request.param
    torch.manual_seed(0)
    model = create_model(family.name, 5, 4, **family.options).eval()
    for module in model.modules():  # published initial scores may be zeros
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    x = family.scale * torch.rand(2, 4, *family.size)
    with torch.no_grad():
        yield Case(family, model, x, model(x))


@each()
def test_every_parameter_is_trained(case: Case) -> None:
    model = copy.deepcopy(case.model).train()
    with torch.enable_grad():
        scores, aux = model(case.x, return_aux=True)
        maps = [scores, *aux.values()]
        assert all(y.shape == case.y.shape for y in maps)
        sum((y * torch.randn_like(y)).sum() for y in maps).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert not without


@each()
def test_one_image_in_training(case: Case) -> None:
    """It works, or the message says why it cannot."""
    model = copy.deepcopy(case.model).train()
    one_value = False
    try:
        y = model(case.x[:1])
    except ValueError as error:
        one_value = bool(re.search(r"\bN > 1 in training\b", str(error)))
    assert one_value or y.isfinite().all()


@each()
def test_channels_last(case: Case) -> None:
    x = case.x.contiguous(memory_format=torch.channels_last)
    y = case.model(x)
    # PyTorch's convolutions round differently here. A fresh DeconvNet's deep maps hardly vary, so
    # that maxima which nearly tie change places (in 1 of 900 windows of pool5), PyTorch's as well.
    expected = case.by_pytorch()(x) if case.family.unpools else None
    assert case.error(y, expected) <= LIMITS[torch.float32]
    kept = y.stride(1) == 1  # of a cropped map, too
    assert kept == (case.family.channels_last is None)


@each()
def test_bfloat16(case: Case) -> None:
    limit = LIMITS[torch.bfloat16]
    if case.family.unpools:
        limit = 2 * case.half_error(case.by_pytorch())
    assert case.half_error(case.model) <= limit


@each(trace=True)
def test_export(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(case.model, (case.x,))
    assert case.error(program.module()(case.x)) <= LIMITS[torch.float32]


@each(trace=True)
def test_jit_trace(case: Case) -> None:
    """For images of any size, but of few networks; what is saved and loaded, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(case.model, (case.x,), check_trace=False)
        torch.jit.save(traced, file := io.BytesIO())
        file.seek(0)
        loaded = torch.jit.load(file)
    assert case.error(loaded(case.x)) <= LIMITS[torch.float32]
    if not case.family.one_size:
        x = torch.nn.functional.pad(case.x, (0, 5, 0, 8), mode="reflect")
        assert case.error(loaded(x), case.model(x)) <= LIMITS[torch.float32]


@each(trace=True)
def test_compile(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.model, backend="aot_eager")
    assert case.error(compiled(case.x)) <= LIMITS[torch.float32]
