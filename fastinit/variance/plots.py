"""Pictures of a net layer by layer: variance as watched, and std before and after LSUV.

Output and gradient (before and after) are two colours. A line joins layers that are alike; where unlike
ones take turns, as in the blocks of a transformer, each kind has a marker and a line of its own. What
has no place on a logarithmic axis is a cross on its edge: no variance below, inf or NaN above.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from importlib import import_module
from itertools import cycle, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fastinit.base import text
from fastinit.base.files import replacing
from fastinit.variance.layers import abbreviated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOM = 22  # letters of a name
NAMED = 72  # names below the axis of a figure that is made here
ACROSS, LETTER = 0.15, 0.08  # inches of the axis that a name takes, and that a letter does, lying
SLANTED = 0.4  # inches that are enough for a slanted name
BESIDE = 0.76  # of a figure is left for the axes by what is beside them
GREY = "#94a3b8"
PAIRS = (("#475569", "#c2410c"), ("#0e7490", "#be185d"), ("#4d7c0f", "#7e22ce"))
"""Colours of output and gradient, for each model on the same axes."""
MARKERS = "osD^vPp<>hdH8"
ALONE = "*"
"""The marker of layers that are like no other, where others have markers by kind."""
LEAST_SPAN = 5.0  # of the axis, from top to bottom: less looks like noise, and has too few ticks


class Series(NamedTuple):
    """One number of each layer, in the order of execution."""

    label: str
    values: Sequence[float | None]
    """> 0; 0 or NaN: there is no variance; infinite: there are values that are not finite; None: nothing
    was measured."""
    hollow: bool = False


def variance_through_depth(
    names: Sequence[str],
    forward: Sequence[float],
    backward: Sequence[float | None],
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    label: str = "",
    title: str = "Variance by layer",
    missing: Collection[str] = (),
) -> Axes:
    """Draws the variance of each layer's output, and of the gradients, on a logarithmic axis.

    Gradients are shown relative to the last layer's that has one, where the backward pass begins: the
    loss's scale drops out.

    Args:
        names: the layers', in the order of execution.
        forward: the variance of each layer's output, from 0 on; NaN: there is none; infinite: there are
            values that are not finite.
        backward: that of the gradient; None where there was no gradient.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on, so as to compare several models; by default those of a new figure.
        label: what this model is called in the legend.
        title: is above the picture, unless the axes have a title.
        missing: layers that were not measured; how many is said below the picture.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: a name that ends in no format.
    """
    series = [Series("output", forward)]
    if begin := [v for v in reversed(backward) if v is not None and 0 < v < math.inf]:
        relative = [None if v is None else v / begin[0] for v in backward]
        series.append(Series("gradient, relative\nto the last", relative))
    elif any(v is not None for v in backward):
        series.append(Series("gradient", backward))
    return _drawn(names, series, "variance", title, missing, path, ax, label)


def std_before_and_after(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    targets: Sequence[float],
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    label: str = "",
    title: str = "Standard deviation by layer, before and after LSUV",
    missing: Collection[str] = (),
) -> Axes:
    """Draws each layer's std before and after :func:`fastinit.lsuv_`, on a logarithmic axis.

    Args:
        names: the layers', in the order of execution.
        before: the std of each layer's output as it was in the pass, where those before it are scaled
            already; from 0 on, or NaN.
        after: that of the output when it was scaled.
        targets: the std asked for, > 0; NaN where there is none, as of frozen layers.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on, so as to compare several models; by default those of a new figure.
        label: what this model is called in the legend.
        title: is above the picture, unless the axes have a title.
        missing: layers that were not measured; how many is said below the picture.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: a name that ends in no format.
    """
    series = [Series("before", before, hollow=True), Series("after", after)]
    return _drawn(names, series, "standard deviation", title, missing, path, ax, label, targets)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless a picture's name ends in a format that matplotlib writes.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: as said.
    """
    backend_bases = matplotlib("backend_bases")
    formats = sorted(backend_bases.FigureCanvasBase.get_supported_filetypes())
    if ending(path) not in formats:
        raise ValueError(f"{os.fspath(path)} must end in one of .{', .'.join(formats)}")


def ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(path)[1].removeprefix(".").lower()


def matplotlib(name: str) -> Any:
    """A module of matplotlib's."""
    try:
        return import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {error} (pip install matplotlib)") from error


