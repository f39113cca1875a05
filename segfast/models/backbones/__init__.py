"""Networks for classification without their classifier: a map for every stage."""

from segfast.models.backbones.resnet import RESNETS, ResNet

__all__ = ["RESNETS", "ResNet"]
