"""Turns a benchmark's JSON into a Markdown table and a plot.

    python -m benchmarks.report FILE.json [-o DIR] [--format png|svg] [--brief]

writes DIR/NAME.md and DIR/NAME.png (DIR: the JSON's own folder unless given) and prints the table;
with --brief it prints a line per row, and writes nothing.
Reads what `pytest benchmarks/<op>.py --benchmark-json=FILE.json` wrote. Without matplotlib the
table is written and the missing plot is said. Exit code 2: the file is no such JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._models.paper import NOTE as PAPER_NOTE
from ._models.paper import paper_table

Row = Mapping[str, Any]  # one benchmark's extra_info
COLUMNS = (
    "workload",
    "threads",
    "provider",
    "served by",
    "ms (20-80 %)",
    "on the GPU, ms",
    "set-up + per iteration, ms",
    "Mpixel/s",
    "rate",
    "peak MB",
    "time / ours (20-80 %)",
)
OF_THE_MACHINE = {"copy": "the copy bandwidth", "product": "a product's rate"}
LEFT = {"workload", "provider", "served by"}  # text columns; numbers align right


class BadReport(ValueError):
    """The file cannot be reported on; the message says why and what was expected."""


def load(path: Path) -> list[Row]:
    """The rows of a pytest-benchmark JSON that carry providers; BadReport when there are none."""
    expected = "expected what `pytest benchmarks/<op>.py --benchmark-json=FILE` writes"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadReport(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadReport(f"{path} is not text; {expected}") from None
    except json.JSONDecodeError as error:
        what = "is empty" if path.stat().st_size == 0 else f"is not JSON ({error})"
        raise BadReport(f"{path} {what}; {expected}") from None
    benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(benchmarks, list):
        raise BadReport(f"{path} has no list named 'benchmarks'; {expected}")
    rows = [each.get("extra_info", {}) for each in benchmarks if isinstance(each, dict)]
    rows = [row for row in rows if isinstance(row, dict) and row.get("providers")]
    if not rows:
        raise BadReport(
            f"{path} holds {len(benchmarks)} benchmarks, none with providers in extra_info "
            f"(deselected, or run with --benchmark-disable?); {expected}"
        )
    for row in rows:
        absent = {"workload", "threads", "providers"} - row.keys()
        broken = [p for p in row["providers"] if not {"name", "ms", "served_by"} <= p.keys()]
        if absent or broken:
            raise BadReport(f"{path}: a row lacks {sorted(absent) or 'name, ms, served_by'}")
    return rows


# ------------------------------------------------------------------------------------------ text


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits without an exponent; a dash for what was not measured."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def spread(low: Any, high: Any) -> str:
    return "" if low is None or high is None else f" ({number(low)}-{number(high)})"


def cells(row: Row, provider: Row, first: bool) -> list[str]:
    """One table line: a provider of a row."""
    size = row.get("size") or f"{row.get('width')}x{row.get('height')}x{row.get('labels')}"
    iterations = f", {row['iterations']} it." if row.get("iterations") else ""
    warm = ", warm allocator" if row.get("allocator", "default") == "warm" else ""
    parts = "-"
    if provider.get("iteration_ms") is not None:
        parts = f"{number(provider['setup_ms'])} + {number(provider['iteration_ms'])}"
    rate = "-"
    if provider.get("gpairs_per_s") is not None:
        rate = f"{number(provider['gpairs_per_s'])} Gpair/s"
    elif provider.get("gflop_per_s") is not None:
        share = provider["gflop_per_s"] / row["product_gflop_s"]
        rate = f"{number(provider['gflop_per_s'])} GFLOP/s ({100 * share:.0f} % of a product)"
    elif provider.get("gb_per_s") is not None:
        share = provider["gb_per_s"] / row["copy_gb_s"] if row.get("copy_gb_s") else None
        rate = f"{number(provider['gb_per_s'])} GB/s"
        rate += "" if share is None else f" ({100 * share:.0f} % of copy)"
    pixels = provider.get("pixels_per_s")
    ratio = "1" if provider is row["providers"][0] else number(provider.get("ratio"))
    ratio += "" if ratio == "1" else spread(provider.get("ratio_q20"), provider.get("ratio_q80"))
    return [
        f"{row['workload']} ({size}{iterations}{warm})" if first else "",
        str(row["threads"]) if first else "",
        str(provider["name"]),
        str(provider["served_by"]),
        number(provider["ms"]) + spread(provider.get("ms_q20"), provider.get("ms_q80")),
        number(provider.get("device_ms")),
        parts,
        number(None if pixels is None else pixels / 1e6),
        rate,
        number(provider.get("peak_mb")),
        ratio,
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line per row and provider, without columns that nobody measured."""
    lines = [cells(r, p, i == 0) for r in rows for i, p in enumerate(r["providers"])]
    columns = [c for c in zip(COLUMNS, *lines, strict=True) if set(c[1:]) != {"-"}]
    titles, *lines = (list(line) for line in zip(*columns, strict=True))
    width = [max(map(len, column)) for column in columns]
    rule = [
        "-" * w if c in LEFT else "-" * (w - 1) + ":" for c, w in zip(titles, width, strict=True)
    ]

    def line(values: Sequence[str]) -> str:
        padded = zip(titles, values, width, strict=True)
        return f"| {' | '.join(v.ljust(w) if c in LEFT else v.rjust(w) for c, v, w in padded)} |"

    return "\n".join([line(titles), line(rule), *map(line, lines)])


