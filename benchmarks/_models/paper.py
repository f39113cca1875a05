"""Benchmark of whole networks: its rows as the table in which the SegNet paper compares costs.

Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017: forward pass, backward pass, memory in
training and in inference, size of the model; here by segfast's operators and by PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# title, operation, figure of a provider
COLUMNS = (
    ("forward, ms", "forward", "ms"),
    ("backward, ms", "backward", "ms"),
    ("training, MB", "train", "peak_mb"),
    ("inference, MB", "forward", "peak_mb"),
)
NOTE = (
    "Training (forward and backward) and inference: memory at the peak beyond parameters and "
    "image. Model: parameters and statistics in float32."
)


def paper_table(rows: Sequence[Row]) -> str:
    """Markdown: one line per network and provider; empty where no row belongs to it."""
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.get("paper"):
            cells.setdefault((row["model"], row["size"]), {})[row["operation"]] = row
    if not cells:
        return ""
    titles = ["network", "operators", *(title for title, _, _ in COLUMNS), "model, MB"]
    lines = [titles, ["---"] * 2 + ["---:"] * (len(COLUMNS) + 1)]
    for (_, size), by_operation in cells.items():
        first = next(iter(by_operation.values()))
        for i, name in enumerate(provider["name"] for provider in first["providers"]):
            figures = [
                _figure(by_operation.get(operation), name, key) for _, operation, key in COLUMNS
            ]
            network, model = (size, f"{first['model_mb']:.1f}") if i == 0 else ("", "")
            lines.append([network, name, *figures, model])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(row: Row | None, provider: str, key: str) -> str:
    found = [p.get(key) for p in row["providers"] if p["name"] == provider] if row else []
    return f"{found[0]:.0f}" if found and found[0] is not None else "-"
