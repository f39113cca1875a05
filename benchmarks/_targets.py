"""What was promised for a row of a benchmark, and whether the measurement keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SMALLEST_MB = 0.1  # less cannot be told from nothing


@dataclass(frozen=True)
class Target:
    """A promise of one row at one number of threads.

    of "time", "memory" or "extra memory" (beyond the results): the peer needs at least `ratio`
    times ours; peer "a|b" is the faster of two. of "copy": our traffic is at least `ratio` of the
    bandwidth of a copy, of "product": our rate of that of a product of matrices, of "ms": ours is
    at most `ratio`; no peer. PyTorch serving keeps no promise but that of a time not longer.
    """

    peer: str
    threads: int
    ratio: float
    of: str = "time"


@dataclass(frozen=True)
class Mean:
    """A promise of several rows together: the geometric mean of a peer's times over ours.

    Rows that carry an equal promise belong together; `rows` says how many they are.
    """

    name: str
    peer: str
    threads: int
    ratio: float
    rows: int


def judge(
    targets: Sequence[Target],
    threads: int,
    rows: Sequence[dict[str, Any]],
    copy_gb_s: float | None = None,
    product_gflop_s: float | None = None,
) -> list[dict[str, Any]]:
    """Promised and measured, per target of this thread count; None where it was not measured.

    Args:
        rows: one per provider, ours first, with ratio, peak_mb, gb_per_s and served_by.
        copy_gb_s, product_gflop_s: the bandwidth of a copy, the rate of a product of matrices.
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
        elif target.of == "product":
            measured = ours["gflop_per_s"] / product_gflop_s if product_gflop_s else None
        elif target.of == "ms":
            measured = ours["ms"]
        elif target.of == "time":
            measured = _fastest(rows, target.peer)
        elif target.of == "extra memory":
            theirs = None if peer is None else peer.get("extra_mb")
            if theirs is not None and ours.get("extra_mb") is not None:
                measured = theirs / max(ours["extra_mb"], SMALLEST_MB)
        elif peer is not None and peer["peak_mb"] and ours["peak_mb"]:
            measured = peer["peak_mb"] / ours["peak_mb"]
        met = None
        if measured is not None:
            met = measured <= target.ratio if target.of == "ms" else measured >= target.ratio
        only_not_slower = target.of == "time" and target.ratio <= 1
        if served_by_torch(ours["served_by"]) and not only_not_slower:
            met = None if met is None else False  # PyTorch's own speed meets no promise
        found.append(
            {"peer": target.peer, "of": target.of, "at_least": target.ratio}
            | {"measured": measured, "met": met}
        )
    return found


def contributions(
    means: Sequence[Mean], threads: int, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What a row adds to each of its means of this thread count; the report averages.

    Args:
        rows: as for `judge`.
    """
    return [
        {"name": mean.name, "peer": mean.peer, "at_least": mean.ratio, "rows": mean.rows}
        | {"measured": _fastest(rows, mean.peer), "ours": not served_by_torch(rows[0]["served_by"])}
        for mean in means
        if mean.threads == threads
    ]


def _fastest(rows: Sequence[dict[str, Any]], peers: str) -> float | None:
    """The time over ours of the fastest of "peer|peer"; None unless all were measured."""
    ratios = {row["name"]: row["ratio"] for row in rows}
    named = peers.split("|")
    measured = [ratio for peer in named if (ratio := ratios.get(peer)) is not None]
    return min(measured) if len(measured) == len(named) else None


def served_by_torch(kernel: str) -> bool:
    """Whether what serves a row is PyTorch itself."""
    return "reference" in kernel or kernel.lower().startswith("torch")
