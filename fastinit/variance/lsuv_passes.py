"""LSUV's forward passes: hooks in which each layer is measured and its output rescaled.

A pass knows which call of which layer it is at, asks one of :mod:`fastinit.variance.lsuv_strategies` for
the scale of its weight, and keeps that: the weight of an affine layer changes in :meth:`Passes.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills import agreement
from fastinit.statistics.tensor import Moments
from fastinit.variance.affine import LSUVError, rescale
from fastinit.variance.layers import Layer, projections
from fastinit.variance.lsuv_result import Measured
from fastinit.variance.lsuv_strategies import (
    Activated,
    Affine,
    Fit,
    Repeated,
    Rerun,
    Secant,
    Trials,
    Unbuilt,
    check_moments,
    first,
)
from fastinit.variance.schedules import Schedule
from fastinit.variance.unchanged import ModelState

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

PASSES = 3  # over several batches, at most


class PassEnded(BaseException):
    """Ends a forward pass at the layer that is not built."""


@dataclass
class Options:
    """What is asked of all layers; as the arguments of ``lsuv_``."""

    target_std: float | Mapping[str, float] | Schedule
    center: bool
    pool: bool
    unbuilt: str | None
    trials: Trials


class Scaling:
    """What a weight is multiplied with, and its layer's bias shifted by; layers may share one."""

    def __init__(self, layer: Layer, target: float) -> None:
        self.layer = layer
        """The first to run of those whose weights are tied, which decides."""
        self.target = target
        """The std asked for; NaN if the weight is frozen."""
        self.aim = target
        """What the first call is given, so that all together are on target."""
        self.fit = Fit(1.0)
        self.secant = Secant()
        self.begin_pass()

    def begin_pass(self) -> None:
        self.decided = False
        self.counted = 0  # calls that are in pooled
        self.pooled: Moments | None = None

    def count(self, now: Moments) -> None:
        """Takes up the moments of one more call, as scaled."""
        self.counted += 1
        self.pooled = now if self.pooled is None else self.pooled.merge(now)


