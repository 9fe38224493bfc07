"""LSUV: weights scaled so that each layer's output has the variance asked for, in one forward pass.

Mishkin & Matas, "All you need is a good init" (ICLR 2016, arXiv 1511.06422). The published procedure
runs the net once for each layer and repetition. Here each layer's output is measured when the layer
has run and rescaled where it lies, the pass goes on, and the weights are scaled when it has ended well.
The scale of an affine layer follows from its output's moments; any other is repeated on its own inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastinit import init
from fastinit.base import number, text
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills import agreement
from fastinit.plan.plan import Plan
from fastinit.record.weights_on_demand import InMemory, weights_of
from fastinit.statistics.product import linear_moments
from fastinit.statistics.tensor import Moments, moments
from fastinit.variance import layers
from fastinit.variance.affine import AffineSums, rescale
from fastinit.variance.affine import LSUVError as LSUVError  # it is this module's to the world
from fastinit.variance.layers import Layer, Which
from fastinit.variance.schedules import Schedule
from fastinit.variance.unchanged import Kept, same_random_numbers, unchanged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.distributed.device_mesh import DeviceMesh

PASSES = 3  # over several batches, at most


class _Ended(BaseException):
    """Ends a forward pass at the layer that is not built."""


@dataclass
class Measured:
    """One layer: its output as it came and as it left, and what its weight is multiplied with."""

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
class LSUVResult:
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

    def table(self) -> str:
        """One line for each layer, in 80 columns."""
        rows = [("layer", "std", "× scale", "= std", "target", "note")]
        for m in self.layers:
            target = "" if math.isnan(m.target) else f"{m.target:.4g}"
            before = f"{float(m.before.std):.4g}"
            rows.append((m.name, before, f"{m.scale:.4g}", f"{m.std:.4g}", target, m.note))
        rows += [(name, "", "", "", "", why) for name, why in self.passed.items()]
        return text.table(rows, "<>>>><")

    def plot(self, path: Any = None, ax: Axes | None = None, label: str = "") -> Axes:
        """:func:`fastinit.variance.plots.std_before_and_after`: a picture of the std, layer by layer."""
        from fastinit.variance.plots import std_before_and_after

        return std_before_and_after(self.layers, path, ax, label)


class _Secant:
    """What to try next, from what was tried and the std that it gave: a secant in logarithms."""

    last: tuple[float, float] | None = None

    def next(self, tried: float, gave: float, target: float) -> float:
        slope = 1.0  # as of a homogeneous function
        if self.last is not None and self.last[0] != tried and self.last[1] != gave:
            slope = math.log(gave / self.last[1]) / math.log(tried / self.last[0])
        self.last = tried, gave
        return tried * math.pow(target / gave, 1.0 / min(max(slope, 0.25), 4.0))


@dataclass
class _Scaling:
    """What a weight is multiplied with, and what its layer's bias is shifted by."""

    layer: Layer
    target: float
    scale: float = 1.0
    shift: float = 0.0
    first: Moments | None = None  # of the call that decides, in this pass, as scaled
    pooled: Moments | None = None  # of all that counts

    def __post_init__(self) -> None:
        self.aim = self.target  # what the first call is given, so that all together are on target
        self.steps = _Secant()


@dataclass
class _Options:
    target_std: float | Mapping[str, float] | Schedule
    tol: float
    max_iter: int
    center: bool
    activation: Callable[[Tensor], Tensor] | None
    pool: bool
    unbuilt: str | None


