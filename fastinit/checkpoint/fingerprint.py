"""Fingerprint: a hash of what a checkpoint's values follow from; of those that are there, the values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from hashlib import blake2b

import torch

from fastinit.checkpoint.entries import Stored
from fastinit.checkpoint.ranges import Range, Ranges
from fastinit.checkpoint.sources import Held, Source
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.stream.keys import STREAM_VERSION

HASHED = 1 << 25
"""Bytes of values that are read at once."""


def digest(source: Source, seed: int) -> str:
    """Of one source: of what a plan says of it, or of the values that this rank has or can make."""
    content = source.content
    if isinstance(content, Fill):
        return _hash(repr((seed, astuple(content))).encode())
    if content is None:
        return ""
    parts = content.parts if isinstance(content, Held) else [(Part(source.shape), content)]
    return _hash(repr([part for part, _ in parts]).encode(), *_values(source, seed))


def fingerprint(
    stored: Sequence[Stored], tensors: Sequence[Stored], seed: int, digests: Mapping[Source, str]
) -> str:
    """Of all that a checkpoint holds.

    Args:
        stored: what follows from each source.
        tensors: the same as files have it, some of it quantised: that follows from their names.
        digests: of each source; of one that ranks have in parts, those of all parts.
    """
    what = [
        (name, source.name, source.shape, str(source.dtype), *which, digests[source])
        for name, source, which in stored
    ]
    how = [(name, str(source.dtype)) for name, source, _ in tensors]
    return _hash(f"{STREAM_VERSION} {seed} {what!r} {how!r}".encode())


def _values(source: Source, seed: int) -> Iterator[memoryview]:
    """The values in order, a few at a time: the bytes that are stored."""
    each = source.dtype.itemsize
    count = min(HASHED // each, max(math.prod(source.shape), 1))
    buffer = bytearray(count * each)
    out = torch.frombuffer(buffer, dtype=source.dtype)
    if isinstance(source.content, Held):
        for piece in source.content.pieces(source.name):
            for some in piece.cut(count):
                view = out[: some.which.numel].view(some.which.sizes)
                yield _bytes(buffer, view.copy_(some.tensor))
        return
    ranges = Ranges(seed)
    stored = Stored(source.name, source, Strided.contiguous(source.shape))
    for start in range(0, stored.numel, count):
        view = out[: min(count, stored.numel - start)]
        ranges.write([Range(stored, start, view)])
        yield _bytes(buffer, view)


def _bytes(buffer: bytearray, view: torch.Tensor) -> memoryview:
    return memoryview(buffer)[: view.nbytes]


def _hash(*data: bytes | memoryview) -> str:
    found = blake2b(digest_size=16)
    for some in data:
        found.update(some)
    return found.hexdigest()
