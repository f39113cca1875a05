"""DilatedConv2d is nn.Conv2d; separable convolutions; atrous rates for residual stages."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.nn import DilatedConv2d, SeparableDilatedConv2d, dilate_stage, multi_grid
from segfast.testing import assert_as_good_as
from tests.fingerprints import fill, filled_input
from tests.nn.sums import assert_same_sums, positive, with_gradients

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 12, "dilation": 12},
    {"kernel_size": 3, "padding": "same", "dilation": 40},
    {"kernel_size": (1, 4), "padding": "same", "dilation": (1, 3)},
    {"kernel_size": (3, 2), "padding": (2, 1), "stride": (2, 1), "dilation": (1, 5)},
    {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 6},
    {"kernel_size": 3, "padding": "valid", "groups": 2, "bias": False},
]


TERMS = 6 * 12 + 1  # of a sum, at most: up to 12 taps of 6 channels or 25 of one, and the bias


def build(kind: type[nn.Conv2d], **options: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    return kind(6, 12, **options, dtype=torch.float64)


# ------------------------------------------------------------------------------ DilatedConv2d


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_is_conv2d(options: dict[str, Any]) -> None:
    """Values, gradients, initial state and description; batched or not."""
    ours, theirs = build(DilatedConv2d, **options), build(nn.Conv2d, **options)
    assert repr(ours) == "Dilated" + repr(theirs)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    x = filled_input((2, 6, 17, 23))
    up = filled_input(tuple(theirs(x).shape))
    found, expected, sizes = (
        with_gradients(module, x, list(module.parameters()), up)
        for module, x, up in ((ours, x, up), (theirs, x, up), (positive(theirs), x.abs(), up.abs()))
    )
    positions = up.numel() // 12  # in a sum of the weight's gradient
    assert_same_sums(found, expected, sizes, max(TERMS, positions))
    assert_same_sums(ours(x[0]), expected[0][0], sizes[0][0], TERMS)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(3, 1), "same"])
def test_other_paddings(mode: str, padding: Any) -> None:
    options = {"kernel_size": (4, 3), "padding": padding, "dilation": 2, "padding_mode": mode}
    ours, theirs = build(DilatedConv2d, **options), build(nn.Conv2d, **options)
    assert repr(ours) == "Dilated" + repr(theirs)
    x = filled_input((2, 6, 11, 9))
    sizes = positive(theirs)(x.abs())
    assert_same_sums(ours(x), theirs(x), sizes, TERMS)
    assert_same_sums(ours(x[0]), theirs(x[0]), sizes[0], TERMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    options = {"kernel_size": 3, "padding": 6, "dilation": 6}
    theirs = build(nn.Conv2d, **options)
    ours = DilatedConv2d(6, 12, **options, device="cpu", dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())  # rounded
    x = filled_input((2, 6, 17, 17)).to(dtype)
    baseline = copy.deepcopy(theirs).to(dtype)(x)
    assert_as_good_as(ours(x), theirs(x.double()), baseline, terms=54)


def test_state_is_that_of_conv2d() -> None:
    ours, theirs = DilatedConv2d(6, 12, 3, dilation=2), nn.Conv2d(6, 12, 3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    back = nn.Conv2d(6, 12, 3)
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back.weight, theirs.weight)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any) -> None:
    module = nn.Sequential(
        DilatedConv2d(6, 12, 3, padding=2, dilation=2, padding_mode="reflect"),
        SeparableDilatedConv2d(12, 4, 3, dilation=2, batch_norm=True, activation="relu"),
    ).eval()
    x = filled_input((2, 6, 9, 9)).float()
    assert torch.equal(copied(module)(x), module(x))


def test_on_meta() -> None:
    conv = DilatedConv2d(6, 12, 3, padding=2, dilation=2, device="meta", dtype=torch.float16)
    y = conv(torch.empty(1, 6, 9, 9, device="meta", dtype=torch.float16))
    assert y.is_meta
    assert y.shape == (1, 12, 9, 9)
    assert y.dtype == torch.float16


def test_memory_format_stays() -> None:
    conv = DilatedConv2d(6, 12, 3, padding=2, dilation=2)
    x = filled_input((2, 6, 9, 7)).float().contiguous(memory_format=torch.channels_last)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("x", [(2, 6, 21, 17), (6, 21, 17)], ids=str)
def test_compiles(x: tuple[int, ...]) -> None:
    module = nn.Sequential(
        DilatedConv2d(6, 6, 3, padding="same", dilation=5, padding_mode="circular"),
        SeparableDilatedConv2d(6, 4, 3, padding=3, dilation=3, activation="relu"),
    )
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(x)), module(torch.ones(x)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DilatedConv2d(4, 6, 3, groups=3), ValueError, "in_channels must be divisible"),
        (lambda: DilatedConv2d(4, 4, 3, padding="full"), ValueError, "padding"),
        (
            lambda: DilatedConv2d(4, 4, 3)(torch.ones(1, 5, 9, 9)),
            ValueError,
            r"^x must have 4 channels for weight \(4, 4, 3, 3\) and groups=1, got .*\(1, 5, 9, 9\)",
        ),
        (
            lambda: DilatedConv2d(4, 4, 3, dilation=5)(torch.ones(1, 4, 9, 20)),
            ValueError,
            "^x of 9 x 20 with padding .* is smaller than the kernel",
        ),
        (
            lambda: DilatedConv2d(4, 4, 3)(torch.ones(4, 9)),
            ValueError,
            r"^x must be \[N, C, H, W\] or \[C, H, W\]",
        ),
        (
            lambda: DilatedConv2d(4, 4, 3)(torch.ones(1, 4, 9, 9).double()),
            TypeError,
            "^weight must have the dtype of x, torch.float64; got torch.float32",
        ),
        (
            lambda: DilatedConv2d.from_conv(nn.LazyConv2d(4, 3)),
            TypeError,
            "^conv must be a torch.nn.Conv2d, got LazyConv2d",
        ),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_from_conv(options: dict[str, Any]) -> None:
    conv = build(nn.Conv2d, **options).eval()
    ours = DilatedConv2d.from_conv(conv)
    assert type(ours) is DilatedConv2d
    assert repr(ours) == "Dilated" + repr(conv)
    assert ours.weight is conv.weight
    assert ours.bias is conv.bias
    assert not ours.training
    x = filled_input((2, 6, 17, 23))
    assert_same_sums(ours(x), conv(x), positive(conv)(x.abs()), TERMS)


# ------------------------------------------------------------------------------ separable


def test_separable_is_two_convolutions() -> None:
    module = SeparableDilatedConv2d(6, 12, (3, 5), (2, 1), (4, 2), (4, 1), bias=True).double()
    depthwise, pointwise = module
    x = filled_input((2, 6, 15, 11))
    z = F.conv2d(x, depthwise.weight, None, (2, 1), (4, 2), (4, 1), groups=6)  # type: ignore[arg-type]
    expected = F.conv2d(z, pointwise.weight, pointwise.bias)  # type: ignore[arg-type]
    sizes = positive(module)(x.abs())
    assert_same_sums(module(x), expected, sizes, 15 + 7)  # taps, then channels and bias
    assert_same_sums(module(x[0]), expected[0], sizes[0], 15 + 7)
    assert depthwise.bias is None


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_between_the_two(batch_norm: bool, activation: str | None) -> None:
    module = SeparableDilatedConv2d(
        6, 12, 3, padding=2, dilation=2, batch_norm=batch_norm, activation=activation
    ).double()
    fill(module.eval(), {key: key for key in module.state_dict()})
    state = module.state_dict()
    x = filled_input((2, 6, 9, 9))
    z = F.conv2d(x, state["0.weight"], None, 1, 2, 2, groups=6)
    if batch_norm:
        facts = [state[f"bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        z = F.batch_norm(z, *facts)
    z = z if activation is None else z.relu()
    sizes = positive(module)(x.abs())
    assert_same_sums(module(x), F.conv2d(z, state["1.weight"]), sizes, 9 + 6 + 6)


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1"],
        ["conv1", "bn", "pointwise"],
        ["depthwise_conv.conv", "depthwise_conv.bn", "pointwise_conv.conv"],
    ],
    ids=str,
)
def test_loads_what_others_published(names: list[str]) -> None:
    """Modules with the names in the docstring, in the order in which they compute."""
    convs = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1, bias=False)
    parts = [convs[0], nn.BatchNorm2d(8), convs[1]] if len(names) == 3 else list(convs)
    published = {
        f"{name}.{key}": value
        for name, part in zip(names, parts, strict=True)
        for key, value in part.state_dict().items()
    }
    ours = SeparableDilatedConv2d(8, 4, 3, batch_norm=len(names) == 3)
    renamed = dict(zip(names, [name for name, _ in ours.named_children()], strict=True))
    state = {f"{renamed[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
             for k, v in published.items()}  # fmt: skip
    ours.load_state_dict(state)
    x = filled_input((1, 8, 7, 7)).float()
    torch.testing.assert_close(ours.eval()(x), nn.Sequential(*parts).eval()(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "^in_channels must be at least 1, got 0"),
        ({"out_channels": 2.5}, TypeError, "^out_channels must be an integer, got float 2.5"),
        ({"kernel_size": 0}, ValueError, "^kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, TypeError, "^kernel_size must be an integer or two"),
        (
            {"kernel_size": "3"},
            TypeError,
            "^kernel_size must be an integer or two of them, got s",
        ),
        ({"stride": 0}, ValueError, "^stride must be at least 1, got 0"),
        ({"dilation": (1, 0)}, ValueError, "^dilation must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "^padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, "^padding must be one of same, valid; got str 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "^padding='same' needs stride 1, got"),
        ({"bias": 1}, TypeError, "^bias must be True or False, got int 1"),
        ({"batch_norm": None}, TypeError, "^batch_norm must be True or False, got NoneType"),
        ({"activation": "gelu"}, ValueError, "^activation must be one of relu; got str 'gelu'"),
    ],
)
def test_separable_options_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SeparableDilatedConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})


# ------------------------------------------------------------------------ residual networks


class Block(nn.Module):
    """A bottleneck, as residual networks have them: torchvision's and timm's note the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, stride, 1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, outputs, 1)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + self.conv3(F.relu(self.bn(self.conv2(self.conv1(x))))))


