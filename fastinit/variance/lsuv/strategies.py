"""How the scale of a layer's weight is found: one strategy for each way in which its output follows.

Each stands for one call of a layer, which has run (:class:`Unbuilt`: is about to). ``before`` gives the
moments of what came; ``fit`` finds the scale, and the shift of the bias, that give the std asked for;
``rescale`` makes of the output what it would be with them; ``rescaled`` also gives the moments of that.

- :class:`Affine`: the moments at every scale follow from those at one.
- :class:`Unbuilt`: so they do, and even those follow from the input; there is no output.
- :class:`Activated`, :class:`Rerun`: scales are tried, one after the other (:class:`Repeated`), on
  copies of the output, or by running the layer again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastinit.statistics.tensor import Moments
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv.affine import AffineSums, Impossible, LSUVError, rescale
from fastinit.variance.lsuv.ranks import Seen

FOLLOWS = 0.01
"""An output whose std changes by a power of its weight's scale less than this does not follow it."""


class Scale(NamedTuple):
    """What a weight is multiplied with, and what is added to its layer's bias."""

    factor: float = 1.0
    """> 0."""
    shift: float = 0.0


class Aim(NamedTuple):
    """What a weight's first call in a pass is given, so that all that count are as asked for."""

    std: float
    part: float = math.nan
    """Of an affine output that was seen in the pass before: the std of what is due to the weight."""
    off: float = 0.0
    """How much larger the mean of all is than the first call's."""


class Fit(NamedTuple):
    """What gives the std asked for, and how it was found."""

    scale: Scale = Scale()
    iterations: int = 0
    """How many scales were tried."""
    note: str = ""
    left: bool = False
    """Whether the layer stays as it is, whatever was asked for; the note says why."""


class Trials(NamedTuple):
    """How scales are tried."""

    tol: float
    """In (0, 1): how far the variance may be from the target, relative to it."""
    most: int
    """Trials in one pass, at least 1."""
    activation: Callable[[Tensor], Tensor] | None
    """What is measured is this function of the output."""

    def measure(self, out: Tensor, seen: Seen) -> Moments:
        return seen.moments(out if self.activation is None else self.activation(out))


class Secant:
    """What to try next, from what was tried and the std that it gave: a secant in logarithms."""

    last: tuple[float, float] | None = None
    slope = 1.0  # as of a homogeneous function

    def next(self, tried: float, gave: float, target: float) -> float:
        if self.last is not None and self.last[0] != tried:
            self.slope = math.log(gave / self.last[1]) / math.log(tried / self.last[0])
        self.last = tried, gave
        return tried * math.pow(target / gave, 1.0 / min(max(self.slope, 0.25), 4.0))


class Strategy(ABC):
    """One call of a layer."""

    out: Tensor
    centers = True
    """Whether a shift of the bias shifts the output."""

    def __init__(self, layer: Layer, seen: Seen) -> None:
        self.layer, self.seen = layer, seen

    @abstractmethod
    def before(self) -> Moments: ...

    @abstractmethod
    def fit(self, start: Scale, aim: Aim, center: bool) -> Fit:
        """Raises :class:`fastinit.variance.lsuv.affine.Impossible` if no scale gives that std."""

    @abstractmethod
    def rescale(self, scale: Scale) -> None: ...

    @abstractmethod
    def rescaled(self, scale: Scale) -> Moments: ...


class Affine(Strategy):
    """An output that is affine in the weight; it was made with that and the bias scaled as ``held``."""

    def __init__(
        self,
        layer: Layer,
        seen: Seen,
        out: Tensor,
        bias: Tensor | None,
        held: Scale,
        sums: AffineSums | None,
    ) -> None:
        """
        Args:
            bias: in a shape that adds to the output.
            sums: on all ranks; None of a call that does not count.
        """
        super().__init__(layer, seen)
        self.out, self.bias, self.held, self._sums = out, bias, held, sums

    @property
    def sums(self) -> AffineSums:
        assert self._sums is not None
        return self._sums

    def from_held(self, scale: Scale) -> Scale:
        """What is left to do."""
        return Scale(scale.factor / self.held.factor, scale.shift - self.held.shift)

    def before(self) -> Moments:
        return self.sums.moments(1.0, 0.0)

    def fit(self, start: Scale, aim: Aim, center: bool) -> Fit:
        check_moments(self.layer, self.before(), self.seen.where)
        if math.isnan(aim.part):
            factor = self.sums.scale_for(aim.std)
        else:
            self.sums.check_alive()
            factor = aim.part / math.sqrt(self.sums.aa)
        shift = self.held.shift - self.sums.mean(factor) - aim.off if center else 0.0
        return Fit(Scale(self.held.factor * factor, shift), iterations=1)

    def rescale(self, scale: Scale) -> None:
        rescale(self.out, self.bias, *self.from_held(scale))

    def rescaled(self, scale: Scale) -> Moments:
        now = self.sums.moments(*self.from_held(scale))
        self.rescale(scale)
        return now