def _drawn(
    names: Sequence[str],
    series: Sequence[Series],
    what: str,
    title: str,
    missing: Collection[str],
    path: str | os.PathLike[str] | None,
    ax: Axes | None,
    label: str,
    targets: Sequence[float] = (),
) -> Axes:
    """The one way to draw: layers along the axis, a colour for each series."""
    figure = matplotlib("figure")
    if path is not None:
        check_format(path)
    if ax is None:
        width = max(6.8, ACROSS * min(len(names), NAMED) / BESIDE)
        ax = figure.Figure(figsize=(width, 4.0), dpi=150, layout="constrained").subplots()
    assert ax is not None
    earlier = len({line.get_gid() for line in ax.lines if line.get_gid()})
    for place, target in enumerate(targets, 1):
        if not math.isnan(target):
            ax.plot([place - 0.5, place + 0.5], [target] * 2, color=GREY, zorder=1)
            _entry(ax, "target", color=GREY)
    roles = _roles(names)
    for one, colour in zip(series, PAIRS[earlier % len(PAIRS)]):
        said = f"{label}: {one.label}" if label else one.label
        _draw(ax, one, said, colour, roles, gid=f"fastinit {earlier}")
    for row, (one, colour) in enumerate(zip(series, PAIRS[earlier % len(PAIRS)])):
        _cross_lost(ax, one, colour, row)
    for role in roles if len(roles) > 1 else ():
        if role.marker != ALONE:
            _entry(ax, role.name, color=GREY, marker=role.marker, linestyle="none")
    if not names:
        ax.text(0.5, 0.5, "no layer ran", transform=ax.transAxes, ha="center", va="center")
    _set_depth(ax, names)
    set_scale(ax, what)
    if not any(ax.get_title(loc) for loc in ("left", "center", "right")):
        ax.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    if missing:
        said = f"{text.counted('layer', len(missing))} not measured"
        ax.set_xlabel(said, fontsize="small", loc="left")
    entries = dict(zip(*reversed(ax.get_legend_handles_labels())))
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if entries:
        ax.legend(list(entries.values()), list(entries), frameon=False, fontsize="small", **beside)
    if path is not None:
        made: Any = ax.figure
        with replacing(path) as file:
            made.savefig(file, format=ending(path))
    return ax


def _draw(ax: Axes, one: Series, label: str, colour: str, roles: Sequence[Role], gid: str) -> None:
    """A line for each role, and a marker for each layer."""
    style: dict[str, Any] = {"color": colour, "linestyle": "--" if one.hollow else "-"}
    marked: dict[str, Any] = {"markerfacecolor": "white" if one.hollow else colour}
    marked["markersize"] = 4.5 if len(one.values) <= 40 else 3.5
    faint: dict[str, Any] = (
        {"linewidth": 0.8, "alpha": 0.4} if len(roles) > 1 else {"linewidth": 1.4}
    )
    for role in roles:
        xs, ys = [i + 1 for i in role.layers], [_positive(one.values[i]) for i in role.layers]
        ax.plot(xs, ys, zorder=2, **style, **faint)
        ax.plot(xs, ys, role.marker, zorder=3, gid=gid, **marked | {"color": colour})
    if one.values:
        _entry(ax, label, marker="o", linewidth=1.4, **style, **marked)


def _cross_lost(ax: Axes, one: Series, colour: str, row: int) -> None:
    """Crosses for what has no place: a row of each series on the lower edge, and one on the upper."""
    lost = [(i, v) for i, v in enumerate(one.values) if v is not None and not 0 < v < math.inf]
    style: dict[str, Any] = {"marker": "x", "linestyle": "none", "markeredgewidth": 1.6}
    for edge, why in enumerate(("no variance", "inf or NaN")):
        if places := [i + 1 for i, v in lost if (v == math.inf) == edge]:
            at: dict[str, Any] = {
                "transform": ax.get_xaxis_transform(),
                "clip_on": False,
                "zorder": 4,
            }  # y: 0 to 1
            ax.plot(places, [abs(edge - 0.04 * row)] * len(places), color=colour, **style, **at)
            _entry(ax, why, color=GREY, **style)


def _entry(ax: Axes, label: str, **style: Any) -> None:
    """A line of the legend; one that is there already is not added again."""
    if label not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], label=label, **style)