class Passes:
    """What was measured in the passes, and what each weight is to be multiplied with."""

    def __init__(self, found: list[Layer], options: Options, state: ModelState) -> None:
        self.found, self.options, self.state = found, options, state
        self.measured: dict[str, Measured] = {}  # by layer, in the order of execution
        self.scalings: dict[Any, Scaling] = {}  # by the weight's key
        self.calls: dict[str, int] = {}  # of each layer, with this batch
        self.given: dict[str, tuple[Any, int]] = {}  # by forwards, before hooks: and the version
        self.scaled: list[
            tuple[nn.Module, Tensor, Tensor]
        ] = []  # attention, weight in it, its copy
        self.product = 1.0

    # --- hooks -----------------------------------------------------------------------------------

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within the block, in which one batch runs, layers are measured and scaled."""
        self.calls.clear()
        with ExitStack() as stack:
            stack.callback(self._unscale_projections)
            for handle in self._hooks():
                stack.callback(handle.remove)
            yield

    def _hooks(self) -> Iterator[Uncopied]:
        for layer in self.found:
            module = layer.module
            if layer.projection is not None:
                continue
            if layer.name == self.options.unbuilt:
                end = partial(self._end_before, layer)
                yield Uncopied(module.register_forward_pre_hook(end, with_kwargs=True))
                continue
            if module._forward_hooks and layer.weight_in.requires_grad:
                note = partial(self._note, layer)
                yield Uncopied(module.register_forward_hook(note, prepend=True))
            after = partial(self._after, layer)
            yield Uncopied(module.register_forward_hook(after, with_kwargs=True))
            if not layer.affine and layer.weight_in.requires_grad:
                # Before it runs: renormalised embeddings write their weight.
                copy = partial(self._copy_weight, layer)
                yield Uncopied(module.register_forward_pre_hook(copy))
        for module, inputs in projections(self.found).items():
            project = partial(self._scale_projections, inputs)
            yield Uncopied(module.register_forward_pre_hook(project, with_kwargs=True))
            unscale = self._unscale_projections
            yield Uncopied(module.register_forward_hook(unscale, always_call=True))

    def _copy_weight(self, layer: Layer, module: nn.Module, args: Any) -> None:
        self.state.original(layer.weight_in)

    def _note(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """The output as forward gave it."""
        self.given[layer.name] = first(output), _version(first(output))

    def _after(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        with self.state.undo.paused():
            out = _measurable(layer, first(output))
            self._check_hooks(layer, out)
            out = self._scaled(layer, out, args, kwargs)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    def _end_before(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        with self.state.undo.paused():
            self._measure(Unbuilt(layer, args[0] if args else kwargs["input"]))
        raise PassEnded

    def _scale_projections(
        self, inputs: list[Layer], module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        """MultiheadAttention projects its inputs inside, so its output is that of scaled weights only if
        it runs with them. They are scaled while it does, and as the others' when all has gone well.

        What it projects is computed once more, one projection at a time: it builds all three itself.
        """
        with self.state.undo.paused():
            for layer in inputs:
                out = layer.projected(args, kwargs)
                if out is None:
                    return  # forward will say what it misses
                self._scaled(layer, _measurable(layer, out), args, kwargs)
            for layer in {layer.key: layer for layer in inputs}.values():  # each weight once
                if (scale := self.scalings[layer.key].fit.scale) != 1.0:
                    self.scaled.append((module, layer.weight, layer.weight.clone()))
                    layer.weight.mul_(scale)
            for layer in inputs:
                if layer.bias is not None and (shift := self._shift(layer)):
                    self.scaled.append((module, layer.bias, layer.bias.clone()))
                    layer.bias.add_(shift)

    def _unscale_projections(self, module: nn.Module | None = None, *rest: object) -> None:
        """Puts back the weights in an attention, or in all."""
        with self.state.undo.paused():
            while self.scaled and module in (None, self.scaled[-1][0]):
                _, weight, copy = self.scaled.pop()
                weight.copy_(copy)

    def _check_hooks(self, layer: Layer, out: Tensor) -> None:
        """What is known of a layer is known of its forward, so its hooks must leave the output alone.

        Those that bring a DTensor into another layout do.
        """
        given, version = self.given.pop(layer.name, (out, _version(out)))
        if not isinstance(given, Tensor) or shard.is_dtensor(given):
            return
        if _version(given) != version or not (
            given is out or (given.shape == out.shape and given.to(out.dtype).equal(out))
        ):
            raise LSUVError(
                f"a forward hook of {layer.name} changes its output, so that its std does not follow "
                f"from its weight: remove the hook, or choose other layers"
            )

    # --- a layer's call --------------------------------------------------------------------------

    def _scaled(self, layer: Layer, out: Tensor, args: Any, kwargs: Any) -> Tensor:
        """The output of a layer that has run, as it is with the weight scaled; measured if it counts."""
        self.calls[layer.name] = self.calls.get(layer.name, 0) + 1
        if self.calls[layer.name] > 1 and not self.options.pool:
            self.measured[layer.name].calls += 1
            if layer.affine:
                scale = self.scalings[layer.key].fit.scale
                rescale(out, layer.bias_like(out), scale, self._shift(layer))
            return out
        trials = self.options.trials
        call: Affine | Repeated
        if not layer.affine:
            call = Rerun(layer, out, trials, self.state, args, kwargs)
        elif trials.activation is not None:
            call = Activated(layer, out, trials)
        else:
            call = Affine(layer, out)
        self._measure(call)
        return call.out

    def _measure(self, call: Affine | Repeated) -> None:
        """Rescales what a layer gave, and takes down its moments before and after."""
        layer = call.layer
        new = layer.name not in self.measured
        if new:
            kind = type(layer.module).__name__
            self.measured[layer.name] = Measured(layer.name, kind, call.before())
        measured = self.measured[layer.name]
        measured.calls += 1
        scaling = self.scalings.get(layer.key)
        if scaling is None:
            scaling = self.scalings[layer.key] = Scaling(layer, self._target_std(layer))
            measured.target = scaling.target
            measured.note = "" if layer.weight_in.requires_grad else "frozen"
        elif new:
            measured.note = f"tied to {scaling.layer.name}"
        decides = layer.name == scaling.layer.name
        if decides and not scaling.decided and layer.weight_in.requires_grad:
            center = self.options.center and layer.affine and layer.trained_bias is not None
            scaling.fit, scaling.decided = call.fit(scaling.fit, scaling.aim, center), True
            measured.iterations += scaling.fit.iterations
            measured.note = scaling.fit.note or measured.note
        scale, shift = scaling.fit.scale, self._shift(layer)
        call.rescale(scale, shift)
        now = call.after(scale, shift)
        measured.std = now.std
        if decides or self.options.pool:
            scaling.count(now)

    def _shift(self, layer: Layer) -> float:
        """That of the layer's bias: layers with tied weights may have biases of their own."""
        scaling = self.scalings[layer.key]
        return scaling.fit.shift if layer.bias_key == scaling.layer.bias_key else 0.0

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

    def settled(self, last: bool) -> bool:
        """Whether the moments over all batches and calls are as asked for; else prepares a pass more."""
        off, tol = [], self.options.trials.tol
        for scaling in self.scalings.values():
            if not scaling.decided or scaling.counted == 1:  # what fit() could do is done
                continue
            assert scaling.pooled is not None
            measured = self.measured[scaling.layer.name]
            check_moments(scaling.layer, scaling.pooled)
            measured.std = scaling.pooled.std
            if abs((measured.std / scaling.target) ** 2 - 1) > tol:
                off.append(measured)
            scaling.aim = scaling.secant.next(scaling.aim, measured.std, scaling.target)
        for measured in off if last else ():
            measured.note = f"not within {tol:g} after {PASSES} passes"
        if off and not last:
            for scaling in self.scalings.values():
                scaling.begin_pass()
        return not off

    def scale_held(self, weight: nn.Parameter) -> float:
        """The scale that a weight holds during the passes: that of a layer that is not affine."""
        for scaling in self.scalings.values():
            if scaling.layer.weight_in is weight and not scaling.layer.affine:
                return scaling.fit.scale
        return 1.0

    def apply(self) -> None:
        """Scales the weights and shifts the biases."""
        self._check_ranks()
        for scaling in self.scalings.values():
            layer, measured = scaling.layer, self.measured[scaling.layer.name]
            measured.scale, measured.shift, *_ = scaling.fit
            if measured.scale != 1.0:
                tensors.local(layer.scaled).mul_(measured.scale)
            if measured.shift and layer.trained_bias is not None:
                tensors.local(layer.trained_bias).add_(measured.shift)

    def _check_ranks(self) -> None:
        """Each rank scales its part of a DTensor by what it measured: that has to be the same on all."""
        found: dict[DeviceMesh, list[float]] = {}
        for scaling in self.scalings.values():
            if shard.is_dtensor(weight := scaling.layer.weight_in):
                found.setdefault(weight.device_mesh, []).extend(scaling.fit[:2])
        for mesh, numbers in found.items():
            if ranks := agreement.differing(mesh, numbers):
                raise LSUVError(
                    f"ranks measured different outputs, so they would scale their parts of one weight "
                    f"differently: {', '.join(map(str, ranks))} not as the first. Give all ranks of "
                    f"{mesh} the same batch, and layers whose whole output each rank has"
                )


def _version(tensor: Any) -> int:
    """How often it was written, as far as that is counted."""
    counts = isinstance(tensor, Tensor) and not tensor.is_inference()
    return internals.version_of(tensor) if counts else 0


def _measurable(layer: Layer, out: Any) -> Tensor:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        raise LSUVError(f"{layer.name} gives no floating-point tensor: {type(out).__name__}")
    if shard.is_dtensor(out):
        raise LSUVError(
            f"{layer.name} gives a DTensor, which lsuv_ does not scale: let the layer give local tensors"
        )
    if found := tensors.unreadable(out):
        hint = " (a TransformerEncoder gives none with enable_nested_tensor=False)"
        raise LSUVError(f"the output of {layer.name} {found[1]}{hint if out.is_nested else ''}")
    return tensors.local(out)
