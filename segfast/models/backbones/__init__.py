"""Networks for classification without their classifier: a map for every stage."""

from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import RESNETS, WIRINGS, ResNet
from segfast.models.backbones.vgg import VGG16, VGG16_STAGES, DeepLabVGG16, fully_connected

__all__ = [
    "RESNETS",
    "VGG16",
    "VGG16_STAGES",
    "WIRINGS",
    "DeepLabVGG16",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "fully_connected",
]