class Blur(nn.Sequential):
    """Computes with a stride, in a tensor of its own, and has a child."""

    def __init__(self) -> None:
        super().__init__(nn.ReflectionPad2d(1))
        self.register_buffer("filter", torch.full((4, 1, 3, 3), 1 / 9))
        self.stride = 2


def stage_of(stride: int = 2) -> nn.Sequential:
    blocks = [Block(6, 8, stride), Block(8, 8, 1), Block(8, 8, 1)]
    stage = nn.Sequential(*blocks).double().eval()
    fill(stage, {key: key for key in stage.state_dict()})
    return stage


def test_multi_grid() -> None:
    assert multi_grid(2) == (2, 4, 8)
    assert multi_grid(4, (1, 2, 1)) == (4, 8, 4)


@pytest.mark.parametrize("size", [(33, 27), (16, 20)])
def test_without_strides_a_stage_computes_the_same_and_more(size: tuple[int, int]) -> None:
    """Every second value is that of the strided stage: rate 2 from where it had stride 2."""
    stage, x = stage_of(), filled_input((2, 6, *size))
    dense = dilate_stage(copy.deepcopy(stage), (1, 2, 2))(x)
    assert dense.shape[2:] == size
    # Blocks of 8 + 1, 2 * 9, 6 (normalisation), 4 + 1 and 1 (shortcut) roundings.
    assert_same_sums(dense[..., ::2, ::2], stage(x), positive(stage)(x.abs()), 3 * 39)


