"""What `segfast.swap` did and did not, and the way back."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from segfast._swap.sites import Site


class Changed(NamedTuple):
    """A module that another has taken the place of."""

    name: str
    was: str
    now: str
    note: str


class Left(NamedTuple):
    """A module that could have been meant, and why it is still there."""

    name: str
    kind: str
    why: str


class Exchange(NamedTuple):
    """What `undo` needs to know."""

    site: Site
    new: nn.Module
    below: Sequence[tuple[nn.Module, nn.Module]]  # (old, new) with the same parameters


class SwapReport:
    """What `segfast.swap` returns; `str` of it is a table.

    Attributes:
        changed: (name, was, now, note) of each module that was exchanged.
        left: (name, kind, why) of each that was not, of the kinds that may be.
    """

    def __init__(
        self, changed: Iterable[Changed], left: Iterable[Left], exchanges: Iterable[Exchange]
    ) -> None:
        self.changed, self.left = tuple(changed), tuple(left)
        self._exchanges = list(exchanges)

    def undo(self) -> None:
        """Puts the very modules back, with the parameters that those in their place have now.

        What was hung onto the new modules since, hooks for example, stays with them.

        Raises:
            RuntimeError: something else took one of the places since; nothing was changed.
        """
        for site, new, _ in self._exchanges:
            for parent, name in site.places:
                if parent._modules.get(name) is not new:
                    raise RuntimeError(
                        f"{site.name} must be what swap put there to be put back, it is "
                        f"{type(parent._modules.get(name)).__name__}"
                    )
        for site, new, below in self._exchanges:
            there = set(new.modules())
            for module in site.module.modules():
                if module not in there:
                    module.training = new.training
            for old, copy in [(site.module, new), *below]:
                for name in old._parameters:
                    old._parameters[name] = copy._parameters[name]
                old.training = copy.training
            for parent, name in site.places:
                parent._modules[name] = site.module
        self._exchanges = []

    def __repr__(self) -> str:
        return f"<SwapReport: {len(self.changed)} changed, {len(self.left)} left>"

    def __str__(self) -> str:
        changed = [(name, f"{was} -> {now}", note) for name, was, now, note in self.changed]
        alike: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        for name, kind, why in self.left:
            alike[kind, why].append(name)
        left = [(_several(names), kind, why) for (kind, why), names in alike.items()]
        lines = [f"{len(changed)} changed", *_table(changed)]
        lines += [f"{len(self.left)} left", *_table(left)]
        return "\n".join(lines)


def _several(names: list[str]) -> str:
    first = names[0] or "(the model)"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    """Rows in columns."""
    first, second = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return [f"  {a:{first}}  {b:{second}}  {c}".rstrip() for a, b, c in rows]
