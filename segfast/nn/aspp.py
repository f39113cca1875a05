"""Atrous spatial pyramid pooling: DeepLab's convolutions of one map at several rates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segfast.nn._shared import chosen, require_map, wide
from segfast.nn.dilated_conv import DilatedConv2d, SeparableDilatedConv2d, all_dilated
from segfast.ops import _check, atrous_pyramid2d

# Chen et al., "DeepLab", TPAMI 2018, section 4.1.2: ASPP-S and ASPP-L.
ASPP_RATES = {"S": (2, 4, 8, 12), "L": (6, 12, 18, 24)}


class ASPP(nn.Module):
    r"""DeepLab v3's pyramid: 1 x 1, 3 x 3 at several rates, image pooling, side by side, projected.

        y = act(P [act(W_0 x), act(W_1 *_{r_1} x), ..., act(W_p mean(x))])

    with act a batch normalisation and ReLU. Chen et al., "Rethinking Atrous Convolution for
    Semantic Image Segmentation", 2017, section 3.3; with `separable`, DeepLab v3+ ("Encoder-Decoder
    with Atrous Separable Convolution", ECCV 2018, section 3.1).

    In evaluation, where no gradient is wanted, the normalisations are folded: all branches are
    one `segfast.ops.atrous_pyramid2d`, and the pooled branch, the same everywhere, is projected
    once per image. Hooks on the submodules are not called then.

    Args:
        in_channels: C of x.
        rates: (6, 12, 18) at output stride 16 and (12, 24, 36) at 8, as published.
        out_channels: of every branch and of y.
        separable: the 3 x 3 convolutions are :class:`SeparableDilatedConv2d`; "act" puts act
            between their two parts as well, as mmseg does.
        dropout: probability in training, after the projection.
        image_pooling: whether there is the branch of mean(x).
        pooled_first: in the projection's input it comes before the others, as in mmseg.
        projection: kernel size of P; 3 in mmseg.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [N, C, H, W] -> y [N, out_channels, H, W]. In training N > 1, or the normalisation of the
        pooled branch has one value and refuses. State as published by torchvision
        (convs.i.j, project.i) and, with `separable`, by segmentation_models.pytorch; the pooled
        branch is the last of convs wherever the projection sees it.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import ASPP
        >>> aspp = ASPP(64, rates=(12, 24, 36), out_channels=32).eval()
        >>> aspp(torch.randn(1, 64, 33, 33)).shape
        torch.Size([1, 32, 33, 33])
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (6, 12, 18),
        out_channels: int = 256,
        separable: bool | str = False,
        dropout: float = 0.5,
        *,
        image_pooling: bool = True,
        pooled_first: bool = False,
        projection: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels = _check.require_count("in_channels", in_channels, 1)
        out_channels = _check.require_count("out_channels", out_channels, 1)
        rates = _check.require_counts("rates", rates)
        if separable not in (True, False, "act"):
            raise TypeError(
                f"separable must be True, False or 'act', got {_check.describe(separable)}"
            )
        _check.require_bool("image_pooling", image_pooling)
        _check.require_bool("pooled_first", pooled_first)
        projection = _check.require_count("projection", projection, 1)
        if projection % 2 == 0:
            raise ValueError(f"projection must be odd, got {projection}")
        self.in_channels = in_channels
        self.image_pooling, self.pooled_first = image_pooling, pooled_first
        factory: Any = {"device": device, "dtype": dtype}

        def atrous(rate: int) -> nn.Module:
            kind = SeparableDilatedConv2d if separable else DilatedConv2d
            options = {"padding": rate, "dilation": rate, "bias": False, **factory}
            if separable == "act":
                options |= {"batch_norm": True, "activation": "relu"}
            return kind(in_channels, out_channels, 3, **options)

        def pointwise(channels: int) -> nn.Module:
            return nn.Conv2d(channels, out_channels, 1, bias=False, **factory)

        def normalized(conv: nn.Module) -> tuple[nn.Module, ...]:
            return conv, nn.BatchNorm2d(out_channels, **factory), nn.ReLU()

        branches = [normalized(conv) for conv in (pointwise(in_channels), *map(atrous, rates))]
        if image_pooling:
            branches.append((nn.AdaptiveAvgPool2d(1), *normalized(pointwise(in_channels))))
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        width = len(branches) * out_channels
        options = {"padding": projection // 2, "bias": False, **factory}
        project = nn.Conv2d(width, out_channels, projection, **options)
        self.project = nn.Sequential(*normalized(project), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, out_channels, H, W]."""
        first: Any = self.convs[0]
        require_map(x, self.in_channels, getattr(first[0], "weight", None))
        if self._folds(x):
            return self._folded(x)
        branches: Any = self.convs
        if not self.image_pooling:
            return self.project(torch.cat([branch(x) for branch in branches], 1))
        local = [branch(x) for branch in branches[:-1]]
        return self.project(self._beside(local, self._pooled(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, c, 1, 1]."""
        branches: Any = self.convs
        norm = branches[-1][-2]
        if type(norm) is nn.BatchNorm2d and norm.training and x.shape[0] == 1:
            raise ValueError(
                "x must be [N, C, H, W] with N > 1 in training: the pooled branch's normalisation "
                f"needs more than 1 value per channel, got {_check.describe(x)}"
            )
        return branches[-1](x)

    def _beside(self, local: list[Tensor], pooled: Tensor) -> Tensor:
        """[N, c, H, W] of each branch and [N, c, 1, 1], side by side as the projection wants."""
        pooled = pooled.expand(-1, -1, *local[0].shape[-2:])
        return torch.cat([pooled, *local] if self.pooled_first else [*local, pooled], 1)

    def _folds(self, x: Tensor) -> bool:
        """Whether it is as built, normalisations are fixed factors and summands, nothing learns."""
        if self.training or learns(x, self) or torch.jit.is_tracing():
            return False  # (a trace is of one graph, with gradients or without)
        branches: Any = self.convs
        local = branches[:-1] if self.image_pooling else branches
        first, *atrous = (branch[0] for branch in local)
        pairs = atrous if all(isinstance(c, SeparableDilatedConv2d) for c in atrous) else []
        pointwise = [first, *(pair[-1] for pair in pairs), self.project[0]]
        plain = all(type(conv) is nn.Conv2d and conv.bias is None for conv in pointwise)
        plain &= all_dilated([pair[0] for pair in pairs] or atrous)
        rectified = all(type(branch[-1]) is nn.ReLU for branch in (*branches, self.project[:3]))
        norms = [*(branch[-2] for branch in branches), self.project[1]]
        return plain and rectified and all(map(is_fixed, norms))

    def _folded(self, x: Tensor) -> Tensor:
        branches: Any = self.convs
        local = branches[:-1] if self.image_pooling else branches
        scale, shift = folded([branch[1] for branch in local])
        convs = [branch[0] for branch in local]
        if any(isinstance(conv, SeparableDilatedConv2d) for conv in convs):
            factors = zip(scale.chunk(len(convs)), shift.chunk(len(convs)), strict=True)
            parts = [_separable(x, c, a, b) for c, (a, b) in zip(convs, factors, strict=True)]
            y = torch.cat(parts, 1)
        else:
            weights, biases = [c.weight for c in convs], [c.bias for c in convs]
            rates = [c.dilation[0] for c in convs]
            y = atrous_pyramid2d(x, weights, biases, rates, scale, shift, "relu")
        scale, shift = folded([self.project[1]])
        project: Any = self.project[0]
        weight = _scaled(project.weight, scale)
        shift = shift.to(weight.dtype)
        if not self.image_pooling:
            return F.conv2d(y, weight, shift, padding=project.padding).relu_()
        pooled = self._pooled(x)
        if project.kernel_size != (1, 1):
            return F.conv2d(
                self._beside([y], pooled), weight, shift, padding=project.padding
            ).relu_()
        # [P_y, P_p] [y, p] = P_y y + P_p p, and p is the same at every position.
        if self.pooled_first:
            of_image, of_map = weight.tensor_split([pooled.shape[1]], 1)
        else:
            of_map, of_image = weight.tensor_split([y.shape[1]], 1)
        image = F.conv2d(pooled, of_image, shift)  # [N, O, 1, 1]
        return (F.conv2d(y, of_map) + image).relu_()


class ASPPv2(nn.Module):
    """DeepLab v2's pyramid: 3 x 3 classifiers at several rates, summed.

        y = sum_b (W_b *_{r_b} x + b_b)

    Chen et al., "DeepLab", TPAMI 2018, section 3.2, as its ResNet-101 has it. The branches are one
    `segfast.ops.atrous_pyramid2d`: hooks on the submodules are not called, unless one of them is
    no :class:`DilatedConv2d` any more.

    Args:
        in_channels: C of x.
        classes: channels of y.
        rates: "L" (6, 12, 18, 24), "S" (2, 4, 8, 12), or the rates.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [N, C, H, W] -> y [N, classes, H, W]. State as published: c0, c1, ... (weight and bias);
        weights start as N(0, 0.01), biases as zero.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import ASPPv2
        >>> ASPPv2(64, 21)(torch.randn(1, 64, 41, 41)).shape
        torch.Size([1, 21, 41, 41])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        rates: str | Sequence[int] = "L",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels = _check.require_count("in_channels", in_channels, 1)
        classes = _check.require_count("classes", classes, 1)
        self.in_channels, self.rates = in_channels, chosen("rates", rates, ASPP_RATES)
        for i, rate in enumerate(self.rates):
            conv = DilatedConv2d(
                in_channels, classes, 3, padding=rate, dilation=rate, device=device, dtype=dtype
            )
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"c{i}", conv)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, classes, H, W]."""
        convs: list[Any] = list(self.children())
        require_map(x, self.in_channels, convs[0].weight)
        if not all_dilated(convs):
            return functools.reduce(torch.add, (conv(x) for conv in convs))
        weights, biases = [c.weight for c in convs], [c.bias for c in convs]
        y = atrous_pyramid2d(x, weights, biases, self.rates)
        return functools.reduce(torch.add, y.chunk(len(convs), 1))


# ------------------------------------------------------------------------------ folding


def learns(x: Tensor, module: nn.Module) -> bool:
    """Whether gradients of x or of a parameter are wanted."""
    return torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in module.parameters())
    )


def is_fixed(norm: nn.Module) -> bool:
    """Whether it is a batch normalisation by recorded statistics, with a learned scale."""
    recorded = isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.affine
    return recorded and not norm.training


def folded(norms: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """gamma / sqrt(var + eps) and beta - mean scale, in float32 or wider."""
    gamma, beta, mean = (
        wide(torch.cat([getattr(norm, name) for norm in norms]))
        for name in ("weight", "bias", "running_mean")
    )
    var = torch.cat([wide(norm.running_var) + norm.eps for norm in norms])
    scale = gamma * var.rsqrt()
    return scale, beta - mean * scale


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [O, ...] times scale [O], rounded once."""
    return (weight.to(scale.dtype) * scale[:, None, None, None]).to(weight.dtype)


def _separable(x: Tensor, conv: Any, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(scale (conv x) + shift) of a 1 x 1 or separable convolution without bias."""
    steps: list[Any] = list(conv) if isinstance(conv, SeparableDilatedConv2d) else [conv]
    *before, pointwise = steps
    for step in before:
        x = step(x)
    weight = _scaled(pointwise.weight, scale)
    return F.conv2d(x, weight, shift.to(weight.dtype)).relu_()
