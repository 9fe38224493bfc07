"""One block in which a model is watched: hooks, and what they measured of each layer.

Nothing waits for the device, and no output is kept or copied, until :meth:`Block.read`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills.layer_kinds import EMBEDDINGS, layer_fans
from fastinit.statistics.tensor import Moments, moments, moments_many
from fastinit.stream import laws
from fastinit.stream.reference_moments import M2, MAX, MEAN, MIN
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv_shards import Sharded
from fastinit.variance.watch_cuts import Cut, Whole, cut_of, text_of, whole_of
from fastinit.variance.watch_rows import Row, Seen
from fastinit.variance.watch_targets import Target
from fastinit.variance.watch_transfer import Transfer, together
from fastinit.variance.watch_units import Units

FOLD = 64  # moments of so many calls are merged, so that a long watch needs no more memory


class Scaler(Protocol):
    """What keeps gradients of 16 bits from vanishing, as torch.amp.GradScaler does."""

    def scale(self, outputs: Tensor, /) -> Tensor:
        """A loss, multiplied with the scale."""


@dataclass
class Signal:
    """A layer's outputs, or their gradients, over all calls. Nothing in here has been waited for."""

    units: Units
    calls: int = 0
    raws: list[Tensor] = field(default_factory=list)  # raw moments, float64 [7] each
    cut: Cut = field(default_factory=Cut)

    def add(self, raw: Tensor) -> None:
        """Takes up the raw moments of one call."""
        if len(self.raws) >= FOLD:
            self.raws[:] = [together(self.raws)]
        self.raws.append(raw)
        self.calls += 1

    def seen(self, raw: Tensor, still: Tensor | None) -> Seen:
        """With what was read from the device."""
        units = {} if still is None else dict(enumerate(still.tolist()))
        known = {u: value for u, value in units.items() if not math.isnan(value)}
        return Seen(self.calls, raw.tolist(), self.units.values, known, self.cut)


@dataclass
class Record:
    """What is known of one layer while it is watched."""

    target: Target
    forward: Signal = field(default_factory=lambda: Signal(Units(of_gradients=False)))
    backward: Signal = field(default_factory=lambda: Signal(Units(of_gradients=True)))
    units: int = 0
    partial: bool = False  # whether other ranks have other parts of what was measured
    whole: Whole | None = None  # the output of this call, before it became plain
    unread: str = ""  # why nothing is known of the weight
    why: str = "not reached by a backward pass"
    lock: threading.Lock = field(default_factory=threading.Lock)  # replicas run in threads

    def measure(self, x: Tensor, signal: Signal, scaler: Scaler | None = None) -> str | None:
        """Takes up an output or a gradient. Why it could not, if so: the user's own step goes on.

        Args:
            scaler: what multiplied the loss of which this is a gradient.
        """
        try:
            here = tensors.values(x)
            if signal is self.backward and 0 in here.stride():
                here = here.contiguous()  # expanded, as by sum(); element by element is slow
            raw = moments(here).raw  # of what this rank has
            layer, dim = self.target.layer, None
            if layer is not None and signal is self.forward and layer.runs_with_another():
                self.unread = "its weight is not the one it ran with"
            if layer is not None and layer.affine and here.dim():
                dim = layer.channel_dim(here)
                self.units = here.shape[dim]
                with self.lock:
                    signal.units.add(here, dim, raw)
            if scaler is not None:
                raw = _unscaled(raw, scaler)
            cut = cut_of(x, here, self.whole, dim)
        except Exception as error:
            return _why_not(error)
        with self.lock:
            signal.add(raw)
            signal.cut = cut
        self.partial = self.partial or bool(cut.values)
        return None


