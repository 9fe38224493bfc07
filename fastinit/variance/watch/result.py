"""What a watch saw of a model: one row for each layer, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from fastinit.base import html, text
from fastinit.statistics.derived import HIGHER
from fastinit.statistics.plain import json_number, number_of
from fastinit.statistics.tensor import Moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Watched:
    """One layer, over all its calls in the block.

    Attributes:
        name, kind: its name in the model, its class's name.
        calls: how often it ran.
        forward: the moments of its output.
        backward: those of the loss's gradient with respect to that output; None if there was none.
        input: those of what came in, as it was then; None if that was not asked for.
        weight: those of its weight, at the end of the block; None if it has none.
        weight_gradient: those of the weight's ``grad``, before the optimizer's step or at the end of the
            block; None if it has none, or that was not asked for.
        fan_in, fan_out: how many inputs feed one output and the reverse; NaN for tables and vectors.
        factor: fan_in Var[W] / 2; NaN if there is no fan.
        product: of the factors up to and with this layer, each weight counted once.
        units: output units (channels, features); 0 where it is not known which they are.
        dead: units whose output never varied, or whose gradient was 0 throughout.
        note: what is missing of all this, and why.
    """

    name: str
    kind: str
    calls: int
    forward: Moments
    backward: Moments | None
    input: Moments | None
    weight: Moments | None
    weight_gradient: Moments | None
    fan_in: float
    fan_out: float
    factor: float
    product: float
    units: int
    dead: int
    note: str

    def signals(self) -> dict[str, Moments]:
        """What was measured, by its name."""
        found = {
            "forward": self.forward,
            "gradient": self.backward,
            "input": self.input,
            "weight": self.weight,
            "weight_gradient": self.weight_gradient,
        }
        return {name: moments for name, moments in found.items() if moments is not None}

    def stds(self) -> dict[str, float]:
        """What a curve is drawn of, as ``forward_std``: infinite of values that are not all finite.

        What there is none of is left out.
        """
        found = {f"{signal}_std": moments for signal, moments in self.signals().items()}
        stds = {key: math.inf if m.nonfinite else m.std for key, m in found.items()}
        return {key: std for key, std in stds.items() if not math.isnan(std)}

    def shapes(self) -> dict[str, float]:
        """Of what was measured with the higher moments, all that there is more, as ``forward_kurtosis``.

        What there is none of is left out.
        """
        found = {
            f"{signal}_{field}": getattr(moments, field)
            for signal, moments in self.signals().items()
            if moments.higher
            for field in ("rms", "l2", "crest", *HIGHER)
        }
        return {key: value for key, value in found.items() if isfinite(value)}

    def lost(self) -> dict[str, float]:
        """Of what was counted for formats, the shares, as ``forward_e4m3_flushed``."""
        return {
            f"{signal}_{name}_{field}": share
            for signal, moments in self.signals().items()
            for name, shares in moments.formats.items()
            for field, share in shares.plain().items()
            if isfinite(share)
        }

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN in the output and the gradient."""
        return int(sum(m.nonfinite for m in (self.forward, self.backward) if m is not None))


