"""What a coordinate check found: sizes by width, their slopes, and a verdict for each layer."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastinit.base import html, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["flat", "grows", "shrinks", "unclear", "not finite"]

ERRORS = 2.0
"""Standard errors that a slope may be off by: 95% of the time it is not."""


class Slope(NamedTuple):
    """By what power a size goes with the width: the slope of its log2 against the width's.

    NaN if a size is 0 or not finite.
    """

    value: float
    error: float
    """Standard error of the least squares fit to all widths and seeds."""

    def side(self, tolerance: float) -> str:
        """Where it is: "flat", "grows", "shrinks", "unclear"; "" if it is NaN.

        The tolerance parts 0 from the next slopes, which are twice as far (theory knows multiples of a
        half): it is flat if it is within, and its error excludes those, and is not if it is beyond, and
        its error excludes 0.
        """
        size, error = abs(self.value), ERRORS * self.error
        if math.isnan(size):
            return ""
        if size <= tolerance:
            return "flat" if size + error < 2 * tolerance else "unclear"
        if size - error <= 0:
            return "unclear"
        return "grows" if self.value > 0 else "shrinks"

    @classmethod
    def fit(cls, widths: Sequence[int], sizes: Tensor) -> Slope:
        """The least squares line through all points.

        Args:
            sizes: float64 [widths, seeds]; at least three in all.

        >>> slope = Slope.fit([2, 4, 8], torch.tensor([[1.0, 1.0], [4.0, 4.0], [16.0, 16.0]]))
        >>> (round(slope.value, 12), round(slope.error, 12))
        (2.0, 0.0)
        """
        x = torch.tensor(widths, dtype=torch.float64, device="cpu").log2()[:, None].expand_as(sizes)
        y = sizes.log2()
        if not y.isfinite().all():
            return cls(math.nan, math.nan)
        x, y = x - x.mean(), y - y.mean()
        spread = x.square().sum()
        slope = (x * y).sum() / spread
        rest = (y - slope * x).square().sum() / (y.numel() - 2)
        return cls(slope.item(), (rest / spread).sqrt().item())


@dataclass
class Coordinates:
    """One layer at all widths.

    Attributes:
        name, kind: its name in the model, its class's name.
        sizes: of its output at each step, float64 [widths, seeds, steps]; infinite where a value is not
            finite. Step 0 is as initialised.
        changes: of the difference to its output at step 0, as ``sizes``; NaN if the shape changed.
        widens: whether its output has more values in wider models.
        init, size, change: the slopes of sizes at step 0 and at the last, and of changes at the last.
        verdict: "grows": one of the slopes is above the tolerance; "shrinks": one is below minus that;
            "unclear": for that the errors are too large; "not finite"; else "flat". What of an output
            of fixed size is there from the start may shrink, as it does in muP, and its change up to
            twice the tolerance, since that has a part of it.
    """

    name: str
    kind: str
    sizes: Tensor
    changes: Tensor
    widens: bool
    init: Slope
    size: Slope
    change: Slope
    verdict: Verdict

    @classmethod
    def of(
        cls,
        name: str,
        kind: str,
        widths: Sequence[int],
        sizes: Tensor,
        changes: Tensor,
        widens: bool,
        tolerance: float,
    ) -> Coordinates:
        """With the slopes and the verdict."""
        init, size = (Slope.fit(widths, sizes[..., step]) for step in (0, -1))
        change = Slope.fit(widths, changes[..., -1])
        sides = [slope.side(tolerance) for slope in (init, size, change)]
        if not widens:
            # A part of it fades by a power of 1/2 in muP, as long as the rest of its change does not.
            sides[:2] = ["" if side in ("shrinks", "unclear") else side for side in sides[:2]]
            if change.value < 0:
                sides[2] = change.side(2 * tolerance)
        order: tuple[Verdict, ...] = ("grows", "shrinks", "unclear")
        verdict: Verdict = next((v for v in order if v in sides), "flat")
        if sizes.isinf().any():
            verdict = "not finite"
        return cls(name, kind, sizes, changes, widens, init, size, change, verdict)

    @property
    def note(self) -> str:
        """What a verdict does not say."""
        if (self.changes[..., 1:] == 0).all():
            return "training does not change it"
        if self.changes[..., 1:].isnan().any():
            return "without its change: its shape is not the same at each step"
        return ""


@dataclass
class CoordCheck(html.InNotebooks):
    """What :func:`fastinit.coord_check` found.

    Attributes:
        layers: those that ran at every width, in the order in which they first ran.
        widths: in ascending order.
        norm: "rms" or "l1".
        tolerance: of slopes.
        missing: by name, the layers that are not in ``layers``, and why.
    """

    layers: list[Coordinates]
    widths: list[int]
    norm: str
    tolerance: float
    missing: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every layer is flat."""
        return all(layer.verdict == "flat" for layer in self.layers)

    @property
    def seeds(self) -> int:
        return self.layers[0].sizes.shape[1]

    @property
    def steps(self) -> int:
        return self.layers[0].sizes.shape[2]

    def table(self) -> html.Table:
        """One line for each layer, in 80 columns: its slopes with their errors, and the verdict."""
        rows = [["layer", "init", "±", f"step {self.steps - 1}", "±", "change", "±", "verdict"]]
        for layer in self.layers:
            numbers: list[str] = []
            for slope in (layer.init, layer.size, layer.change):
                numbers += [_digits(slope.value, "+.2f"), _digits(slope.error, ".2f")]
            rows.append([layer.name or "the model", *numbers, layer.verdict])
        measure = {"rms": "root mean square", "l1": "mean absolute value"}[self.norm]
        said = (
            f"slopes of log2 {measure} against log2 width, at {', '.join(map(str, self.widths))}, "
            f"{text.counted('seed', self.seeds)}; flat is within {self.tolerance:g} of 0"
        )
        notes = text.reasons(self._notes(), self.missing)
        lines = [*notes, textwrap.fill(said, text.WIDTH), self._summary()]
        return text.table(rows, "<>>>>>><", fit=text.abbreviated).above(lines)

    def _notes(self) -> list[tuple[str, str]]:
        return [(layer.name, layer.note) for layer in self.layers]

    def _summary(self) -> str:
        if self.passed:
            return f"all {text.counted('layer', len(self.layers))} flat"
        counts = Counter(layer.verdict for layer in self.layers)
        found = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        return f"{text.counted('layer', len(self.layers))}: {found}"

    def plot(self, path: Any = None) -> Figure:
        """:func:`fastinit.variance.coord.plot.sizes_by_width`: sizes and changes by width."""
        from fastinit.variance.coord.plot import Line, sizes_by_width

        lines = [
            Line(layer.name, layer.verdict, layer.sizes, layer.changes) for layer in self.layers
        ]
        return sizes_by_width(self.widths, lines, self.norm, path=path)

    def to_json(self) -> str:
        """Everything as strict JSON: NaN (what is not there) as null, infinities as strings."""
        layers = [{k: _plain(v) for k, v in vars(layer).items()} for layer in self.layers]
        whole = {**vars(self), "passed": self.passed, "layers": layers}
        return json.dumps(whole, allow_nan=False, indent=2)

    def __repr__(self) -> str:
        return f"CoordCheck({self._summary()})"


def _plain(value: Any) -> Any:
    """What JSON has for a value."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Slope):
        return {name: _plain(number) for name, number in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _digits(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"
