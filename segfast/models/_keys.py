r"""Published state_dict keys -> ours, by rules that are data.

    Rules((r"^backbone\.stem\.(\d)", r"conv\1"), drop=(r"\.total_ops$",))

Each (pattern, replacement) is a substitution by `re.sub`, all in turn, on every published key; a
replacement may be a function of the match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
Substitution = tuple[str, "str | Callable[[re.Match[str]], str]"]


class Rules:
    """Substitutions, and patterns of keys that are not part of the network.

    Args:
        substitutions: (pattern, replacement) in the order they are applied.
        drop: keys that match are left out.
        absent: what ours may have and the published state has not: pattern of our keys -> the
            constant that it stands for. Counts of batches, which PyTorch has since 0.4.1, are 0.
    """

    def __init__(
        self,
        *substitutions: Substitution,
        drop: Iterable[str] = (),
        absent: Mapping[str, float] | None = None,
    ) -> None:
        self._substitutions = [(re.compile(p), r) for p, r in substitutions]
        self._drop = [re.compile(pattern) for pattern in drop]
        constants = {**(absent or {}), r"\.num_batches_tracked$": 0}
        self._absent = [(re.compile(p), value) for p, value in constants.items()]

    def key(self, published: str) -> str | None:
        """Our key, or None where it is dropped."""
        if any(pattern.search(published) for pattern in self._drop):
            return None
        for pattern, replacement in self._substitutions:
            published = pattern.sub(replacement, published)
        return published

    def apply(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """The mapping under our keys.

        Raises:
            ValueError: two published keys become one.
        """
        renamed: dict[str, Value] = {}
        origin: dict[str, str] = {}
        for published, value in state.items():
            key = self.key(published)
            if key is None:
                continue
            if key in renamed:
                raise ValueError(f"{origin[key]!r} and {published!r} both become {key!r}")
            renamed[key], origin[key] = value, published
        return renamed

    def constant(self, ours: str) -> float | None:
        """The value of a key of ours that a published state may lack; None: it may not."""
        return next((value for p, value in self._absent if p.search(ours)), None)


AS_IT_IS = Rules()
OURS = "segfast"  # the layout of our own keys
