"""Pictures: how the variance of outputs and gradients goes through the depth of a net."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastinit.moments import Moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastinit.watch import Watched

NAMED = 12  # layers up to which each has its name below the axis
_TARGET = "fastinit-target"


def variance_through_depth(
    layers: Sequence[Watched],
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    label: str = "",
) -> Axes:
    """Draws the variance of each layer's output, and of the gradients, on a logarithmic axis.

    Gradients are shown relative to the last layer's that has one, where the backward pass begins: the
    loss's scale drops out, and 1 is the target of both lines. Where a variance is 0 or there is none, a
    cross stands at the foot of the axis.

    Args:
        layers: ``Watch.layers``.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on, so as to compare several watches; by default those of a new figure.
        label: what this watch is called in the legend.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: no layer ran.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib: {error} (pip install 'fastinit[plot]')"
        ) from error
    if not layers:
        raise ValueError("layers must have at least one layer to draw, but got none")
    if ax is None:
        ax = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained").subplots()
    if not any(line.get_gid() == _TARGET for line in ax.lines):
        style: dict[str, Any] = {"color": "0.55", "linewidth": 1.2, "zorder": 1}
        style["linestyle"] = (0, (1, 1.5))  # dotted
        ax.axhline(1.0, label="target", gid=_TARGET, **style)
    depth = range(1, len(layers) + 1)
    size = 4.5 if len(layers) <= 40 else 2.5
    prefix = f"{label}: " if label else ""
    forward = [_positive(layer.forward) for layer in layers]
    drawn: dict[str, Any] = {"linewidth": 1.4, "markersize": size}
    (line,) = ax.plot(depth, forward, "-o", label=f"{prefix}output", **drawn)
    backward = [_positive(layer.backward) for layer in layers]
    graded = [i for i, layer in enumerate(layers) if layer.backward is not None]
    if begin := [v for v in reversed(backward) if not math.isnan(v)]:
        relative = [v / begin[0] for v in backward]
        name = f"{prefix}gradient, relative to the last"
        ax.plot(depth, relative, "--o", color=line.get_color(), mfc="white", label=name, **drawn)
    lost = [i + 1 for i, v in enumerate(forward) if math.isnan(v)]
    lost += [i + 1 for i in graded if math.isnan(backward[i])]
    if lost:
        crosses: dict[str, Any] = {"color": line.get_color(), "clip_on": False, "zorder": 3}
        crosses["transform"] = ax.get_xaxis_transform()  # y is 0 at the foot
        ax.plot(lost, [0.0] * len(lost), "x", label=f"{prefix}no variance", **crosses)
    ax.set_yscale("log")
    ax.set_ylabel("variance")
    if len(layers) <= NAMED:
        ax.set_xticks(depth, [layer.name for layer in layers], rotation=30, ha="right")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("layer, in order of execution")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    if path is not None:
        figure: Any = ax.figure
        figure.savefig(path)
    return ax


def _positive(m: Moments | None) -> float:
    """The variance, or NaN where a logarithmic axis has no place for it."""
    var = math.nan if m is None else float(m.var)
    return var if 0 < var < math.inf else math.nan
