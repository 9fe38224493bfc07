"""Pictures of a net layer by layer: variance as watched, once or twice, and std before and after LSUV.

Output and gradient (of LSUV, before and after) are two colours; what was before is hollow. A line joins
layers that are alike; where unlike ones take turns, as in the blocks of a transformer, each kind has a
marker and a line of its own. What has no place on a logarithmic axis is a cross on its edge: no variance
below, inf or NaN above.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from itertools import cycle, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fastinit.base import text
from fastinit.variance import plot_style as style
from fastinit.variance.plot_style import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 72  # names below the axis of a figure that is made here
BESIDE = 0.76  # of a figure is left for the axes by what is beside them
PAIRS = (("#475569", "#c2410c"), ("#0e7490", "#be185d"), ("#4d7c0f", "#7e22ce"))
"""Colours of output and gradient, for each model on the same axes."""
MARKERS = "osD^vPp<>hdH8"
ALONE = "*"
"""The marker of layers that are like no other, where others have markers by kind."""


class Series(NamedTuple):
    """One number of each layer, in the order of execution."""

    label: str
    values: Sequence[float | None]
    """> 0; 0 or NaN: there is no variance; infinite: there are values that are not finite; None: nothing
    was measured."""
    colour: int
    """Which of the two."""
    hollow: bool = False


Signals = tuple[Sequence[float | None], Sequence[float | None]]
"""Of each layer, the variance of the output and of the gradient."""


def variance_through_depth(
    names: Sequence[str],
    forward: Sequence[float | None],
    backward: Sequence[float | None],
    *,
    before: Signals | None = None,
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
            values that are not finite; None: it was not measured.
        backward: that of the gradient; None where there was no gradient.
        before: both at another time, as before an initialisation; None of layers that had none.
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
    series = _signals(forward, backward)
    if before is not None:
        series = [
            *(one._replace(label=f"before: {one.label}", hollow=True) for one in _signals(*before)),
            *(one._replace(label=f"after: {one.label}") for one in series),
        ]
    return _drawn(names, series, "variance", title, missing, path, ax, label)


def _signals(forward: Sequence[float | None], backward: Sequence[float | None]) -> list[Series]:
    found = [Series("output", forward, 0)]
    if begin := [v for v in reversed(backward) if v is not None and 0 < v < math.inf]:
        relative = [None if v is None else v / begin[0] for v in backward]
        found.append(Series("gradient, relative\nto the last", relative, 1))
    elif any(v is not None for v in backward):
        found.append(Series("gradient", backward, 1))
    return found


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
    series = [Series("before", before, 0, hollow=True), Series("after", after, 1)]
    return _drawn(names, series, "standard deviation", title, missing, path, ax, label, targets)


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
    width = max(6.8, style.ACROSS * min(len(names), NAMED) / BESIDE)
    own = style.figure(width, 4.0, path)
    ax = own.subplots() if ax is None else ax
    earlier = len({line.get_gid() for line in ax.lines if line.get_gid()})
    for place, target in enumerate(targets, 1):
        if not math.isnan(target):
            ax.plot([place - 0.5, place + 0.5], [target] * 2, color=GREY, zorder=1)
            style.entry(ax, "target", color=GREY)
    roles = _roles(names)
    colours = PAIRS[earlier % len(PAIRS)]
    for one in series:
        said = f"{label}: {one.label}" if label else one.label
        _draw(ax, one, said, colours[one.colour], roles, gid=f"fastinit {earlier}")
    places = range(1, len(names) + 1)
    for row, one in enumerate(series):
        style.cross_lost(ax, places, one.values, colours[one.colour], row)
    for role in roles if len(roles) > 1 else ():
        if role.marker != ALONE:
            style.entry(ax, role.name, color=GREY, marker=role.marker, linestyle="none")
    if not names:
        ax.text(0.5, 0.5, "no layer ran", transform=ax.transAxes, ha="center", va="center")
    style.name_depth(ax, names)
    style.set_scale(ax, what)
    style.title(ax, title)
    if missing:
        said = f"{text.counted('layer', len(missing))} not measured"
        ax.set_xlabel(said, fontsize="small", loc="left")
    style.legend(ax)
    style.save(ax.figure, path)
    return ax


def _draw(ax: Axes, one: Series, label: str, colour: str, roles: Sequence[Role], gid: str) -> None:
    """A line for each role, and a marker for each layer."""
    lined: dict[str, Any] = {"color": colour, "linestyle": "--" if one.hollow else "-"}
    marked: dict[str, Any] = {"markerfacecolor": "white" if one.hollow else colour}
    marked["markersize"] = 4.5 if len(one.values) <= 40 else 3.5
    faint: dict[str, Any] = (
        {"linewidth": 0.8, "alpha": 0.4} if len(roles) > 1 else {"linewidth": 1.4}
    )
    for role in roles:
        xs, ys = [i + 1 for i in role.layers], [style.positive(one.values[i]) for i in role.layers]
        ax.plot(xs, ys, zorder=2, **lined, **faint)
        ax.plot(xs, ys, role.marker, zorder=3, gid=gid, **marked | {"color": colour})
    if one.values:
        style.entry(ax, label, marker="o", linewidth=1.4, **lined, **marked)


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
    block, role = style.split(name)
    return "".join(c for c in block if not c.isdigit()), role