@dataclass
class Measured:
    """What a watch saw in a block, or in one step.

    Attributes:
        step: which, counted from 0; of a block 0.
        layers: those that ran, in the order in which their outputs first came.
        missing: by name, the layers that are not in ``layers``, and why.
    """

    step: int
    layers: list[Watched]
    missing: dict[str, str]

    @property
    def product(self) -> float:
        """The product of all factors n Var[W] / 2; 1 is Kaiming's condition."""
        return self.layers[-1].product if self.layers else 1.0

    def scalars(self) -> dict[str, float]:
        """For loggers: each layer's :meth:`Watched.stds` as ``forward_std/NAME``, and ``dead/NAME``.

        With ``higher``, also its :meth:`Watched.shapes`, and with ``formats`` its :meth:`Watched.lost`.
        """
        found: dict[str, float] = {}
        for layer in self.layers:
            numbers = layer.stds() | layer.shapes() | layer.lost()
            found |= {f"{key}/{layer.name}": number for key, number in numbers.items()}
            if layer.units:
                found[f"dead/{layer.name}"] = float(layer.dead)
        return found

    def table(self, gradients: bool) -> html.Table:
        """One line for each layer, in 80 columns, and what is to be said below.

        Args:
            gradients: whether they were watched; else there is no column for them.
        """
        rows = [["layer", "std", "grad std", "fan in", "Var[W]", "nVar[W]/2", "product", "dead"]]
        for layer in self.layers:
            dead = str(layer.dead) if layer.units else ""
            var = math.nan if layer.weight is None else layer.weight.var
            values = [var, layer.factor, layer.product]
            fan = "" if math.isnan(layer.fan_in) else text.count(round(layer.fan_in))
            stds = [layer.forward.std, math.nan if layer.backward is None else layer.backward.std]
            rows.append(
                [layer.name or "the model", *map(_digits, stds), fan, *map(_digits, values), dead]
            )
        if any(layer.nonfinite for layer in self.layers):
            counts = [text.count(layer.nonfinite) for layer in self.layers]
            rows = [[*row, bad] for row, bad in zip(rows, ["inf/nan", *counts])]
        if not gradients:
            rows = [[*row[:2], *row[3:]] for row in rows]
        columns = len(rows[0])
        made = text.table(rows, "<" + ">" * (columns - 1), fit=text.abbreviated)
        return made.above(
            text.reasons([(layer.name, layer.note) for layer in self.layers], self.missing)
        )

    def plot(
        self,
        path: Any = None,
        ax: Axes | None = None,
        label: str = "",
        before: Measured | None = None,
        title: str = "Variance by layer",
    ) -> Axes:
        """:func:`fastinit.variance.plots.variance_through_depth`: a picture of the variance by layer.

        Args:
            before: what was measured earlier, which is drawn hollow: of the layers that are here.

        Raises:
            ValueError: as the function; ``before`` has none of these layers.
        """
        from fastinit.variance.plots import variance_through_depth

        names = [layer.name for layer in self.layers]
        if before is not None and self.layers and not {*names} & {x.name for x in before.layers}:
            raise ValueError("before must have layers that are here, but has none of their names")
        forward, backward = self._variances(names)
        return variance_through_depth(
            names,
            forward,
            backward,
            before=None if before is None else before._variances(names),
            path=path,
            ax=ax,
            label=label,
            title=title,
            missing=self.missing,
        )

    def _variances(self, names: Sequence[str]) -> tuple[list[float | None], list[float | None]]:
        """Of outputs and of gradients; None of layers that have none."""
        layers = {layer.name: layer for layer in self.layers}
        found = [layers.get(name) for name in names]
        return (
            [None if layer is None else _variance(layer.forward) for layer in found],
            [None if layer is None else _variance(layer.backward) for layer in found],
        )

    def plain(self) -> dict[str, Any]:
        """Everything but the step as JSON has it (:func:`fastinit.statistics.plain.json_number`)."""
        rows = []
        for layer in self.layers:
            plain = {k: _plain(v) for k, v in vars(layer).items()}
            rows.append({**plain, "nonfinite": layer.nonfinite})
        return {"product": _plain(self.product), "layers": rows, "missing": self.missing}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any], step: int) -> Measured:
        """What :meth:`plain` gave, back: to the last digits of float64, counts exactly.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        rows = [dict(row) for row in plain["layers"]]
        if not all(isinstance(row["name"], str) for row in rows):
            raise TypeError("a layer's name is no text")
        held = [(row, key) for row in rows for key, one in row.items() if isinstance(one, dict)]
        moments = Moments.of_plain([row[key] for row, key in held])
        for (row, key), one in zip(held, moments):
            row[key] = one
        layers = []
        for row in rows:
            known: dict[str, Any] = {
                n: number_of(row[n]) if is_number else row[n] for n, is_number in _OF_A_LAYER
            }
            layers.append(Watched(**known))
        return cls(step, layers, dict(plain["missing"]))


_OF_A_LAYER = [(field.name, field.type == "float") for field in fields(Watched)]
"""Its attributes, and which of them are numbers, of which JSON has no NaN and no infinity."""

_COUNTS = ("count", "zeros", "nonfinite")


def _variance(moments: Moments | None) -> float | None:
    """Infinite where not all values are finite: those that are say little then."""
    return None if moments is None else math.inf if moments.nonfinite else moments.var


def _plain(value: Any) -> Any:
    """What JSON has for a value."""
    if isinstance(value, float):  # so are most
        return json_number(value)
    if isinstance(value, Moments):
        plain = value.plain()
        for field, one in plain.items():
            if type(one) is not float or not isfinite(one):
                plain[field] = _plain(one)
        for field in _COUNTS:
            plain[field] = int(plain[field])
        return plain
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
