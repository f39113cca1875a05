"""Overlay, panels and the grid of steps: sizes, places and colours of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from segfast.cli import picture
from segfast.cli.images import LabelStyle, index_style


def test_overlay() -> None:
    photo = np.full((1, 4, 6), 100, np.uint8)
    labels = np.zeros((4, 6), int)
    labels[:, 3:] = 1
    colors = np.array([[0, 0, 0], [200, 0, 50]], np.uint8)
    painted = picture.overlay(photo, labels, colors)
    assert painted.shape == (4, 6, 3)
    assert painted.dtype == np.uint8
    assert (painted[:, :3] == 100).all()  # black leaves the photo
    assert (painted[:, 3] == 255).all()  # the line between labels
    assert (painted[:, 4:] == [150, 50, 75]).all()


def test_rgb_rounds_and_clips() -> None:
    photo = np.array([-3.0, 1.4, 1.6, 300.0], np.float32).reshape(1, 1, 4)
    assert picture.rgb(photo)[0, :, 2].tolist() == [0, 1, 2, 255]


def test_heat_ends() -> None:
    values = np.array([[-np.inf, 2.0, 3.0, 4.0, np.inf]])
    colors = picture.heat(values, 2.0, 4.0)[0]
    ramp = picture.RAMP
    np.testing.assert_array_equal(colors, [ramp[0], ramp[0], ramp[2], ramp[4], ramp[4]])
    np.testing.assert_array_equal(picture.heat(values[:, 1:2], 2.0, 2.0)[0, 0], ramp[0])


def test_side_by_side() -> None:
    panels = [(str(n), np.full((5, 7, 3), n, np.uint8)) for n in (10, 20, 30)]
    canvas = picture.side_by_side(panels)
    gap, top = picture.GAP, picture.LINE + picture.GAP
    assert canvas.shape == (5 + top + gap, 3 * (7 + gap) + gap, 3)
    for number, (_, panel) in enumerate(panels):
        left = gap + number * (7 + gap)
        np.testing.assert_array_equal(canvas[top : top + 5, left : left + 7], panel)


def states(count: int, steps: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label l has belief proportional to l + 1 everywhere; the score is its logarithm."""
    belief = np.arange(1.0, count + 1) / (count * (count + 1) / 2)
    belief = np.broadcast_to(belief[:, None, None], (count, 20, 30))
    return [(np.log(belief), belief)] * steps


def test_steps_grid_places_every_map() -> None:
    grid = picture.steps_grid(states(2), ["zero", "one"])
    cell_width, cell_height = 90 + picture.GAP, 20 + picture.LINE + picture.GAP
    assert grid.shape[:2] == (
        picture.LINE + picture.GAP + 3 * cell_height,
        picture.GAP + 4 * cell_width,
    )
    low, high = picture.RAMP[0], picture.RAMP[-1]  # the two scores are the ends of their range
    one_third = picture.heat(np.array([[1 / 3]]), 0, 1)[0, 0]
    two_thirds = picture.heat(np.array([[2 / 3]]), 0, 1)[0, 0]
    for row in range(3):
        top = picture.LINE + picture.GAP + row * cell_height + picture.LINE
        for column, color in enumerate((low, one_third, high, two_thirds)):
            left = picture.GAP + column * cell_width
            assert (grid[top : top + 20, left : left + 30] == color).all(), (row, column)


def test_steps_grid_shows_the_likeliest_labels_and_shrinks() -> None:
    grid = picture.steps_grid(states(12), [str(n) for n in range(12)], most=3, tile_width=15)
    assert grid.shape[1] == picture.GAP + 6 * (90 + picture.GAP)
    assert grid.shape[0] == picture.LINE + picture.GAP + 3 * (10 + picture.LINE + picture.GAP)
    for column, label in enumerate((9, 10, 11)):
        belief = picture.heat(np.array([[(label + 1) / 78]]), 0, 1)[0, 0]  # 78 = 1 + ... + 12
        left = picture.GAP + (2 * column + 1) * (90 + picture.GAP)
        assert (grid[2 * picture.LINE + picture.GAP, left] == belief).all()
    with_infinity = [(np.full((2, 4, 4), -np.inf), np.full((2, 4, 4), 0.5))]
    assert picture.steps_grid(with_infinity, ["a", "b"]).ndim == 3


@pytest.mark.parametrize(
    ("style", "names", "colors"),
    [
        (LabelStyle(np.array([[1, 2, 255]]), "RGB"), ["#0102ff"], [[1, 2, 255]]),
        (LabelStyle(np.array([1]), "P", (0, 0, 0, 9, 8, 7)), [1], [[9, 8, 7]]),
        (LabelStyle(np.array([0, 1]), "L"), [0, 1], [[0, 0, 0], [128, 0, 0]]),
        (LabelStyle(np.array([0, 255]), "L"), [0, 255], [[0, 0, 0], [128, 0, 0]]),
    ],
)
def test_styles(style: LabelStyle, names: list[object], colors: list[list[int]]) -> None:
    assert style.names() == names
    assert style.colors().tolist() == colors


def test_style_of_many_labels() -> None:
    assert index_style(256).mode == "P"
    assert index_style(257).mode == "I;16"
