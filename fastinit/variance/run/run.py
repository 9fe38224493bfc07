"""A training that was watched, step by step: read from a file of JSON lines, or told as it goes on."""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator, MutableSequence
from typing import IO, TYPE_CHECKING, Any

from fastinit.base import number
from fastinit.variance.watch.result import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNALS = {
    "forward": "output",
    "gradient": "gradient of the output",
    "input": "input",
    "weight": "weight",
    "weight_gradient": "gradient of the weight",
}
"""What is measured of a layer, and what it is called."""


class Run:
    """What a watch with ``every`` measured in a training: some numbers for each layer and step.

    It is a function of what was :class:`fastinit.variance.watch.result.Measured`, so that a watch can
    tell it (``to=run``); :meth:`load` reads what a watch told a file. Memory: 8 bytes for each number.

    Attributes:
        steps: the numbers of those that were measured, in ascending order.
        last: what was measured in the last of them, in full; None before there is one.
        taken_back: how many measurements there were of steps from which a training went back, as to a
            checkpoint; their numbers are gone.

    >>> import torch
    >>> from torch import nn
    >>> from fastinit import watch
    >>> net, run = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), Run()
    >>> with watch(net, every=2, to=run) as w:
    ...     for _ in range(4):
    ...         _ = net(torch.ones(2, 8))
    ...         w.step()
    >>> run.steps, run.layers
    ([0, 2], ['0', '1'])
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.last: Measured | None = None
        self.taken_back = 0
        self._curves: dict[str, MutableSequence[float]] = {}  # by tag; NaN: not measured

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Reads a file that ``watch(to=path)`` wrote, or writes.

        Its last line is left out if it is not whole, as a crash or a watch that is at it leaves it.

        Raises:
            TypeError: it is no path.
            OSError: it cannot be read.
            ValueError: it is another kind of file, as its name and the line say, or has no step.
        """
        run = cls()
        name = os.fspath(path)  # not a number, as which open takes any file that is open
        with open(name, "rb") as file:
            for measured in _lines(file, name):
                run(measured)
        if not run.steps:
            raise ValueError(f"{name} has no step that was measured")
        return run

    def __call__(self, measured: Measured) -> None:
        """Takes up a step. One from which on steps are known already takes their place."""
        while self.steps and self.steps[-1] >= measured.step:
            self.steps.pop()
            self.taken_back += 1
        known = len(self.steps)
        scalars = measured.scalars()
        for tag in scalars.keys() - self._curves.keys():
            self._curves[tag] = array("d", [math.nan] * known)
        for tag, curve in self._curves.items():
            del curve[known:]
            curve.append(scalars.get(tag, math.nan))
        self.steps.append(measured.step)
        self.last = measured

    @property
    def layers(self) -> list[str]:
        """The names of those that ran in any step: those of the last one in the order of execution,
        then the others."""
        names = [layer.name for layer in self.last.layers] if self.last else []
        return list(dict.fromkeys(names + sorted(tag.partition("/")[2] for tag in self._curves)))

    @property
    def signals(self) -> list[str]:
        """What was measured of layers: of forward, gradient, input, weight and weight_gradient."""
        found = {tag.partition("/")[0].removesuffix("_std") for tag in self._curves}
        return [signal for signal in SIGNALS if signal in found]

    def stds(self, signal: str = "forward") -> dict[str, list[float | None]]:
        """By layer, the standard deviation in each step.

        0: all values were the same; infinite: not all were finite; None: nothing was measured.

        Args:
            signal: one of :attr:`signals`.

        Raises:
            ValueError: there is no such signal. Of outputs without a number there is nothing.
        """
        if signal not in ("forward", *self.signals):  # which is asked of every run
            raise ValueError(f"signal must be one of {', '.join(self.signals)}, but got {signal!r}")
        return {
            name: [None if math.isnan(value) else value for value in curve]
            for name in self.layers
            if (curve := self._curves.get(f"{signal}_std/{name}")) is not None
        }

    def heat_map(
        self, path: Any = None, ax: Axes | None = None, signal: str = "forward", title: str = ""
    ) -> Axes:
        """:func:`fastinit.variance.run.plots.heat_map`: layers by steps, in colours.

        Args:
            signal: one of :attr:`signals`.

        Raises:
            ValueError: as the function; there is no such signal.
        """
        from fastinit.variance.run.plots import heat_map

        stds, what = self.stds(signal), SIGNALS[signal]
        said = title or f"Standard deviation of the {what}"
        return heat_map(
            list(stds), self.steps, list(stds.values()), "std", path=path, ax=ax, title=said
        )

    def report(self, path: str | os.PathLike[str], title: str = "A training, watched") -> None:
        """Writes a page of HTML that says what was measured: one file, which needs no network.

        A summary, heat maps, curves of the layers that changed most, and a table of the last step; where
        they were recorded, what each format would lose most of, and the largest kurtosis.

        Raises:
            ImportError: matplotlib is not there.
            OSError: the file cannot be written.
            ValueError: there is no step yet.
        """
        from fastinit.base.files import replacing
        from fastinit.variance.run.report import page

        with replacing(path) as file:
            file.write(page(self, title).encode())


_OTHERWISE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a line raises that is no watch's."""


def _lines(file: IO[bytes], name: str) -> Iterator[Measured]:
    for at, line in enumerate(file, 1):
        try:
            told = json.loads(line)
            step = number.integer("step", told["step"])
            yield Measured.of_plain(told, step)
        except _OTHERWISE as error:
            if not line.endswith(b"\n"):
                return  # it was cut short
            raise ValueError(
                f"{name}, line {at}, is not what a watch writes (to=): "
                f"{type(error).__name__}: {error}"[:300]
            ) from error
