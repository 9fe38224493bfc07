"""Pictures of a training that was watched: a heat map of layers by steps, and curves of some layers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from fastinit.variance import plot_style as style
from fastinit.variance.plot_style import GREY, LOST, End

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 400  # of steps: of more, several are one
TICKS = 10  # steps that have their number below
MARKED = 40  # steps that are points on a curve
HIGH = 56  # layers that have a row as high as a name
NONE = "#0f172a"
"""Of what has no variance."""
COLOURS = ("#c2410c", "#0e7490", "#7e22ce", "#4d7c0f", "#be185d", "#475569")
"""Of curves."""


def heat_map(
    names: Sequence[str],
    steps: Sequence[int],
    values: Sequence[Sequence[float | None]],
    what: str,
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    title: str = "By layer and step",
) -> Axes:
    """Draws a number of each layer in each step as a colour, on a logarithmic scale.

    Args:
        names: the layers', in the order of execution, which goes down.
        steps: their numbers, in ascending order. Each has a column, as long as there are no more than
            400; of more, as many as it takes are one: the worst of them, as no variance and inf or NaN
            are, or else their geometric mean.
        values: [layers][steps]: > 0; 0: there is no variance; infinite: there are values that are not
            finite; None: nothing was measured.
        what: they are.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on; by default those of a new figure.
        title: is above the picture, unless the axes have a title.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: a name that ends in no format.
    """
    height = 1.6 + 0.13 * min(max(len(names), 12), HIGH)
    own = style.figure(8.6, height, path)
    ax = own.subplots() if ax is None else ax
    made: Any = ax.figure
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    cells, starts = _columns(values, len(steps))
    found = [value for row in cells for value in row]
    shown = [value for value in found if value is not None and 0 < value < math.inf]
    low, high = (min(shown), max(shown)) if shown else (1.0, 1.0)
    if high < 2 * low:  # else what is alike would look unlike
        low, high = low / math.sqrt(2 * low / high), high * math.sqrt(2 * low / high)
    marks = {0.0: low / 2, math.inf: high * 2}  # below and above the scale
    drawn = [[math.nan if v is None else marks.get(v, v) for v in row] for row in cells]
    if found:
        image = ax.imshow(
            drawn,
            aspect="auto",
            interpolation="nearest",
            norm=LogNorm(low, high),
            cmap=colormaps["viridis"].with_extremes(under=NONE, over=LOST, bad=GREY),
        )
        bar = made.colorbar(image, ax=ax, label=what, pad=0.02, aspect=max(20.0, 6 * height))
        style.set_ticks(bar.ax.yaxis, low, high)
    else:
        ax.text(0.5, 0.5, "nothing was measured", transform=ax.transAxes, ha="center")
    style.name_rows(ax, names)
    at = [starts.index(start) for start in starts[:: max(math.ceil(len(starts) / TICKS), 1)]]
    ax.set_xticks(at, [str(steps[starts[i]]) for i in at], fontsize="small")
    ax.set_xlabel("step")
    style.title(ax, title)
    said = {
        "no variance": (0.0, NONE),
        "inf or NaN": (math.inf, LOST),
        "not measured": (None, GREY),
    }
    there = {label: colour for label, (value, colour) in said.items() if value in found}
    patches = [Patch(facecolor=c, edgecolor=GREY, label=label) for label, c in there.items()]
    style.legend_below(made, patches)
    style.save(made, path)
    return ax


def curves(
    steps: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
    what: str,
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    title: str = "By step",
) -> Axes:
    """Draws a number of some layers against the step, on a logarithmic axis; names are at the ends.

    Args:
        steps: their numbers, in ascending order.
        lines: by the layer's name, a number for each step, as of :func:`heat_map`. What has no place on
            the axis is a cross on its edge: no variance below, inf or NaN above.
        what, path, ax, title: as of :func:`heat_map`.

    Raises:
        as :func:`heat_map`.
    """
    own = style.figure(8.6, 3.4, path)
    ax = own.subplots() if ax is None else ax
    from matplotlib.ticker import MaxNLocator

    marked = "." if len(steps) <= MARKED else ""
    ends = []
    for (name, values), colour in zip(lines.items(), cycle(COLOURS)):
        ax.plot(steps, list(map(style.positive, values)), marked + "-", color=colour, linewidth=1.4)
        if ended := [v for v in map(style.positive, values) if not math.isnan(v)]:
            ends.append(End(ended[-1], name, colour))
    style.set_scale(ax, what)
    style.name_ends(ax, ends)
    for row, (values, colour) in enumerate(zip(lines.values(), cycle(COLOURS))):
        style.cross_lost(ax, steps, values, colour, row)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    style.title(ax, title)
    style.legend_below(ax.figure, ax.get_legend_handles_labels()[0])
    style.save(ax.figure, path)
    return ax


def _columns(
    values: Sequence[Sequence[float | None]], count: int
) -> tuple[list[list[float | None]], list[int]]:
    """The cells, and for each column the first of its steps."""
    starts = list(range(0, count, max(math.ceil(count / COLUMNS), 1)))
    spans = list(zip(starts, [*starts[1:], count]))
    return [[_together(row[a:b]) for a, b in spans] for row in values], starts


def _together(values: Sequence[float | None]) -> float | None:
    """What a cell of several steps shows."""
    known = [0.0 if math.isnan(value) else value for value in values if value is not None]
    if math.inf in known or 0.0 in known or not known:
        return math.inf if math.inf in known else 0.0 if known else None
    one = len(known) == 1
    return known[0] if one else math.exp(math.fsum(map(math.log, known)) / len(known))
