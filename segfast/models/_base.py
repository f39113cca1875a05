"""What every architecture is: scores at the network's own stride, resized to the input."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._inputs import ONE_VALUE, one_value, require_image
from segfast.models._keys import OURS, Rules
from segfast.models._preprocessing import Preprocessing
from segfast.ops import _check


class SegmentationModel(nn.Module):
    """One score per class and pixel.

    A subclass is an architecture: it says `scores`, what the published network computes at its own
    stride; `forward` resizes that to the input. Where images are padded before, or scores are not
    spread evenly over the image, it says `prepared` and `at_input_size`, too.

    Args:
        num_classes: L of the scores.
        in_channels: C of the images.
        layout: whose wiring this is, one of `layouts`; None for the first, or for "segfast" where
            nothing was published.
        align_corners: of its bilinear resizes; None as the wiring of its layout has it.
        variant: what `layouts_of` reads, where published keys depend on the architecture's options.

    Attributes:
        rules: of the class: published layouts -> rules of their keys, the default first.
        wirings: of the class: layouts -> where they differ in more than the names of keys. Layouts
            of one value, or without any, are the same network.
        layouts: as `rules`, of this network's variant.
        preprocessing: what its layout expects of images; None where nobody says, and of a network
            that `create_model` did not build.
        least: pixels that an image has at least on both sides.
    """

    rules: ClassVar[Mapping[str, Rules]] = MappingProxyType({})
    wirings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    preprocessing: Preprocessing | None = None
    least: int = 1

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        layout: str | None = None,
        align_corners: bool | None = None,
        variant: Any = None,
    ) -> None:
        super().__init__()
        _check.require_count("num_classes", num_classes, 1)
        _check.require_count("in_channels", in_channels, 1)
        self.num_classes, self.in_channels, self.variant = num_classes, in_channels, variant
        known = tuple(self.layouts) or (OURS,)
        self.layout = known[0] if layout is None else layout
        _check.require_choice("layout", self.layout, known)
        if align_corners is None:
            align_corners = getattr(self.wirings.get(self.layout), "align_corners", False)
        _check.require_bool("align_corners", align_corners)
        self.align_corners = align_corners

    @classmethod
    def layouts_of(cls, variant: Any) -> Mapping[str, Rules]:
        """The layouts that networks of a variant were published in: all of the class."""
        return cls.rules

    @property
    def layouts(self) -> Mapping[str, Rules]:
        """Published layouts -> rules of their keys, the default first."""
        return self.layouts_of(self.variant)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Also says, where PyTorch keeps the versions of modules, whose wiring the numbers have."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        metadata.setdefault(prefix[:-1], {})["layout"] = self.layout

    def wired_as(self, layout: str) -> bool:
        """Whether a network of that layout is this one, but for the names of its keys."""
        return self.wirings.get(layout) == self.wirings.get(self.layout)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """The published outputs: "out" first, and with `aux` the auxiliary ones by their names.

        Args:
            x: [N, C, H, W].
            aux: whether auxiliary scores are wanted too; they are not computed otherwise.

        Returns:
            maps [N, L, h, w] at the network's own stride.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, return_aux: bool = False) -> Any:
        """Scores at the size of the input.

        Args:
            x: [N, C, H, W], floating, in the dtype of the parameters.
            return_aux: also return the auxiliary scores, each resized alike.

        Returns:
            [N, L, H, W], or that and a dict of the auxiliary scores (empty where there are none).

        Raises:
            TypeError, ValueError: an argument breaks its contract; the message names it.
        """
        return self._run(x, return_aux)

    def _run(self, x: Tensor, return_aux: bool, **guides: Any) -> Any:
        """`forward`; guides: what else `scores` takes."""
        require_image(x, self)
        _check.require_bool("return_aux", return_aux)
        try:
            found = self.scores(self.prepared(x), return_aux, **guides)
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise one_value(x) from error
        maps = {name: self.at_input_size(y, x.shape[-2:]) for name, y in found.items()}
        out = maps.pop("out")
        return (out, maps) if return_aux else out

    def preprocess(self, image: Tensor) -> Tensor:
        """Photographs as the published network takes them, by `preprocessing`.

        Args:
            image: [N, 3, H, W], RGB: uint8, or floating from 0 to 1.

        Returns:
            x [N, 3, H, W], for :meth:`forward`.

        Raises:
            TypeError, ValueError: `image` is none of these, or it is not known what the network
                takes.

        Example:
            >>> import torch
            >>> from segfast.models import create_model
            >>> model = create_model("segnet_basic")
            >>> print(model.preprocessing)
            BGR 0..255
            >>> model.preprocess(torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)).flatten()
            tensor([  0.0000, 127.5000, 255.0000])
        """
        if self.preprocessing is None:
            raise ValueError(
                f"{type(self).__name__} of layout {self.layout!r} has no published preprocessing: "
                f"give it images as you train it"
            )
        if self.in_channels != 3:
            raise ValueError(
                f"image must have the {self.in_channels} channels of this network; what is "
                f"published is of 3"
            )
        return self.preprocessing(image)

    def __prepare_scriptable__(self) -> Any:  # by torch.jit.script
        raise TypeError(
            f"torch.jit.script does not take {type(self).__name__}: torch.export.export and "
            f"torch.compile do"
        )

    def prepared(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> what `scores` takes: the same."""
        return x

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """Scores [N, L, h, w] of the network -> [N, L, *size]."""
        return resize(y, size, self.align_corners)


def resize(x: Tensor, size: Any, align_corners: bool) -> Tensor:
    """Bilinear; a map that has the size already is returned as it is.

    x [N, C, h, w] -> [N, C, *size]
    """
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
