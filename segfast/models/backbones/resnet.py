"""Residual networks whose last stages keep their resolution, in the wirings that were published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._layers import conv2d
from segfast.models.backbones._base import Backbone
from segfast.nn import MaxPool2d
from segfast.ops import _check

# depth -> (bottlenecks, blocks of the four stages). He et al., "Deep Residual Learning for Image
# Recognition", CVPR 2016, table 1.
RESNETS = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}


class Wiring(NamedTuple):
    """Where published residual networks differ.

    Attributes:
        stem: channels of the stem's convolutions: (64,) is one 7 x 7, more are 3 x 3.
        stride_first: a bottleneck's stride is on its first 1 x 1, not on its 3 x 3.
        ceil: the stem's pool rounds its size up.
        contract: a dilated stage's first block has the rate of the stage before.
        grid_of_rates: the numbers of a multi-grid are rates, not factors of the stage's rate.
        second_dilated: a basic block's second convolution has the stage's rate, else 1.
    """

    stem: tuple[int, ...] = (64,)
    stride_first: bool = False
    ceil: bool = False
    contract: bool = True
    grid_of_rates: bool = False
    second_dilated: bool = True


WIRINGS = {
    "torchvision": Wiring(),  # and junfu1115/DANet
    "mmseg": Wiring(  # ResNetV1c, contract_dilation=True
        stem=(32, 32, 64), grid_of_rates=True, second_dilated=False
    ),
    "semseg": Wiring(stem=(64, 64, 128), contract=False),
    "caffe": Wiring(stem=(64, 64, 128), stride_first=True, ceil=True, contract=False),  # PSPNet50
    "caffe101": Wiring(stem=(64, 64, 128), ceil=True, contract=False),  # PSPNet101
    "deeplab-pytorch": Wiring(stride_first=True, ceil=True, contract=False),
    "smp": Wiring(contract=False),
    "jfzhang": Wiring(contract=False),
}


class Stage(NamedTuple):
    """How a stage keeps its resolution.

    Attributes:
        stride: of the first block.
        rates: of each block's 3 x 3 convolution, of a basic block's first one.
        second: rate of all basic blocks' second ones.
    """

    stride: int
    rates: tuple[int, ...]
    second: int


def stages(
    blocks: Sequence[int],
    output_stride: int,
    multi_grid: Sequence[int] = (),
    wires: Wiring = WIRINGS["torchvision"],
) -> list[Stage]:
    """Strides and atrous rates of all stages.

    The stem has stride 4; a stage that would exceed `output_stride` doubles its rate instead.
    `multi_grid` multiplies the rate of the fourth stage, and of its copies, block by block.

    Example:
        >>> from segfast.models.backbones.resnet import stages
        >>> stages((3, 4, 6, 3), 8)[3]
        Stage(stride=1, rates=(2, 4, 4), second=4)
        >>> stages((3, 4, 6, 3), 16, (1, 2, 4))[3]
        Stage(stride=1, rates=(2, 4, 8), second=2)
    """
    reached, rate, found = 4, 1, []
    for index, count in enumerate(blocks):
        before = rate
        stride = 1 if index == 0 else 2
        if reached * stride > output_stride:
            stride, rate = 1, rate * 2
        reached *= stride
        rates = (before if wires.contract else rate, *[rate] * (count - 1))
        if index >= 3 and multi_grid:
            factor = 1 if wires.grid_of_rates else rate
            rates = tuple(factor * unit for unit in multi_grid)
        found.append(Stage(stride, rates, rate if wires.second_dilated else 1))
    return found


class ResNet(Backbone):
    """The stem and four stages: x [N, C, H, W] -> maps of strides 4, 8, 16, 32 (at most OS).

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: C.
        output_stride: 8, 16 or 32 (times 2 for each copy): stages beyond it are dilated.
        multi_grid: unit rates of the last stage's blocks (wiring "mmseg": rates); () for none.
        wiring: of "torchvision", "mmseg", "semseg", "caffe", "caffe101", "deeplab-pytorch", "smp",
            "jfzhang".
        copies: of the last stage, one after the other: layer5, ... Their shortcuts have no
            parameters, so that a network of one output stride loads the weights of another's.
        contract_dilation: whether a dilated stage's first block has the rate of the stage before;
            None as the wiring has it.

    Shape:
        -> [layer1, layer2, layer3, layer4]; `channels` and `strides` are theirs. State as
        torchvision's ResNets (without fc); a deep stem is stem.0 (conv), stem.1 (norm), stem.3,
        stem.4, stem.6, stem.7.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        output_stride: int = 32,
        multi_grid: Sequence[int] = (),
        wiring: str = "torchvision",
        copies: int = 0,
        contract_dilation: bool | None = None,
    ) -> None:
        super().__init__()
        if depth not in tuple(RESNETS):  # which hashes nothing
            raise ValueError(f"depth must be one of {', '.join(map(str, RESNETS))}; got {depth!r}")
        _check.require_count("copies", copies)
        strides = [8 * 2**i for i in range(3 + copies)]
        if output_stride not in strides:
            allowed = ", ".join(map(str, strides))
            raise ValueError(f"output_stride must be one of {allowed}; got {output_stride!r}")
        _check.require_choice("wiring", wiring, tuple(WIRINGS))
        bottlenecks, blocks = RESNETS[depth]
        grid = () if multi_grid in ((), []) else _check.require_counts("multi_grid", multi_grid)
        if grid and len(grid) != blocks[-1]:
            raise ValueError(f"multi_grid must have {blocks[-1]} rates, got {multi_grid}")
        wires = WIRINGS[wiring]
        if contract_dilation is not None:
            _check.require_bool("contract_dilation", contract_dilation)
            wires = wires._replace(contract=contract_dilation)
        self.in_channels, self.stride_first = in_channels, wires.stride_first
        self.stem = None if len(wires.stem) == 1 else _deep_stem(in_channels, wires.stem)
        if self.stem is None:
            self.conv1 = conv2d(in_channels, 64, 7, 2)
            self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = MaxPool2d(3, 2, padding=1, ceil_mode=wires.ceil)
        counts = (*blocks, *[blocks[-1]] * copies)
        widths = [64 * 2 ** min(i, 3) for i in range(len(counts))]
        self.channels = tuple(4 * width if bottlenecks else width for width in widths)
        self.strides = tuple(min(4 * 2**i, output_stride) for i in range(len(counts)))
        channels = wires.stem[-1]
        plan = stages(counts, output_stride, grid, wires)
        for index, (stage, width) in enumerate(zip(plan, widths, strict=True)):
            layers: list[nn.Module] = []
            for rate in stage.rates:
                shape = channels, width, 1 if layers else stage.stride, rate
                layers.append(
                    Bottleneck(*shape, wires.stride_first)
                    if bottlenecks
                    else BasicBlock(*shape, stage.second)
                )
                channels = self.channels[index]
            self.add_module(f"layer{index + 1}", nn.Sequential(*layers))

    def enter(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the stem's map [N, 64 or 128, H / 2, W / 2], before it is pooled."""
        return torch.relu_(self.bn1(self.conv1(x))) if self.stem is None else self.stem(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> the stages' maps."""
        return self.go_on(self.enter(x))

    def go_on(self, x: Tensor) -> list[Tensor]:
        """The stem's map -> the stages' maps."""
        x = self.maxpool(x)
        maps = []
        for index in range(len(self.channels)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            maps.append(x)
        return maps


def _deep_stem(channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        conv = conv2d(channels, width, 3, 2 if index == 0 else 1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if channels == out_channels:
        return None if stride == 1 else MaxPool2d(1, stride)
    conv = conv2d(channels, out_channels, 1, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """y = relu(x' + norm(conv(relu(norm(conv x))))), x' = x or norm(conv_1x1 x).

    Args:
        channels, width: of x and y.
        stride, rate: of the first convolution.
        second_rate: of the second.
    """

    def __init__(
        self, channels: int, width: int, stride: int = 1, rate: int = 1, second_rate: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = conv2d(channels, width, 3, stride, dilation=rate)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2d(width, width, 3, dilation=second_rate)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, width, H / stride, W / stride]."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """y = relu(x' + norm(conv_1x1(relu(norm(conv_3x3(relu(norm(conv_1x1 x)))))))), x' as above.

    Args:
        channels, width: of x, and between the 1 x 1 convolutions; y has 4 width.
        stride: of the 3 x 3 convolution, or with `stride_first` of the first 1 x 1.
        rate: of the 3 x 3 convolution.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int = 1,
        rate: int = 1,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        out = 4 * width
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = conv2d(channels, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2d(width, width, 3, second, dilation=rate)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv2d(width, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, 4 width, H / stride, W / stride]."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu_(y + (x if self.downsample is None else self.downsample(x)))
