"""The names of the models: one table, each architecture's rows beside its class."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from segfast.models._base import SegmentationModel
from segfast.models._preprocessing import USUAL, Preprocessing
from segfast.ops import _check

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name of `create_model`.

    Attributes:
        name: <architecture>[_<backbone>][_<variant>], lower case.
        build: the architecture's class, which knows its layouts; called with num_classes,
            in_channels, the options and, where one is asked for, layout.
        source: paper, and code whose wiring is followed.
        options: what the name fixes of the arguments of `build`; callers may override it.
        num_classes: what the published network has.
        metrics: reported figures, as published: "VOC 2012 test, mean IU" -> 62.2.
        images: layout -> what it expects of images, where that is not what its code usually does.
    """

    name: str
    build: Callable[..., SegmentationModel]
    source: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int = 21
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)

    def preprocessing(self, layout: str) -> Preprocessing | None:
        """What a layout expects of images; None: nobody says."""
        return self.images.get(layout, USUAL.get(layout))


def table(*groups: tuple[Entry, ...]) -> dict[str, Entry]:
    """All entries by name; a name that comes twice is a mistake of ours."""
    entries: dict[str, Entry] = {}
    for entry in (entry for group in groups for entry in group):
        if entry.name in entries:
            raise RuntimeError(f"two models are called {entry.name!r}")
        entries[entry.name] = entry
    return dict(sorted(entries.items()))


def nearest(name: str, names: Iterable[str]) -> str:
    """Those that are spelled alike, as a message lists them."""
    return ", ".join(difflib.get_close_matches(name.lower(), names, 5, 0.5)) or "none is near"


def find(entries: Mapping[str, Value], name: str, listed: str = "list_models()") -> Value:
    """The entry of that name, or a ValueError that names the nearest ones."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {_check.describe(name)}")
    if name not in entries:
        raise ValueError(f"name must be one of {listed} ({nearest(name, entries)}), got {name!r}")
    return entries[name]


def built(name: str, build: Callable[..., Value], /, **options: Any) -> Value:
    """build(**options); of an option that there is not, the error says whose it would be."""
    try:
        return build(**options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise TypeError(f"options of {name!r}: {error}") from None
        raise


def matching(entries: Iterable[str], pattern: str) -> list[str]:
    """Names that fit a shell pattern, in alphabetical order."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a str, got {_check.describe(pattern)}")
    return sorted(fnmatch.filter(entries, pattern))
