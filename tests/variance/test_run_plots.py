"""Pictures of a run: each layer and step has its colour, and what has none can be told."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from fastinit.variance import plot_style
from fastinit.variance.run.plots import COLUMNS, curves, heat_map

WHY = ["inf or NaN", "no variance", "not measured"]
VALUES: dict[str, list[float | None]] = {
    "0": [1.0, 2.0, 4.0],
    "2": [1.0, 0.0, 1.0],
    "4": [1.0, math.inf, None],
    "6": [math.nan, 8.0, 1e-30],
}


def drawn(ax: Any) -> list[list[tuple[float, ...]]]:
    """The colour of each cell."""
    image = ax.images[0]
    return [[tuple(cell) for cell in row] for row in image.cmap(image.norm(image.get_array()))]


def legend(figure: Any) -> dict[str, tuple[float, ...]]:
    return {
        text.get_text(): patch.get_facecolor()
        for found in figure.legends
        for text, patch in zip(found.get_texts(), found.get_patches())
    }


def test_a_heat_map_shows_each_layer_and_step(tmp_path: Path) -> None:
    path = tmp_path / "heat.png"
    ax = heat_map(list(VALUES), [0, 100, 200], list(VALUES.values()), "std", path=path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [text.get_text() for text in ax.get_yticklabels()] == list(VALUES)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "100", "200"]
    colours, said = drawn(ax), legend(ax.figure)
    assert sorted(said) == sorted(WHY)
    special = {(1, 1): "no variance", (3, 0): "no variance"}
    special |= {(2, 1): "inf or NaN", (2, 2): "not measured"}
    for row in range(4):
        for column in range(3):
            kind = special.get((row, column))
            assert (colours[row][column] in said.values()) == (kind is not None)
            if kind:
                assert colours[row][column] == said[kind]
    assert colours[0][0] == colours[1][0] == colours[2][0]
    assert len({*colours[0]}) == 3
    low, high = ax.images[0].get_clim()
    assert (low, high) == (1e-30, 8.0)


def test_what_is_alike_looks_alike() -> None:
    ax = heat_map(["a", "b"], [0, 1], [[1.0, 1.01], [1.0, 0.99]], "std")
    low, high = ax.images[0].get_clim()
    assert high / low == pytest.approx(2)
    assert low < 0.99 < 1.01 < high
    assert not ax.figure.legends


def test_many_steps_lose_nothing_that_went_wrong() -> None:
    count = 3 * COLUMNS
    values: list[float | None] = [1.0] * count
    values[1] = math.inf
    values[4] = 0.0
    values[7] = 8.0
    values[9:12] = [None] * 3
    ax = heat_map(["a"], list(range(0, 10 * count, 10)), [values], "std")
    row, said = drawn(ax)[0], legend(ax.figure)
    assert len(row) == COLUMNS
    assert [row[0], row[1], row[3]] == list(map(said.get, WHY))
    assert ax.images[0].get_array()[0][2] == pytest.approx(2.0)  # the geometric mean of 8, 1, 1
    ticks = [int(text.get_text()) for text in ax.get_xticklabels()]
    assert ticks == [30 * int(at) for at in ax.get_xticks()]


@pytest.mark.parametrize("layers", [1, 12, 80, 300])
def test_names_can_be_read(layers: int) -> None:
    names = ["wte", *(f"h.{i // 4}.{'abcd'[i % 4]}" for i in range(layers))]
    ax = heat_map(names, [0, 1], [[1.0, 2.0]] * len(names), "std")
    ax.figure.canvas.draw()
    boxes = sorted(
        (label.get_window_extent() for label in ax.get_yticklabels()), key=lambda b: b.y0
    )
    assert all(lower.y0 + lower.height * 0.9 < upper.y0 + 1 for lower, upper in pairwise(boxes))
    shown = {int(at): text.get_text() for at, text in zip(ax.get_yticks(), ax.get_yticklabels())}
    assert all(names[at].startswith(name) for at, name in shown.items())
    assert len(shown) > min(layers, 20) / 2


def test_curves_have_their_names_at_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    ax = curves([0, 5, 9], VALUES, "std", path=path)
    assert b"<svg" in path.read_bytes()
    lines = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in lines] == [
        [pytest.approx(v if v and 0 < v < math.inf else math.nan, nan_ok=True) for v in values]
        for values in VALUES.values()
    ]
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        name: line.get_color() for name, line in zip(VALUES, lines)
    }
    lost = [line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert sorted((list(line.get_xdata()), line.get_color()) for line in lost) == sorted(
        [([5], lines[1].get_color()), ([5], lines[2].get_color()), ([0], lines[3].get_color())]
    )


def test_nothing_is_drawn_alike() -> None:
    assert [text.get_text() for text in heat_map([], [], [], "std").texts] == [
        "nothing was measured"
    ]
    assert not curves([], {}, "std").texts
    with pytest.raises(ValueError, match="must end in one of"):
        heat_map([], [], [], "std", path="heat.xyz")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the model"),
        ("h.3.attn", "h.3.attn"),
        ("a$b$", r"a\$b\$"),
        ("two\nlines", "two lines"),
        ("block.a_name_of_more_letters_than_fit", "…more_letters_than_fit"),
    ],
)
def test_names_in_pictures_fit_and_are_no_tex(name: str, said: str) -> None:
    assert plot_style.shown(name) == said
    assert len(said.replace("\\", "")) <= plot_style.ROOM