def promises(rows: Sequence[Row]) -> str:
    """One line per target: promised, measured, met."""
    lines = []
    for row in rows:
        for target in row.get("targets", ()):
            verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
            measured, promised = number(target["measured"]), number(target["at_least"])
            said = f"{target['peer']} needs {measured}x ours, promised >= {promised}x"
            if target["of"] in OF_THE_MACHINE:
                what = OF_THE_MACHINE[target["of"]]
                said = f"{measured} of {what}, promised >= {promised}"
            if target["of"] == "ms":
                said = f"{measured} ms, promised <= {promised} ms"
            lines.append(
                f"- {row['workload']}, {row['threads']} thread(s), {target['of']}: {said}: "
                f"**{verdict}**"
            )
    for mean in geometric_means(rows):
        verdict = {True: "met", False: "MISSED", None: "not measured"}[mean["met"]]
        lines.append(
            f"- geometric mean over {mean['found']} of {mean['rows']} rows, {mean['name']}, "
            f"{mean['threads']} thread(s), time: {mean['peer']} needs {number(mean['measured'])}x "
            f"ours, promised >= {number(mean['at_least'])}x: **{verdict}**"
        )
    return "\n".join(lines)


def geometric_means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The promises over several rows (`_targets.Mean`): measured and met.

    Nothing is measured while a row of a mean is absent or lacks the peer; nothing is met where
    PyTorch itself served one.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        for part in row.get("means", ()):
            key = (part["name"], part["peer"], row["threads"], part["at_least"], part["rows"])
            groups.setdefault(key, []).append(part)
    found = []
    for (name, peer, threads, at_least, count), parts in groups.items():
        ratios = [part["measured"] for part in parts if part["measured"] is not None]
        measured = None
        if len(ratios) == count:
            measured = math.exp(math.fsum(map(math.log, ratios)) / count)
        met = None
        if measured is not None:
            met = measured >= at_least and all(part["ours"] for part in parts)
        found.append(
            {"name": name, "peer": peer, "threads": threads, "at_least": at_least, "rows": count}
            | {"found": len(ratios), "measured": measured, "met": met}
        )
    return found


def header(rows: Sequence[Row]) -> str:
    """Machine, versions, commit, and who was absent; each distinct value once."""

    def distinct(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key))) or "unknown"

    versions: dict[str, str] = {}
    for row in rows:
        versions |= {k: str(v) for k, v in row.get("versions", {}).items() if v}
    loads = [row["load_average"] for row in rows if row.get("load_average") is not None]
    absent = {name: why for row in rows for name, why in row.get("absent", {}).items()}
    gates = sum(len(row.get("gates", ())) for row in rows)
    chips = dict.fromkeys(row["gpu"]["name"] for row in rows if row.get("gpu"))
    lines = [
        *(f"- GPU: {chip}" for chip in chips),
        f"- machine: {distinct('cpu')}, {distinct('cores')} cores, {distinct('os')}",
        f"- instruction set: {distinct('instruction_set')}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in versions.items()) or 'unknown'}",
        f"- commit: {distinct('commit')}; date: {distinct('date')}",
        f"- load average while measuring: {number(min(loads))} to {number(max(loads))}"
        if loads
        else "- load average while measuring: unknown",
        f"- correctness gates passed before timing: {gates}",
        *(f"- absent: {name}: {why}" for name, why in absent.items()),
    ]
    return "\n".join(lines)


def summary(row: Row) -> str:
    """One row as it is printed while a benchmark runs."""
    absent = "\n".join(f"absent: {n}: {why}" for n, why in row.get("absent", {}).items())
    alone = {key: value for key, value in row.items() if key != "means"}
    return "\n".join(part for part in (table([row]), promises([alone]), absent) if part)


