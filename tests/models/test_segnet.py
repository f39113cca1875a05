"""SegNet without weights: against PyTorch's pools at odd sizes, and what sampling it must give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import SegNet, SegNetBasic, create_model


def twin(model: SegNet | SegNetBasic, x: Tensor, ceil: bool) -> Tensor:
    """The same network by PyTorch's functions, from the state alone."""
    state = model.state_dict()

    def layer(name: str, x: Tensor, eps: float) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)
        if f"{name}_bn.weight" not in state:
            return x
        mean, var, scale, shift = (
            state[f"{name}_bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, scale, shift, eps=eps)
        return x if "conv_decode" in name else F.relu(x)

    eps = 1e-9 if ceil else 1e-5
    if basic := "classifier.weight" in state:
        x = F.local_response_norm(x, 5, 1e-4, 0.75)
        down = [[f"encoder.{i}.conv{i}"] for i in range(1, 5)]
        up = [[f"decoder.{i}.conv_decode{i}"] for i in range(1, 5)]
    else:
        counts = (2, 2, 3, 3, 3)
        down = [[f"backbone.conv{i}_{j + 1}" for j in range(n)] for i, n in enumerate(counts, 1)]
        up = [[f"decoder.{i}.conv{i}_{n - j}_D" for j in range(n)] for i, n in enumerate(counts, 1)]
    pools = []
    for names in down:
        for name in names:
            x = layer(name, x, eps)
        size = x.shape[-2:]
        x, indices = F.max_pool2d(x, 2, ceil_mode=ceil, return_indices=True)
        pools.append((indices, size))
    for names, (indices, size) in zip(reversed(up), reversed(pools), strict=True):
        x = F.max_unpool2d(x, indices, 2, output_size=size)
        for name in names:
            x = layer(name, x, eps)
    return layer("classifier", x, eps) if basic else x


def with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation mode, in float64, after a training step: no normalisation is the identity."""
    model.double().train()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "layout"),
    [("segnet", "caffe"), ("segnet", "ptsemseg"), ("segnet_basic", "caffe")],
)
def test_is_what_pytorchs_functions_make_at_odd_sizes(name: str, layout: str) -> None:
    torch.manual_seed(0)
    model = with_statistics(create_model(name, num_classes=5, layout=layout))
    x = torch.randn(1, 3, 45, 61, dtype=torch.float64)
    with torch.no_grad():
        y, want = model(x), twin(model, x, ceil=layout == "caffe")
    assert y.shape == (1, 5, 45, 61)
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12 * want.abs().max().item())


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("bayesian_segnet", "encdrop.2 encdrop.3 encdrop.4 decoder.5 decoder.4 decoder.3"),
        ("bayesian_segnet_basic", "encdrop.2 encdrop.3 decoder.4 decoder.3"),
    ],
)
def test_where_dropout_is(name: str, places: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    found = [n for n, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert [n.partition(".decdrop")[0] for n in found] == places.split()
    for stage in model.decoder:  # behind all else of its stage
        assert all(not isinstance(layer, nn.Dropout) for layer in list(stage)[:-1])


def test_a_prediction_is_mean_and_variance_of_samples() -> None:
    torch.manual_seed(1)
    model = with_statistics(create_model("bayesian_segnet_basic"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    torch.manual_seed(2)
    mean, variance = model.predict(x, samples=5)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    torch.manual_seed(2)
    with torch.no_grad():
        p = torch.stack([model(x).softmax(1) for _ in range(5)])
    torch.testing.assert_close(mean, p.mean(0))
    torch.testing.assert_close(variance, p.var(0, correction=0).mean(1))
    assert variance.min() > 0


def test_without_dropout_there_is_no_variance() -> None:
    model = create_model("segnet_basic").eval()
    x = torch.randn(1, 3, 16, 24)
    mean, variance = model.predict(x, samples=3)
    assert torch.equal(variance, torch.zeros(1, 16, 24))
    with torch.no_grad():
        torch.testing.assert_close(mean, model(x).softmax(1))


def test_refusals() -> None:
    model = create_model("segnet_basic")
    with pytest.raises(ValueError, match="samples must be at least 1"):
        model.predict(torch.randn(1, 3, 16, 16), samples=0)
    with pytest.raises(ValueError, match="layout must be one of caffe, ptsemseg, yassouali"):
        SegNet(layout="keras")