def lsuv_(
    model: nn.Module,
    *inputs: Any,
    batches: Iterable[Any] | None = None,
    layers: Which = None,
    target_std: float | Mapping[str, float] | Schedule = 1.0,
    tol: float = 0.02,
    max_iter: int = 10,
    pre: str = "keep",
    center: bool = False,
    activation: Callable[[Tensor], Tensor] | None = None,
    reuse: str = "first",
    unbuilt: str | None = None,
    **kwargs: Any,
) -> LSUVResult:
    """Scales the weights of ``model`` so that every layer's output has the std ``target_std``.

    Runs ``model(*inputs, **kwargs)`` once, without gradients, in the mode that the model is in. Only
    weights (and, with ``center``, biases) change, and they only if all went well; whatever else the
    model writes is put back (:func:`fastinit.variance.unchanged.unchanged`). Weights that need no
    gradient are measured and left alone, tied ones are scaled once. A model that was built within
    :func:`fastinit.deferred` stays on meta: each parameter is written as it is used and dropped after
    that module, so that the model may be larger than memory, and the scales become part of its record.
    Beyond the pass itself it needs a few numbers for each layer, for one MultiheadAttention at a time a
    copy of its input projections, and copies of what the model writes.

    Args:
        batches: in place of inputs, batches that are tensors, tuples of arguments or dicts of keyword
            arguments. Moments are those of all of them together; that takes up to 3 passes, so it has to
            be a list or another thing that can be iterated again.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``.
        target_std: a number; numbers by layer name (1 for the others); or a schedule of factors
            (:mod:`fastinit.variance.schedules`).
        tol: how far the variance of a repeated layer may be from the target, relative to it.
        max_iter: repetitions of a layer that is not affine in its weight, or with ``activation``.
        pre: "keep" takes the weights as they are, "orthonormal" first draws orthonormal ones, as the
            paper does (embeddings are kept).
        center: shifts biases so that each output's mean is 0, as fast.ai's version does.
        activation: the std is that of ``activation(output)``; costs two tensors of the output's size.
        reuse: of a layer that is called several times, "first": the first call decides; "pool": all
            calls together, in up to 3 passes.
        unbuilt: the name of the Linear that runs last, without a bias: it is measured by
            :func:`fastinit.linear_moments` and the pass ends there, so that its output, of a language
            model's head as large as the rest of the pass, is never built.

    On ranks that share a model of DTensors, each has to see the same outputs.

    Raises:
        LSUVError: an output that is constant, not finite or has fewer than two values, or a bias whose
            variance is already as large as the target; it names the layer and its moments. Ranks that
            measured differently.
        TypeError, ValueError: arguments that are no good; also a schedule's factor that is no number, or
            not positive and finite.
        NotImplementedError: a parameter that is not here (``fastinit.elements.shards.check_held``).

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> result = lsuv_(net, torch.randn(1000, 64))
    >>> [round(m.std, 6) for m in result.layers]
    [1.0, 1.0]
    """
    target_std = _checked(target_std)
    tol, max_iter = number.real("tol", tol), number.integer("max_iter", max_iter, least=1)
    if not 0.0 < tol < 1.0:
        number.out_of_range("tol", "in (0, 1)", tol)
    if pre not in ("keep", "orthonormal"):
        raise ValueError(f"pre must be 'keep' or 'orthonormal', but got {pre!r}")
    if reuse not in ("first", "pool"):
        raise ValueError(f"reuse must be 'first' or 'pool', but got {reuse!r}")
    if batches is not None and (inputs or kwargs):
        raise ValueError("batches and inputs exclude each other, but both were given")
    found, passed = find(model, layers)
    if not found:
        reasons = "".join(f"; {name} {why}" for name, why in passed.items())
        raise ValueError(f"layers must name at least one layer with a weight, but none is{reasons}")
    if isinstance(target_std, Mapping):
        strange = target_std.keys() - {layer.name for layer in found}
        if strange:
            raise ValueError(f"target_std names layers that are not: {', '.join(sorted(strange))}")
    _check_unbuilt(found, unbuilt)
    for name, parameter in model.named_parameters():
        shard.check_held(parameter, name, constant=True)
    options = _Options(target_std, tol, max_iter, center, activation, reuse == "pool", unbuilt)
    weights = weights_of(model)
    drawn = found if pre == "orthonormal" else []
    with (
        weights.unchanged_on_failure(),
        same_random_numbers(model),
        _without_autocast_cache(),
        _orthonormal(drawn, weights),
    ):
        with unchanged(model) as kept:
            run = _Run(found, options, kept)
            for passes in range(1, PASSES + 1):
                count = 0
                for args, named in (
                    [(inputs, kwargs)] if batches is None else map(_arguments, batches)
                ):
                    with run.hooked(), weights.present(run.scale_held), suppress(_Ended):
                        model(*args, **named)
                    count += 1
                if not count:
                    raise ValueError(f"batches must not be empty, but was in pass {passes}")
                if run.settled(last=passes == PASSES):
                    break
        with weights.writable():
            run.apply()
    passed |= {layer.name: "not called" for layer in found if layer.name not in run.measured}
    return LSUVResult(list(run.measured.values()), passed, passes, run.product, weights.plan())


find = layers.find  # lsuv_ has an argument of the module's name


