"""Networks for classification without their classifier: a map for every stage."""

from segfast.models.backbones.resnet import RESNETS, WIRINGS, ResNet
from segfast.models.backbones.vgg import VGG16, VGG16_STAGES

__all__ = ["RESNETS", "VGG16", "VGG16_STAGES", "WIRINGS", "ResNet"]
