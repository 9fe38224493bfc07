"""What :func:`fastinit.lsuv_` gives: what was measured of each layer, and its weight's scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastinit.base import html, text
from fastinit.plan.plan import Plan
from fastinit.statistics.tensor import Moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Measured:
    """One layer: its output as it came and as it left, and what its weight is multiplied with.

    Attributes:
        name, kind: its name in the model, its class's name.
        before: the moments of its output as it came, in the first call, where what ran before it was
            scaled already.
        target: the std asked for; NaN if the weight is frozen.
        std: that of the output as it left: > 0, or NaN where there is none.
        scale: what the weight is multiplied with, > 0.
        shift: what is added to the bias.
        iterations: how often a scale was tried.
        calls: how often the layer ran, in all passes.
        note: what is to be said of it, or "".
    """

    name: str
    kind: str
    before: Moments
    target: float = math.nan
    std: float = math.nan
    scale: float = 1.0
    shift: float = 0.0
    iterations: int = 0
    calls: int = 0
    note: str = ""


@dataclass
class LSUVResult(html.InNotebooks):
    """What was done.

    Attributes:
        layers: in the order in which they first ran.
        passed: modules that were not measured, with the reason.
        passes: forward passes over all batches.
        product: of a schedule, the product of its factors over all layers (He et al. ask for 1).
        plan: of a model built within :func:`fastinit.deferred`: what its parameters shall be now.
    """

    layers: list[Measured]
    passed: dict[str, str] = field(default_factory=dict)
    passes: int = 1
    product: float = 1.0
    plan: Plan | None = None

    def __repr__(self) -> str:
        said = [text.counted("layer", len(self.layers)), f"passes={self.passes}"]
        if self.passed:
            said.append(f"{len(self.passed)} not measured")
        return f"LSUVResult({', '.join(said)}, product={self.product:.6g}, plan={self.plan!r})"

    @property
    def scales(self) -> dict[str, float]:
        """By layer, the factor of its weight."""
        return {m.name: m.scale for m in self.layers}

    def table(self) -> html.Table:
        """One line for each layer, in 80 columns, then what is to be said of some."""
        rows = [("layer", "std", "× scale", "= std", "target")]
        for m in self.layers:
            target = "" if math.isnan(m.target) else f"{m.target:.4g}"
            stds = f"{m.before.std:.4g}", f"{m.scale:.4g}", f"{m.std:.4g}"
            rows.append((m.name or "the model", *stds, target))
        notes = text.reasons([(m.name, m.note) for m in self.layers], self.passed)
        return text.table(rows, "<>>>>").above(notes)

    def plot(self, path: Any = None, ax: Axes | None = None, label: str = "") -> Axes:
        """:func:`fastinit.variance.plots.std_before_and_after`: a picture of the std, layer by layer."""
        from fastinit.variance.plots import std_before_and_after

        return std_before_and_after(
            [m.name for m in self.layers],
            [m.before.std for m in self.layers],
            [m.std for m in self.layers],
            [m.target for m in self.layers],
            path=path,
            ax=ax,
            label=label,
            missing=self.passed,
        )