def test_rates_of_a_stage() -> None:
    stage = stage_of().train()
    parameters, keys = list(stage.parameters()), list(stage.state_dict())
    assert dilate_stage(stage, multi_grid(2)) is stage
    assert all(a is b for a, b in zip(stage.parameters(), parameters, strict=True))
    assert list(stage.state_dict()) == keys
    convs = [block.conv2 for block in stage]
    assert [type(conv) for conv in convs] == [DilatedConv2d] * 3
    assert [conv.dilation for conv in convs] == [(2, 2), (4, 4), (8, 8)]
    assert all(conv.training for conv in convs)
    ones = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [type(m) for m in ones] == [nn.Conv2d] * 7
    assert {m.stride for m in [*ones, *convs]} == {(1, 1)}
    dilate_stage(stage, (1, 2, 3))  # and again
    assert [block.conv2.dilation for block in stage] == [(1, 1), (2, 2), (3, 3)]


def test_a_convolution_may_be_a_block() -> None:
    stage = nn.Sequential(nn.Conv2d(4, 4, (3, 5), 2, padding=1, padding_mode="reflect"))
    dilate_stage(stage, [3])
    assert stage[0].padding == (3, 6)
    assert stage[0].padding_mode == "reflect"
    assert stage(torch.ones(1, 4, 11, 13)).shape == (1, 4, 11, 13)


