"""LSUV's passes: what was measured of each layer, and what its weight is to be multiplied with.

A call of a layer comes as one of :mod:`fastinit.variance.lsuv.strategies`, from the hooks in
:mod:`fastinit.variance.lsuv.hooks`. Weights change for good in :meth:`Passes.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastinit.base import number
from fastinit.statistics.tensor import Moments
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv.affine import AffineSums, Impossible, LSUVError
from fastinit.variance.lsuv.ranks import Ranks, digest_of
from fastinit.variance.lsuv.result import Measured
from fastinit.variance.lsuv.schedules import Schedule
from fastinit.variance.lsuv.strategies import (
    Affine,
    Aim,
    Fit,
    Scale,
    Secant,
    Strategy,
    Trials,
    check_moments,
)
from fastinit.variance.places import Place, place_of

PASSES = 5  # over several batches, at most


@dataclass
class Options:
    """What is asked of all layers; as the arguments of ``lsuv_``."""

    target_std: float | Mapping[str, float] | Schedule
    center: bool
    pool: bool
    skip_dead: bool
    unbuilt: str | None
    trials: Trials


class Scaling:
    """What a weight is multiplied with, and its layer's bias shifted by; layers may share one."""

    def __init__(self, layer: Layer, target: float) -> None:
        self.layer = layer
        """The first to run of those whose weights are tied, which decides."""
        self.target = target
        """The std asked for; NaN if the weight is frozen."""
        self.aim = Aim(target)
        self.first: AffineSums | None = None
        self.all: AffineSums | None = None
        """Of the call that decides and of all that count, without the scale, where they are affine."""
        self.fit = Fit()
        self.held = Scale()
        """What the weight and the bias in memory are scaled with at the moment."""
        self.secant = Secant()
        self.centered = False
        self.begin()

    def scale(self, layer: Layer) -> Scale:
        """That of a layer: those with tied weights may have biases of their own."""
        factor, shift = self.fit.scale
        return Scale(factor, shift if layer.bias_key == self.layer.bias_key else 0.0)

    def held_by(self, layer: Layer) -> Scale:
        factor, shift = self.held
        return Scale(factor, shift if layer.bias_key == self.layer.bias_key else 0.0)

    def begin(self) -> None:
        """Prepares a pass."""
        self.decided, self.first, self.all, self.counted = self.fit.left, None, None, 0

    def count(self, call: Strategy) -> None:
        """Takes up a call's sums, if all have some."""
        sums = _unscaled(call)
        known = self.counted == 0 or self.all is not None
        self.counted += 1
        if sums is None or not known:
            self.all = None
        else:
            self.all = sums if self.all is None else self.all.merge(sums)

    def aim_again(self, pooled: Moments, center: bool, linked: bool) -> None:
        """What the next pass's first call is given, by what all together came to with this one's.

        Args:
            linked: whether one of the calls may be what another's input comes from.
        """
        if self.first is not None and self.all is not None and not linked:
            factor = self.all.scale_for(self.target)
            off = self.all.mean(factor) - self.first.mean(factor) if center else 0.0
            self.aim = Aim(self.target, factor * math.sqrt(self.first.aa), off)
        else:
            self.aim = Aim(self.secant.next(self.aim.std, pooled.std, self.target))

    def hold(self, factor: float, original: Tensor) -> None:
        """The weight in memory is its original multiplied with a factor, from now on."""
        self.layer.scaled.copy_(original * factor)
        self.held = self.held._replace(factor=factor)
        torch.clear_autocast_cache()  # which may have a copy of what it was


def _unscaled(call: Strategy) -> AffineSums | None:
    """The sums of an affine output, as of the weight that was there before the first pass."""
    return call.sums.unscaled(*call.held) if isinstance(call, Affine) else None


