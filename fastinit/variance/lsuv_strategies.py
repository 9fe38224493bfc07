"""How the scale of a layer's weight is found: one strategy for each way in which its output follows.

Each stands for one call of a layer, which has run (:class:`Unbuilt`: is about to). ``before`` gives the
moments of what came; ``fit`` finds the scale, and the shift of the bias, that give the std asked for;
``rescale`` makes of the output what it would be with them; ``after`` gives the moments of that.

- :class:`Affine`: the moments at every scale follow from those at one.
- :class:`Unbuilt`: so they do, and even those follow from the input; there is no output.
- :class:`Activated`, :class:`Rerun`: scales are tried, one after the other (:class:`Repeated`), on
  copies of the output, or by running the layer again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fastinit.statistics.product import linear_moments
from fastinit.statistics.tensor import Moments, moments
from fastinit.variance.affine import AffineSums, LSUVError, rescale
from fastinit.variance.layers import Layer
from fastinit.variance.unchanged import ModelState


class Fit(NamedTuple):
    """What gives the std asked for, and how it was found."""

    scale: float
    """Of the weight, > 0."""
    shift: float = 0.0
    """Of the bias."""
    iterations: int = 0
    """How many scales were tried."""
    note: str = ""


class Trials(NamedTuple):
    """How scales are tried."""

    tol: float
    """In (0, 1): how far the variance may be from the target, relative to it."""
    most: int
    """Trials in one pass, at least 1."""
    activation: Callable[[Tensor], Tensor] | None
    """What is measured is this function of the output."""

    def measure(self, out: Tensor) -> Moments:
        return moments(out if self.activation is None else self.activation(out))


class Secant:
    """What to try next, from what was tried and the std that it gave: a secant in logarithms."""

    last: tuple[float, float] | None = None

    def next(self, tried: float, gave: float, target: float) -> float:
        slope = 1.0  # as of a homogeneous function
        if self.last is not None and self.last[0] != tried and self.last[1] != gave:
            slope = math.log(gave / self.last[1]) / math.log(tried / self.last[0])
        self.last = tried, gave
        return tried * math.pow(target / gave, 1.0 / min(max(slope, 0.25), 4.0))


class Affine:
    """An output that is affine in the weight."""

    def __init__(self, layer: Layer, out: Tensor) -> None:
        self.layer, self.out, self.sums = layer, out, AffineSums.of(layer, out)

    def before(self) -> Moments:
        return self.sums.moments(1.0, 0.0)

    def fit(self, start: Fit, std: float, center: bool) -> Fit:
        check_moments(self.layer, self.before())
        scale = self.sums.scale_for(std)
        return Fit(scale, -self.sums.mean(scale) if center else 0.0, iterations=1)

    def rescale(self, scale: float, shift: float) -> None:
        rescale(self.out, self.sums.bias, scale, shift)

    def after(self, scale: float, shift: float) -> Moments:
        return self.sums.moments(scale, shift)


class Unbuilt(Affine):
    """The output of a Linear without a bias, of which only the input is there."""

    def __init__(self, layer: Layer, x: Tensor) -> None:
        self.layer = layer
        self.sums = AffineSums(layer.name, linear_moments(x, layer.weight))

    def rescale(self, scale: float, shift: float) -> None:
        """There is nothing to rescale."""


class Repeated(ABC):
    """An output whose std at a scale is known when that was tried."""

    def __init__(self, layer: Layer, out: Tensor, trials: Trials) -> None:
        self.layer, self.out, self.trials = layer, out, trials

    @abstractmethod
    def trial(self, scale: float, shift: float) -> Tensor:
        """The output as it is with the weight scaled and the bias shifted."""

    @abstractmethod
    def rescale(self, scale: float, shift: float) -> None:
        """Makes ``out`` what it is with the weight scaled and the bias shifted."""

    def before(self) -> Moments:
        return self.trials.measure(self.out)

    def fit(self, start: Fit, std: float, center: bool) -> Fit:
        (scale, shift, *_), tol, secant = start, self.trials.tol, Secant()
        for iteration in range(1, self.trials.most + 1):
            now = self.trials.measure(self.trial(scale, shift))
            check_moments(self.layer, now)
            off = now.mean if center else 0.0
            if abs(now.var / std**2 - 1) <= tol and abs(off) <= tol * std:
                return Fit(scale, shift, iteration)
            if iteration < self.trials.most:
                scale, shift = secant.next(scale, now.std, std), shift - off
        return Fit(scale, shift, self.trials.most, f"not within {tol:g} after {self.trials.most}")

    def after(self, scale: float, shift: float) -> Moments:
        return self.trials.measure(self.out)


class Activated(Repeated):
    """An output that is affine in the weight; what shall have the std is a function of it."""

    def __init__(self, layer: Layer, out: Tensor, trials: Trials) -> None:
        super().__init__(layer, out, trials)
        self.bias = layer.bias_like(out)

    def trial(self, scale: float, shift: float) -> Tensor:
        return rescale(self.out.clone(), self.bias, scale, shift)

    def rescale(self, scale: float, shift: float) -> None:
        rescale(self.out, self.bias, scale, shift)


class Rerun(Repeated):
    """An output of which nothing is known: the layer runs again, its weight scaled, and keeps that."""

    def __init__(
        self,
        layer: Layer,
        out: Tensor,
        trials: Trials,
        state: ModelState,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(layer, out, trials)
        self.state, self.args, self.kwargs = state, args, kwargs

    def trial(self, scale: float, shift: float) -> Tensor:
        self.layer.scaled.copy_(self.state.original(self.layer.weight_in) * scale)
        with self.state.undo:
            self.out = first(self.layer.module.forward(*self.args, **self.kwargs))
        return self.out

    def rescale(self, scale: float, shift: float) -> None:
        """The weight was scaled before the layer ran."""


def first(output: Any) -> Any:
    """The tensor among a module's outputs that counts."""
    return output[0] if isinstance(output, tuple) else output


def check_moments(layer: Layer, m: Moments) -> None:
    """Raises LSUVError if no scale gives these values another std."""
    if m.nonfinite:
        what = "has values that are not finite"
    elif m.count < 2:
        what = "has fewer than two values"
    elif not m.var > 0:
        what = "is dead: all its values are the same"
    else:
        return
    raise LSUVError(f"the output of {layer.name} {what}: {m!r}")
