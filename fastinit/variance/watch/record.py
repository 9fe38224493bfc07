"""What is measured of one layer while it is watched, over all calls. Nothing in here is waited for."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastinit.elements import tensors
from fastinit.statistics.tensor import row
from fastinit.stream.formats import NOTHING, Counting
from fastinit.stream.reference_moments import POWERS
from fastinit.variance.watch.compiled import CALLS, FAILED, FIRST, GRAPHED, VALUES, Account
from fastinit.variance.watch.cuts import UNCUT, Cut, Whole, cut_of
from fastinit.variance.watch.outputs import why_not
from fastinit.variance.watch.rows import Seen
from fastinit.variance.watch.targets import Target
from fastinit.variance.watch.transfer import together
from fastinit.variance.watch.units import Units

FOLD = 64  # moments of so many calls are merged, so that a long watch needs no more memory
IN_COMPILED = "which in compiled code only known kinds of layers have"
IN_GRAPHS = "passes with create_graph=True do not count"
IN_PARTS = "is in parts on several ranks, and the formats asked for are scaled by what all have"


class Scaler(Protocol):
    """What keeps gradients of 16 bits from vanishing, as torch.amp.GradScaler does."""

    def scale(self, outputs: Tensor, /) -> Tensor:
        """A loss, multiplied with the scale."""


@dataclass(slots=True)
class Signal:
    """A layer's outputs, or their gradients, over all calls. Nothing in here has been waited for."""

    units: Units
    calls: int = 0
    raws: list[Tensor] = field(
        default_factory=list
    )  # raw moments and counts, float64 [fields] each
    cut: Cut = UNCUT
    account: Account | None = None  # of calls that ran compiled
    began: Tensor | None = None  # its place among all layers', if graphs ran before, [1]
    place: int = 0  # the same, once it was read, also of calls that ran compiled
    failed: int = 0  # how many of these could not be measured
    graphed: bool = False  # whether there were gradients of which a loss is made

    def add(self, raw: Tensor, counted: int) -> None:
        """Takes up the raw moments of one call, of which the last ``counted`` fields are counts."""
        if len(self.raws) >= FOLD:
            self.raws[:] = [together(self.raws, counted)]
        self.raws.append(raw)
        self.calls += 1

    def take_account(self, scales: Mapping[torch.device, Tensor] | None) -> None:
        """Adds what compiled calls have seen to that of the others, but for their counts.

        Args:
            scales: what multiplied the loss of which these are gradients.
        """
        if self.account is None:
            return
        raw, (high, low) = self.account.raw, self.account.extremes
        self.raws.append(unscaled(raw, scales[raw.device]) if scales else raw)
        if len(high) and not self.units.alive:
            self.units.widen(high, low)
            self.units.alive = self.account.is_alive

    def count(self, seen: Seen, counts: Sequence[float]) -> None:
        """Adds compiled calls, as they were counted, to the others."""
        numbers = [int(number) for number in counts]
        first = self.place if self.calls else numbers[FIRST]
        seen.calls += numbers[CALLS]
        seen.values += numbers[VALUES]
        self.place = min(first, numbers[FIRST] or first)
        self.failed, self.graphed = numbers[FAILED], numbers[GRAPHED] > 0

    def seen(self, raw: list[float], still: Sequence[float]) -> Seen:
        """With what was read from the device."""
        known = {u: value for u, value in enumerate(still) if not math.isnan(value)}
        return Seen(self.calls, raw, self.units.values, known, self.cut)


@dataclass(slots=True)
class Record:
    """What is known of one layer while it is watched."""

    target: Target
    higher: bool = False  # whether the higher moments are measured too
    counting: Counting = NOTHING
    forward: Signal = field(default_factory=lambda: Signal(Units(of_gradients=False)))
    backward: Signal = field(default_factory=lambda: Signal(Units(of_gradients=True)))
    input: Signal = field(default_factory=lambda: Signal(Units(of_gradients=False)))
    units: int = 0
    partial: bool = False  # whether other ranks have other parts of what was measured
    whole: Whole | None = None  # the output of this call, before it became plain
    unread: str = ""  # why nothing is known of the weight
    why: str = "not reached by a backward pass"
    notes: list[str] = field(default_factory=list)  # of what else is missing
    lock: threading.Lock = field(default_factory=threading.Lock)  # replicas run in threads

    def measure(self, x: Tensor, signal: Signal, scaler: Scaler | None = None) -> str | None:
        """Takes up an output, an input or a gradient.

        Why it could not, if so: the user's own step goes on.

        Args:
            scaler: what multiplied the loss of which this is a gradient.
        """
        try:
            here = tensors.values(x)
            if 0 in here.stride():
                here = here.contiguous()  # expanded, as by sum(); element by element is slow
            raw = row(here, self.higher, self.counting)
            layer, dim = self.target.layer, None
            if layer is not None and signal is self.forward and layer.runs_with_another():
                self.unread = "its weight is not the one it ran with"
            if layer is not None and layer.affine and here.dim() and signal is not self.input:
                dim = layer.channel_dim(here)
                self.units = here.shape[dim]
                with self.lock:
                    signal.units.add(here, dim)
            if scaler is not None:
                raw = unscaled(raw, scale_of(scaler, raw.device))
            cut = cut_of(x, here, None if signal is self.input else self.whole, dim)
            if cut.values and self.counting.is_scaled:
                return IN_PARTS
        except Exception as error:
            found = tensors.unreadable(x)
            return found[1] if found else why_not(error)
        with self.lock:
            signal.add(raw, self.counting.width)
            signal.cut = cut
        self.partial = self.partial or bool(cut.values)
        return None


def unscaled(raw: Tensor, scale: Tensor) -> Tensor:
    """Raw moments of values that are divided by a scale, which is not waited for."""
    return torch.stack([x / scale**power if power else x for x, power in zip(raw, POWERS)])


def scale_of(scaler: Scaler, device: torch.device) -> Tensor:
    """The scaler's scale as it is now, float64, on a device."""
    return scaler.scale(torch.ones((), device=device)).to(torch.float64)


def scales(scaler: Scaler | None, devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """That of each device; empty without a scaler."""
    return {} if scaler is None else {device: scale_of(scaler, device) for device in devices}