def owners(model: nn.Module) -> dict[Hashable, list[tuple[str, nn.Module, Place]]]:
    """By memory, the modules that have a parameter there: name, module and where it is."""
    found: dict[Hashable, list[tuple[str, nn.Module, Place]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                place = place_of(parameter, parameter)
                found.setdefault(place.memory, []).append((name, module, place))
    return found


class Passes:
    """What was measured in the passes, and what each weight is to be multiplied with."""

    def __init__(
        self, model: nn.Module, found: list[Layer], options: Options, ranks: Ranks
    ) -> None:
        self.found, self.options, self.ranks = found, options, ranks
        self.measured: dict[str, Measured] = {}  # by layer, in the order of execution
        self.scalings: dict[Place, Scaling] = {}  # by the weight's key
        self.pools: dict[str, Moments] = {}  # of each layer's outputs in this pass, as scaled
        self.counted: dict[str, int] = {}  # how many are in there
        self.where: dict[str, str] = {}  # on which ranks there were values that are not finite
        self.counting = True  # whether outputs are pooled, or only decide
        self.impossible: dict[str, Impossible] = {}
        self.product = 1.0
        self.owners = owners(model)

    # --- a layer's call --------------------------------------------------------------------------

    def scaling_of(self, layer: Layer) -> Scaling:
        """That of a layer's weight; the first to run of those that are tied has to be asked first."""
        if layer.key not in self.scalings:
            self.scalings[layer.key] = Scaling(layer, self._target_std(layer))
        return self.scalings[layer.key]

    def pass_by(self, call: Strategy) -> None:
        """Rescales what a layer gave, in a call that does not count."""
        self.measured[call.layer.name].calls += 1
        call.rescale(self.scalings[call.layer.key].scale(call.layer))

    def take(self, call: Strategy) -> None:
        """Rescales what a layer gave, and takes down its moments before and after."""
        layer, scaling = call.layer, self.scaling_of(call.layer)
        decides = layer.name == scaling.layer.name
        measured = self.measured.get(layer.name)
        if measured is None:
            kind = type(layer.module).__name__
            measured = self.measured[layer.name] = Measured(layer.name, kind, call.before())
            measured.target = scaling.target if decides else math.nan
            if not decides:
                measured.note = f"tied to {scaling.layer.name}"
            elif not layer.weight_in.requires_grad:
                measured.note = "frozen"
        measured.calls += 1
        if decides and not scaling.decided and layer.weight_in.requires_grad:
            self._decide(call, scaling, measured)
        scale = scaling.scale(layer)
        now = call.rescaled(scale)
        if self.counting and decides:
            scaling.count(call)
        if self.counting:
            pool = self.pools.get(layer.name)
            self.pools[layer.name] = now if pool is None else pool.merge(now)
            self.where[layer.name] = call.seen.where or self.where.get(layer.name, "")
            self.counted[layer.name] = self.counted.get(layer.name, 0) + 1

    def _decide(self, call: Strategy, scaling: Scaling, measured: Measured) -> None:
        uncentered = self._why_not_centered(call)
        scaling.centered = center = self.options.center and not uncentered
        try:
            scaling.fit = call.fit(scaling.fit.scale, scaling.aim, center)
        except Impossible as why:
            self.impossible[call.layer.name] = why
            scaling.fit = Fit(note="dead: left as it is", left=True)
        scaling.decided, scaling.first = True, _unscaled(call)
        measured.iterations += scaling.fit.iterations
        if scaling.fit.left:
            scaling.target = measured.target = math.nan
        notes = [scaling.fit.note, self._others(call.layer)]
        if self.options.center and uncentered:
            notes.append(f"not centered: {uncentered}")
        measured.note = "; ".join(filter(None, notes))

    def _why_not_centered(self, call: Strategy) -> str:
        layer = call.layer
        if layer.bias_in is None or layer.bias_key is None:
            return "no bias"
        if not layer.bias_in.requires_grad:
            return "its bias is frozen"
        same = [other.key for other in self.found if other.bias_key == layer.bias_key]
        if set(same) != {layer.key} or self._owned_by_others(layer, layer.bias_key):
            return "its bias is another's too"
        return "" if call.centers else "it is not affine"

    def _owned_by_others(self, layer: Layer, place: Place) -> list[str]:
        """The modules, by name, that have a parameter there and are not among the layers tied to one."""
        tied = set().union(*(other.owners for other in self.found if other.key == layer.key))
        there = self.owners.get(place.memory, [])
        return [
            name or "the model"
            for name, module, parameter in there
            if module not in tied and parameter.overlaps(place)
        ]

    def _others(self, layer: Layer) -> str:
        names = self._owned_by_others(layer, layer.key)
        return f"its weight is also that of {', '.join(names)}, which is no such layer" * bool(
            names
        )

    def _target_std(self, layer: Layer) -> float:
        """That of a layer whose weight runs for the first time; NaN if it is frozen."""
        if not layer.weight_in.requires_grad:
            return math.nan
        wanted = self.options.target_std
        if not callable(wanted):
            return wanted.get(layer.name, 1.0) if isinstance(wanted, Mapping) else wanted
        place = len(self.scalings)
        self.product *= number.positive(f"target_std({place})", wanted(place))
        said = f"the root of the product of target_std(0) to target_std({place})"
        return number.positive(said, math.sqrt(self.product))

    # --- all passes ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Prepares a pass."""
        self.pools.clear()
        self.counted.clear()
        self.where.clear()
        for scaling in self.scalings.values():
            scaling.begin()

    def settled(self, last: bool, why: str = "") -> bool:
        """Whether the moments over all batches and calls are as asked for; else aims at others.

        Args:
            why: what may be the reason if they are not.
        """
        self._check_possible()
        off, tol = [], self.options.trials.tol
        for name, pool in self.pools.items():
            self.measured[name].std = pool.std
        for scaling in self.scalings.values():
            measured = self.measured[scaling.layer.name]
            pooled, count = self._pooled(scaling)
            if pooled is None or math.isnan(scaling.target):
                continue
            measured.std = pooled.std
            if count == 1:  # what fit() could do is done
                continue
            check_moments(scaling.layer, pooled, self.where[scaling.layer.name])
            center = self.options.center and scaling.centered
            far = abs(pooled.mean) > tol * scaling.target if center else False
            if far or abs((measured.std / scaling.target) ** 2 - 1) > tol:
                off.append(measured)
            scaling.aim_again(pooled, center, linked=self.options.pool)
        for measured in off if last else ():
            measured.note = f"not within {tol:g} after {PASSES} passes{why}"
        return not off

    def _pooled(self, scaling: Scaling) -> tuple[Moments | None, int]:
        """The moments of all outputs that count for a weight, and of how many calls these are."""
        tied = [layer for layer in self.found if layer.key == scaling.layer.key]
        names = [layer.name for layer in tied] if self.options.pool else [scaling.layer.name]
        pools = [self.pools[name] for name in names if name in self.pools]
        count = sum(self.counted.get(name, 0) for name in names)
        return (pools[0].merge(*pools[1:]) if pools else None), count

    def _check_possible(self) -> None:
        skip = self.options.skip_dead
        bad = {n: why for n, why in self.impossible.items() if not (skip and why.dead)}
        if not bad:
            return
        hint = '\n(dead="skip" leaves dead layers as they are)'
        hint = hint if any(why.dead for why in bad.values()) else ""
        if len(bad) == 1:
            raise LSUVError(f"{next(iter(bad.values()))}{hint}")
        whys = "".join(f"\n  {why}" for why in bad.values())
        raise LSUVError(f"{len(bad)} layers cannot be given their std:{whys}{hint}")

    def check_alike(self) -> None:
        """Raises, on all ranks, unless all are about to change their weights, and by the same.

        Raises:
            ValueError: they found different scales. RanksError: another rank failed.
        """
        scales = [(scaling.layer.name, *scaling.fit.scale) for scaling in self.scalings.values()]
        rows = self.ranks.gathered([digest_of(scales)], "the end of the passes")
        if others := [place for place, row in enumerate(rows) if row != rows[0]]:
            raise ValueError(
                f"ranks must find the same scales, but {self.ranks.named(others)} found others than the "
                f"first: target_std= and activation= must be functions that give the same on all"
            )

    def scale_held(self, weight: nn.Parameter) -> float:
        """The scale that a weight holds during the passes."""
        for scaling in self.scalings.values():
            if scaling.layer.weight_in is weight and scaling.layer.projection is None:
                return scaling.held.factor
        return 1.0

    def apply(self) -> None:
        """Scales the weights and shifts the biases."""
        for scaling in self.scalings.values():
            layer, measured = scaling.layer, self.measured[scaling.layer.name]
            measured.scale, measured.shift = scaling.fit.scale
            if measured.scale != 1.0:
                for here in layer.here(layer.weight_in):
                    here.mul_(measured.scale)
            if measured.shift and (bias := layer.trained_bias_in) is not None:
                for here in layer.here(bias):
                    here.add_(measured.shift)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """If the block fails, after :meth:`apply` in it, weights and biases are as before."""
        layers = [scaling.layer for scaling in self.scalings.values()]
        written = [(layer, layer.weight_in) for layer in layers]
        written += [(layer, b) for layer in layers if (b := layer.trained_bias_in) is not None]
        parts = [here for layer, parameter in written for here in layer.here(parameter)]
        copies = [(here, here.clone()) for here in parts if not here.is_meta]
        try:
            yield
        except BaseException:
            for here, copy in reversed(copies):
                here.copy_(copy)
            raise
