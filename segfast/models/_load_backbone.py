"""Weights of published classifiers into backbones: where training starts."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from segfast.models import _sources
from segfast.models._base import SegmentationModel
from segfast.models._checkpoint import Fit, matched, report, separate
from segfast.models._keys import OURS, Rules
from segfast.models.backbones.classifier import Classifier
from segfast.models.layouts.backbones import Published, layouts_of
from segfast.ops import _check

# Our own keys: a Classifier's, or those of its backbone alone.
OWN = Published(Rules((r"^(?!(?:backbone|join|classifier|aux)\.)", "backbone.")))
HIDDEN = {"classifier.0.": "fc6.", "classifier.3.": "fc7."}  # VGG16's, CaffeNet's


class Target(NamedTuple):
    """What takes the weights.

    Attributes:
        backbone: the module.
        place: its name in the model, with a dot behind; None where the model is a Classifier.
        tops: names of the modules that hold fully connected layers as fc6 and fc7, with dots.
    """

    backbone: nn.Module
    place: str | None
    tops: tuple[str, ...] = ()


def load_backbone(
    model: nn.Module,
    source: Mapping[str, Any] | str | os.PathLike[str],
    layout: str = "auto",
    strict: bool = True,
) -> nn.Module:
    """Copies the published weights of a classifier into a backbone, in place.

    Training for segmentation starts from ImageNet so. A network of `create_model` and a bare
    backbone take what precedes the classifier's own last layers: torchvision's, timm's and semseg's
    `fc.*`, torchvision's `classifier.*` and `aux1.*`, `aux2.*`; Caffe's `fc6` to `fc8`, `fc1000`
    and `loss*/*`; HRNet's `incre_modules.*`, `downsamp_modules.*`, `final_layer.*` and
    `classifier.*`; MobileNetV2's `features.18.*` where the wiring ends before it. These are left
    out; a classifier of `create_backbone` takes them, too. Everything else has to fit.

    In networks on VGG16 and CaffeNet:

    - fc6 and fc7 are taken where the network has them as convolutions of as many numbers (FCN,
      DeepLab's 7 x 7, the dilated networks, DeconvNet), W[o, c h w + i w + j] as W[o, c, i, j];
    - weights without normalisation serve a network with it (SegNet, DeconvNet) by their
      convolutions; its normalisations stay as they are.

    The first convolution follows the number of channels by the rule of :func:`load_checkpoint`,
    wrappers and prefixes are removed as there, and counters (`num_batches_tracked`) that old files
    lack are zero.

    Args:
        model: from `create_model`, or from `create_backbone`.
        source: a classifier's published key -> tensor, or a path as :func:`load_checkpoint` has it;
            `.caffemodel` for Caffe's.
        layout: whose keys these are: "torchvision" of most; of a ResNet also "caffe" (He et al.'s),
            and for stems of three convolutions "semseg", "mmseg" or "timm"; of VGG16 also
            "torchvision_bn" and "caffe"; of AlexNet and GoogLeNet also "caffe"; "official" of
            HRNet (timm's are the same); "jfzhang" of xception; "segfast" of our own. "auto" finds
            it, and refuses weights whose keys tell of another wiring, such as torchvision's in a
            ResNet that has its strides on the first 1 x 1 convolutions; a layout that is named is
            taken in any wiring.
        strict: False loads what fits, and warns of each key that does not.

    Returns:
        The model. On the meta device what is loaded takes the tensors themselves.

    Raises:
        TypeError, ValueError: an argument breaks its contract, a file cannot be read, the wiring is
            another, or keys or shapes do not fit: the message names every one.

    Example:
        >>> from segfast.models import create_backbone, create_model
        >>> from segfast.models import load_backbone
        >>> state = create_backbone("resnet18", classifier=True).state_dict()  # or a path
        >>> model = load_backbone(create_model("deeplabv3_resnet18", in_channels=5), state)
        >>> model.backbone.conv1.weight.shape
        torch.Size([64, 5, 7, 7])
    """
    target = _target(model)
    layouts = {**(layouts_of(target.backbone) or {}), OURS: OWN}
    _check.require_choice("layout", layout, ("auto", *layouts))
    _check.require_bool("strict", strict)
    tried = layouts if layout == "auto" else {layout: layouts[layout]}
    wanted, read = model.state_dict(), _sources.read(source)
    fits = [
        _fit(target, wanted, candidate, name, published)
        for name, published in tried.items()
        for candidate in _sources.candidates(read.state)
    ]
    best = min(fits, key=lambda fit: len(fit.problems))
    report(best, strict, read.others)
    found = layouts[best.layout]
    if layout == "auto" and not found.wired(target.backbone):
        raise ValueError(
            f"source has the keys of layout {best.layout!r}, which mean {found.means}; the model's "
            f"{type(target.backbone).__name__} is wired otherwise: build it with another layout or "
            f"wiring, or say layout={best.layout!r} here if this one is wanted"
        )
    on_meta = any(wanted[key].is_meta for key in best.state)
    chosen = OrderedDict(separate(best.state, wanted.values()))
    vars(chosen)["_metadata"] = vars(wanted)["_metadata"]  # else PyTorch adds what old files lack
    model.load_state_dict(chosen, strict=False, assign=on_meta)
    return model


def _target(model: object) -> Target:
    if isinstance(model, Classifier):
        return Target(model.backbone, None)
    if isinstance(model, nn.Module) and layouts_of(model) is not None:
        return Target(model, "")
    if not isinstance(model, SegmentationModel):
        raise TypeError(
            f"model must be from create_model or create_backbone, got {_check.describe(model)}"
        )
    names = {name: module for name, module in model.named_modules() if layouts_of(module)}
    if len(names) != 1:
        what = f"{', '.join(names)}: load each" if names else "none that was a classifier"
        raise ValueError(f"model must have one backbone, {type(model).__name__} has {what}")
    ((name, backbone),) = names.items()
    tops = tuple(
        name.removesuffix("fc6") for name, _ in model.named_modules() if name.endswith(".fc6")
    )
    return Target(backbone, f"{name}.", tops)


def _fit(
    target: Target,
    wanted: Mapping[str, Tensor],
    candidate: _sources.State,
    layout: str,
    published: Published,
) -> Fit:
    """One candidate by one layout's rules, against the part of the model that it is for."""
    try:
        state = published.rules.apply(candidate)
    except ValueError as error:  # keys of another layout may become one
        return Fit(layout, {}, [str(error), *(f"missing {key}" for key in wanted)])
    if target.place is not None:
        state = _placed(target, wanted, state)
        kept = published.kept if target.place else None  # a bare backbone has all or nothing
        wanted = {
            key: x
            for key, x in wanted.items()
            if key in state
            or (key.startswith(target.place) and not (kept and re.search(kept, key)))
        }
    first = next(p for p in target.backbone.parameters() if p.dim() == 4)  # of the image
    return matched(wanted, state, first.shape[1], layout, published.rules)


def _placed(target: Target, wanted: Mapping[str, Tensor], state: _sources.State) -> _sources.State:
    """A classifier's state where the model has its parts, without the parts that it has not."""
    placed = {
        re.sub(r"^backbone\.", target.place or "", key): x  # what is not known stays, to be named
        for key, x in state.items()
        if not key.startswith(("join.", "classifier.", "aux."))
    }
    first = state.get("classifier.0.weight")
    for top in target.tops:
        if first is not None and first.numel() == wanted[f"{top}fc6.weight"].numel():
            for theirs, ours in HIDDEN.items():
                hidden = {key: x for key, x in state.items() if key.startswith(theirs)}
                placed |= {key.replace(theirs, f"{top}{ours}"): x for key, x in hidden.items()}
    return placed
