"""Pictures: what they show is what was measured, all of it, and it can be read."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from watching import mlp

from fastinit.variance.lsuv import schedules
from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.lsuv.result import LSUVResult
from fastinit.variance.plots import NAMED, std_before_and_after, variance_through_depth
from fastinit.variance.watch.watch import watch

pytest.importorskip("matplotlib")

GPT = ["wte", "wpe"]
GPT += [f"h.{i}.{n}" for i in range(4) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
GPT += ["lm_head"]


def entries(ax: Any) -> dict[str, Any]:
    """The legend: by label, what is beside it."""
    legend = ax.get_legend()
    return dict(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles))


def points(ax: Any, label: str) -> dict[float, float]:
    """By place, the numbers that have a marker in the colour of a label."""
    colour = entries(ax)[label].get_color()
    return {
        x: y
        for line in ax.lines
        if line.get_gid() and line.get_color() == colour
        for x, y in zip(line.get_xdata(), line.get_ydata())
        if not math.isnan(y)
    }


def crosses(ax: Any) -> dict[float, list[float]]:
    """By height, the places of the crosses."""
    found: dict[float, list[float]] = {}
    for line in ax.lines:
        if line.get_marker() == "x":
            for x, y in zip(line.get_xdata(), line.get_ydata()):
                found.setdefault(float(y), []).append(float(x))
    return found


def joined(ax: Any) -> list[list[float]]:
    """The places that a line joins, of the first series."""
    colour = next(line.get_color() for line in ax.lines if line.get_gid())
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    return sorted(list(line.get_xdata()) for line in lines if line.get_color() == colour)


def by_place(values: Sequence[float]) -> dict[float, float]:
    return {float(i): value for i, value in enumerate(values, 1)}


def test_a_watch_is_shown_as_it_is(tmp_path: Path) -> None:
    model = mlp(20)
    with watch(model, gradients=True) as w:
        model(torch.randn(64, 32)).square().mean().backward()
    path = tmp_path / "depth.png"
    ax = w.plot(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert ax.get_yscale() == "log"
    assert ax.get_title("left") == "Variance by layer: Sequential"
    assert [text.get_text() for text in ax.get_xticklabels()] == [layer.name for layer in w.layers]
    output, gradient = entries(ax)  # there is no target
    assert entries(ax)[output].get_color() != entries(ax)[gradient].get_color()
    assert points(ax, output) == by_place([layer.forward.var for layer in w.layers])
    last = w.layers[-1].backward.var
    assert points(ax, gradient) == by_place([layer.backward.var / last for layer in w.layers])
    assert joined(ax) == [list(range(1, 21))]
    assert ax.get_xlabel() == ""  # nothing is left out


@pytest.mark.parametrize("schedule", [None, schedules.alternating(1.25)])
def test_lsuv_is_shown_with_its_targets(tmp_path: Path, schedule: Any) -> None:
    model, x = mlp(20), torch.randn(64, 32)
    model[4].requires_grad_(False)
    result = lsuv_(model, x, target_std=schedule or 0.5)
    path = tmp_path / "lsuv.svg"
    ax = result.plot(path)
    assert b"<svg" in path.read_bytes()
    assert list(entries(ax)) == ["target", "before", "after"]
    assert points(ax, "before") == by_place([m.before.std for m in result.layers])
    assert points(ax, "after") == by_place([m.std for m in result.layers])
    colour = entries(ax)["target"].get_color()
    drawn = [line for line in ax.lines if line.get_color() == colour and len(line.get_xdata())]
    assert [tuple(line.get_ydata()) for line in drawn] == [
        (m.target, m.target) for m in result.layers if not math.isnan(m.target)
    ]
    assert len(drawn) == 19  # the frozen layer has none
    frozen = lsuv_(mlp(2).requires_grad_(False), x).plot()
    assert list(entries(frozen)) == ["before", "after"]


def test_several_models_on_the_same_axes() -> None:
    x = torch.randn(64, 32)
    ax = lsuv_(mlp(2), x).plot(label="one")
    assert lsuv_(mlp(3), x).plot(ax=ax, label="other") is ax
    shown = entries(ax)
    series = ["one: before", "one: after", "other: before", "other: after"]
    assert list(shown) == ["target", *series[:2], *series[2:]]
    assert len({handle.get_color() for handle in shown.values()}) == 5
    assert list(points(ax, series[0])) == [1, 2]
    assert list(points(ax, series[3])) == [1, 2, 3]
    assert ax.get_xlim()[1] > 3
    ax.set_title("Mine")
    assert lsuv_(mlp(1), x).plot(ax=ax).get_title() == "Mine"


def test_a_watch_is_shown_before_and_after(tmp_path: Path) -> None:
    model, x = mlp(6), torch.randn(64, 32)
    with watch(model, gradients=True) as before:
        model(x).square().mean().backward()
    lsuv_(model, x)
    with watch(model, layers=lambda name, module: name in ("0", "4", "10")) as after:
        model(x)
    path = tmp_path / "both.png"
    ax = after.plot(path, before=before)
    assert path.read_bytes()[:4] == b"\x89PNG"
    old, gradient, new = entries(ax)
    assert (old, new) == ("before: output", "after: output")
    assert gradient.startswith("before: gradient")
    hollow = {label: line.get_markerfacecolor() == "white" for label, line in entries(ax).items()}
    assert hollow == {old: True, gradient: True, new: False}
    assert entries(ax)[old].get_color() == entries(ax)[new].get_color()
    lines = [
        line
        for line in ax.lines
        if line.get_gid() and line.get_color() == entries(ax)[new].get_color()
    ]
    variances = [
        [w.layers[i].forward.var for i in which]
        for w, which in ((before, (0, 2, 5)), (after, range(3)))
    ]
    assert [list(line.get_ydata()) for line in lines] == variances
    with watch(strange_net := nn.ModuleDict({"a": nn.Linear(32, 1)})) as strange:
        strange_net["a"](x)
    with pytest.raises(ValueError, match="before must have layers that are here"):
        after.plot(before=strange)


def test_what_has_no_place_on_the_axis_is_a_cross_on_its_edge() -> None:
    names = list("abcdef")
    forward = [1.0, 0.0, math.nan, math.inf, 2.0, 0.0]
    backward = [None, 0.0, 3.0, math.inf, None, math.nan]
    ax = variance_through_depth(names, forward, backward)
    output, gradient, *others = entries(ax)
    assert others == ["no variance", "inf or NaN"]
    assert points(ax, output) == {1: 1.0, 5: 2.0}
    assert points(ax, gradient) == {3: 1.0}
    below, above = sorted(crosses(ax).items())[:2], sorted(crosses(ax).items())[2:]
    assert [places for _, places in below] == [[2, 3, 6], [2, 6]]  # the output's are at the edge
    assert [places for _, places in above] == [[4], [4]]  # so that none hides another
    assert all(height < 0.1 for height, _ in below)
    assert all(height > 0.9 for height, _ in above)
    nothing = variance_through_depth(["a"], [0.0], [0.0])
    assert list(entries(nothing)) == ["output", "gradient", "no variance"]


def test_a_layer_with_values_that_are_not_finite_is_not_shown_by_the_others() -> None:
    model, x = mlp(3), torch.randn(64, 32)
    x[0, 0] = math.inf
    with watch(model) as w:
        model(x)
    assert w.layers[0].forward.var > 0
    ax = w.plot()
    assert list(crosses(ax).items()) == [(1.0, [1, 2, 3])]


BY_KIND: dict[str, tuple[list[str], list[list[int]], list[str]]] = {
    # names, the places that lines join, the markers in the legend
    "a plain stack": (["0", "2", "4", "6"], [[1, 2, 3, 4]], []),
    "stages, one after the other": (["features.0", "features.2", "head.0"], [[1, 2, 3]], []),
    "no two alike": (["conv1", "conv2", "fc"], [[1, 2, 3]], []),
    "blocks": (
        GPT,
        [[3, 6, 9, 12], [4, 7, 10, 13], [5, 8, 11, 14]],
        ["attn.c_attn", "attn.c_proj", "mlp.c_fc"],
    ),
    "stages of blocks": (
        ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2) for b in (0, 1) for c in (1, 2))],
        [[2, 4, 6, 8], [3, 5, 7, 9]],
        ["conv1", "conv2"],
    ),
    "an encoder and a decoder": (
        [f"{s}.block.{b}.{n}" for s in ("encoder", "decoder") for b in (0, 1) for n in "qv"],
        [[1, 3], [2, 4], [5, 7], [6, 8]],
        ["q", "v"],
    ),
}


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_line_joins_layers_that_are_alike(kind: str) -> None:
    names, lines, markers = BY_KIND[kind]
    values = [1.0 + i for i in range(len(names))]
    ax = variance_through_depth(names, values, [None] * len(names))
    assert joined(ax) == lines
    assert list(entries(ax)) == ["output", *markers]
    assert points(ax, "output") == by_place(values)
    shapes = [entries(ax)[marker].get_marker() for marker in markers]
    assert len(set(shapes)) == len(shapes)


RANGES = [(1.0, 1.0), (0.99, 1.01), (0.3, 0.4), (0.02, 3.0), (1e-7, 1.0), (1e-38, 1e3), (5e4, 6e4)]


@pytest.mark.parametrize("ends", RANGES)
def test_the_axis_has_enough_labels(ends: tuple[float, float]) -> None:
    ax = std_before_and_after(["a", "b"], ends, ends, [math.nan] * 2)
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert low < ends[0] <= ends[1] < high
    labels = [
        label.get_text()
        for value, label in zip(ax.get_yticks(), ax.get_yticklabels())
        if low <= value <= high
    ]
    assert 3 <= len(set(labels)) <= 11
    assert "" not in labels


LONG = [f"encoder.layers.{i}.self_attention.projection" for i in range(30)]
MANY = [f"h.{i}.{n}" for i in range(NAMED) for n in ("attention.query", "fc", "proj")]
NAMES = [["0"], list("abcdefgh"), LONG[:4], LONG, GPT, MANY[:58], MANY[:NAMED], MANY]


OWN = [(names, True) for names in NAMES] + [(names, False) for names in (LONG, MANY)]


@pytest.mark.parametrize(("names", "own"), OWN)
def test_names_can_be_read_and_the_legend_hides_nothing(names: list[str], own: bool) -> None:
    from matplotlib.figure import Figure

    ax: Any = None if own else Figure(figsize=(5, 3), layout="constrained").subplots()
    values = [1.0 + i for i in range(len(names))]
    ax = variance_through_depth(names, values, values, ax=ax)
    ax.figure.canvas.draw()
    labels = ax.get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    if labels[0].get_rotation() == 30:  # letters are about as high as they are wide
        assert all(b.x1 - a.x1 > 1.5 * labels[0].get_fontsize() for a, b in pairwise(boxes))
    else:
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    if own and len(names) <= NAMED:
        assert len(labels) == len(names)
    assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())


EMPTY: dict[str, Callable[[], Any]] = {
    "a watch": lambda: watch(nn.Linear(3, 3), step=lambda: None),
    "lsuv": lambda: LSUVResult([]),
}


@pytest.mark.parametrize("what", EMPTY)
def test_nothing_is_printed_and_plotted_alike(what: str, tmp_path: Path) -> None:
    seen = EMPTY[what]()
    assert "layer" in seen.table()
    ax = seen.plot(tmp_path / "nothing.png")
    assert [text.get_text() for text in ax.texts] == ["no layer ran"]
    assert ax.get_xlabel() == ("1 layer not measured" if what == "a watch" else "")
    assert ax.get_legend() is None


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), torch.randn(64, 32)
    with watch(model) as w:
        model(x)
    loaded = [name for name in sys.modules if name.split(".")[0] == "matplotlib"]
    for name in {*loaded, "matplotlib", "matplotlib.figure"}:
        monkeypatch.setitem(sys.modules, name, None)
    for plot in (w.plot, lsuv_(model, x).plot):
        with pytest.raises(ImportError, match=r"pip install matplotlib"):
            plot()
