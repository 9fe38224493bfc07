"""Pictures of a net layer by layer: variance as watched, and std before and after LSUV."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastinit.base.files import replacing
from fastinit.variance.layers import abbreviated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 12  # layers up to which each has its name below the axis
ROOM = 20  # letters of a name
_TARGET = "fastinit-target"
_DOTTED: dict[str, Any] = {
    "color": "0.55",
    "linewidth": 1.2,
    "linestyle": (0, (1, 1.5)),
    "zorder": 1,
}


def variance_through_depth(
    names: Sequence[str],
    forward: Sequence[float],
    backward: Sequence[float | None],
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    label: str = "",
) -> Axes:
    """Draws the variance of each layer's output, and of the gradients, on a logarithmic axis.

    Gradients are shown relative to the last layer's that has one, where the backward pass begins: the
    loss's scale drops out, and 1 is the target of both lines. Where a variance is 0 or there is none, a
    cross stands at the foot of the axis.

    Args:
        names: the layers', in the order of execution.
        forward: the variance of each layer's output, from 0 on, or NaN.
        backward: that of the gradient; None where there was no gradient.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on, so as to compare several models; by default those of a new figure.
        label: what this model is called in the legend.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: no layer, or a name that ends in no format.
    """
    ax = _axes(ax, len(names), path)
    if not any(line.get_gid() == _TARGET for line in ax.lines):
        ax.axhline(1.0, label="target", gid=_TARGET, **_DOTTED)
    prefix = f"{label}: " if label else ""
    outputs = list(map(_positive, forward))
    color = _draw(ax, outputs, f"{prefix}output")
    gradients = [math.nan if v is None else _positive(v) for v in backward]
    if begin := [v for v in reversed(gradients) if not math.isnan(v)]:
        relative = [v / begin[0] for v in gradients]
        name = f"{prefix}gradient, relative to the last"
        _draw(ax, relative, name, linestyle="--", color=color, markerfacecolor="white")
    lost = [i for i, v in enumerate(outputs) if math.isnan(v)]
    lost += [i for i, v in enumerate(gradients) if math.isnan(v) and backward[i] is not None]
    _cross(ax, lost, f"{prefix}no variance", color)
    return _finished(ax, "variance", names, path)


def std_before_and_after(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    targets: Sequence[float],
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
    label: str = "",
) -> Axes:
    """Draws each layer's std before and after :func:`fastinit.lsuv_`, on a logarithmic axis.

    Where a std is 0 or there is none after, a cross stands at the foot of the axis.

    Args:
        names: the layers', in the order of execution.
        before: the std of each layer's output as it was in the pass, where those before it are scaled
            already.
        after: that of the output when it was scaled.
        targets: the std asked for; NaN for frozen layers.
        path: a file to write, its format by its name (.png, .pdf, .svg); needs no display.
        ax: axes to draw on, so as to compare several models; by default those of a new figure.
        label: what this model is called in the legend.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: no layer, or a name that ends in no format.
    """
    ax = _axes(ax, len(names), path)
    if not any(line.get_gid() == _TARGET for line in ax.lines):
        aims = {target for target in targets if not math.isnan(target)}
        if len(aims) == 1:
            ax.axhline(aims.pop(), label="target", gid=_TARGET, **_DOTTED)
        else:
            ax.plot(_depth(names), targets, label="target", gid=_TARGET, **_DOTTED)
    prefix = f"{label}: " if label else ""
    scaled = list(map(_positive, after))
    open_: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}
    color = _draw(ax, list(map(_positive, before)), f"{prefix}before", **open_)
    _draw(ax, scaled, f"{prefix}after", color=color)
    _cross(ax, [i for i, v in enumerate(scaled) if math.isnan(v)], f"{prefix}no variance", color)
    return _finished(ax, "standard deviation", names, path)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless a picture's name ends in a format that matplotlib writes.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: as said.
    """
    backend_bases = _matplotlib("backend_bases")
    formats = sorted(backend_bases.FigureCanvasBase.get_supported_filetypes())
    if _ending(path) not in formats:
        raise ValueError(f"{os.fspath(path)} must end in one of .{', .'.join(formats)}")


def _ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(path)[1].removeprefix(".").lower()


def _matplotlib(name: str) -> Any:
    """A module of matplotlib's."""
    try:
        return import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {error} (pip install matplotlib)") from error


def _axes(ax: Axes | None, layers: int, path: Any) -> Axes:
    figure = _matplotlib("figure")
    if path is not None:
        check_format(path)
    if not layers:
        raise ValueError("layers must have at least one layer to draw, but got none")
    if ax is not None:
        return ax
    made: Axes = figure.Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained").subplots()
    return made


def _depth(layers: Sequence[Any]) -> range:
    return range(1, len(layers) + 1)


def _draw(ax: Axes, values: list[float], label: str, **style: Any) -> Any:
    """One line with a marker for each layer. Returns its colour."""
    size = 4.5 if len(values) <= 40 else 2.5
    drawn: dict[str, Any] = {"linewidth": 1.4, "marker": "o", "markersize": size, "label": label}
    (line,) = ax.plot(_depth(values), values, **drawn | style)
    return line.get_color()


def _cross(ax: Axes, places: list[int], label: str, color: Any) -> None:
    """Crosses at the foot of the axis."""
    if places:
        style: dict[str, Any] = {"color": color, "clip_on": False, "zorder": 3, "label": label}
        style["transform"] = ax.get_xaxis_transform()  # y is 0 at the foot
        ax.plot([i + 1 for i in places], [0.0] * len(places), "x", **style)


def _finished(ax: Axes, what: str, names: Sequence[str], path: Any) -> Axes:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def tick(value: float, place: int) -> str:
        low, high = ax.get_ylim()
        steps = {3: "123456789", 10: "1235", 50: "125", math.inf: "1"}
        shown = next(digits for ratio, digits in steps.items() if high < ratio * low)
        digit, exponent = f"{value:.0e}".split("e")
        if digit not in shown:
            return ""
        if high < 1e4 * low and -4 < int(exponent) < 4:
            return f"{value:g}"
        return f"${digit} \\cdot 10^{{{int(exponent)}}}$".replace("1 \\cdot ", "")

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(tick))
    ax.yaxis.set_minor_formatter(FuncFormatter(tick))
    ax.set_ylabel(what)
    if len(names) <= NAMED:
        short = [abbreviated(name, ROOM) for name in names]
        ax.set_xticks(_depth(names), short, rotation=30, ha="right", rotation_mode="anchor")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("layer, in order of execution")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    if path is not None:
        figure: Any = ax.figure
        with replacing(path) as file:
            figure.savefig(file, format=_ending(path))
    return ax


def _positive(value: float) -> float:
    """NaN where a logarithmic axis has no place for a number."""
    return value if 0 < value < math.inf else math.nan
