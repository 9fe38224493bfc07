"""What all pictures have in common: names of layers, logarithmic axes, files, and matplotlib itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from fastinit.base.files import replacing
from fastinit.base.text import abbreviated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOM = 22  # letters of a name
ACROSS, LETTER = 0.15, 0.08  # inches of an axis that a name takes, and that a letter does, lying
DOWN = 0.12  # inches of height that a name takes
SLANTED = 0.4  # inches that are enough for a slanted name
APART = 0.055  # of the height of axes, between two names at the ends of lines
GREY, RULE = "#94a3b8", "#e2e8f0"
LOST = "#be185d"
"""Of what is not finite."""
LEAST_SPAN = 5.0  # of the axis, from top to bottom: less looks like noise, and has too few ticks


def matplotlib(name: str) -> Any:
    """A module of matplotlib's.

    Raises:
        ImportError: it is not there.
    """
    try:
        return import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {error} (pip install matplotlib)") from error


def figure(width: float, height: float, path: str | os.PathLike[str] | None = None) -> Figure:
    """A new one, inches, that needs no display.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: the name of the file that it is for ends in no format.
    """
    made = matplotlib("figure")
    if path is not None:
        check_format(path)
    new: Figure = made.Figure(figsize=(width, height), dpi=150, layout="constrained")
    return new


def check_format(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless a picture's name ends in a format that matplotlib writes.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: as said.
    """
    backend_bases = matplotlib("backend_bases")
    formats = sorted(backend_bases.FigureCanvasBase.get_supported_filetypes())
    if _ending(path) not in formats:
        raise ValueError(f"{os.fspath(path)} must end in one of .{', .'.join(formats)}")


def save(drawn: Any, path: str | os.PathLike[str] | None) -> None:
    """Writes a figure to a file, if there is one to write."""
    if path is not None:
        with replacing(path) as file:
            drawn.savefig(file, format=_ending(path))


def _ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(path)[1].removeprefix(".").lower()


def title(ax: Axes, said: str) -> None:
    """Above the axes, unless they have one."""
    if not any(ax.get_title(loc) for loc in ("left", "center", "right")):
        ax.set_title(said, loc="left", fontweight="bold", fontsize="medium")


def split(name: str) -> tuple[str, str]:
    """The block that a layer is in, and what it is to that: ``("h.3", "attn.c_proj")``.

    A block's name ends in a number. Numbers at the end of a layer's are its own: ``("", "features")``.
    """
    words = name.split(".")
    while words and words[-1].isdigit():
        words.pop()
    last = max((i for i, word in enumerate(words) if word.isdigit()), default=-1)
    return ".".join(words[: last + 1]), ".".join(words[last + 1 :])


def shown(name: str) -> str:
    """A name in a picture, where it has room: on one line, and not as TeX."""
    short = " ".join(abbreviated(name, ROOM).split())
    if len(short) > ROOM:  # its end is what differs
        short = "…" + short[1 - ROOM :]
    return short.replace("$", r"\$") or "the model"


def labels(names: Sequence[str], most: int) -> list[tuple[int, str]]:
    """Places with a name, where there is room for so many: all; or of each block the first, under the
    block's name, as long as none is too close to the one before."""
    found = list(enumerate(names))
    if len(found) > most:
        blocks = [split(name)[0] or name for name in names]
        starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
        found = []
        for i in starts:
            if not found or (i - found[-1][0]) * most >= len(names):
                found.append((i, blocks[i]))
    return [(i, shown(name)) for i, name in found]