def brief(row: Row) -> str:
    """A row in a line: our time, the others' as multiples of it, promises that are not met."""
    missed = {
        (target["peer"], target["of"]): f" (promised {target['at_least']})"
        for target in row.get("targets", ())
        if target["met"] is False
    }
    ours, *peers = row["providers"]
    busy = f", {number(ours['device_ms'])} on the GPU" if ours.get("device_ms") else ""
    time = f"{number(ours['ms'])} ms{busy}{missed.pop(('', 'ms'), '')} ({ours['served_by']})"
    others = [
        f"{peer['name']} {number(peer.get('ratio'))}x{missed.pop((peer['name'], 'time'), '')}"
        for peer in peers
    ]
    rate = []
    if ours.get("gb_per_s") and row["copy_gb_s"]:
        share = 100 * ours["gb_per_s"] / row["copy_gb_s"]
        rate = [f"{share:.0f} % of copy{missed.pop(('', 'copy'), '')}"]
    rest = [f"{peer} {of}{promise}".strip() for (peer, of), promise in missed.items()]
    parts = ", ".join([time, *rate, *others, *rest])
    return f"{row['workload']}, {row['threads']}t: {parts}"


def markdown(rows: Sequence[Row], title: str, plot: str | None) -> str:
    """The whole report."""
    notes = (
        'Medians of interleaved rounds in one process; "time / ours" is the median over rounds of '
        "that provider's time over the first one's. Peak MB: resident memory at the peak of the "
        "whole job over that before it, in a fresh process; on a GPU, what PyTorch allocates. "
        '"On the GPU": kernels and copies alone.'
    )
    own = dict.fromkeys(str(row["notes"]) for row in rows if row.get("notes"))
    promised = promises(rows)
    parts = [f"# {title}", header(rows), table(rows), " ".join([notes, *own])]
    parts += ["## Promises", promised] if promised else []
    paper = paper_table(rows)
    parts += ["## The SegNet paper's table", paper, PAPER_NOTE] if paper else []
    parts += [f"![{title}]({plot})"] if plot else []
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------ plot


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Horizontal bars, ms per provider, a group per workload and thread count, logarithmic.

    Rows of detail are left to the table where there are others.
    """
    rows = [row for row in rows if not row.get("detail")] or rows
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(p["name"] for row in rows for p in row["providers"]))
    colour = {name: f"C{i}" for i, name in enumerate(names)}
    bars = sum(len(row["providers"]) + 1 for row in rows)
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.24 * bars), layout="constrained")
    at, ticks, labels = 0, [], []
    for row in rows:
        start = at
        for provider in row["providers"]:
            ms = provider["ms"]
            low = ms - (provider.get("ms_q20") or ms)
            high = (provider.get("ms_q80") or ms) - ms
            axes.barh(
                at,
                ms,
                0.85,
                xerr=[[max(0, low)], [max(0, high)]],
                color=colour[provider["name"]],
                error_kw={"elinewidth": 0.8},
            )
            times = provider.get("ratio")
            ours = provider is row["providers"][0]
            note = f" {number(ms)} ms" + ("" if ours or times is None else f", {number(times)}x")
            axes.annotate(note, (ms + max(0, high), at), va="center", fontsize=7)
            at += 1
        ticks.append((start + at - 1) / 2)
        labels.append(f"{row['workload']}, {row['threads']} thr.")
        at += 1
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("ms, whole job (median, 20-80 %)")
    served = dict.fromkeys(str(row["providers"][0]["served_by"]) for row in rows)
    commit = str(rows[0].get("commit", "unknown"))[:12]
    axes.set_title(
        f"{title}   segfast served by {' / '.join(served)}\n"
        f"{rows[0].get('cpu', 'unknown CPU')}   commit {commit}",
        fontsize=9,
        loc="left",
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour[name]) for name in names]
    axes.legend(handles, names, fontsize=7, loc="best")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when written, 2 when the input cannot be reported on."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="JSON of pytest --benchmark-json")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: beside FILE")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the plot")
    parser.add_argument("--brief", action="store_true", help="a line per row, no files")
    options = parser.parse_args(arguments)
    try:
        rows = load(options.file)
    except BadReport as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if options.brief:
        print("\n".join(map(brief, rows)))
        return 0
    folder = options.output or options.file.parent
    name = options.file.stem
    title = f"{rows[0].get('operator', name)}: speed and memory"
    plot: str | None = f"{name}.{options.format}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            draw(rows, title, folder / str(plot))
        except ModuleNotFoundError as error:
            print(f"report: no plot: {error} (pip install matplotlib)", file=sys.stderr)
            plot = None
        text = markdown(rows, title, plot)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"report: cannot write to {folder}: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"wrote {folder / name}.md" + (f" and {folder / plot}" if plot else ""), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
