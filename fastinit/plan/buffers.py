"""Buffers: what a constructor put in them, known to the plan that was recorded with it.

A plan writes parameters. A model on meta, or one that ``to_empty`` gave memory, has lost its buffers'
values as well, and nothing about a buffer tells garbage from values. So a recorded plan keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer

from fastinit.base import memory
from fastinit.base.text import listing
from fastinit.base.torch_internals import version_of
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.plan.fit import ALL, Scope
from fastinit.plan.names import Model, Walk, joined
from fastinit.plan.replay import Computed

Mode = Literal["check", "restore", "keep"]
"""What is done about buffers that are not as the constructor made them: an error, undone, or nothing."""

MODES = ("check", "restore", "keep")

SMALL = 1 << 20
"""Elements: of smaller buffers a copy is kept; larger ones must stay as they are to be known."""

# Rounding to bfloat16, the coarsest that models are cast to; other devices' arithmetic is far closer.
_TOLERANCE = 2.0**-7


class Values(NamedTuple):
    """A buffer as it was."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, buffer: Tensor) -> Values:
        """A buffer as it is now."""
        kept = buffer.detach()
        if buffer.numel() < SMALL:
            kept = kept.clone()
        return cls(kept, version_of(kept))


class Pending(NamedTuple):
    """A buffer that is not written yet: other values are there, such as those that torch drew."""

    computed: Computed
    there: Values


Known = Mapping[str, Values | Computed | Pending]
"""What a constructor put in a model's buffers, by name, and in plain attributes that are on meta."""


class _Place(NamedTuple):
    """A tensor, and where a module has it."""

    name: str
    """In the plan."""
    owner: MutableMapping[str, Any]
    key: str
    tensor: Tensor
    part: Part | None
    """Of what the plan knows, where the tensor does not say it itself."""


class Restoring(NamedTuple):
    """What is to be put back, with what it was; found before anything is written."""

    places: list[tuple[_Place, Values | Computed]]
    seed: int
    device: torch.device | str | None

    def run(self) -> None:
        """Puts it back: where there is memory into that, and otherwise into new."""
        made: dict[int, Tensor] = {}
        for place, known in self.places:
            if id(place.tensor) not in made:
                target = place.tensor
                if target.is_meta:
                    target = memory.like(target, self.device)
                _write(target, known, self.seed, place.part)
                made[id(place.tensor)] = target
            if place.tensor.is_meta:
                place.owner[place.key] = made[id(place.tensor)]


def check_buffers(
    model: Model,
    known: Known,
    seed: int,
    device: torch.device | str | None,
    mode: Mode,
    scope: Scope = ALL,
) -> Restoring:
    """What has to be put back in a model's buffers, and plain attributes on meta.

    Args:
        known: what a constructor put there.
        seed: of the numbers of what was computed from parameters.
        device: where those on meta get memory.
        mode: what is done about others that are not as they were.
        scope: others than these are left alone, also on meta.

    Raises:
        ValueError: tensors on meta of which nothing is known, or without a device; with "check", buffers
            of other values than the constructor gave (all are listed); an unknown mode.
        RuntimeError: a buffer whose memory was freed.
    """
    if mode not in MODES:
        raise ValueError(f"buffers must be one of {', '.join(MODES)}, but got {mode!r}")
    lost, changed = [], []
    places: list[tuple[_Place, Values | Computed]] = []
    for place in [] if mode == "keep" else list(_places(model, scope)):
        if not scope.has(place.name):
            continue
        found = known.get(place.name)
        tensors.check_memory(shard.local(place.tensor), place.name)
        content = _usable(found.computed if isinstance(found, Pending) else found)
        there = _usable(found.there) if isinstance(found, Pending) else None
        if content is not None and there is not None and _holds(place, there, seed):
            places.append((place, content))
            continue
        if place.tensor.is_meta:
            if content is None or device is None:
                lost.append(place.name)
            else:
                places.append((place, content))
        elif content is not None and not _holds(place, content, seed, exactly=mode == "restore"):
            if mode == "restore" and _shape(content) == _full_shape(place):
                places.append((place, content))
            else:
                changed.append(place.name)
    if lost:
        raise ValueError(
            f"the plan cannot write {listing('buffer', lost)} on meta: only recorded_plan's plans, of "
            f"models built within fastinit.deferred(), know what was there, and put it back with "
            f"device=; give them values first, or say buffers='keep' and do it afterwards"
        )
    if changed:
        raise ValueError(
            f"{listing('buffer', changed)}: other values than the constructor gave, as after to_empty, "
            f"training or loading; say buffers='restore' for the constructor's (of its shape), or "
            f"buffers='keep'"
        )
    return Restoring(places, seed, device)


def planned(
    name: str,
    buffer: Tensor,
    part: Part | None,
    known: Values | Computed | Pending | None,
    seed: int,
) -> Tensor | Computed | None:
    """What a buffer shall be, if that is not what it has: it is on meta, or was not drawn yet.

    Args:
        part: of the planned one, where the buffer does not say it itself.
        known: what a constructor put there.
        seed: of the numbers of what was computed from parameters.
    """
    if isinstance(known, Pending):
        there, known = _usable(known.there), known.computed
        place = _Place(name, {}, "", buffer, part)
        if there is not None and not buffer.is_meta and _holds(place, there, seed):
            return known
    return given(known) if buffer.is_meta else None


