"""MANet, MAResU-Net, ABCNet: their blocks equal the published ones; sizes those cannot take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import ABCNet, MANet, MAResUNet, SegmentationModel, create_model
from segfast.models._attention_unet import DecoderBlock, joined
from segfast.models.abcnet import AttentionEnhancement, FeatureAggregation
from segfast.models.layouts.abcnet import LIRONUI
from segfast.models.maresunet import AttentionBlock
from segfast.nn import LinearAttention2d
from tests.fingerprints import assert_reproduces, fill, read
from tests.models.golden import parameters


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(x.shape) for key, x in module.state_dict().items()}


# ------------------------------------------------------------------------------ blocks


def test_decoder_block() -> None:
    assert_reproduces(DecoderBlock(64, 32), "mod_manet_DecoderBlock_64_32")


def test_attention_enhancement() -> None:
    published = read("state_dicts", "mod_abcnet_AEM_64_32")
    renamed = {str(LIRONUI.key(key)): key for key in published}
    assert_reproduces(AttentionEnhancement(64, 32), "mod_abcnet_AEM_64_32", renamed=renamed)


def test_feature_aggregation() -> None:
    """What it computes is part of ABCNet's fingerprints."""
    module = FeatureAggregation(128, 64)
    assert shapes(module) == LIRONUI.apply(read("state_dicts", "mod_abcnet_FAM_128_64"))
    assert parameters(module) == 13_521


def test_attention_block_of_maresunet() -> None:
    module = AttentionBlock(64)
    assert shapes(module) == read("state_dicts", "mod_maresunet_PAM_CAM_Layer_64")
    assert parameters(module) == 54_610


def test_abcnet_without_auxiliary_heads() -> None:
    with torch.device("meta"):
        assert parameters(create_model("abcnet_resnet18", aux=False)) == 13_426_947


@torch.no_grad()
def test_auxiliary_heads_of_abcnet() -> None:
    """On the contexts of strides 8 and 16; pixel (r i + a, r j + b) has channel r a + b."""
    model = ABCNet(num_classes=2).eval()
    seen: dict[str, Tensor] = {}
    for name in ("conv_head16", "conv_head32"):
        module = model.cp.get_submodule(name)
        module.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    _, aux = model(torch.randn(1, 3, 64, 96), return_aux=True)
    for name, head, r in (("16", model.conv_out16, 8), ("32", model.conv_out32, 16)):
        assert head is not None
        y = head.conv_out(head.conv(seen[f"conv_head{name}"]))  # [1, 2 r^2, 64 / r, 96 / r]
        y = y.view(1, 2, r, r, 64 // r, 96 // r).permute(0, 1, 4, 2, 5, 3)
        torch.testing.assert_close(aux[f"aux_{name}"], y.reshape(1, 2, 64, 96))


# ------------------------------------------------------------------------------ any size


def quadratic(module: LinearAttention2d, x: Tensor) -> Tensor:
    """The module by its N x N weights, position by position of the flattened map."""
    q, k, v = (
        (conv.weight[:, :, 0, 0] @ x.reshape(len(x), x.shape[1], -1)) + conv.bias[:, None]
        for conv in (module.query_conv, module.key_conv, module.value_conv)
    )  # [B, D, N] twice, [B, C, N]
    if module.feature_map == "softplus":
        q, k = F.softplus(q), F.softplus(k)
        similar = torch.einsum("bdn,bdj->bnj", q, k)
        total = similar.sum(2) + module.eps * q.sum(1)
    else:
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        similar = 1 + torch.einsum("bdn,bdj->bnj", q, k)
        total = similar.sum(2) + module.eps * q.sum(1)
    y = torch.einsum("bnj,bcj->bcn", similar / total[:, :, None], v).reshape(x.shape)
    return module.gamma * y + (x if module.residual else 0)


NETS = [
    (MANet, {"num_classes": 3, "depth": 18}),
    (MAResUNet, {"num_classes": 3, "depth": 18}),
    (ABCNet, {"num_classes": 3}),
]


@pytest.mark.parametrize(("build", "options"), NETS, ids=["manet", "maresunet", "abcnet"])
@torch.no_grad()
def test_maps_that_are_not_square(
    build: type[SegmentationModel], options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code wants H = W, and multiples of 32."""
    model = build(in_channels=2, **options).double().eval()  # type: ignore[arg-type]
    fill(model, {key: key for key in model.state_dict()})
    x = torch.randn(2, 2, 45, 75, dtype=torch.float64)
    y, aux = model(x, return_aux=True)
    monkeypatch.setattr(LinearAttention2d, "forward", quadratic)
    expected, expected_aux = model(x, return_aux=True)
    assert y.shape == (2, 3, 45, 75)
    # 1e-9: what a whole network may differ by from its published code in float64
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    assert list(aux) == (["aux_16", "aux_32"] if build is ABCNet else [])
    for name, z in aux.items():
        assert z.shape == y.shape
        torch.testing.assert_close(z, expected_aux[name], rtol=1e-9, atol=1e-9)


def test_joined_is_a_transposed_convolution_of_the_size_of_the_skip() -> None:
    """What is cut off is what `output_padding` of the transposed convolution had added."""
    block = DecoderBlock(8, 4).double().eval()
    x, skip = torch.randn(1, 8, 3, 4).double(), torch.zeros(1, 4, 5, 8).double()
    found = joined(block(x), skip)
    block.deconv2.output_padding = (0, 1)
    torch.testing.assert_close(found, block(x))
    assert found.shape == skip.shape


@torch.no_grad()
def test_contexts_of_odd_maps_are_repeated_pixels() -> None:
    """ABCNet doubles by repetition: of an odd map the last repetition is cut off."""
    y = torch.randn(1, 1, 4, 7)
    doubled = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(F.interpolate(y, (7, 13)), doubled[..., :7, :13])


def test_abcnet_refuses_one_image_in_training() -> None:
    model = ABCNet(num_classes=2)
    with pytest.raises(ValueError, match=r"^x must be .* N > 1 in training.*\(1, 3, 64, 64\)"):
        model(torch.randn(1, 3, 64, 64))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()  # frozen statistics
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)
