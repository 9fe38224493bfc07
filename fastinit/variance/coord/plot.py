"""The picture of a coordinate check: sizes and changes of each layer's output by width."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fastinit.variance import plot_style as style
from fastinit.variance.plot_style import GREY, LOST, End

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "flat": "#0e7490",
    "grows": "#c2410c",
    "shrinks": "#7e22ce",
    "unclear": GREY,
    "not finite": LOST,
}
"""By verdict."""
NAMED = 8  # names at the ends of lines: of more only those that are not flat, as many


class Line(NamedTuple):
    """One layer. Sizes and changes are [widths, seeds, steps]."""

    name: str
    verdict: str
    sizes: Tensor
    changes: Tensor


def sizes_by_width(
    widths: Sequence[int],
    lines: Sequence[Line],
    norm: str,
    *,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws sizes at the first and the last step, and the changes between them, on logarithmic axes.

    A line goes through the geometric means of the seeds, which are small points beside it; its colour is
    the layer's verdict. What has no place on a logarithmic axis is left out.

    Args:
        widths: in ascending order.
        lines: the layers.
        norm: what sizes are, for the title.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: a name that ends in no format.
    """
    figure = style.figure(11.0, 4.2, path)
    last = lines[0].sizes.shape[-1] - 1
    panels = (
        ("as initialised", [line.sizes[..., 0] for line in lines]),
        (f"at step {last}", [line.sizes[..., -1] for line in lines]),
        (f"change from step 0 to {last}", [line.changes[..., -1] for line in lines]),
    )
    what = {"rms": "root mean square", "l1": "mean absolute value"}[norm]
    for axes, (title, values) in zip(figure.subplots(1, 3), panels):
        ends = _draw(axes, widths, lines, values)
        style.set_scale(axes, what)
        style.name_ends(axes, ends)
        axes.set_title(title, loc="left", fontsize="medium")
        what = ""
    figure.suptitle("Outputs by width", x=0.01, ha="left", fontweight="bold")
    from matplotlib.lines import Line2D

    found = [verdict for verdict in COLOURS if any(line.verdict == verdict for line in lines)]
    entries = [Line2D([], [], color=COLOURS[verdict], label=verdict) for verdict in found]
    figure.legend(
        handles=entries, loc="upper right", ncols=len(entries), frameon=False, fontsize="small"
    )
    style.save(figure, path)
    return figure


def _draw(
    axes: Axes, widths: Sequence[int], lines: Sequence[Line], values: Sequence[Tensor]
) -> list[End]:
    """One line for each layer, values [widths, seeds]; returns where those end that get a name."""
    from matplotlib.ticker import NullFormatter

    ends = list[tuple[str, End]]()
    for line, sizes in zip(lines, values):
        colour = COLOURS[line.verdict]
        means = [style.positive(mean) for mean in sizes.log().mean(dim=1).exp().tolist()]
        axes.plot(widths, means, "o-", color=colour, markersize=3.5, linewidth=1.4, alpha=0.85)
        for seed in sizes.unbind(dim=1):
            axes.plot(
                widths, list(map(style.positive, seed.tolist())), ".", color=colour, markersize=2
            )
        if not math.isnan(means[-1]):
            ends.append((line.verdict, End(means[-1], line.name, colour)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, list(map(str, widths)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("width")
    if len(ends) > NAMED:
        ends = [end for end in ends if end[0] != "flat"][:NAMED]
    return [end for _, end in ends]
