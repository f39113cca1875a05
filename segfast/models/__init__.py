"""The reference architectures of the field, built from segfast's operators."""

from __future__ import annotations

from typing import Any

import torch

from segfast.models import (
    _registry,
    abcnet,
    attention_to_scale,
    crfrnn,
    danet,
    deconvnet,
    deeplabv1,
    deeplabv2_resnet,
    deeplabv2_vgg,
    deeplabv3,
    deeplabv3plus,
    dilation,
    fcdensenet,
    fcn,
    fcn_resnet,
    fpn,
    hrnet,
    lraspp,
    manet,
    maresunet,
    pspnet,
    refinenet,
    segnet,
    unet,
    unet_resnet,
)
from segfast.models._base import SegmentationModel
from segfast.models._checkpoint import load_checkpoint, save_checkpoint
from segfast.models._convolutional import convolutionalize, shift_and_stitch
from segfast.models._field import receptive_field
from segfast.models._info import ModelInfo, describe, macs
from segfast.models._load_backbone import load_backbone
from segfast.models._preprocessing import Preprocessing
from segfast.models.abcnet import ABCNet
from segfast.models.attention_to_scale import AttentionToScale
from segfast.models.backbones import create_backbone, list_backbones
from segfast.models.crfrnn import CRFRNNFCN8s
from segfast.models.danet import DANet
from segfast.models.deconvnet import DeconvNet
from segfast.models.deeplabv1 import DeepLabV1
from segfast.models.deeplabv2_resnet import DeepLabV2ResNet
from segfast.models.deeplabv2_vgg import DeepLabV2VGG16
from segfast.models.deeplabv3 import DeepLabV3
from segfast.models.deeplabv3plus import DeepLabV3Plus
from segfast.models.dilation import DilationNet
from segfast.models.fcdensenet import FCDenseNet
from segfast.models.fcn import FCN
from segfast.models.fcn_resnet import FCNResNet
from segfast.models.fpn import FPN
from segfast.models.fusion import LateFusion
from segfast.models.hrnet import HRNetOCR, HRNetSegmentation
from segfast.models.lraspp import LRASPP
from segfast.models.manet import MANet
from segfast.models.maresunet import MAResUNet
from segfast.models.proposals import aggregate
from segfast.models.pspnet import PSPNet
from segfast.models.refinenet import RefineNet
from segfast.models.segnet import SegNet, SegNetBasic
from segfast.models.unet import UNet
from segfast.models.unet_resnet import UNetResNet
from segfast.ops import _check
from segfast.swap import swap

__all__ = [
    "FCN",
    "FPN",
    "LRASPP",
    "ABCNet",
    "AttentionToScale",
    "CRFRNNFCN8s",
    "DANet",
    "DeconvNet",
    "DeepLabV1",
    "DeepLabV2ResNet",
    "DeepLabV2VGG16",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DilationNet",
    "FCDenseNet",
    "FCNResNet",
    "HRNetOCR",
    "HRNetSegmentation",
    "LateFusion",
    "MANet",
    "MAResUNet",
    "ModelInfo",
    "PSPNet",
    "Preprocessing",
    "RefineNet",
    "SegNet",
    "SegNetBasic",
    "SegmentationModel",
    "UNet",
    "UNetResNet",
    "aggregate",
    "convolutionalize",
    "create_backbone",
    "create_model",
    "list_backbones",
    "list_models",
    "load_backbone",
    "load_checkpoint",
    "macs",
    "model_info",
    "model_source",
    "receptive_field",
    "save_checkpoint",
    "shift_and_stitch",
]

_ENTRIES = _registry.table(
    abcnet.MODELS,
    crfrnn.MODELS,
    danet.MODELS,
    attention_to_scale.MODELS,
    deconvnet.MODELS,
    deeplabv1.MODELS,
    deeplabv2_resnet.MODELS,
    deeplabv2_vgg.MODELS,
    deeplabv3.MODELS,
    deeplabv3plus.MODELS,
    dilation.MODELS,
    fcdensenet.MODELS,
    fcn.MODELS,
    fcn_resnet.MODELS,
    fpn.MODELS,
    hrnet.MODELS,
    lraspp.MODELS,
    manet.MODELS,
    maresunet.MODELS,
    pspnet.MODELS,
    refinenet.MODELS,
    segnet.MODELS,
    unet.MODELS,
    unet_resnet.MODELS,
)


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    layout: str | None = None,
    ops: str = "segfast",
    **options: Any,
) -> SegmentationModel:
    """A segmentation network by its name, with fresh parameters.

    Args:
        name: one of :func:`list_models`.
        num_classes: L of the scores; None means what the published network has.
        in_channels: C of the images.
        layout: whose wiring is built where published code differs; None means the name's default.
        ops: "segfast", or "torch": PyTorch's operators in their place (:func:`segfast.swap`), with
            the same parameters and keys; a dense CRF stays.
        options: arguments of the architecture's class, over what the name fixes.

    Returns:
        A module: images [N, C, H, W] -> scores [N, L, H, W].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import create_model
        >>> model = create_model("fcn_resnet50", num_classes=2).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 2, 64, 96])
    """
    entry = _registry.find(_ENTRIES, name)
    _check.require_choice("ops", ops, ("segfast", "torch"))
    classes = entry.num_classes if num_classes is None else num_classes
    arguments = {**entry.options, **options, **({} if layout is None else {"layout": layout})}
    model = _registry.built(
        name, entry.build, num_classes=classes, in_channels=in_channels, **arguments
    )
    model.preprocessing = entry.preprocessing(model.layout)
    if ops == "torch":
        swap(model, to="torch")
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Names for :func:`create_model` that fit a shell pattern, in alphabetical order.

    Example:
        >>> from segfast.models import list_models
        >>> list_models("fcn_*")
        ['fcn_resnet101', 'fcn_resnet50']
    """
    return _registry.matching(_ENTRIES, pattern)


def model_info(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    size: tuple[int, int] = (512, 512),
    **options: Any,
) -> ModelInfo:
    """What is known of a model: parameters, multiply-accumulates, receptive field, sources.

    Counted on the meta device: no parameters are made.

    Args:
        name, num_classes, in_channels, options: as :func:`create_model` takes them.
        size: (height, width) of the image that multiply-accumulates are counted for.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> from segfast.models import model_info
        >>> info = model_info("fcn_resnet50", size=(520, 520))
        >>> info.parameters, info.output_stride, info.operators
        (35322218, 8, ('dilated_conv', 'max_unpool'))
    """
    entry = _registry.find(_ENTRIES, name)
    with torch.device("meta"):
        model, plain = (
            create_model(name, num_classes, in_channels, ops=ops, **options).eval()
            for ops in ("segfast", "torch")
        )
    return describe(entry, model, plain, size)


def model_source(name: str) -> str:
    """Paper, and code whose wiring a model follows.

    Example:
        >>> from segfast.models import model_source
        >>> model_source("segnet")[:19]
        'Badrinarayanan, Ken'
    """
    return _registry.find(_ENTRIES, name).source
