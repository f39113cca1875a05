"""ContextModule is Yu and Koltun's: an identity at first, with the receptive fields of table 1."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.nn import CONTEXT_DILATIONS, ContextModule
from segfast.nn.context import multipliers
from segfast.ops import context_module2d
from tests.fingerprints import fill, filled_input
from tests.nn.sums import assert_same_sums, positive, with_gradients

SIZES = pytest.mark.parametrize("size", ["basic", "large"])
EVERY_PRESET = pytest.mark.parametrize("dilations", CONTEXT_DILATIONS)


def formula(module: Any, x: Tensor) -> Tensor:
    for i, (conv, rate) in enumerate(zip(module.convs, module.dilations, strict=True)):
        padding = conv.weight.shape[-1] // 2 * rate
        x = F.conv2d(x if i == 0 else x.relu(), conv.weight, conv.bias, 1, padding, rate)
    return x


# ------------------------------------------------------------------------------ identity


@EVERY_PRESET
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_basic_is_exactly_the_identity(dilations: str, dtype: torch.dtype) -> None:
    module = ContextModule(5, "basic", dilations, noise=0.0).to(dtype)
    x = filled_input((2, 5, 23, 17)).abs().to(dtype)
    assert torch.equal(module(x), x)


@EVERY_PRESET
def test_large_is_the_identity(dilations: str) -> None:
    """Means of up to 128 equal numbers: exact in float64 where these have float32's 24 bits.

    In float32 itself partial sums are rounded: once per member and layer, at most.
    """
    module = ContextModule(3, "large", dilations, noise=0.0)
    x = filled_input((1, 3, 23, 17)).abs().float()
    layers = len(module.convs)
    members = max(conv.weight.shape[1] for conv in module.convs) // 3  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(module(x), x, rtol=layers * members * 2**-24, atol=0)
    assert torch.equal(module.double()(x.double()), x.double())


@SIZES
def test_padding_before_the_first_layer(size: str) -> None:
    """No layer sees zeros for what the one before made of them: as inside a larger map."""
    torch.manual_seed(0)
    module = ContextModule(3, size, (1, 1, 2), padding="first").double()
    each = ContextModule(3, size, (1, 1, 2)).double()
    for conv in module.convs:
        conv.bias.data.normal_()
    each.load_state_dict(module.state_dict())
    x = filled_input((2, 3, 11, 13))
    y = module(x)
    torch.testing.assert_close(y, each(F.pad(x, (4,) * 4))[..., 4:-4, 4:-4])
    torch.testing.assert_close(y[..., 4:-4, 4:-4], each(x)[..., 4:-4, 4:-4])
    assert (y - each(x)).abs().max() > 1e-3  # biases, behind padding
    assert "padding='first'" in repr(module)


def test_padding_before_the_first_layer_keeps_the_identity() -> None:
    module = ContextModule(5, noise=0.0, padding="first")
    x = filled_input((2, 5, 23, 17)).abs().float()
    assert torch.equal(module(x), x)


@SIZES
def test_what_is_negative_is_cut_off(size: str) -> None:
    module = ContextModule(3, size, noise=0.0).double()
    x = filled_input((1, 3, 9, 9)).float().double()
    assert torch.equal(module(x), x.relu())


@SIZES
def test_weights_of_the_identity(size: str) -> None:
    """Equation 5 of the paper, channel by channel; N(0, (noise C / C_i)^2) elsewhere."""
    torch.manual_seed(1)
    classes = 6
    module = ContextModule(classes, size, noise=0.02)
    for conv in module.convs:
        weight: Tensor = conv.weight.detach().clone()  # type: ignore[operator, union-attr, assignment]
        outputs, inputs, k, _ = weight.shape
        centre = weight[:, :, k // 2, k // 2]
        for b in range(outputs):
            for a in range(inputs):
                if a * classes // inputs == b * classes // outputs:
                    assert centre[b, a] == torch.tensor(classes / outputs)
                    centre[b, a] = float("nan")
        noise = weight[~weight.isnan()] * outputs / classes / 0.02
        assert weight.isnan().sum() == max(outputs, inputs) * min(outputs, inputs) // classes
        assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
        assert abs(noise.square().mean() - 1) < 4 * (2 / noise.numel()) ** 0.5
        assert not conv.bias.any()  # type: ignore[operator, union-attr]


def test_random_initialisation_is_that_of_conv2d() -> None:
    torch.manual_seed(1)
    module = ContextModule(4, initialization="random")
    torch.manual_seed(1)
    for conv in module.convs:
        plain = torch.nn.Conv2d(4, 4, conv.weight.shape[-1])  # type: ignore[union-attr, index, arg-type]
        assert torch.equal(conv.weight, plain.weight)  # type: ignore[arg-type]
        assert torch.equal(conv.bias, plain.bias)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ the module


def test_receptive_fields() -> None:
    """Of every layer, by the gradient of its middle value: weights of ones pass everything."""
    module = ContextModule(1, initialization="random").double()
    weights = [torch.ones_like(conv.weight) for conv in module.convs]  # type: ignore[arg-type]
    found = []
    for layers in range(1, len(weights) + 1):
        x = torch.ones(1, 1, 81, 81, dtype=torch.float64, requires_grad=True)
        y = context_module2d(x, weights[:layers], None, module.dilations[:layers])
        y[0, 0, 40, 40].backward()
        assert x.grad is not None
        seen = x.grad[0, 0] != 0
        reached = seen.any(1).nonzero().flatten()
        size = int(reached[-1] - reached[0]) + 1
        assert reached[0] + reached[-1] == 80  # around the middle
        assert seen.sum() == size**2  # a full square
        found.append(size)
    assert found == [3, 5, 9, 17, 33, 65, 67, 67]


@pytest.mark.parametrize(("size", "count"), [("basic", 28392), ("large", 6803139)])
def test_counts_of_parameters(size: str, count: int) -> None:
    with torch.device("meta"):
        module = ContextModule(21, size, initialization="random")
    assert sum(p.numel() for p in module.parameters()) == count


def test_presets() -> None:
    assert ContextModule(2).dilations == (1, 1, 2, 4, 8, 16, 1, 1)
    assert ContextModule(2, dilations="camvid").dilations == ContextModule(2).dilations
    cityscapes = ContextModule(19, dilations="cityscapes")
    assert cityscapes.dilations == (1, 1, 2, 4, 8, 16, 32, 64, 1, 1)
    assert sum(p.numel() for p in cityscapes.parameters()) == 9 * 3268 + 380  # as released
    kitti = ContextModule(11, dilations="kitti")
    assert kitti.dilations == (1, 1, 2, 4, 8, 1, 1)
    assert sum(p.numel() for p in kitti.parameters()) == 6 * 1100 + 132
    assert multipliers("large", (1, 1, 2, 4, 8, 16, 1)) == [2, 2, 4, 8, 16, 32, 32]
    assert ContextModule(2, dilations=[1, 3]).dilations == (1, 3, 1)


@SIZES
def test_is_its_formula(size: str) -> None:
    """Values and gradients."""
    module = ContextModule(3, size, (1, 2, 5)).double()
    fill(module, {key: key for key in module.state_dict()})
    x, up = filled_input((2, 3, 11, 14)), filled_input((2, 3, 11, 14)).flip(2)
    big, parameters = positive(module), list(module.parameters())
    found = with_gradients(module, x, parameters, up)
    expected = with_gradients(lambda x: formula(module, x), x, parameters, up)
    sizes = with_gradients(big, x.abs(), list(big.parameters()), up.abs())
    layers = sum(conv.weight[0].numel() + 1 for conv in module.convs)  # type: ignore[union-attr, index, misc, operator, arg-type]
    assert_same_sums(found[0], expected[0], sizes[0], layers)
    # A gradient's products went forth, back (9 taps of as many channels as follow) and into a sum.
    channels = max(conv.weight.shape[0] for conv in module.convs)  # type: ignore[union-attr, index]
    back = 9 * channels * len(module.convs)
    assert_same_sums(found[1:], expected[1:], sizes[1:], layers + back + 2 * 11 * 14)


@SIZES
def test_copies_and_state(size: str) -> None:
    module, x = ContextModule(3, size), filled_input((1, 3, 9, 9)).float()
    y = module(x)
    assert torch.equal(copy.deepcopy(module)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), y)
    other = ContextModule(3, size)
    assert not torch.equal(other(x), y)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), y)
    keys = [f"convs.{i}.{name}" for i in range(8) for name in ("weight", "bias")]
    assert list(module.state_dict()) == keys


def test_compiles() -> None:
    torch.compiler.reset()
    module, x = ContextModule(3), filled_input((1, 3, 9, 9)).float()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_description() -> None:
    start = "ContextModule(\n  3, size='basic', dilations=(1, 1, 2, 4, 8, 1)"
    assert repr(ContextModule(3, dilations="kitti")).startswith(start)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 0}, ValueError, "^classes must be at least 1, got 0"),
        ({"size": "medium"}, ValueError, "^size must be one of basic, large; got str 'medium'"),
        ({"dilations": "voc"}, ValueError, "^dilations must be one of pascal, camvid, citysc"),
        ({"dilations": (1, 0)}, ValueError, "^dilations must be at least 1, got 0"),
        ({"dilations": 2}, TypeError, "^dilations must be a list of integers, got int 2"),
        ({"padding": "same"}, ValueError, "^padding must be one of each, first"),
        ({"initialization": "zero"}, ValueError, "^initialization must be one of identity, rand"),
        ({"noise": -1}, ValueError, "^noise must be finite and not negative, got -1"),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextModule(**{"classes": 4, **options})


def test_input_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^x must be \[B, 4, H, W\], got .*\(1, 5, 9, 9\)"):
        ContextModule(4)(torch.ones(1, 5, 9, 9))
    with pytest.raises(TypeError, match=r"^x must have the dtype of the module, "):
        ContextModule(4)(torch.ones(1, 4, 9, 9).half())