@pytest.mark.parametrize(
    ("block", "rates", "error", "message"),
    [
        (nn.Conv2d(4, 4, 3), (1, 2), ValueError, "^rates must be 1, one for each block; got 2"),
        (nn.Conv2d(4, 4, 3), 2, TypeError, "^rates must be a list of integers, got int 2"),
        (nn.Conv2d(4, 4, 3), (0,), ValueError, "^rates must be at least 1, got 0"),
        (nn.Conv2d(4, 4, (2, 3)), (2,), ValueError, r"^0 has an even kernel, \(2, 3\)"),
        (nn.MaxPool2d(2), (2,), ValueError, "^0 has a stride and is no convolution: MaxPool2d"),
        (nn.ConvTranspose2d(4, 4, 2, 2), (2,), ValueError, "^0 has a stride and is no convolution"),
        (Blur(), (2,), ValueError, "^0 has a stride and is no convolution: Blur"),
        (nn.LazyConv2d(4, 3), (2,), TypeError, "^0 must be a torch.nn.Conv2d, got LazyConv2d"),
    ],
)
def test_stages_that_are_refused(
    block: nn.Module, rates: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dilate_stage(nn.Sequential(block), rates)


def test_a_refused_stage_is_not_changed() -> None:
    stage = nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"^1 has a stride and is no convolution"):
        dilate_stage(stage, (2, 2))
    assert type(stage[0]) is nn.Conv2d
    assert stage[0].stride == (2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multi_grid(0), "^rate must be at least 1, got 0"),
        (lambda: multi_grid(2, (1, 0)), "^units must be at least 1, got 0"),
    ],
)
def test_multi_grid_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_would_be_lost_is_refused() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    twice = nn.Sequential(nn.Sequential(shared, nn.ReLU(), shared))
    with pytest.raises(ValueError, match=r"stage must not use \d twice"):
        dilate_stage(twice, [2])
    assert twice[0][0] is shared
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    stage = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), normed)
    before = stage[0]
    with pytest.raises(TypeError, match=r"1 must be a torch\.nn\.Conv2d, got"):
        dilate_stage(stage, [2, 4])
    assert stage[0] is before
    hooked = nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="conv must be a plain convolution, got one with hooks"):
        DilatedConv2d.from_conv(hooked)


def test_one_node_of_a_symbolic_trace() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    dilate_stage(net, [2, 4])
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_scripts(mode: str) -> None:
    """By PyTorch's convolution."""
    conv = build(DilatedConv2d, kernel_size=3, padding=2, dilation=2, padding_mode=mode)
    x = filled_input((2, 6, 9, 9))
    assert_same_sums(torch.jit.script(conv)(x), conv(x), positive(conv)(x.abs()), TERMS)