class Role(NamedTuple):
    """Layers that a line joins."""

    name: str
    marker: str
    layers: list[int]


def _roles(names: Sequence[str]) -> list[Role]:
    """All layers are one role, unless unlike ones take turns.

    Alike are layers that are the same to their blocks, which have numbers: all that end in
    ``attn.c_proj`` after the last number, as ``transformer.h.3.attn.c_proj``. Those of an encoder and of
    a decoder share a marker, and no line.
    """
    own = list(map(_role, names))
    found: dict[tuple[str, str], list[int]] = {}
    for i, role in enumerate(own):
        found.setdefault(role, []).append(i)
    if len(list(groupby(own))) == len(found):  # none comes again after another
        return [Role("", MARKERS[0], list(range(len(names))))]
    alike = dict.fromkeys(name for (_, name), layers in found.items() if len(layers) > 1)
    markers = dict(zip(alike, cycle(MARKERS)))
    return [
        Role(name, markers[name] if len(layers) > 1 else ALONE, layers)
        for (_, name), layers in found.items()
    ]


def _role(name: str) -> tuple[str, str]:
    """What a layer's blocks are called, without numbers, and what it is to them."""
    words = name.split(".")
    while words and words[-1].isdigit():
        words.pop()
    last = max((i for i, word in enumerate(words) if word.isdigit()), default=-1)
    blocks = ".".join(words[: last + 1])
    return "".join(c for c in blocks if not c.isdigit()), ".".join(words[last + 1 :])


def _set_depth(ax: Axes, names: Sequence[str]) -> None:
    """Names below the axis: all, or as many as there is room for."""
    figure: Any = ax.figure
    room = figure.get_size_inches()[0] * ax.get_position().width
    step = max(math.ceil(len(names) * ACROSS / max(room, ACROSS)), 1)
    shown = range(0, len(names), step)
    said = [abbreviated(names[i], ROOM) or "the model" for i in shown]
    each = room / max(len(shown), 1)
    if each >= LETTER * max((len(name) + 1 for name in said), default=0):
        style: dict[str, Any] = {"fontsize": "small"}
    elif each >= SLANTED:
        style = {"fontsize": "small", "rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    else:
        style = {"fontsize": "x-small", "rotation": 90}
    ax.set_xticks([i + 1 for i in shown], said, **style)
    drawn = [x for line in ax.lines for x in _numbers(line.get_xdata())]
    ax.set_xlim(0.5, max([*drawn, len(names), 1]) + 0.5)


def set_scale(ax: Axes, what: str) -> None:
    """A logarithmic axis with enough labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    shown = [
        y
        for line in ax.lines
        if line.get_transform() is ax.transData
        for y in _numbers(line.get_ydata())
    ]
    low, high = (min(shown), max(shown)) if shown else (1.0, 1.0)
    widen = max(math.sqrt(LEAST_SPAN * low / high), (high / low) ** 0.05)
    low, high = ax.set_ylim(low / widen, high * widen)
    decades = math.log10(high / low)
    labelled = ((0.8, "12345678"), (1.5, "1235"), (3.0, "13"), (math.inf, "1"))
    subs = [float(digit) for digit in next(which for most, which in labelled if decades < most)]
    ax.yaxis.set_major_locator(LogLocator(10.0, subs, numticks=9))
    ax.yaxis.set_minor_locator(LogLocator(10.0, "auto", numticks=30))
    ax.yaxis.set_minor_formatter(NullFormatter())
    plain = low > 5e-4 and high < 2e4
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, place: _tick(value, plain)))
    ax.set_ylabel(what)
    ax.grid(axis="y", color="#e2e8f0", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _numbers(drawn: Any) -> list[float]:
    """The coordinates that show."""
    return [float(number) for number in drawn if 0 < number < math.inf]


def _tick(value: float, plain: bool) -> str:
    if plain:
        return f"{value:g}"
    digit, exponent = f"{value:.0e}".split("e")
    return f"${digit} \\cdot 10^{{{int(exponent)}}}$".replace("1 \\cdot ", "")


def _positive(value: float | None) -> float:
    """NaN where a logarithmic axis has no place for a number."""
    return value if value is not None and 0 < value < math.inf else math.nan
