"""``segfast demo``: a noisy labelling of a real photograph refined by the CRF, and scored."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shlex
import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segfast._native import native, why_not_native
from segfast._version import __version__
from segfast.cli.crf_options import CONFIDENCE
from segfast.cli.files import UserError, make_folder, require_extra, require_writable, write_all
from segfast.cli.images import Array, LabelStyle, label_map_writer, png_writer
from segfast.cli.labels import label_logits
from segfast.cli.picture import side_by_side
from segfast.kernels.dense_crf import reference
from segfast.ops import mean_field

BLOCK, WRONG, SEED = 8, 0.25, 0  # pixels; share of blocks; numpy's default_rng
MODEL: dict[str, Any] = {
    "spatial_weight": 3.0, "spatial_sigma": 3.0, "bilateral_weight": 10.0, "bilateral_sigma": 80.0,
    "color_sigma": 13.0, "iterations": 10, "normalization": "symmetric",
}  # fmt: skip
REDUCED = 4  # the reference takes every 4th row and column


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="refine a noisy labelling of a photograph, score and time it",
        description="Refines a coarse, noisy labelling of a photograph that comes with "
        "scikit-image, scores it against a mask traced by hand, and times it.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR",
        help="folder for the pictures; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a machine-readable summary")


def run(args: argparse.Namespace) -> int:
    require_extra("PIL.Image", "Pillow")
    scene = load_scene()
    photo = load_photo(scene)  # [H, W, 3]
    truth = rasterize(scene)  # [H, W]
    names, count = scene["labels"], len(scene["labels"])
    coarse = coarsen(truth, count)
    files = {name: args.output / f"{name}.png" for name in
             ("demo", "photo", "coarse", "refined", "truth")}  # fmt: skip
    make_folder(args.output)
    for path in files.values():
        require_writable(path)

    logits = torch.from_numpy(label_logits(coarse, count, CONFIDENCE))  # [L, H, W]
    image = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))
    seconds, refined, peer = compare(logits, image, photo)
    before, after = ious(coarse, truth, count), ious(refined, truth, count)

    colors = np.array(scene["colors"], np.uint8)
    style = LabelStyle(np.arange(count), "P", tuple(int(v) for v in colors.ravel()))
    panels = [
        ("photo", photo),
        (f"coarse and noisy: mean IU {np.mean(before):.3f}", colors[coarse]),
        (f"refined in {seconds:.2f} s: mean IU {np.mean(after):.3f}", colors[refined]),
        ("traced by hand", colors[truth]),
    ]
    maps = {"coarse": coarse, "refined": refined, "truth": truth}
    write_all(
        {files["demo"]: png_writer(side_by_side(panels)), files["photo"]: png_writer(photo)}
        | {files[name]: label_map_writer(labels, style) for name, labels in maps.items()}
    )
    facts = {
        "version": __version__,
        "photo": scene["source"],
        "width": photo.shape[1],
        "height": photo.shape[0],
        "labels": names,
        "polygons": len(scene["regions"]),
        "block": BLOCK,
        "wrong_blocks": WRONG,
        "seed": SEED,
        "confidence": CONFIDENCE,
        "model": {**MODEL, "method": "lattice"},
        "iou_before": dict(zip(names, before, strict=True)),
        "iou_after": dict(zip(names, after, strict=True)),
        "mean_iu_before": float(np.mean(before)),
        "mean_iu_after": float(np.mean(after)),
        "accuracy_before": float((coarse == truth).mean()),
        "accuracy_after": float((refined == truth).mean()),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "kernels": served(),
        "peer": peer,
        "files": [str(path) for path in files.values()],
    }
    print(json.dumps(facts, indent=2) if args.json else "\n".join(readable(facts)))
    return 0


# --- the job ------------------------------------------------------------------------------------


def load_scene() -> dict[str, Any]:
    """The traced polygons: photo, labels, colors, regions (see the file's own notes)."""
    text = resources.files("segfast.cli").joinpath("demo_coffee.json").read_text("utf-8")
    scene: dict[str, Any] = json.loads(text)
    return scene


def load_photo(scene: dict[str, Any]) -> Array:
    """[H, W, 3] uint8, from the scikit-image package (no download), and the one traced."""
    data = require_extra("skimage.data", "scikit-image")
    photo = np.asarray(getattr(data, scene["photo"])())
    digest = hashlib.sha256(np.ascontiguousarray(photo).tobytes()).hexdigest()
    if photo.shape != (scene["height"], scene["width"], 3) or digest != scene["sha256"]:
        raise UserError(
            f"skimage.data.{scene['photo']} is not the photo that was traced: expected "
            f"{scene['width']} x {scene['height']} RGB with SHA-256 {scene['sha256'][:12]}..., "
            f"got shape {photo.shape}, {digest[:12]}..."
        )
    return photo


def rasterize(scene: dict[str, Any]) -> Array:
    """[H, W] int64: each region's label where the pixel's centre lies inside, in order."""
    labels = np.zeros((scene["height"], scene["width"]), np.int64)
    for region in scene["regions"]:
        labels[inside(region["polygon"], labels.shape)] = scene["labels"].index(region["label"])
    return labels


def inside(polygon: list[list[float]], shape: tuple[int, ...]) -> Array:
    """[H, W] bool, even-odd rule: a pixel is in if edges cross its row left of it an odd number."""
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        top, bottom = sorted((y0, y1))
        rows = np.arange(max(0, np.ceil(top - 0.5)), min(height, np.ceil(bottom - 0.5)), dtype=int)
        if len(rows) == 0:
            continue
        x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)  # [R], where the edge crosses each row
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
        crossings[rows, columns] += 1  # an edge crosses a row once: no index repeats
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1


