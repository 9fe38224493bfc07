"""Many: ranks that write one checkpoint together: what each of them has, and which of it each writes.

Every rank says of each tensor what it has: a plan for it, values of all of it, or parts. From what all
said every rank concludes the same. What all have alike anyone can write; of the rest each element is
written by one of those that have it.
"""

from __future__ import annotations

import base64
import heapq
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base import ranks
from fastinit.base.ranks import Group
from fastinit.checkpoint.coverage import gap, has
from fastinit.checkpoint.fingerprint import digest
from fastinit.checkpoint.sources import Held, Source
from fastinit.elements.part import Part

PLAN, VALUES, PARTS = "a plan", "values", "parts"


class Claim(NamedTuple):
    """What a rank has of a tensor."""

    names: list[str]
    stream: str
    shape: list[int]
    dtype: str
    is_parameter: bool
    kind: str
    digest: str
    parts: list[Any]
    """Each as its runs, its flat range, and the digest of its values."""

    def held(self) -> list[tuple[Part, str]]:
        """(a part, the digest of its values) of each; of values that are whole, all of them."""
        shape = tuple(self.shape)
        if self.kind == VALUES:
            return [(Part(shape), self.digest)]
        return [(Part(shape, runs, flat), its) for runs, flat, its in self.parts]


class Ranks(NamedTuple):
    """Those that work together: which of how many this one is.

    Args:
        group: its process group; None of one rank alone, whatever groups there are.
    """

    group: Group
    here: int = 0
    size: int = 1

    @classmethod
    def of(cls, group: Group, no_dist: bool) -> Ranks:
        """Those of a group; by default all, or with ``no_dist`` this one alone."""
        if no_dist:
            return cls(None)
        here, size = ranks.place(group), len(ranks.members(group))
        return cls(group, here, size) if size > 1 else cls(None)

    @property
    def is_first(self) -> bool:
        return self.here == 0

    def told(self, something: Any, doing: str) -> list[Any]:
        """What each rank says, which JSON can hold; a collective. It is also where all have come."""
        if self.size == 1:
            return [something]
        packed = zlib.compress(json.dumps(something).encode())
        said = ranks.gathered_texts(self.group, base64.b85encode(packed).decode(), doing)
        return [json.loads(zlib.decompress(base64.b85decode(text))) for text in said]

    def told_by_first(self, something: Any, doing: str) -> Any:
        """What the first says; a collective."""
        return self.told(something if self.is_first else None, doing)[0]

    def check_alike(self, doing: str, **options: object) -> None:
        """Raises ValueError on all unless they gave the same for some options; a collective."""
        said = self.told(options, f"{doing}: its options")
        for name in options:
            _check_same(f"{name}=", [(rank, its[name]) for rank, its in enumerate(said)])

    def together(self, doing: str) -> AbstractContextManager[None]:
        """An error of the block on one rank is an error on all."""
        return nullcontext() if self.size == 1 else ranks.together(self.group, doing)


def divided(sizes: Sequence[int], count: int) -> list[int]:
    """Whose each of some pieces of work is, so that all have about as many bytes; larger ones first.

    >>> divided([5, 1, 4, 2], 2)
    [0, 0, 1, 1]
    """
    loads = [(0, rank) for rank in range(count)]
    whose = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = loads[0]
        whose[i] = rank
        heapq.heapreplace(loads, (load + sizes[i], rank))
    return whose


def agreed(
    found: Mapping[str, Source], seed: int, those: Ranks
) -> tuple[dict[str, Source], dict[Source, str]]:
    """(the sources of all ranks, with what this one writes of those that are apart; their digests).

    Raises:
        ValueError: on all ranks, which differ in seed, in a plan, or in what a tensor is; have other
            values of a parameter, or a part of one, that several have; or have together not every
            element of one, or some in two different parts.
    """
    names_of: dict[Source, list[str]] = {}
    for name, source in found.items():
        names_of.setdefault(source, []).append(name)
    mine = {names[0]: source for source, names in names_of.items()}
    claims = [_claim(source, names_of[source], seed) for source in mine.values()]
    said = those.told([seed, claims], "a checkpoint: what each rank has")
    _check_same("the seed", [(rank, its) for rank, (its, _) in enumerate(said)])
    by_key: dict[str, list[tuple[int, Claim]]] = {}
    for rank, (_, its) in enumerate(said):
        for fields in its:
            claim = Claim(*fields)
            by_key.setdefault(claim.names[0], []).append((rank, claim))
    loads = [0] * len(said)
    sources: dict[str, Source] = {}
    digests: dict[Source, str] = {}
    for key, all_claims in by_key.items():
        source, hashed = _merged(key, all_claims, mine.get(key), those.here, loads)
        sources.update(dict.fromkeys(all_claims[0][1].names, source))
        digests[source] = hashed
    return sources, digests