class _Run:
    """The passes: what was measured, and what each weight is to be multiplied with."""

    def __init__(self, found: list[Layer], options: _Options, kept: Kept) -> None:
        self.found, self.options, self.kept = found, options, kept
        self.measured: dict[str, Measured] = {}  # by layer, in the order of execution
        self.scalings: dict[Any, _Scaling] = {}  # by the weight's key
        self.calls: dict[str, int] = {}  # of each layer, with this batch
        self.given: dict[str, tuple[Any, int]] = {}  # by forwards, before hooks: and the version
        self.product = 1.0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks, for one batch."""
        self.calls.clear()
        with ExitStack() as stack:
            for layer in self.found:
                if layer.projection is not None:
                    continue
                if layer.name == self.options.unbuilt:
                    handle = layer.module.register_forward_pre_hook(
                        self._end_at(layer), with_kwargs=True
                    )
                else:
                    if layer.module._forward_hooks and layer.weight_in.requires_grad:
                        handle = layer.module.register_forward_hook(self._give(layer), prepend=True)
                        stack.callback(handle.remove)
                    handle = layer.module.register_forward_hook(self._hook(layer), with_kwargs=True)
                stack.callback(handle.remove)
                if not layer.affine:  # before it runs: renormalised embeddings write their weight
                    handle = layer.module.register_forward_pre_hook(self._keep(layer))
                    stack.callback(handle.remove)
            for module, some in layers.projections(self.found).items():
                before, after = self._project(some), self._release
                handles = (
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after, always_call=True),
                )
                for handle in handles:
                    stack.callback(handle.remove)
            yield

    def _keep(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if layer.weight_in.requires_grad:
                self.kept.keep(layer.weight_in)

        return hook

    def _end_at(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            with self.kept.undo.paused():
                sums = AffineSums(layer.name, linear_moments(x, layer.weight))
                self._visit(layer, None, lambda: None, sums)
            raise _Ended

        return hook

    def _project(self, projections: list[Layer]) -> Callable[..., None]:
        """MultiheadAttention projects its inputs inside, so its output is that of scaled weights only if
        it runs with them. They are scaled while it does, and as the others' when all has gone well.

        What it projects is computed once more, one projection at a time: it builds all three itself.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            with self.kept.undo.paused():
                for layer in projections:
                    out = layer.projected(args, kwargs)
                    if out is None:
                        return  # forward will say what it misses
                    self._visit(layer, _measurable(layer, out), lambda: None)
                scaled = {layer.key: layer for layer in projections}  # each weight once
                for layer in scaled.values():
                    if (scale := self.scalings[layer.key].scale) != 1.0:
                        self.kept.hold(module, layer.weight)
                        layer.weight.mul_(scale)
                for layer in projections:
                    if layer.bias is not None and (shift := self._shift(layer)):
                        self.kept.hold(module, layer.bias)
                        layer.bias.add_(shift)

        return hook

    def _release(self, module: nn.Module, args: Any, output: Any) -> None:
        with self.kept.undo.paused():
            self.kept.release(module)

    def _give(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.given[layer.name] = _first(output), _version(_first(output))

        return hook

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

    def _hook(self, layer: Layer) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            def again() -> Any:
                with self.kept.undo:
                    return _first(module.forward(*args, **kwargs))

            with self.kept.undo.paused():
                out = _measurable(layer, _first(output))
                self._check_hooks(layer, out)
                out = self._visit(layer, out, again)
            return (out, *output[1:]) if isinstance(output, tuple) else out

        return hook

    def _visit(
        self, layer: Layer, out: Any, again: Callable[[], Any], sums: AffineSums | None = None
    ) -> Any:
        """One call of a layer: its output as it is with the weight scaled. Without one, by its sums."""
        self.calls[layer.name] = self.calls.get(layer.name, 0) + 1
        counts = self.options.pool or self.calls[layer.name] == 1
        if sums is None and counts and layer.affine and self.options.activation is None:
            sums = AffineSums.of(layer, out)
        new = layer.name not in self.measured
        if new:
            before = sums.moments(1.0, 0.0) if sums else moments(self._activated(out))
            kind = type(layer.module).__name__
            self.measured[layer.name] = Measured(layer.name, kind, before)
        measured = self.measured[layer.name]
        measured.calls += 1
        scaling = self.scalings.get(layer.key)
        if scaling is None:
            scaling = self.scalings[layer.key] = self._scaling(layer, measured)
        elif new:
            measured.note = f"tied to {scaling.layer.name}"
        own = layer.name == scaling.layer.name
        if own and scaling.first is None and not math.isnan(scaling.target):
            out = self._decide(scaling, measured, sums, out, again)
        shift = self._shift(layer)
        if layer.affine and out is not None:
            bias = sums.bias if sums else layer.bias_like(out)
            rescale(out, bias, scaling.scale, shift)
        if counts:
            now = sums.moments(scaling.scale, shift) if sums else moments(self._activated(out))
            measured.std = float(now.std)
            if own:
                scaling.first = scaling.first or now
            if own or self.options.pool:
                scaling.pooled = now if scaling.pooled is None else scaling.pooled.merge(now)
        return out

    def _shift(self, layer: Layer) -> float:
        """That of the layer's bias: layers with tied weights may have biases of their own."""
        scaling = self.scalings[layer.key]
        return scaling.shift if layer.has_bias_of(scaling.layer) else 0.0

    def _scaling(self, layer: Layer, measured: Measured) -> _Scaling:
        if not layer.weight_in.requires_grad:
            measured.note = "frozen"
            return _Scaling(layer, math.nan)
        wanted = self.options.target_std
        if callable(wanted):
            place = len(self.scalings)
            self.product *= number.positive(f"target_std({place})", wanted(place))
            said = f"the root of the product of target_std(0) to target_std({place})"
            target = number.positive(said, math.sqrt(self.product))
        else:
            target = wanted.get(layer.name, 1.0) if isinstance(wanted, Mapping) else wanted
        measured.target = target
        return _Scaling(layer, target)

    def _decide(
        self,
        scaling: _Scaling,
        measured: Measured,
        sums: AffineSums | None,
        out: Tensor,
        again: Callable[[], Tensor],
    ) -> Tensor:
        """Finds the scale and the shift. Returns the output, of an affine layer still unscaled."""
        layer, options = scaling.layer, self.options
        target, secant = scaling.aim, _Secant()
        centers = options.center and _bias_of(layer) is not None
        if sums:
            _check_moments(layer, sums.moments(1.0, 0.0))
            measured.iterations += 1
            scaling.scale = sums.scale_for(target)
            if centers:
                scaling.shift = -sums.mean(scaling.scale)
            return out
        original = None if layer.affine else self.kept.keep(layer.weight_in)
        for iteration in range(1, options.max_iter + 1):
            measured.iterations += 1
            if original is None:
                trial = rescale(out.clone(), layer.bias_like(out), scaling.scale, scaling.shift)
            else:
                layer.weight.copy_(original * scaling.scale)
                trial = again()
            now = moments(self._activated(trial))
            _check_moments(layer, now)
            off = float(now.mean) if centers and layer.affine else 0.0
            near = abs(float(now.var) / target**2 - 1) <= options.tol
            if near and abs(off) <= options.tol * target:
                break
            if iteration == options.max_iter:
                measured.note = f"not within {options.tol:g} after {iteration}"
                break
            scaling.shift -= off
            scaling.scale = secant.next(scaling.scale, float(now.std), target)
        return out if original is None else trial

    def _activated(self, out: Tensor) -> Tensor:
        return out if self.options.activation is None else self.options.activation(out)

    def settled(self, last: bool) -> bool:
        """Whether the moments over all batches and calls are as asked for; else prepares a pass more."""
        off = []
        for scaling in self.scalings.values():
            if scaling.first is None or scaling.pooled is None or math.isnan(scaling.target):
                continue
            if scaling.pooled is scaling.first:
                continue
            measured = self.measured[scaling.layer.name]
            _check_moments(scaling.layer, scaling.pooled)
            measured.std = float(scaling.pooled.std)
            if abs((measured.std / scaling.target) ** 2 - 1) > self.options.tol:
                off.append(measured)
            scaling.aim = scaling.steps.next(scaling.aim, measured.std, scaling.target)
        for measured in off if last else ():
            measured.note = f"not within {self.options.tol:g} after {PASSES} passes"
        if off and not last:
            for scaling in self.scalings.values():
                scaling.first = scaling.pooled = None
        return not off

    def scale_held(self, weight: nn.Parameter) -> float:
        """The scale that a weight holds during the passes: that of a layer that is not affine."""
        scaling = self.scalings.get((id(weight), None))
        return 1.0 if scaling is None or scaling.layer.affine else scaling.scale

    def _check_ranks(self) -> None:
        """Each rank scales its part of a DTensor by what it measured: that has to be the same on all."""
        found: dict[DeviceMesh, list[float]] = {}
        for scaling in self.scalings.values():
            if shard.is_dtensor(weight := scaling.layer.weight_in):
                found.setdefault(weight.device_mesh, []).extend((scaling.scale, scaling.shift))
        for mesh, numbers in found.items():
            if ranks := agreement.differing(mesh, numbers):
                raise LSUVError(
                    f"ranks measured different outputs, so they would scale their parts of one weight "
                    f"differently: {', '.join(map(str, ranks))} not as the first. Give all ranks of "
                    f"{mesh} the same batch, and layers whose whole output each rank has"
                )

    def apply(self) -> None:
        """Scales the weights and shifts the biases."""
        self._check_ranks()
        for scaling in self.scalings.values():
            layer, measured = scaling.layer, self.measured[scaling.layer.name]
            measured.scale, measured.shift = scaling.scale, scaling.shift
            if scaling.scale != 1.0:
                tensors.local(layer.weight).mul_(scaling.scale)
            bias = _bias_of(layer)
            if bias is not None and scaling.shift:
                tensors.local(bias).add_(scaling.shift)


def _bias_of(layer: Layer) -> Tensor | None:
    """The bias, if it may be shifted."""
    return layer.bias if layer.bias_in is not None and layer.bias_in.requires_grad else None


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _version(tensor: Any) -> int:
    """How often it was written, as far as that is counted."""
    return (
        internals.version_of(tensor)
        if isinstance(tensor, Tensor) and not tensor.is_inference()
        else 0
    )


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


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Autocast keeps what it made of weights; within the block, and after it, weights are others."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _orthonormal(found: list[Layer], weights: InMemory) -> Iterator[None]:
    """Draws the layers' weights, and undoes it if the block fails."""
    drawn = [
        layer
        for layer in found
        if layer.weight.dim() > 1
        and layer.weight_in.requires_grad
        and not isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag))
    ]
    before = [(w, w.clone()) for w in (layer.weight for layer in drawn) if not w.is_meta]
    try:
        with weights.writable():
            for layer in drawn:
                init.orthogonal_(layer.weight)
        yield
    except BaseException:
        for weight, copy in reversed(before):
            weight.copy_(copy)
        raise


