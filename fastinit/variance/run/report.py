"""A run as a page of HTML: one file without scripts, which loads nothing, in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from fastinit.base import html, text
from fastinit.variance import plot_style as style
from fastinit.variance.run.plots import COLOURS, curves, heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastinit.statistics.tensor import Moments
    from fastinit.variance.run.run import Run

WORST = 6  # layers that have a curve, or a line among the largest
INK = "#010203"
"""In place of a colour that the page chooses, as it is light or dark."""
DARK = ("#fb923c", "#22d3ee", "#c084fc", "#a3e635", "#f472b6", "#94a3b8")
"""Of curves, where the page is dark."""
DRAWN = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "svg.fonttype": "none",
}

CSS = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #475569; --rule: #e2e8f0; --page: #fff; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --soft: #94a3b8; --rule: #334155; --page: #0f172a; DARK }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto;
  background: linear-gradient(90deg, var(--page) 50%, #0000) 0 0 / 2rem 100% local,
  linear-gradient(-90deg, var(--page) 50%, #0000) 100% 0 / 2rem 100% local,
  linear-gradient(90deg, var(--rule), #0000) 0 0 / 1rem 100%,
  linear-gradient(-90deg, var(--rule), #0000) 100% 0 / 1rem 100%;
  background-repeat: no-repeat }
svg { display: block; width: 100%; min-width: 38rem; height: auto; color: var(--ink) }
svg text { font-family: system-ui, sans-serif !important }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule) }
th { color: var(--soft); font-weight: 600 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: min(24rem, 45vw) }
td:nth-child(2), th:nth-child(2) { text-align: left }
.bad { color: light-dark(#be185d, #f472b6); font-weight: 600 }
li { overflow-wrap: anywhere }
ul { padding-left: 1.25rem } li { margin-bottom: .25rem }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr } dd { margin-bottom: .5rem }
  svg { min-width: 28rem }
  th, td { padding: .25rem .4rem } th { white-space: normal; vertical-align: bottom }
}
"""


def summary(run: Run) -> dict[str, str]:
    """What is said first of a run, by a word or two.

    Raises:
        ValueError: it has no step yet.
    """
    if run.last is None:
        raise ValueError("the run has no step that was measured")
    units = sum(layer.units for layer in run.last.layers)
    dead = {layer.name: layer.dead for layer in run.last.layers if layer.dead}
    most = max(dead, key=lambda name: dead[name], default="")
    said = {
        "steps": f"{len(run.steps)} measured, {run.steps[0]} to {run.steps[-1]}",
        "layers": text.count(len(run.layers)),
        "dead units": f"{sum(dead.values())} of {units} in the last step"
        + (f", most in {most} ({dead[most]})" if dead else ""),
        "inf or NaN": _first_lost(run),
    }
    if run.taken_back:
        said["taken back"] = (
            f"{text.counted('step', run.taken_back)}, measured again later or undone"
        )
    if run.last.missing:
        said["not measured"] = text.counted("layer", len(run.last.missing))
    return said


def worst(stds: Mapping[str, Sequence[float | None]], most: int = WORST) -> list[str]:
    """The layers that lost their variance or had inf or NaN, then those that moved most from their first
    step."""
    return sorted(stds, key=lambda name: _moved(stds[name]), reverse=True)[:most]


def page(run: Run, title: str) -> str:
    """The whole file.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: the run has no step yet.
    """
    from fastinit.variance.run.run import SIGNALS

    said = summary(run)
    assert run.last is not None
    parts = [f"<h1>{escape(title)}</h1>", _pairs(said)]
    shown = [signal for signal in ("forward", "gradient") if signal in run.signals]
    with style.matplotlib("style").context(DRAWN):
        for signal in shown:
            stds, of = run.stds(signal), f"std of the {SIGNALS[signal]}"
            drawn = heat_map(list(stds), run.steps, list(stds.values()), "std", title=" ")
            parts += [f"<h2>Layers by steps: {of}</h2>", _svg(drawn)]
            chosen = {name: stds[name] for name in worst(stds)}
            heading = "The layers that changed most" if len(stds) > WORST else "By step"
            parts += [
                f"<h2>{heading}: {of}</h2>",
                _svg(curves(run.steps, chosen, "std", title=" ")),
            ]
    last = f"Step {run.steps[-1]}"
    parts += [f"<h2>{last}</h2>", _table(run)]
    seen = [
        (layer.name or "the model", SIGNALS[signal], moments)
        for layer in run.last.layers
        for signal, moments in layer.signals().items()
    ]
    if rows := _lost(seen):
        head = ["format", "layer", "of the", "flushed", "saturated", "subnormal"]
        parts += [f"<h2>{last}: what formats would lose most of</h2>", _html([head, *rows])]
    if rows := _far_out(seen):
        head = ["layer", "of the", "kurtosis", "absmean", "absmax"]
        parts += [f"<h2>{last}: the largest kurtosis</h2>", _html([head, *rows])]
    parts.append(_notes(run))
    colours = (
        " ".join(f"--c{i}: {colour};" for i, colour in enumerate(some)) for some in (COLOURS, DARK)
    )
    css = CSS.replace("LIGHT", next(colours)).replace("DARK", next(colours))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{css}</style>",
            *parts,
            "</html>\n",
        ]
    )