class Block:
    """What the hooks of one block saw, and the weights at its end."""

    def __init__(self, gradients: bool, scaler: Scaler | None) -> None:
        self.gradients, self.scaler = gradients, scaler
        self.open = True
        self.begun: dict[str, Record] = {}
        self.records: dict[str, Record] = {}  # of those that could be measured
        self.unseen: dict[str, str] = {}
        self.leaves: list[RemovableHandle] = []
        self.weights: dict[Any, Moments] = {}  # by the layer's key, of what this rank holds
        self.parts: dict[Any, str | None] = {}

    def hook(self, target: Target) -> list[Uncopied]:
        """Measures a target's output from now on."""
        layer, module = target.layer, target.module
        if layer is None or not target.inside:
            hook = module.register_forward_hook(
                lambda module, args, output: self._measure(target, _tensor_in(output))
            )
            hooks = [Uncopied(hook)]
            if layer is not None and shard.is_dtensor(layer.weight_in):
                # Before those of tensor parallelism, which may make a plain tensor of it.
                hook = module.register_forward_hook(
                    lambda module, args, output: self._note(target, output), prepend=True
                )
                hooks.append(Uncopied(hook))
            return hooks

        inside = Sharded(layer)

        def project(module: nn.Module, args: Any, kwargs: Any) -> None:
            if _runs_again():
                return
            with torch.no_grad():
                try:
                    out = layer.projected(args, kwargs, inside.in_use())
                except Exception as error:  # of which the model that runs knows nothing
                    self.unseen.setdefault(target.name, _why_not(error))
                else:
                    self._measure(target, out)

        return [Uncopied(module.register_forward_pre_hook(project, with_kwargs=True))]

    def _note(self, target: Target, output: Any) -> None:
        if self.open and not torch.compiler.is_compiling():
            record = self.begun.setdefault(target.name, Record(target))
            record.whole = whole_of(_tensor_in(output))

    def _measure(self, target: Target, x: Tensor | None) -> None:
        if not self.open:
            return  # a call that was on its way in another thread
        if torch.compiler.is_compiling():
            return  # there is nothing to see yet, and compiled code would not come here again
        if why := _immeasurable(x):
            self.unseen[target.name] = why
            return
        assert x is not None
        again = _runs_again()
        if again and target.name not in self.records:
            return
        record = self.begun.setdefault(target.name, Record(target))
        if not again:
            if why := record.measure(x, record.forward):
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

    def _await_gradient(self, x: Tensor, record: Record) -> None:
        def backward(grad: Tensor) -> None:
            if self.open and grad is not None:
                if torch.is_grad_enabled():
                    # With create_graph: a gradient that the loss is made of, as a force or a penalty.
                    record.why = "passes with create_graph=True do not count"
                elif found := tensors.unreadable(grad):
                    record.why = f"it {found[1]}"
                elif why := record.measure(grad, record.backward, self.scaler):
                    record.why = f"it {why}"

        # The hook goes with the graph, but for a leaf, such as a parameter that a module returns.
        handle = x.register_hook(backward)
        if x.is_leaf:
            self.leaves.append(handle)

    def close(self) -> None:
        """The end of the block: measures the weights, and sends what is known."""
        self.open = False
        for handle in self.leaves:
            handle.remove()
        weights = {}
        for record in self.records.values():
            layer = record.target.layer
            if layer is None or record.unread:
                continue
            if layer.key in weights:
                continue
            now = _present(layer)
            if found := tensors.unreadable(now):
                record.unread = f"its weight {found[1]}"
            elif now.dtype in laws.DTYPES:
                weights[layer.key] = self._weight(record, layer, now)
        here = [tensors.local(weight) for weight in weights.values()]
        self.weights = dict(zip(weights, moments_many(here)))
        self.send()

    def _weight(self, record: Record, layer: Layer, now: Tensor) -> Tensor:
        weight = layer.weight if now is layer.weight_in else layer.own(now.detach())
        known = now
        if shard.is_dtensor(weight):
            # Rows of a parameter may be a view that torch gathered: of a copy is known what it holds.
            known = weight if layer.projection is None else weight.clone()
            record.partial = record.partial or shard.is_part(now)
        try:
            self.parts[layer.key] = text_of(shard.part_of(known))
        except NotImplementedError:
            self.parts[layer.key] = None
        return weight

    def missing(self, names: Iterable[str]) -> dict[str, str]:
        """Why those of the names that were not measured were not."""
        why = "did not run as a module, or was only traced"
        return {name: self.unseen.get(name, why) for name in names if name not in self.records}

    def send(self) -> None:
        """All numbers, in one transfer from each device, which is not waited for."""
        records = list(self.records.values())
        signals = [r.forward for r in records] + [r.backward for r in records if r.backward.calls]
        stills = [signal.units.still() for signal in signals]
        numbers = [together(signal.raws) for signal in signals]
        numbers += [m.raw for m in self.weights.values()]
        numbers += [still for still in stills if still is not None]
        self.sent = signals, stills, Transfer(numbers)

    def read(self, full_name: Callable[[str], str]) -> list[Row]:
        """What was sent."""
        records = list(self.records.values())
        signals, stills, transfer = self.sent
        got = iter(transfer.arrived())
        raws = [next(got) for _ in signals]
        weights = {key: next(got).tolist() for key in self.weights}
        seen = iter(
            signal.seen(raw, None if still is None else next(got))
            for signal, raw, still in zip(signals, raws, stills)
        )
        forward = [next(seen) for _ in records]
        backward = [next(seen) if r.backward.calls else None for r in records]
        first = dict[Any, str]()
        rows = []
        for i, record in enumerate(records):
            target, layer = record.target, record.target.layer
            weight = None if layer is None or record.unread else weights.get(layer.key)
            fan_in, fan_out = math.nan, math.nan
            if layer is not None and layer.affine and not layer.weight_in.is_nested:
                fan_in, fan_out = layer_fans(layer.module, layer.shape)
            notes = [why for why in (target.why, record.unread) if why]
            if layer is not None and not layer.affine and not isinstance(layer.module, EMBEDDINGS):
                notes.append("without nVar[W]/2: not known to be affine in its weight")
            if why := self.unseen.get(target.name):
                notes.append(f"a call is not counted: {why}")
            if self.gradients and not record.backward.calls:
                notes.append(f"no gradient, {record.why}")
            key = None if weight is None or layer is None else layer.key
            name = full_name(target.name)
            tied = "" if key is None else first.setdefault(key, name)
            rows.append(
                Row(
                    name,
                    type(target.module).__name__,
                    forward[i],
                    backward[i],
                    weight,
                    self.parts.get(key, ""),
                    record.partial,
                    fan_in,
                    fan_out,
                    tied,
                    record.units,
                    notes,
                )
            )
        return rows


def _present(layer: Layer) -> Tensor:
    """A layer's parameter; where FSDP2 had gathered it before the block and freed that, its shard."""
    if tensors.unreadable(layer.weight_in) and layer.direction is None and layer.projection is None:
        now = layer.module._parameters.get("weight")
        if shard.is_dtensor(now):
            return now
    return layer.weight_in


def _why_not(error: Exception) -> str:
    return f"could not be measured: {type(error).__name__}: {error}".split("\n")[0]


def _unscaled(raw: Tensor, scaler: Scaler) -> Tensor:
    """Raw moments, [7], of values that are divided by the scaler's scale, which is not waited for."""
    scale = scaler.scale(torch.ones((), device=raw.device)).to(torch.float64)
    unscaled = raw.clone()
    for which, power in ((MEAN, 1), (M2, 2), (MIN, 1), (MAX, 1)):
        unscaled[which] /= scale**power
    return unscaled


def _runs_again() -> bool:
    """Whether a backward pass runs: a layer that runs in it is one that checkpointing runs again."""
    return internals.backward_pass() != -1


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
