"""Watching a model run: the moments of every layer's output and gradient, beside Kaiming's condition.

He et al., "Delving deep into rectifiers" (2015, arXiv 1502.01852), equations 8 to 10: behind a ReLU a
layer multiplies the variance by n Var[W] / 2, with n the fan-in, so signals neither grow nor fade over
the whole net if the product over all layers is 1. Nothing waits for the device, and no output is kept
or copied, until a number is asked for.
"""

from __future__ import annotations

import json
import math
import textwrap
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastinit.base import text
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills.fans import Fans, fans_of
from fastinit.statistics.tensor import Moments, moments, moments_many
from fastinit.stream import laws
from fastinit.stream.reference import ZEROS, merged
from fastinit.variance import layers as finding
from fastinit.variance.layers import Layer, Which, abbreviated

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.axes import Axes

FOLD = 64  # moments of so many calls are merged, so that a long watch needs no more memory
SAMPLE = 16  # values of a unit that are looked at before all of them are

# Set while a backward pass runs; a layer that runs then is one that checkpointing runs again.
_backward_pass = internals.backward_pass


@dataclass
class Watched:
    """One layer, over all its calls in the block.

    Attributes:
        name, kind: its name in the model, its class's name.
        calls: how often it ran.
        forward: the moments of its output.
        backward: those of the loss's gradient with respect to that output; None if there was none.
        weight: those of its weight, at the end of the block; None if it has none.
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
    weight: Moments | None
    fan_in: float
    fan_out: float
    factor: float
    product: float
    units: int
    dead: int
    note: str

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN in the output and the gradient."""
        both = [m.nonfinite for m in (self.forward, self.backward) if m is not None]
        return int(sum(map(float, both)))