def _first_lost(run: Run) -> str:
    """Where and when values were first not finite."""
    for signal in run.signals:
        stds = run.stds(signal)
        for at, step in enumerate(run.steps):
            if names := [name for name, curve in stds.items() if curve[at] == math.inf]:
                more = f" and {text.counted('other', len(names) - 1)}" if len(names) > 1 else ""
                return f"from step {step} on, first in {names[0]} ({signal}){more}"
    return "none"


def _moved(curve: Sequence[float | None]) -> float:
    """By how many e-folds at most; infinite if it left the axis."""
    known = [value for value in curve if value is not None]
    if any(not 0 < value < math.inf for value in known):
        return math.inf
    return max((abs(math.log(value / known[0])) for value in known), default=0.0)


def _svg(ax: Axes) -> str:
    """A picture within the page, in whose colours it is."""
    written = io.StringIO()
    drawn = ax.figure
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style.matplotlib("style").context({"svg.hashsalt": "fastinit"}):
        drawn.savefig(written, format="svg", metadata=nothing)  # type: ignore[union-attr]
    image = written.getvalue()
    image = image[image.index("<svg") :]
    for size in ("width", "height"):  # the page's
        image = re.sub(rf'^(<svg[^>]*?) {size}="[^"]*"', r"\1", image)
    image = re.sub(r'<g id="[^"]*"', "<g", image)  # the same in each picture
    css = {INK: "currentColor", style.RULE: "var(--rule)"}
    css |= {colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)}
    for colour, variable in css.items():
        image = image.replace(colour, variable)
    return f'<div class="wide">{image}</div>'


def _pairs(said: Mapping[str, str]) -> str:
    items = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in said.items())
    return f"<dl>{''.join(items)}</dl>"


def _table(run: Run) -> str:
    """The layers in the last step."""
    assert run.last is not None
    first = {name: curve[0] for name, curve in run.stds().items()}
    head = ["layer", "kind", "std", "since the first", "gradient", "weight", "dead", "inf/NaN"]
    rows = [head]
    for layer in run.last.layers:
        stds = layer.stds()
        now, begun = stds.get("forward_std"), first.get(layer.name)
        since = f"× {now / begun:.3g}" if now and begun and begun < math.inf else ""
        rows.append(
            [
                layer.name or "the model",
                layer.kind,
                _digits(now),
                since,
                _digits(stds.get("gradient_std")),
                _digits(stds.get("weight_std")),
                f"{layer.dead} of {layer.units}" if layer.units else "",
                str(layer.nonfinite or ""),
            ]
        )
    return _html(rows, bad_if_last=True)


def _lost(seen: Iterable[tuple[str, str, Moments]]) -> list[list[str]]:
    """Of each format, what it would flush or saturate the largest shares of."""
    of_format: dict[str, list[tuple[float, list[str]]]] = {}
    for layer, what, moments in seen:
        for name, shares in moments.formats.items():
            said = [f"{100 * share:.3g}%" for share in shares.plain().values()]
            found = of_format.setdefault(name, [])
            if (lost := shares.flushed + shares.saturated) > 0:  # not NaN, as of nothing
                found.append((lost, [name, layer, what, *said]))
    nothing = ["nothing is flushed or saturated", *[""] * 4]
    rows = []
    for name, found in of_format.items():
        found.sort(key=lambda one: one[0], reverse=True)
        rows += [row for _, row in found[:WORST]] or [[name, *nothing]]
    return rows


def _far_out(seen: Iterable[tuple[str, str, Moments]]) -> list[list[str]]:
    """What has the largest kurtosis, where the higher moments were measured."""
    found = [
        (m.kurtosis, [layer, what, *map(_digits, (m.kurtosis, m.absmean, m.absmax))])
        for layer, what, m in seen
        if m.higher and math.isfinite(m.kurtosis)
    ]
    return [row for _, row in sorted(found, key=lambda one: one[0], reverse=True)[:WORST]]


def _html(rows: Sequence[Sequence[str]], bad_if_last: bool = False) -> str:
    """A table, whose first row is its head. Rows that say something at their end may be bad."""
    made = html.table(rows, is_bad=lambda row: bad_if_last and bool(row[-1]))
    return f'<div class="wide">{made}</div>'


def _notes(run: Run) -> str:
    """What is to be said of layers."""
    assert run.last is not None
    noted = [(layer.name, layer.note) for layer in run.last.layers]
    items = "".join(f"<li>{escape(said)}</li>" for said in text.notes(noted, run.last.missing))
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
