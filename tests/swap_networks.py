"""Modules such as people have them, written from their equations, with the published names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segfast.ops._function import observed_by


def conv_bn_relu(inputs: int, outputs: int, kernel: int, rate: int = 1) -> list[nn.Module]:
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Pooling(nn.Sequential):
    """The mean of a map, spread over it again."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for layer in self:
            x = layer(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """DeepLab v3's pyramid with the names of torchvision, and of smp where it is separable."""

    def __init__(self, inputs: int = 6, outputs: int = 4, separable: bool = False) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_bn_relu(inputs, outputs, 1))]
        for rate in (2, 3):
            conv, *rest = conv_bn_relu(inputs, outputs, 3, rate)
            if separable:
                depthwise = nn.Conv2d(inputs, inputs, 3, 1, rate, rate, groups=inputs, bias=False)
                conv = nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))
            branches.append(nn.Sequential(conv, *rest))
        branches.append(Pooling(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs, 1)))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_bn_relu(4 * outputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class ASPPWithInput(ASPP):
    """Looks like it, but adds the first branch once more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.convs[0](x)


class SumASPP(nn.Module):
    """DeepLab v2's pyramid with the names of kazuto1011."""

    def __init__(self, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        for i, rate in enumerate((2, 3)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
            self.add_module(f"c{i}", conv)

    def forward(self, x: Tensor) -> Tensor:
        return sum(conv(x) for conv in self.children())


class ProductASPP(SumASPP):
    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) * self.c1(x)


class HeadASPP(nn.Module):
    """A pyramid with the names of mmseg: known, but not under keys that segfast's has."""

    def __init__(self, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.image_pool = Pooling(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs, 1))
        branches = [nn.Sequential(*conv_bn_relu(inputs, outputs, 3, rate)) for rate in (1, 2, 3)]
        self.aspp_modules = nn.ModuleList(branches)
        self.bottleneck = nn.Sequential(*conv_bn_relu(4 * outputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.image_pool(x), *(branch(x) for branch in self.aspp_modules)]
        return self.bottleneck(torch.cat(maps, 1))


class Attention(nn.Module):
    """Attention between positions by its N x N similarities; names as published."""

    def __init__(self, kind: str, residual: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.kind, self.residual, self.eps = kind, residual, eps
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)
        self.query_conv, self.key_conv = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)
        self.value_conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.query_conv(x).flatten(2), self.key_conv(x).flatten(2)  # [B, D, N]
        v = self.value_conv(x).flatten(2)  # [B, C, N]
        if self.kind == "softmax":
            weights = self.softmax(q.mT @ k)  # [B, N, N]
        else:
            phi = F.normalize if self.kind == "taylor" else F.softplus
            q, k = phi(q), phi(k)
            similarity = q.mT @ k + (self.kind == "taylor")
            eps = self.eps * q.sum(1).unsqueeze(-1)  # [B, N, 1]
            weights = similarity / (similarity.sum(-1, keepdim=True) + eps)
        y = self.gamma * (v @ weights.mT).view_as(x)
        return x + y if self.residual else y


class SegNet(nn.Module):
    """Two stages down with indices, two up."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2, return_indices=True, **options)
        self.pool2 = nn.MaxPool2d(2, 2, return_indices=True)
        self.unpool1, self.unpool2 = nn.MaxUnpool2d(2), nn.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Any:
        a, first = self.pool1(self.conv1(x))
        b, second = self.pool2(self.conv2(a))
        return self.unpool1(self.up(b, second, a), first, output_size=x.shape)

    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return self.unpool2(b, second, output_size=a.size())


class Net(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.segnet = SegNet()
        self.stem = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.MaxPool2d(3, 2, 1))
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=4, dilation=4, groups=6)
        self.attention = Attention("taylor")
        self.aspp, self.classifier = ASPP(), SumASPP(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.segnet(x))
        return self.classifier(self.aspp(self.attention(self.depthwise(self.dilated(x).relu()))))


def filled(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random numbers also where a module starts as zero or one (gamma, batch norm)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype.is_floating_point and tensor.dim() < 2:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in float64 but for the order of sums: a thousand terms through ten layers, 1e-12."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-12 * a.abs().max())


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """y, and the gradients of x and of the parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


class Operators(TorchDispatchMode):
    """What is called while it is entered; kernels of ours appear as operators.

    Convolutions are planned inside their operator then, as for a compiler.
    """

    device = None  # asked by what it observes

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __enter__(self) -> Operators:
        self._observed = observed_by(self)
        self._observed.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._observed.__exit__(*error)

    def together(self, count: int, plan: Any) -> None:
        """(Several convolutions that would be one call of a kernel.)"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))

    def of_segfast(self) -> list[str]:
        return [name for name, _ in self.calls if name.startswith("segfast.")]

    def of_torch(self) -> list[str]:
        """PyTorch's operators that ours are for: none of them should be left."""
        return [name for name, args in self.calls if _is_ours(name, args)]


def _is_ours(name: str, args: tuple[Any, ...]) -> bool:
    if name == "aten.convolution.default":
        _, weight, _, _, _, dilation, transposed, _, groups = args
        rates = zip(weight.shape[2:], dilation, strict=True)
        atrous = any(taps > 1 and rate > 1 for taps, rate in rates)
        return not transposed and (atrous or groups > 1)
    return name.startswith(("aten.max_pool2d", "aten.max_unpool2d"))