def given(known: Values | Computed | Pending | None) -> Tensor | Computed | None:
    """What a constructor put in a buffer; None if nobody knows, as it was changed since."""
    found = _usable(known.computed if isinstance(known, Pending) else known)
    return found.tensor if isinstance(found, Values) else found


def compared(
    buffer: Tensor,
    known: Values | Computed | Pending | None,
    seed: int,
    part: Part | None = None,
) -> Literal["made", "pending", "other"] | None:
    """Whether a buffer is as it was made, waits for its random values, or neither; None: not known.

    Args:
        part: of what is known, which a plain tensor is.
    """
    place = _Place("", {}, "", buffer, part)
    if isinstance(known, Pending):
        there, known = _usable(known.there), known.computed
        if there is not None and _holds(place, there, seed, exactly=True):
            return "pending"
    content = _usable(known)
    if content is None or buffer.is_meta:
        return None
    return "made" if _holds(place, content, seed, exactly=True) else "other"


def _places(model: Model, scope: Scope) -> Iterator[_Place]:
    """The buffers, and those plain attributes that are on meta."""
    walk = model if isinstance(model, Walk) else Walk.of(model)
    for prefix, owner, key, tensor in walk.others:
        if not isinstance(tensor, UninitializedBuffer):
            names, part = scope.planned([joined(prefix, key)], tensor)
            yield _Place(names[0], owner, key, tensor, part)


def _usable(known: Values | Computed | None) -> Values | Computed | None:
    """What is known, unless it was changed since."""
    if isinstance(known, Values) and version_of(known.tensor) != known.version:
        return None
    return known


def _shape(known: Values | Computed) -> tuple[int, ...]:
    return known.shape if isinstance(known, Computed) else tuple(known.tensor.shape)


def _full_shape(place: _Place) -> tuple[int, ...]:
    return tuple(place.tensor.shape) if place.part is None else place.part.shape


def _write(buffer: Tensor, known: Values | Computed, seed: int, part: Part | None = None) -> None:
    if _is_sum(buffer):
        _write_sum(buffer, known, seed)
    elif part is not None or shard.is_dtensor(buffer):
        shard.write_whole_(buffer, lambda full: _write(full, known, seed), part)
    elif isinstance(known, Computed):
        known.write_(buffer, seed)
    else:
        with torch.no_grad():
            buffer.copy_(known.tensor)


def _is_sum(buffer: Tensor) -> bool:
    """Whether it is the sum of what several ranks have, as torchtitan's counts of tokens are."""
    return shard.is_dtensor(buffer) and any(p.is_partial() for p in buffer.placements)


def _write_sum(buffer: Tensor, known: Values | Computed, seed: int) -> None:
    """Of each sum its first rank has the values, and the others zeros; so that nothing is sent."""
    from torch.distributed.tensor import DTensor, Replicate

    assert shard.is_dtensor(buffer)
    mesh, placements = buffer.device_mesh, buffer.placements
    full = torch.empty(buffer.shape, dtype=buffer.dtype, device=shard.local(buffer).device)
    _write(full, known, seed)
    cut = [Replicate() if p.is_partial() else p for p in placements]
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    made = shard.local(whole.redistribute(placements=cut))
    for placement, index in zip(placements, mesh.get_coordinate() or ()):
        neutral = _NEUTRAL.get(getattr(placement, "reduce_op", ""))
        if neutral is not None and index > 0:
            made = torch.full_like(made, neutral)
    shard.local(buffer).copy_(made)


_NEUTRAL = {"sum": 0, "product": 1, "bxor": 0}
"""What all ranks but one have, where the same value on all would not give that value."""


def _holds(place: _Place, known: Values | Computed, seed: int, *, exactly: bool = False) -> bool:
    """Whether a buffer has the values that it had, of its dtype; by default apart from rounding."""
    buffer, shape = place.tensor, _full_shape(place)
    if _shape(known) != shape or _is_sum(buffer):
        return False  # of a sum no rank knows it alone
    full = torch.empty(shape, dtype=buffer.dtype, device=shard.local(buffer).device)
    _write(full, known, seed)
    if place.part is None and not shard.is_dtensor(buffer):
        return _close(buffer.detach(), full, exactly)
    pieces = shard.pieces(buffer, place.name, place.part)
    return all(_close(piece.tensor, piece.which.on(full), exactly) for piece in pieces)


def _close(tensor: Tensor, values: Tensor, exactly: bool) -> bool:
    if not (values.is_floating_point() or values.is_complex()):
        return torch.equal(tensor, values)
    wide = torch.complex128 if values.is_complex() else torch.float64
    tensor, values = tensor.cpu().to(wide), values.cpu().to(wide)
    size = values.abs()
    largest = size[size.isfinite()].amax() if bool(size.isfinite().any()) else 0.0
    reach = 0.0 if exactly else _TOLERANCE * float(largest)
    return torch.allclose(tensor, values, rtol=0.0, atol=reach, equal_nan=True)