class Watch:
    """What :func:`watch` gives: a context manager, and afterwards what it saw.

    Entering again begins anew.
    """

    def __init__(self, model: nn.Module, layers: Which = None, gradients: bool = False) -> None:
        _check(model)
        self.gradients = gradients
        self._targets, self._passed = _targets(model, layers)
        self._stack: ExitStack | None = None
        self._run: _Run | None = None
        self._layers: list[Watched] | None = None

    def __enter__(self) -> Watch:
        """Raises RuntimeError if it is entered already."""
        if self._stack is not None:
            raise RuntimeError("this watch is entered already: make a second one for the model")
        self._run, self._layers = _Run(self.gradients), None
        with ExitStack() as stack:
            for target in self._targets:
                stack.callback(self._run.hooked(target).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stack is not None
        assert self._run is not None
        stack, self._stack = self._stack, None
        with stack:
            self._run.close()

    @property
    def layers(self) -> list[Watched]:
        """The layers that ran, in the order in which their outputs first came."""
        if self._layers is None:
            self._layers = self._ended().read()
        return self._layers

    @property
    def missing(self) -> dict[str, str]:
        """By name, the layers that are not in ``layers``, and why."""
        run = self._ended()
        missing = dict(self._passed)
        for target in self._targets:
            if target.name not in run.records:
                why = "did not run as a module, or was only traced"
                missing[target.name] = run.unseen.get(target.name, why)
        return missing

    @property
    def product(self) -> float:
        """The product of all factors n Var[W] / 2; 1 is Kaiming's condition."""
        return self.layers[-1].product if self.layers else 1.0

    def _ended(self) -> _Run:
        if self._run is None or self._stack is not None:
            raise RuntimeError("nothing to read yet: a watch has its numbers after the with block")
        return self._run

    def table(self) -> str:
        """One line for each layer, in 80 columns: standard deviations of output and gradient, fan-in,
        Var[W], n Var[W] / 2 and its product so far, dead units and values that are not finite."""
        layers = self.layers
        rows = [["layer", "std", "grad std", "fan in", "Var[W]", "nVar[W]/2", "product", "dead"]]
        for layer in layers:
            dead = str(layer.dead) if layer.units else ""
            values = [_var(layer.weight), layer.factor, layer.product]
            fan = "" if math.isnan(layer.fan_in) else text.count(round(layer.fan_in))
            stds = [_std(layer.forward), _std(layer.backward)]
            rows.append([layer.name, *map(_digits, stds), fan, *map(_digits, values), dead])
        if any(layer.nonfinite for layer in layers):
            counts = [text.count(layer.nonfinite) for layer in layers]
            rows = [[*row, bad] for row, bad in zip(rows, ["inf/nan", *counts])]
        if not self.gradients:
            rows = [[*row[:2], *row[3:]] for row in rows]
        columns = len(rows[0])
        others = sum(max(len(row[i]) for row in rows) for i in range(1, columns))
        room = text.WIDTH - others - 2 * (columns - 1)
        for row in rows:
            row[0] = abbreviated(row[0], room)
        lines = [text.table(rows, "<" + ">" * (columns - 1))]
        reasons: dict[str, list[str]] = {}
        for layer in layers:
            if layer.note:
                reasons.setdefault(layer.note, []).append(layer.name)
        for name, why in self.missing.items():
            reasons.setdefault(f"not measured: {why}", []).append(name)
        for why, names in reasons.items():
            who = f"all {len(names)} layers" if len(names) == len(layers) > 1 else ", ".join(names)
            lines.append(textwrap.fill(f"{why}: {who}", text.WIDTH, subsequent_indent="  "))
        return "\n".join(lines)

    def plot(self, path: Any = None, ax: Axes | None = None, label: str = "") -> Axes:
        """:func:`fastinit.variance.plots.variance_through_depth`: a picture of the variance by layer."""
        from fastinit.variance.plots import variance_through_depth

        layers = self.layers
        return variance_through_depth(
            [layer.name for layer in layers],
            [layer.forward.var for layer in layers],
            [None if layer.backward is None else layer.backward.var for layer in layers],
            path=path,
            ax=ax,
            label=label,
        )

    def to_json(self) -> str:
        """Everything as strict JSON: NaN (what is not there) as null, infinities as strings."""
        layers = []
        for layer in self.layers:
            plain = {k: _plain(v) for k, v in vars(layer).items()}
            layers.append({**plain, "nonfinite": layer.nonfinite})
        whole = {"product": _plain(self.product), "layers": layers, "missing": self.missing}
        return json.dumps(whole, allow_nan=False, indent=2)

    def __repr__(self) -> str:
        return f"Watch({len(self._targets)} layers, gradients={self.gradients})"


def watch(model: nn.Module, *, layers: Which = None, gradients: bool = False) -> Watch:
    """Measures every layer while ``model`` runs in the ``with`` block.

    Only what runs inside the block counts, all passes together; a module that is called several times
    is one layer. Of an output that is a tuple, list or mapping, the first floating-point tensor counts.
    The model is as before afterwards, also if the block raises; what ran until then is kept.

    Args:
        model: in any mode, on any device. Gradients are as backward gives them: under a loss scaler,
            scaled.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``. Those of the inputs are computed once more, in order to be seen.
        gradients: also measures the gradient with respect to each output, in the backward passes inside
            the block; not of input projections, which only MultiheadAttention has.

    Raises:
        TypeError: the model is no module, or has ScriptModules or compiled modules in it.
        ValueError: ``layers`` chooses none, or names what is not there.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> with watch(net, gradients=True) as w:
    ...     net(torch.ones(8, 64)).square().mean().backward()
    >>> [(layer.name, layer.fan_in, layer.forward.count) for layer in w.layers]
    [('0', 64, 512.0), ('2', 64, 512.0)]
    """
    return Watch(model, layers, gradients)


@dataclass
class _Target:
    """A module to watch. ``layer`` is None where its output is measured and its weight is not."""

    name: str
    module: nn.Module
    layer: Layer | None
    why: str = ""

    @property
    def inside(self) -> bool:
        """Whether it is a projection inside MultiheadAttention, and computed once more to be seen."""
        return self.layer is not None and self.layer.projection is not None


@dataclass
class _Units:
    """The extremes of each unit's values: enough to tell which never vary, or are all 0."""

    high: Tensor | None = None
    low: Tensor | None = None
    values: int = 0  # of each unit
    alive: bool = False

    def see(self, x: Tensor, dim: int, zero: bool, raw: Tensor) -> None:
        """``zero``: a unit is alive if it has a value that is not 0; else, if it has two values.

        A few values mostly show that all units are alive. All values are read only where they do not,
        and on devices that would have to be waited for to know.

        Args:
            raw: the moments of x.
        """
        values = x.numel() // max(x.shape[dim], 1)
        self.values += values
        if self.alive or not x.numel():
            return
        on_cpu = x.device.type == "cpu"
        if on_cpu:
            self.alive = raw[ZEROS].item() < values if zero else _ends_differ(x, dim)
            if self.alive:
                return
        high, low = _extremes(_sample(x, dim) if on_cpu else x, dim)
        if on_cpu and _dead(high, low, zero).any():
            high, low = _extremes(x, dim)
        if self.high is None or self.low is None:
            self.high, self.low = high, low
        else:
            self.high, self.low = torch.maximum(self.high, high), torch.minimum(self.low, low)
        self.alive = on_cpu and not _dead(self.high, self.low, zero).any()

    def dead(self, zero: bool) -> Tensor | None:
        """Which units are, as booleans; None if that is not known or none is."""
        if self.alive or self.high is None or self.low is None or (self.values < 2 and not zero):
            return None
        return _dead(self.high, self.low, zero)


@dataclass
class _Record:
    """What is known of one layer while it is watched. Nothing in here has been waited for."""

    target: _Target
    calls: int = 0
    forward: list[Tensor] = field(default_factory=list)  # raw moments
    backward: list[Tensor] = field(default_factory=list)
    outputs: _Units = field(default_factory=_Units)
    gradients: _Units = field(default_factory=_Units)
    units: int = 0
    parts: bool = False  # whether other ranks have other parts of what was measured
    why: str = "not reached by a backward pass"
    lock: threading.Lock = field(default_factory=threading.Lock)  # replicas run in threads

    def see(self, x: Tensor, raws: list[Tensor], units: _Units, zero: bool) -> str | None:
        """Measures an output or a gradient. Why it could not, if so: the user's own step goes on."""
        try:
            here = tensors.values(x)
            if zero and 0 in here.stride():  # expanded, as by sum(); element by element is slow
                here = here.contiguous()
            raw = moments(here).raw
            layer = self.target.layer
            if layer is not None and layer.affine and here.dim():
                dim = layer.channel_dim(here)
                self.units = here.shape[dim]
                with self.lock:
                    units.see(here, dim, zero, raw)
        except Exception as error:
            return f"could not be measured: {type(error).__name__}: {error}".split("\n")[0]
        with self.lock:
            if len(raws) >= FOLD:
                raws[:] = [_together(raws)]
            raws.append(raw)
            self.calls += raws is self.forward
        self.parts = self.parts or shard.is_part(x)
        return None

    def dead(self) -> Tensor | None:
        masks = [m for m in (self.outputs.dead(False), self.gradients.dead(True)) if m is not None]
        if len(masks) == 2:
            masks = [masks[0] | masks[1].to(masks[0].device)]
        return masks[0].sum(dtype=torch.float64) if masks else None


class _Run:
    """One block: its hooks, what they saw, and the weights at its end."""

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.open = True
        self.begun: dict[str, _Record] = {}
        self.records: dict[str, _Record] = {}  # of those that could be measured
        self.unseen: dict[str, str] = {}
        self.leaves: list[torch.utils.hooks.RemovableHandle] = []
        self.weights: dict[Any, Moments] = {}  # by the layer's key

    def hooked(self, target: _Target) -> torch.utils.hooks.RemovableHandle:
        """Sees a target's output from now on."""
        layer = target.layer
        if layer is None or not target.inside:
            return target.module.register_forward_hook(
                lambda module, args, output: self._see(target, _tensor_in(output))
            )

        def project(module: nn.Module, args: Any, kwargs: Any) -> None:
            if _backward_pass() == -1:
                with torch.no_grad():
                    self._see(target, layer.projected(args, kwargs))

        return target.module.register_forward_pre_hook(project, with_kwargs=True)

    def _see(self, target: _Target, x: Tensor | None) -> None:
        if not self.open:
            return  # in a copy of the model, that was made within the block
        if torch.compiler.is_compiling():
            return  # there is nothing to see yet, and compiled code would not come here again
        if why := _immeasurable(x):
            self.unseen[target.name] = why
            return
        assert x is not None
        again = _backward_pass() != -1
        if again and target.name not in self.records:
            return
        record = self.begun.setdefault(target.name, _Record(target))
        if not again:
            if why := record.see(x, record.forward, record.outputs, zero=False):
                self.unseen[target.name] = why
                return
            self.records[target.name] = record
        if not self.gradients:
            return
        if x.requires_grad:
            self._await_gradient(x, record)
        elif target.inside:
            record.why = "computed inside MultiheadAttention"
        elif not again:
            graded = torch.is_grad_enabled()
            record.why = "its output needs none" if graded else "it ran under no_grad"

    def _await_gradient(self, x: Tensor, record: _Record) -> None:
        def backward(grad: Tensor) -> None:
            if self.open and grad is not None:
                if found := tensors.unreadable(grad):
                    record.why = f"it {found[1]}"
                elif why := record.see(grad, record.backward, record.gradients, zero=True):
                    record.why = f"it {why}"

        # The hook goes with the graph, but for a leaf, such as a parameter that a module returns.
        handle = x.register_hook(backward)
        if x.is_leaf:
            self.leaves.append(handle)

    def close(self) -> None:
        """The end of the block: measures the weights."""
        self.open = False
        for handle in self.leaves:
            handle.remove()
        weights = {}
        for record in self.records.values():
            layer = record.target.layer
            if layer is None:
                continue
            if found := tensors.unreadable(layer.weight_in):
                record.target.why = record.target.why or f"its weight {found[1]}"
            elif layer.weight_in.dtype in laws.DTYPES:
                weights[layer.key] = layer.weight
                record.parts = record.parts or shard.is_part(layer.weight_in)
        self.weights = dict(zip(weights, moments_many(list(weights.values()))))

    def read(self) -> list[Watched]:
        """All numbers, in one transfer from each device."""
        records = list(self.records.values())
        deads = [record.dead() for record in records]
        sent = [_together(r.forward) for r in records]
        sent += [_together(r.backward) for r in records if r.backward]
        sent += [m.raw for m in self.weights.values()]
        sent += [dead for dead in deads if dead is not None]
        got = iter(_on_cpu(sent))
        forward = [Moments(next(got)) for _ in records]
        backward = [Moments(next(got)) if r.backward else None for r in records]
        weights = {key: Moments(next(got)) for key in self.weights}
        dead = [0 if mask is None else int(next(got).item()) for mask in deads]
        layers: list[Watched] = []
        product, first = 1.0, dict[Any, str]()
        for i, record in enumerate(records):
            target, layer = record.target, record.target.layer
            weight = None if layer is None else weights.get(layer.key)
            shaped = layer is not None and not layer.weight_in.is_nested
            fan_in, fan_out = _fans(layer) if layer and shaped else (math.nan, math.nan)
            factor = fan_in * _var(weight) / 2
            notes = [target.why] if target.why else []
            if why := self.unseen.get(target.name):
                notes.append(f"a call is not counted: {why}")
            if record.parts:
                notes.append("this rank's part")
            if layer is not None and not math.isnan(factor):
                tied = first.setdefault(layer.key, target.name)
                if tied == target.name:
                    product *= factor
                else:
                    notes.append(f"weight tied to {tied}, counted there")
            if self.gradients and not record.backward:
                notes.append(f"no gradient, {record.why}")
            layers.append(
                Watched(
                    target.name,
                    type(target.module).__name__,
                    record.calls,
                    forward[i],
                    backward[i],
                    weight,
                    fan_in,
                    fan_out,
                    factor,
                    product,
                    record.units,
                    dead[i],
                    "; ".join(notes),
                )
            )
        return layers


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"its module {name!r} is" if name else "it is"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"model cannot be watched: {where} a ScriptModule, which has no hooks")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise TypeError(
                f"model cannot be watched: {where} compiled; watch the model before torch.compile"
            )


