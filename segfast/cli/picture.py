"""Pictures of labellings: an overlay on the photo, maps per iteration, panels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segfast.cli.files import require_extra
from segfast.cli.images import Array

INK, PAPER = (30, 30, 30), (255, 255, 255)
GAP, LINE = 8, 18  # pixels between panels, height of a line of text
CAPTION = 16  # height of the letters above panels
# Dark to light through blue, green, yellow: the order survives print and colour blindness.
RAMP = np.array([[20, 10, 60], [45, 80, 140], [35, 145, 140], [110, 205, 90], [250, 230, 50]])


def rgb(photo: Array) -> Array:
    """[C, H, W] of 0..255 -> [H, W, 3] uint8."""
    planes = np.clip(np.rint(photo), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(planes, (3, *planes.shape[1:])).transpose(1, 2, 0))


def overlay(photo: Array, labels: Array, colors: Array, opacity: float = 0.5) -> Array:
    """Photo [C, H, W] tinted by its labels [H, W], white lines between labels -> [H, W, 3] uint8.

    Black labels (VOC's background, most often) leave the photo as it is.
    """
    base = rgb(photo)
    tint = colors[labels]  # [H, W, 3]
    mixed = (1 - opacity) * base + opacity * tint
    painted = np.where(tint.any(-1, keepdims=True), mixed, base)
    edge = np.zeros(labels.shape, np.bool_)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    painted[edge] = 255
    return np.rint(painted).astype(np.uint8)


def heat(values: Array, low: float, high: float) -> Array:
    """[H, W] -> [H, W, 3] uint8 on RAMP; low and high are its ends, infinities clip to them."""
    span = max(high - low, 1e-12)
    position = np.clip((values - low) / span, 0, 1)
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(position, stops, RAMP[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def side_by_side(panels: Sequence[tuple[str, Array]]) -> Array:
    """Panels [H, W, 3] of one size in a row, a caption above each -> [H', W', 3] uint8."""
    height, width = panels[0][1].shape[:2]
    canvas, draw = _canvas(len(panels) * (width + GAP) + GAP, height + LINE + 2 * GAP)
    font = _font(CAPTION)
    for number, (caption, panel) in enumerate(panels):
        left = GAP + number * (width + GAP)
        draw.text((left, GAP // 4), caption, fill=INK, font=font)
        _paste(canvas, panel, left, LINE + GAP)
    return np.asarray(canvas)


def steps_grid(
    steps: Sequence[tuple[Array, Array]], names: Sequence[str], most: int = 8, tile_width: int = 200
) -> Array:
    """One row per step, per label its score and belief maps -> [H', W', 3] uint8.

    Args:
        steps: (scores, belief), each [L, H, W]; the first is the state before any iteration.
        names: the label of each of the L planes.
        most: labels shown, those with the largest belief in the end.
        tile_width: largest width of a map, in pixels.
    """
    final = steps[-1][1]
    shown = np.sort(np.argsort(-final.sum((1, 2)), kind="stable")[:most])
    height, width = final.shape[1:]
    scale = min(1.0, tile_width / width, tile_width / height)
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = (max(tile[0], 90) + GAP, tile[1] + LINE + GAP)  # 90: room for a caption
    canvas, draw = _canvas(GAP + 2 * len(shown) * cell[0], LINE + GAP + len(steps) * cell[1])
    hidden = final.shape[0] - len(shown)
    note = f" ({hidden} labels with less belief not shown)" if hidden else ""
    draw.text((GAP, GAP // 2), f"scores and beliefs, one row per iteration{note}", fill=INK)
    for row, (scores, belief) in enumerate(steps):
        finite = scores[shown][np.isfinite(scores[shown])]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        top = LINE + GAP + row * cell[1]
        for column, label in enumerate(shown):
            left = GAP + 2 * column * cell[0]
            bounds = f"[{low:.3g}, {high:.3g}]"
            for offset, caption, values, ends in (
                (0, f"{row}: score {names[label]} {bounds}", scores[label], (low, high)),
                (1, f"{row}: belief {names[label]}", belief[label], (0.0, 1.0)),
            ):
                x = left + offset * cell[0]
                draw.text((x, top), caption[: cell[0] // 6], fill=INK)  # 6: width of a letter
                _paste(canvas, _shrunk(heat(values, *ends), tile), x, top + LINE)
    return np.asarray(canvas)


def _canvas(width: int, height: int) -> tuple[Any, Any]:
    image = require_extra("PIL.Image", "Pillow").new("RGB", (width, height), PAPER)
    return image, require_extra("PIL.ImageDraw", "Pillow").Draw(image)


def _font(height: int) -> Any:
    fonts = require_extra("PIL.ImageFont", "Pillow")
    try:
        return fonts.load_default(height)
    except (TypeError, ImportError, OSError):  # Pillow 10.0, or built without FreeType
        return fonts.load_default()


def _paste(canvas: Any, panel: Array, left: int, top: int) -> None:
    pillow = require_extra("PIL.Image", "Pillow")
    canvas.paste(pillow.fromarray(np.ascontiguousarray(panel)), (left, top))


def _shrunk(panel: Array, size: tuple[int, int]) -> Array:
    pillow = require_extra("PIL.Image", "Pillow")
    return np.asarray(pillow.fromarray(panel).resize(size, pillow.Resampling.BOX))