class Unbuilt(Affine):
    """The output of a Linear without a bias, of which only the input is there."""

    def __init__(self, layer: Layer, seen: Seen, held: Scale, sums: AffineSums) -> None:
        Strategy.__init__(self, layer, seen)
        self.held, self._sums = held, sums

    def rescale(self, scale: Scale) -> None:
        """There is nothing to rescale."""


class Repeated(Strategy):
    """An output whose std at a scale is known when that was tried."""

    trials: Trials

    @abstractmethod
    def trial(self, scale: Scale) -> Tensor:
        """The output as it is with the weight scaled and the bias shifted."""

    def before(self) -> Moments:
        return self.measured(self.out)

    def measured(self, out: Tensor) -> Moments:
        return self.trials.measure(out, self.seen)

    def fit(self, start: Scale, aim: Aim, center: bool) -> Fit:
        tol, secant, scale, std = self.trials.tol, Secant(), start, aim.std
        best, missed = start, math.inf
        for iteration in range(1, self.trials.most + 1):
            now = self.measured(self.trial(scale))
            if iteration == 1:
                check_moments(self.layer, now, self.seen.where)
            elif now.nonfinite or not now.var > 0:
                break  # so far that the layer gave up
            off = now.mean if center else 0.0
            if abs(now.var / std**2 - 1) <= tol and abs(off) <= tol * std:
                return Fit(scale, iteration)
            if (miss := abs(math.log(now.std / std)) + abs(off) / std) < missed - FOLLOWS:
                best, missed = scale, miss
            following = secant.next(scale.factor, now.std, std)
            if abs(secant.slope) < FOLLOWS:
                why = "its std does not follow its weight's scale"
                return Fit(best, iteration, why, left=best == start)
            scale = Scale(following, scale.shift - off)
        return Fit(best, iteration, f"not within {tol:g} after {iteration}")

    def rescaled(self, scale: Scale) -> Moments:
        self.rescale(scale)
        return self.measured(self.out)


class Activated(Repeated):
    """An output that is affine in the weight; what shall have the std is a function of it."""

    def __init__(self, affine: Affine, trials: Trials) -> None:
        super().__init__(affine.layer, affine.seen)
        self.affine, self.out, self.trials = affine, affine.out, trials

    def trial(self, scale: Scale) -> Tensor:
        return rescale(self.out.clone(), self.affine.bias, *self.affine.from_held(scale))

    def rescale(self, scale: Scale) -> None:
        self.affine.rescale(scale)


class Rerun(Repeated):
    """An output of which nothing is known: the layer runs again, its weight scaled, and keeps that.

    ``run`` gives the layer's output with its weight multiplied with a factor, which it is from then on.
    It was made with ``held``. Where ``run`` is a text, that says why the layer cannot run again.
    """

    centers = False

    def __init__(
        self,
        layer: Layer,
        seen: Seen,
        out: Tensor,
        held: Scale,
        trials: Trials,
        run: Callable[[float], Tensor] | str,
    ) -> None:
        super().__init__(layer, seen)
        self.out, self.made_with, self.trials, self.run = out, held.factor, trials, run

    def fit(self, start: Scale, aim: Aim, center: bool) -> Fit:
        if isinstance(self.run, str):
            return Fit(Scale(self.made_with), note=self.run, left=True)
        return super().fit(start, aim, center)

    def trial(self, scale: Scale) -> Tensor:
        if scale.factor != self.made_with and not isinstance(self.run, str):
            self.out, self.made_with = self.run(scale.factor), scale.factor
        return self.out

    def rescale(self, scale: Scale) -> None:
        self.trial(scale)


def first(output: Any) -> Any:
    """The tensor among a module's outputs that counts."""
    return output[0] if isinstance(output, tuple) else output


def check_moments(layer: Layer, m: Moments, where: str) -> None:
    """Raises LSUVError if no scale gives these values another std; Impossible if they are all alike.

    Args:
        where: on which ranks there are values that are not finite.
    """
    name = f"the output of {layer.name}"
    if m.nonfinite:
        raise LSUVError(f"{name} has values that are not finite{where}: {m!r}")
    if m.count < 2:
        raise LSUVError(f"{name} has fewer than two values: {m!r}")
    if not m.var > 0:
        raise Impossible(f"{name} is dead: all its values are the same: {m!r}", dead=True)