def name_depth(ax: Axes, names: Sequence[str]) -> None:
    """Names below the axis, from 1 on: all, or as many as there is room for."""
    made: Any = ax.figure
    room = made.get_size_inches()[0] * ax.get_position().width
    shown = labels(names, int(room / ACROSS))
    each = room / max(len(shown), 1)
    if each >= LETTER * max((len(name) + 1 for _, name in shown), default=0):
        style: dict[str, Any] = {"fontsize": "small"}
    elif each >= SLANTED:
        style = {"fontsize": "small", "rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    else:
        style = {"fontsize": "x-small", "rotation": 90}
    ax.set_xticks([i + 1 for i, _ in shown], [name for _, name in shown], **style)
    drawn = [x for line in ax.lines for x in _numbers(line.get_xdata())]
    ax.set_xlim(0.5, max([*drawn, len(names), 1]) + 0.5)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names beside rows, from 0 on: all, or as many as there is room for."""
    made: Any = ax.figure
    shown = labels(names, int(made.get_size_inches()[1] * 0.85 / DOWN))
    ax.set_yticks([i for i, _ in shown], [name for _, name in shown], fontsize="x-small")


class End(NamedTuple):
    """Where a line ends, and what it is called."""

    value: float
    name: str
    colour: str


def name_ends(ax: Axes, ends: Iterable[End]) -> None:
    """Names beside the ends of lines, moved apart where they would lie on each other."""
    low, high = (math.log(limit) for limit in ax.get_ylim())
    at = -math.inf
    for value, name, colour in sorted(ends):
        at = max((math.log(value) - low) / (high - low), at + APART)
        said: Any = shown(name)
        style: dict[str, Any] = {"transform": ax.transAxes, "fontsize": "x-small", "va": "center"}
        ax.text(1.02, at, said, color=colour, **style)


def set_scale(ax: Axes, what: str) -> None:
    """A logarithmic axis with enough labels."""
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
    set_ticks(ax.yaxis, low, high)
    ax.set_ylabel(what)
    ax.grid(axis="y", color=RULE, linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def set_ticks(axis: Any, low: float, high: float) -> None:
    """Those of a logarithmic axis with these ends: enough of them have a label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(high / low)
    labelled = ((0.8, "12345678"), (1.5, "1235"), (3.0, "13"), (math.inf, "1"))
    subs = [float(digit) for digit in next(which for most, which in labelled if decades < most)]
    axis.set_major_locator(LogLocator(10.0, subs, numticks=9))
    axis.set_minor_locator(LogLocator(10.0, "auto", numticks=30))
    axis.set_minor_formatter(NullFormatter())
    plain = low > 5e-4 and high < 2e4
    axis.set_major_formatter(FuncFormatter(lambda value, place: _tick(value, plain)))


def cross_lost(
    ax: Axes, places: Sequence[float], values: Sequence[float | None], colour: str, row: int
) -> None:
    """Crosses for what has no place: a row of each series on the lower edge, and one on the upper."""
    lost = [(x, v) for x, v in zip(places, values) if v is not None and not 0 < v < math.inf]
    crossed: dict[str, Any] = {"marker": "x", "linestyle": "none", "markeredgewidth": 1.6}
    for edge, why in enumerate(("no variance", "inf or NaN")):
        if at := [x for x, v in lost if (v == math.inf) == edge]:
            where: dict[str, Any] = {
                "transform": ax.get_xaxis_transform(),
                "clip_on": False,
                "zorder": 4,
            }  # y: 0 to 1
            ax.plot(at, [abs(edge - 0.04 * row)] * len(at), color=colour, **crossed, **where)
            entry(ax, why, color=GREY, **crossed)


def entry(ax: Axes, label: str, **style: Any) -> None:
    """A line of the legend; one that is there already is not added again."""
    if label not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], label=label, **style)


def legend(ax: Axes) -> None:
    """Of what has a label, if anything has: beside the axes, where it hides nothing."""
    entries = dict(zip(*reversed(ax.get_legend_handles_labels())))
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if entries:
        said = {"frameon": False, "fontsize": "small", **where}
        ax.legend(list(entries.values()), list(entries), **said)


def legend_below(drawn: Any, handles: Sequence[Any]) -> None:
    """Of these, below all of a figure."""
    if handles:
        where = {"loc": "outside lower right", "ncols": len(handles)}
        drawn.legend(handles=handles, frameon=False, fontsize="small", **where)


def _numbers(drawn: Any) -> list[float]:
    """The coordinates that show."""
    return [float(number) for number in drawn if 0 < number < math.inf]


def _tick(value: float, plain: bool) -> str:
    if plain:
        return f"{value:g}"
    digit, exponent = f"{value:.0e}".split("e")
    return f"${digit} \\cdot 10^{{{int(exponent)}}}$".replace("1 \\cdot ", "")


def positive(value: float | None) -> float:
    """NaN where a logarithmic axis has no place for a number."""
    return value if value is not None and 0 < value < math.inf else math.nan
