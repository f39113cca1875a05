"""The names of the models: one table, each architecture's rows beside its class."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from segfast.models._base import SegmentationModel
from segfast.models._keys import Rules
from segfast.ops import _check


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name of `create_model`.

    Attributes:
        name: <architecture>[_<backbone>][_<variant>], lower case.
        build: called with num_classes, in_channels, layout and the options.
        source: paper, and code whose wiring is followed.
        layouts: published wiring and key names: name -> rules published key -> ours; the first is
            the default.
        options: what the name fixes of the arguments of `build`; callers may override it.
        num_classes: what the published network has.
        metrics: reported figures, as published: "VOC 2012 test, mean IU" -> 62.2.
    """

    name: str
    build: Callable[..., SegmentationModel]
    source: str
    layouts: Mapping[str, Rules]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int = 21
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def layout(self) -> str:
        """The default."""
        return next(iter(self.layouts))


def table(*groups: tuple[Entry, ...]) -> dict[str, Entry]:
    """All entries by name; a name that comes twice is a mistake of ours."""
    entries: dict[str, Entry] = {}
    for entry in (entry for group in groups for entry in group):
        if entry.name in entries:
            raise RuntimeError(f"two models are called {entry.name!r}")
        entries[entry.name] = entry
    return dict(sorted(entries.items()))


def find(entries: Mapping[str, Entry], name: str) -> Entry:
    """The entry of that name, or a ValueError that names the nearest ones."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {_check.describe(name)}")
    if name not in entries:
        near = ", ".join(difflib.get_close_matches(name, entries, 5, 0.5)) or "none is near"
        raise ValueError(f"name must be one of list_models() ({near}), got {name!r}")
    return entries[name]


def matching(entries: Mapping[str, Entry], pattern: str) -> list[str]:
    """Names that fit a shell pattern, in alphabetical order."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a str, got {_check.describe(pattern)}")
    return fnmatch.filter(entries, pattern)