def _targets(model: nn.Module, which: Which) -> tuple[list[_Target], dict[str, str]]:
    found, passed = finding.find(model, which)
    targets = [_Target(layer.name, layer.module, layer) for layer in found]
    for name, module in model.named_modules():
        if name in passed:  # an activation, or a normed weight: its output can still be seen
            targets.append(_Target(name, module, None, passed.pop(name)))
    if not targets:
        raise ValueError(
            f"layers must choose at least one layer of the model, but {which!r} does not"
        )
    return targets, passed


def _fans(layer: Layer) -> Fans:
    """(fan_in, fan_out) of a layer, whatever the layout of its weight; NaN where there are none.

    A transposed convolution spreads its inputs over stride times as many outputs: fan_in is their mean.
    """
    module, shape = layer.module, layer.shape
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or len(shape) < 2:
        return math.nan, math.nan
    fan_in, fan_out = fans_of(shape)
    groups = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):  # [in, out / groups, ...]
        stride = math.prod(getattr(module, "stride", ()))
        return fan_out / groups / stride, fan_in
    if type(module).__name__ == "Conv1D":  # transformers' Linear, [in, out]
        return fan_out, fan_in
    return fan_in, (fan_out // groups if isinstance(groups, int) else fan_out)


def _tensor_in(output: Any) -> Tensor | None:
    """The first floating-point tensor in an output."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    return next((x for x in map(_tensor_in, parts) if x is not None), None)


def _immeasurable(x: Tensor | None) -> str | None:
    """Why a tensor has no moments, or None."""
    if x is None:
        return "gives no floating-point tensor"
    if x.dtype not in laws.DTYPES:
        return f"gives {x.dtype}"
    found = tensors.unreadable(x)
    return f"its output {found[1]}" if found else None


def _sample(x: Tensor, dim: int) -> Tensor:
    """A view with some SAMPLE values of each unit, from all over its dimensions."""
    index = [slice(None)] * x.dim()
    left = SAMPLE
    for d in range(x.dim()):
        if d != dim % x.dim():
            step = -(-x.shape[d] // left)
            index[d] = slice(None, None, step)
            left = max(left // -(-x.shape[d] // step), 1)
    return x[tuple(index)]


def _ends_differ(x: Tensor, dim: int) -> bool:
    """Whether each unit's first and last value differ."""
    first: list[Any] = [0] * x.dim()
    last: list[Any] = [-1] * x.dim()
    first[dim] = last[dim] = slice(None)
    return not bool((x[tuple(first)] == x[tuple(last)]).any())


def _extremes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Each unit's largest and smallest value."""
    rows = x.movedim(dim, 0)
    if x.numel() <= SAMPLE * rows.shape[0]:  # cheap to copy, and then one reduction does
        low, high = rows.reshape(rows.shape[0], -1).aminmax(dim=1)
        return high, low
    others = list(range(1, x.dim()))
    return (rows.amax(others), rows.amin(others)) if others else (rows, rows)


def _dead(high: Tensor, low: Tensor, zero: bool) -> Tensor:
    return (high == 0) & (low == 0) if zero else high == low


def _together(raws: list[Tensor]) -> Tensor:
    """Raw moments of several sets together, pairwise."""
    stacked = (
        torch.stack([raw.to(raws[0].device) for raw in raws]) if len(raws) > 1 else raws[0][None]
    )
    while len(stacked) > 1:
        half = len(stacked) // 2
        pairs = merged(stacked[:half], stacked[half : 2 * half])
        stacked = torch.cat((pairs, stacked[2 * half :]))
    return stacked[0]


def _on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of float64 tensors, from each device in one transfer."""
    found: list[Tensor] = list(tensors)
    places: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(i)
    for some in places.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in some]).cpu()
        for i, part in zip(some, flat.split([tensors[i].numel() for i in some])):
            found[i] = part.view(tensors[i].shape)
    return found


def _var(m: Moments | None) -> float:
    return math.nan if m is None else m.var


def _std(m: Moments | None) -> float:
    return math.nan if m is None else m.std


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """What JSON has for a value."""
    if isinstance(value, Moments):
        counts = ("count", "zeros", "nonfinite")
        fields = (*counts, "mean", "var", "std", "min", "max")
        return {
            f: int(getattr(value, f)) if f in counts else _plain(getattr(value, f)) for f in fields
        }
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
