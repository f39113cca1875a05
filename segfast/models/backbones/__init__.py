"""Networks for classification without their classifier: a map for every stage."""

from segfast.models.backbones.alexnet import AlexNet
from segfast.models.backbones.classifier import Classifier
from segfast.models.backbones.densenet import DenseNet
from segfast.models.backbones.googlenet import GoogLeNet
from segfast.models.backbones.hrnet import HRNet
from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import RESNETS, WIRINGS, ResNet
from segfast.models.backbones.table import BACKBONES, create_backbone, list_backbones
from segfast.models.backbones.vgg import (
    VGG16,
    VGG16_STAGES,
    DeepLabVGG16,
    PooledVGG16,
    fully_connected,
)
from segfast.models.backbones.xception import Xception

__all__ = [
    "BACKBONES",
    "RESNETS",
    "VGG16",
    "VGG16_STAGES",
    "WIRINGS",
    "AlexNet",
    "Classifier",
    "DeepLabVGG16",
    "DenseNet",
    "GoogLeNet",
    "HRNet",
    "MobileNetV2",
    "MobileNetV3",
    "PooledVGG16",
    "ResNet",
    "Xception",
    "create_backbone",
    "fully_connected",
    "list_backbones",
]
