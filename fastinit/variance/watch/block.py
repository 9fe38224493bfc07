"""One block in which a model is watched: what was measured of each layer.

Nothing waits for the device, and no output is kept or copied, until :meth:`Block.read`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.elements import partitioned, tensors
from fastinit.elements import shards as shard
from fastinit.fills.layer_kinds import EMBEDDINGS, layer_fans
from fastinit.statistics.tensor import Moments, moments_many
from fastinit.stream import laws
from fastinit.stream.formats import NOTHING, Counting
from fastinit.variance.layers import Layer
from fastinit.variance.watch.compiled import Accounts, accounts_of, place_outside, refused
from fastinit.variance.watch.cuts import Cut, text_of, whole_of
from fastinit.variance.watch.outputs import immeasurable, runs_again
from fastinit.variance.watch.record import (
    IN_COMPILED,
    IN_GRAPHS,
    IN_PARTS,
    Record,
    Scaler,
    scales,
    unscaled,
)
from fastinit.variance.watch.rows import Row, Seen
from fastinit.variance.watch.targets import Target
from fastinit.variance.watch.transfer import Transfer, together


@dataclass(frozen=True)
class Asked:
    """What is measured beside outputs and weights.

    Attributes:
        scaler: what multiplied the loss of which gradients are.
        higher: the higher moments of all that is measured.
        counting: what is counted of it.

    Raises:
        TypeError: the scaler is none, or what is to be a bool.
        ValueError: counts of gradients whose scale is to be divided out.
    """

    gradients: bool = False
    inputs: bool = False
    weight_gradients: bool = False
    residual: bool = False
    attention: bool = False
    scaler: Scaler | None = None
    higher: bool = False
    counting: Counting = NOTHING

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "bool":
                number.flag(field.name, getattr(self, field.name))
        if self.scaler is not None and not callable(getattr(self.scaler, "scale", None)):
            raise TypeError(
                f"scaler must have a method scale, as torch.amp.GradScaler, but got {self.scaler!r}"
            )
        if self.scaler is not None and self.counting.width:
            raise ValueError(
                "formats and histogram count values as they are, gradients with the scale that scaler= "
                "takes out of all else: leave it out"
            )

    def measured(self, xs: Sequence[Tensor]) -> list[Moments]:
        """Moments and counts."""
        named, histogram = self.counting
        return moments_many(xs, higher=self.higher, formats=named, histogram=histogram)

    def accounts_of(self, targets: Sequence[Target]) -> dict[str, Accounts]:
        """What compiled code adds to, which counts nothing."""
        if self.counting.width:
            return {}
        return accounts_of(targets, self.gradients, self.inputs, self.higher)


class Block:
    """What hooks saw while it was open, and the weights at its end."""

    def __init__(self, asked: Asked, accounts: Mapping[str, Accounts]) -> None:
        """The accounts, by a target's name, are of those that may run compiled; they begin anew."""
        self.asked, self.accounts = asked, accounts
        for account in accounts.values():
            account.begin()
        devices = {one.forward.raw.device for one in accounts.values()}
        self.scales = scales(asked.scaler, devices)  # before they are updated
        self.open = True
        self.begun: dict[str, Record] = {}
        self.records: dict[str, Record] = {}  # of those that could be measured
        self.unseen: dict[str, str] = {}
        self.leaves: list[RemovableHandle] = []
        self.weights: dict[Any, Moments] = {}  # by the layer's key, of what this rank holds
        self.parts: dict[Any, str | None] = {}
        self.weight_gradients: dict[Any, Moments] | None = None
        self.gradient_parts: dict[Any, str] = {}

    def _record(self, target: Target) -> Record:
        if (known := self.begun.get(target.name)) is not None:
            return known
        new = Record(target, self.asked.higher, self.asked.counting)
        return self.begun.setdefault(target.name, new)  # replicas run in threads

    def fail(self, target: Target, why: str) -> None:
        """Of a call that is not measured."""
        self.unseen.setdefault(target.name, why)

    def note_whole(self, target: Target, x: Tensor | None) -> None:
        """Of an output, before it becomes plain."""
        self._record(target).whole = whole_of(x)

    def measure_input(self, target: Target, x: Tensor | None) -> None:
        """Takes up what comes into a layer, and what of it can't be measured."""
        if runs_again() or x is None:
            return  # without a note: an embedding has none to measure
        record = self._record(target)
        if why := immeasurable(x, "its input") or record.measure(x, record.input):
            record.notes.append(f"an input is not counted: {why}")

    def measure(self, target: Target, x: Tensor | None) -> None:
        """Takes up an output, and its gradient when that comes."""
        if why := immeasurable(x):
            self.unseen[target.name] = why
            return
        assert x is not None
        again = runs_again()
        if again and target.name not in self.records:
            return
        record = self._record(target)
        if not again:
            if why := record.measure(x, record.forward):
                self.unseen[target.name] = why
                return
            if target.name not in self.records:
                record.forward.began = place_outside(self.accounts)
                self.records[target.name] = record
        if not self.asked.gradients:
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
                    record.why = IN_GRAPHS
                else:
                    with internals.without_modes():  # as where outputs are measured
                        why = record.measure(grad, record.backward, self.asked.scaler)
                    if why:
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
        self._take_accounts()
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
                if self.asked.counting.is_scaled and self.parts[layer.key] != "":
                    record.unread = f"its weight {IN_PARTS}"
                    del weights[layer.key]
        here = [tensors.local(weight) for weight in weights.values()]
        self.weights = dict(zip(weights, self.asked.measured(here)))
        self.measure_weight_gradients()
        self.send()

    def _take_accounts(self) -> None:
        """Of those that ran compiled, or may have: only their device knows."""
        for name, accounts in self.accounts.items():
            if accounts.forward.may_be_used:
                record = self._record(accounts.target)
                record.forward.account, record.input.account = accounts.forward, accounts.input
                record.backward.account = accounts.backward
                record.units = accounts.forward.extremes.shape[1] or record.units
                if self.asked.gradients and accounts.backward is None:
                    record.why = IN_COMPILED
                self.records.setdefault(name, record)

    def measure_weight_gradients(self, scale: Tensor | None = None) -> None:
        """Those that the weights have now, if that is asked and was not done before.

        Args:
            scale: what is in them and is to be divided out.
        """
        if not self.asked.weight_gradients or self.weight_gradients is not None:
            return
        self._take_accounts()
        found: dict[Any, Tensor] = {}
        for record in self.records.values():
            layer = record.target.layer
            if layer is None or layer.key in found:
                continue
            if scale is not None and self.asked.counting.width:
                why: str | None = (
                    "a loss scale is in it, and what is counted is of values as they are"
                )
            else:
                why = self._weight_gradient(layer, found)
            if why:
                record.notes.append(f"no weight gradient: {why}")
        measured = self.asked.measured(list(found.values()))
        if scale is not None:
            measured = [Moments(unscaled(m.raw, scale.to(m.raw))) for m in measured]
        self.weight_gradients = dict(zip(found, measured))

    def _weight_gradient(self, layer: Layer, found: dict[Any, Tensor]) -> str | None:
        """Adds what this rank has of a layer's to what was found. Why it could not, if so."""
        if layer.direction is not None:
            return "weight_norm's two parts have one each"
        grad = _present(layer).grad
        if grad is None:
            return "it has none"
        if why := immeasurable(grad, "it"):
            return why
        own = layer.own(grad)
        try:
            self.gradient_parts[layer.key] = text_of(shard.part_of(own))
        except NotImplementedError as error:
            return str(error)
        if self.asked.counting.is_scaled and self.gradient_parts[layer.key]:
            return f"it {IN_PARTS}"
        found[layer.key] = tensors.local(own)
        return None

    def _weight(self, record: Record, layer: Layer, now: Tensor) -> Tensor:
        weight = layer.weight if now is layer.weight_in else layer.own(now.detach())
        known = now
        if shard.is_dtensor(weight):
            # Rows of a parameter may be a view that torch gathered: of a copy is known what it holds.
            known = weight if layer.projection is None else weight.clone()
        record.partial = (
            record.partial or shard.is_part(now) or partitioned.mark_of(now) is not None
        )
        try:
            self.parts[layer.key] = text_of(shard.part_of(known))
        except NotImplementedError:
            self.parts[layer.key] = None
        return weight

    def missing(self, targets: Iterable[Target]) -> dict[str, str]:
        """By name, why those that were not measured were not, once the others have been read."""
        found = {}
        for target in targets:
            if target.name not in self.records:
                why = refused(target)
                if why is None and self.asked.counting.width:
                    why = "nothing is counted there"
                compiled = f"; in compiled code it is not measured: {why}" if why else ""
                default = f"did not run as a module, or was only traced{compiled}"
                found[target.name] = self.unseen.get(target.name, default)
        return found

    def send(self) -> None:
        """All numbers, in one transfer from each device, which is not waited for."""
        records = self.records.values()
        each = [signal for r in records for signal in (r.forward, r.backward, r.input)]
        for signal in each:
            signal.take_account(self.scales if signal.units.of_gradients else None)
        signals = [signal for signal in each if signal.raws]
        stills = [signal.units.still() for signal in signals]
        numbers = [together(signal.raws, self.asked.counting.width) for signal in signals]
        numbers += [m.row for m in self.weights.values()]
        numbers += [m.row for m in (self.weight_gradients or {}).values()]
        numbers += [still for still in stills if still is not None]
        numbers += [s.began for s in signals if s.began is not None]
        numbers += [s.account.counts for s in signals if s.account is not None]
        self.sent = signals, stills, Transfer(numbers)

    def read(self, full_name: Callable[[str], str]) -> list[Row]:
        """What was sent."""
        signals, stills, transfer = self.sent
        got = iter(transfer.arrived())
        raws = [next(got) for _ in signals]
        weights = {key: next(got) for key in self.weights}
        gradients = {
            key: Seen(1, next(got), cut=Cut(self.gradient_parts[key]))
            for key in self.weight_gradients or {}
        }
        seen = {
            id(signal): signal.seen(raw, () if still is None else next(got))
            for signal, raw, still in zip(signals, raws, stills)
        }
        for signal in signals:
            if signal.began is not None:
                signal.place = int(*next(got))
        for signal in signals:
            if signal.account is not None:
                signal.count(seen[id(signal)], next(got))
        seen = {which: one for which, one in seen.items() if one.calls}
        self.records = {n: r for n, r in self.records.items() if id(r.forward) in seen}
        records = sorted(self.records.values(), key=lambda record: record.forward.place)
        first = dict[Any, str]()
        rows = []
        for record in records:
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
            backward = seen.get(id(record.backward))
            if self.asked.gradients and backward is None:
                why = IN_GRAPHS if record.backward.graphed else record.why
                notes.append(f"no gradient, {why}")
            if failed := record.forward.failed + record.backward.failed + record.input.failed:
                notes.append(f"{failed} tensors of compiled calls could not be measured")
            notes += dict.fromkeys(record.notes)
            key = None if weight is None or layer is None else layer.key
            name = full_name(target.name)
            tied = "" if key is None else first.setdefault(key, name)
            rows.append(
                Row(
                    name,
                    type(target.module).__name__,
                    seen[id(record.forward)],
                    backward,
                    seen.get(id(record.input)),
                    weight,
                    None if layer is None else gradients.get(layer.key),
                    self.parts.get(key, ""),
                    record.partial,
                    fan_in,
                    fan_out,
                    tied,
                    record.units,
                    notes,
                    self.asked.counting,
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