def _check_moments(layer: Layer, m: Moments) -> None:
    if m.nonfinite:
        what = "has values that are not finite"
    elif float(m.count) < 2:
        what = "has fewer than two values"
    elif not float(m.var) > 0:
        what = "is dead: all its values are the same"
    else:
        return
    raise LSUVError(f"the output of {layer.name} {what}: {m!r}")


def _check_unbuilt(found: list[Layer], unbuilt: str | None) -> None:
    if unbuilt is None:
        return
    layer = next((layer for layer in found if layer.name == unbuilt), None)
    if layer is None or not isinstance(layer.module, nn.Linear):
        raise ValueError(f"unbuilt must name one of the layers, a Linear, but got {unbuilt!r}")
    if layer.bias is not None:
        raise ValueError(f"unbuilt must name a Linear without a bias, but {unbuilt!r} has one")


def _checked(target_std: Any) -> float | Mapping[str, float] | Schedule:
    """The targets with their numbers as floats; a schedule's are checked as it gives them."""
    if isinstance(target_std, Mapping):
        return {n: number.positive(f"target_std[{n!r}]", std) for n, std in target_std.items()}
    if callable(target_std):
        schedule: Schedule = target_std
        return schedule
    return number.positive("target_std", target_std)


def transfer_scale_(layer: nn.Module, following: nn.Module, factor: float) -> None:
    """Multiplies one layer's weight and divides the next one's: the function stays the same.

    It does where nothing stands between them that is not homogeneous (He et al. 2015, section 2.2:
    ReLU is), and where ``layer`` has no bias or its bias is multiplied too, as it is here.

    Args:
        layer: such as an embedding. Its bias, if it has one, is multiplied too.
        following: a module with a ``weight``.
        factor: positive and finite.

    Raises:
        NumberTypeError, NumberRangeError: a factor that is no number; not positive and finite.
        ValueError: a module without a weight.
    """
    factor = number.positive("factor", factor)
    for name, module in (("layer", layer), ("following", following)):
        if not isinstance(getattr(module, "weight", None), nn.Parameter):
            raise ValueError(f"{name} has no weight: {module!r}")
    if layer.weight is following.weight:
        raise ValueError("layer and following have the same weight")
    with torch.no_grad():
        for parameter in (layer.weight, getattr(layer, "bias", None)):
            if isinstance(parameter, nn.Parameter):
                parameter.mul_(factor)
        following.get_parameter("weight").div_(factor)
