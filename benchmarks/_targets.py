"""What was promised for a row of a benchmark, and whether the measurement keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A promise of one row at one number of threads.

    of "time" or "memory": the peer needs at least `ratio` times ours. of "copy": our traffic is at
    least `ratio` of the bandwidth of a copy; no peer.
    """

    peer: str
    threads: int
    ratio: float
    of: str = "time"


def judge(
    targets: Sequence[Target],
    threads: int,
    rows: Sequence[dict[str, Any]],
    copy_gb_s: float | None = None,
) -> list[dict[str, Any]]:
    """Promised and measured, per target of this thread count; None where it was not measured.

    Args:
        rows: one per provider, ours first, with ratio, peak_mb, gb_per_s and served_by.
        copy_gb_s: the bandwidth of a copy.
    """
    ours = rows[0]
    by_name = {row["name"]: row for row in rows}
    found = []
    for target in targets:
        if target.threads != threads:
            continue
        peer = by_name.get(target.peer)
        measured = None
        if target.of == "copy":
            measured = ours["gb_per_s"] / copy_gb_s if copy_gb_s else None
        elif peer is not None and target.of == "time":
            measured = peer["ratio"]
        elif peer is not None and peer["peak_mb"] and ours["peak_mb"]:
            measured = peer["peak_mb"] / ours["peak_mb"]
        met = None if measured is None else measured >= target.ratio
        if "reference" in ours["served_by"] or ours["served_by"].lower().startswith("torch"):
            met = None if met is None else False  # PyTorch's own speed meets no promise
        found.append(
            {"peer": target.peer, "of": target.of, "at_least": target.ratio}
            | {"measured": measured, "met": met}
        )
    return found