def coarsen(truth: Array, count: int) -> Array:
    """Majority label per BLOCK x BLOCK, then a share WRONG of the blocks get a random other."""
    height, width = truth.shape
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    padded = np.pad(truth, ((0, rows * BLOCK - height), (0, columns * BLOCK - width)), mode="edge")
    blocks = padded.reshape(rows, BLOCK, columns, BLOCK)
    votes = np.stack([(blocks == label).sum((1, 3)) for label in range(count)])
    coarse = votes.argmax(0)  # [rows, columns]
    random = np.random.default_rng(SEED)
    wrong = random.random(coarse.shape) < WRONG
    coarse[wrong] = (coarse[wrong] + random.integers(1, count, int(wrong.sum()))) % count
    return coarse.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]


def ious(labels: Array, truth: Array, count: int) -> list[float]:
    """Intersection over union per label."""
    pairs = [(labels == label, truth == label) for label in range(count)]
    return [float((a & b).sum() / max((a | b).sum(), 1)) for a, b in pairs]


# --- time and peers -----------------------------------------------------------------------------


def race(
    works: dict[str, Callable[[], Any]], rounds: int = 5, enough: float = 10.0
) -> tuple[dict[str, float], dict[str, Any]]:
    """Each work once per round, in turn: median seconds, and the last results, by name.

    No new round once ``enough`` seconds have gone.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, Any] = {}
    first = time.perf_counter()
    for number in range(rounds):
        if number > 0 and time.perf_counter() - first > enough:
            break
        for name, work in works.items():
            start = time.perf_counter()
            results[name] = work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}, results


def on_one_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    def single() -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(threads)

    return single


def served() -> str:
    module = native()
    return "PyTorch reference" if module is None else f"C++ ({module.instruction_set()})"


def pydensecrf_work(logits: Tensor, photo: Array) -> Callable[[], Array] | None:
    """The same model by pydensecrf -> labels [H, W]; None where it is not importable."""
    try:
        densecrf = importlib.import_module("pydensecrf.densecrf")
    except ImportError:
        return None
    count, height, width = logits.shape
    unary = np.ascontiguousarray(-logits.numpy().reshape(count, -1))
    pixels = np.ascontiguousarray(photo)

    def work() -> Array:
        crf = densecrf.DenseCRF2D(width, height, count)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=MODEL["spatial_sigma"], compat=MODEL["spatial_weight"])
        crf.addPairwiseBilateral(
            sxy=MODEL["bilateral_sigma"], srgb=MODEL["color_sigma"], rgbim=pixels,
            compat=MODEL["bilateral_weight"],
        )  # fmt: skip
        belief = np.array(crf.inference(MODEL["iterations"])).reshape(count, height, width)
        labels: Array = belief.argmax(0)
        return labels

    return work


def compare(logits: Tensor, image: Tensor, photo: Array) -> tuple[float, Array, dict[str, Any]]:
    """Seconds, refined labels [H, W], and how a peer did at the same job."""

    def ours() -> Tensor:
        return mean_field(logits, image, method="lattice", **MODEL)

    theirs = pydensecrf_work(logits, photo)
    if theirs is None:
        seconds, results = race({"ours": ours})
        return seconds["ours"], results["ours"].argmax(0).numpy(), compare_reference(logits, image)
    works = {"ours": ours, "single": on_one_thread(ours), "theirs": theirs}
    seconds, results = race(works)
    refined = results["ours"].argmax(0).numpy()
    peer = {
        "name": "pydensecrf",
        "seconds": seconds["theirs"],
        "speedup": seconds["theirs"] / seconds["ours"],
        "speedup_one_thread": seconds["theirs"] / seconds["single"],
        "same_label": float((results["theirs"] == refined).mean()),
    }
    return seconds["ours"], refined, peer


def compare_reference(logits: Tensor, image: Tensor) -> dict[str, Any]:
    """Against the plain PyTorch lattice, on a reduced picture, where pydensecrf is missing."""
    if native() is None:
        return {"name": None, "why": f"the reference itself serves here: {why_not_native()}"}
    small = logits[:, ::REDUCED, ::REDUCED].contiguous()
    pixels = image[:, ::REDUCED, ::REDUCED].contiguous()
    model: dict[str, Any] = {**MODEL, "method": "lattice", "spatial": "conv"}
    seconds, results = race(
        {
            "theirs": lambda: reference.mean_field(
                small, pixels.float(), compatibility=None, **model
            ),
            "ours": lambda: mean_field(small, pixels, **model),
        }
    )
    same = results["theirs"].argmax(0) == results["ours"].argmax(0)
    return {
        "name": "PyTorch reference",
        "why": "pydensecrf is not importable",
        "reduced": REDUCED,
        "seconds": seconds["theirs"],
        "speedup": seconds["theirs"] / seconds["ours"],
        "same_label": float(same.double().mean()),
    }


# --- telling ------------------------------------------------------------------------------------


def readable(facts: dict[str, Any]) -> list[str]:
    before, after = facts["iou_before"], facts["iou_after"]
    model = facts["model"]
    demo, *others = facts["files"]
    return [
        f"segfast {facts['version']}: refine a coarse, noisy labelling of a photograph",
        f"photo    {facts['photo']}; {facts['width']} x {facts['height']}",
        f"truth    {facts['polygons']} polygons traced by hand, {len(before)} labels: "
        f"{', '.join(before)}",
        f"job      every {facts['block']} x {facts['block']} block gets its majority label, then "
        f"{facts['wrong_blocks']:.0%} of the blocks a wrong one (seed {facts['seed']})",
        f"model    {model['iterations']} iterations, spatial {model['spatial_weight']:g} / "
        f"{model['spatial_sigma']:g} px, bilateral {model['bilateral_weight']:g} / "
        f"{model['bilateral_sigma']:g} px / {model['color_sigma']:g} grey levels, "
        f"{model['method']}, {model['normalization']}, labels trusted {facts['confidence']:g}",
        f"mean IU  {facts['mean_iu_before']:.3f} -> {facts['mean_iu_after']:.3f}   "
        f"(pixel accuracy {facts['accuracy_before']:.1%} -> {facts['accuracy_after']:.1%})",
        *(f"           {name:<11}{before[name]:.3f} -> {after[name]:.3f}" for name in before),
        f"time     {facts['seconds']:.3f} s (median), {facts['threads']} thread(s), "
        f"{facts['kernels']}",
        f"peer     {_peer(facts['peer'])}",
        f"wrote    {demo} (and {', '.join(Path(other).name for other in others)})",
        f"try      segfast crf {shlex.quote(others[0])} {shlex.quote(others[1])} -o mine.png",
    ]


def _peer(peer: dict[str, Any]) -> str:
    if peer["name"] is None:
        return f"none: {peer['why']}"
    same = f"same label on {peer['same_label']:.2%} of the pixels"
    if peer["name"] == "pydensecrf":
        return (
            f"pydensecrf {peer['seconds']:.3f} s (it has one thread only): segfast is "
            f"{peer['speedup']:.2g}x as fast, {peer['speedup_one_thread']:.2g}x with one thread; "
            f"{same}"
        )
    return (
        f"{peer['why']}; the PyTorch reference on every {peer['reduced']}th row and column takes "
        f"{peer['seconds']:.3f} s: the kernels are {peer['speedup']:.2g}x as fast; {same}"
    )