def _claim(source: Source, names: list[str], seed: int) -> Claim:
    content = source.content
    parts, hashed = [], ""
    if isinstance(content, Held):
        each = [(held[0], replace(source, content=Held((held,)))) for held in content.parts]
        kind, parts = PARTS, [(part.runs, part.flat, digest(one, seed)) for part, one in each]
    else:
        kind, hashed = VALUES if isinstance(content, Tensor) else PLAN, digest(source, seed)
    dtype = str(source.dtype).removeprefix("torch.")
    shape = list(source.shape)
    return Claim(names, source.name, shape, dtype, source.is_parameter, kind, hashed, parts)


def _merged(
    key: str,
    claims: Sequence[tuple[int, Claim]],
    mine: Source | None,
    here: int,
    loads: list[int],
) -> tuple[Source, str]:
    """(one source of what ranks have, its digest); who writes it gets its bytes added to its load."""
    ways: list[tuple[str, Callable[[Claim], object]]] = [
        ("names", lambda c: c.names),
        ("the stream", lambda c: c.stream),
        ("the shape", lambda c: c.shape),
        ("the dtype", lambda c: c.dtype),
        ("what there is", lambda c: PLAN if c.kind == PLAN else VALUES),
    ]
    for what, of in ways:
        _check_same(f"{what} of {key}", [(rank, of(claim)) for rank, claim in claims])
    _, first = claims[0]
    if mine is None:
        dtype = getattr(torch, first.dtype)
        mine = Source(first.stream, tuple(first.shape), dtype, None, first.is_parameter)
    if first.kind == PLAN:
        _check_same(f"the plan of {key}", [(rank, claim.digest) for rank, claim in claims], False)
    alike = len({claim.digest for _, claim in claims}) == 1 and first.kind != PARTS
    if alike:
        if len(claims) == len(loads):
            return mine, first.digest
        writer = min((rank for rank, _ in claims), key=lambda rank: (loads[rank], rank))
        loads[writer] += mine.nbytes
        content = mine.content if writer == here else None
        return replace(mine, by=writer, content=content), first.digest
    holders: dict[Part, list[tuple[int, str]]] = {}
    for rank, claim in claims:
        for part, its in claim.held():
            if part.numel:
                holders.setdefault(part, []).append((rank, its))
    for part, copies in holders.items():
        if mine.is_parameter:
            _check_same(f"the values of {key}", copies, False)
        else:  # of those that differ, such as running statistics, the first rank's
            holders[part] = copies[:1]
    if (wrong := gap(mine.shape, list(holders))) is not None:
        index, count = wrong
        which = [rank for part, some in holders.items() if has(part, index) for rank, _ in some]
        where = f"in {count} different parts, of ranks {ranks.listing(sorted(which))}"
        where = where if count else "on no rank"
        raise ValueError(f"{key} has shape {mine.shape}, but its element {index} is {where}")
    written = set()
    for part, some in holders.items():
        writer = min((rank for rank, _ in some), key=lambda rank: (loads[rank], rank))
        loads[writer] += part.numel * mine.dtype.itemsize
        if writer == here:
            written.add(part)
    hashed = " ".join(copies[0][1] for copies in holders.values())
    return replace(mine, content=Held(_only(mine, written))), hashed


def _only(source: Source, written: set[Part]) -> tuple[tuple[Part, Tensor], ...]:
    """What this rank has of some parts, each once."""
    own: dict[Part, Tensor] = {}
    if isinstance(source.content, Tensor):
        own = {Part(source.shape): source.content}
    elif isinstance(source.content, Held):
        for part, tensor in source.content.parts:
            own.setdefault(part, tensor)
    return tuple((part, own[part]) for part in own if part in written)


def _check_same(what: str, said: Sequence[tuple[int, object]], shown: bool = True) -> None:
    """Raises unless all ranks said the same."""
    (first, wanted), *others = said
    for rank, its in others:
        if its != wanted:
            how = f": {wanted} and {its}" if shown else ""
            who = f"ranks {first} and {rank}" if first != rank else f"copies on rank {rank}"
            raise ValueError(f"{who} differ in {what}{how}")
