"""Moments across ranks: each measures what it holds, some numbers travel, and all know the same.

Raw moments are merged in the order of ranks, so that every rank gets the same bits. Ranks that hold the
same elements count once, and must hold the same values: those have the same moments, to the bit.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.base import ranks
from fastinit.elements import shards as shard
from fastinit.elements.part import Part, one_shape
from fastinit.statistics.formats import merged_rows
from fastinit.stream.formats import NOTHING, Counting
from fastinit.stream.reference_moments import COUNT, LEAST, MAX, MIN, NONFINITE

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class Share:
    """Raw moments of some of the channels that there are.

    Attributes:
        channels: how many there are in all.
        which: those that are known, int64 [known].
        raw: theirs, float64 [known, fields], on the CPU.
        counted: what the last fields count, if anything; all of them, where there are no others.
    """

    channels: int
    which: Tensor
    raw: Tensor
    counted: Counting = NOTHING

    @classmethod
    def of(
        cls,
        raw: Tensor,
        channels: int,
        runs: Iterable[tuple[int, int]],
        counted: Counting = NOTHING,
    ) -> Share:
        """Of channels that are (start, length) of all; [fields] is those of one."""
        which = [i for start, length in runs for i in range(start, start + length)]
        known = raw.cpu().view(-1, raw.shape[-1])
        indices = torch.tensor(which, dtype=torch.int64, device="cpu")
        return cls(channels, indices, known, counted)

    @property
    def is_empty(self) -> bool:
        """Whether they are of no values."""
        return not self.raw[:, [COUNT, NONFINITE]].any()

    def merge(self, others: Iterable[Share]) -> Share:
        """All together, in their order.

        Raises:
            ValueError: some have the higher moments, and others have not.
        """
        raw, seen = self._nothing(), torch.zeros(self.channels, dtype=torch.bool, device="cpu")
        for share in (self, *others):
            raw[share.which] = merged_rows(raw[share.which], share.raw, self.counted.width)
            seen[share.which] = True
        which = seen.nonzero().flatten()
        return Share(self.channels, which, raw[which], self.counted)

    def all(self) -> Tensor:
        """Float64 [channels, fields]."""
        raw = self._nothing()
        raw[self.which] = self.raw
        return raw

    def _nothing(self) -> Tensor:
        """The fields of all channels, without values."""
        counts = torch.zeros(self.channels, self.counted.width, dtype=torch.float64, device="cpu")
        fields = self.raw.shape[-1] - self.counted.width
        return torch.cat((nothing(self.channels, fields), counts), dim=1) if fields else counts


def nothing(channels: int, fields: int) -> Tensor:
    """The raw moments of channels without values, float64 [channels, fields]."""
    raw = torch.zeros(channels, fields, dtype=torch.float64, device="cpu")
    raw[:, MIN], raw[:, MAX] = math.inf, -math.inf
    raw[:, LEAST : LEAST + 1] = math.inf  # where there are higher ones
    return raw


# --- DTensors ------------------------------------------------------------------------------------


class Line(NamedTuple):
    """Ranks along one dimension of a mesh, and its tensors: by number, whether they are cut along it."""

    group: ProcessGroup
    tensors: dict[int, bool]


def lines(xs: Sequence[object]) -> list[Line]:
    """Those along which DTensors are cut or replicated, in the order in which they are to be asked.

    Along each mesh its last dimension is the first. A rank outside of a mesh has none of it.
    """
    found: list[Line] = []
    of_mesh: dict[DeviceMesh, list[int]] = {}
    for i, x in enumerate(xs):
        if shard.is_dtensor(x) and x.device_mesh.get_coordinate() is not None:
            of_mesh.setdefault(x.device_mesh, []).append(i)
    for mesh, tensors in of_mesh.items():
        for dim in reversed(range(mesh.ndim)):
            if mesh.size(dim) > 1:
                found.append(Line(mesh.get_group(dim), {i: _is_cut(xs[i], dim) for i in tensors}))
    return found


@contextmanager
def telling(asked: Sequence[Line]) -> Iterator[None]:
    """An error of the body is one on all ranks that are about to be asked."""
    with ExitStack() as stack:
        for line in reversed(asked):  # the first hears it first
            stack.enter_context(ranks.telling(line.group, "the moments of DTensors"))
        yield


def _is_cut(x: Any, mesh_dim: int) -> bool:
    return isinstance(x.placements[mesh_dim], distributed.shard_placements())


def is_outside(x: Tensor) -> bool:
    """Whether this rank is outside of the tensor's mesh, and so has nothing of it."""
    return shard.is_dtensor(x) and x.device_mesh.get_coordinate() is None


def over(
    asked: Sequence[Line],
    xs: Sequence[Tensor],
    dim: int | None,
    measure: Callable[[], list[Tensor]],
    counted: Counting = NOTHING,
) -> list[Tensor]:
    """Raw moments of the full tensors.

    An error on one rank is an error on all of each line.

    Args:
        dim: of channels; None for all together.
        measure: gives the raw moments of what this rank holds of each.
        counted: these are not moments, but counts of this.

    Raises:
        RanksError: an error on another rank.
        ValueError: replicas of which the values differ.
    """
    error: BaseException | None = None
    shares: dict[int, Share] = {}
    try:
        raws = measure()
        for i in set(itertools.chain(*(line.tensors for line in asked))):
            shares[i] = _share(xs[i], dim, raws[i].double(), counted)
    except BaseException as why:  # the others wait for it, whatever it is
        error = why

    def said(line: Line) -> list[float]:
        if error is not None:
            raise error
        return [number for i in line.tensors for number in _numbers(shares[i])]

    for line in asked:
        doing = f"the moments of {len(line.tensors)} DTensors"
        try:
            got = [iter(row) for row in ranks.gathered(line.group, lambda: said(line), doing)]  # noqa: B023
            for i, is_cut in line.tensors.items():
                first, *others = [_share_in(row, shares[i].channels, counted) for row in got]
                if not is_cut:
                    held = dict(zip(ranks.members(line.group), (first, *others)))
                    _check_copies(held, f"DTensor number {i}, with placements {xs[i].placements}")  # type: ignore[attr-defined]
                shares[i] = first.merge(others if is_cut else [])
        except BaseException as why:
            error = error or why  # and those along the next line hear it too
    if error is not None:
        raise error
    for i, share in shares.items():
        full = share.all()
        raws[i] = (full[0] if dim is None else full).to(raws[i].device, raws[i].dtype)
    return raws


def _share(x: Tensor, dim: int | None, raw: Tensor, counted: Counting) -> Share:
    if dim is None:
        return Share.of(raw, 1, [(0, 1)], counted)
    part = shard.part_of(shard.detached(x))
    assert part is not None
    return Share.of(raw, x.shape[dim], part.runs[dim], counted)


def _numbers(share: Share) -> list[float]:
    rows = torch.cat((share.which[:, None].to(torch.float64), share.raw), dim=1)
    return [float(len(rows)), float(share.raw.shape[-1]), *rows.flatten().tolist()]


def _share_in(numbers: Iterable[float], channels: int, counted: Counting) -> Share:
    numbers = iter(numbers)
    count, fields = int(next(numbers)), int(next(numbers))
    rows = torch.tensor(
        list(itertools.islice(numbers, count * (1 + fields))), dtype=torch.float64, device="cpu"
    ).view(count, 1 + fields)
    return Share(channels, rows[:, 0].to(torch.int64), rows[:, 1:], counted)


# --- parts, and what has none --------------------------------------------------------------------

Parts = tuple[Part | None, ...]
"""Of each tensor in some moments which part of its parameter it is; None: nobody said."""


def all_merged(share: Share, parts: Parts, group: ranks.Group) -> tuple[Share, Parts]:
    """The moments of all ranks' values together, and what they are of.

    Ranks whose parts are the same count once. Where nobody says what the values are parts of, they are
    values of their own, and all count.

    Raises:
        ValueError: on all ranks: other counts than another rank; parts that overlap without being the
            same; parts that are the same, of other values; unnamed ones of other parameters; parts on
            some ranks alone; another number of channels.
        and as :func:`fastinit.base.ranks.gathered`.
    """
    counted = json.dumps(share.counted)
    said = json.dumps([share.channels, counted, _numbers(share), [_said(part) for part in parts]])
    rows = ranks.gathered_texts(group, said, "merging moments")
    shares, keys, held = [], [], list[list[Part]]()
    for row in rows:
        channels, others, numbers, some = json.loads(row)
        if others != counted:
            raise ValueError(f"ranks have counted different things: {counted} and {others}")
        shares.append(_share_in(numbers, channels, share.counted))
        keys.append(json.dumps(some))
        held.append([_heard(part) for part in some if part is not None])
        if len(held[-1]) not in (0, len(some)) or bool(held[-1]) != bool(held[0]):
            raise ValueError("moments of parts do not merge with moments of which no part is known")
    here = ranks.members(group)
    if len({share.channels for share in shares}) > 1:
        counts = ", ".join(f"{s.channels} on rank {r}" for r, s in zip(here, shares))
        raise ValueError(f"ranks have moments of different numbers of channels: {counts}")
    if not held[0]:
        return shares[0].merge(shares[1:]), (None,)
    copies: dict[str, list[int]] = {}
    # Of a DTensor on a smaller mesh, ranks outside of it have the parts, but no values.
    for i in sorted(range(len(keys)), key=lambda i: shares[i].is_empty):
        copies.setdefault(keys[i], []).append(i)
    for some in copies.values():
        full = [i for i in some if not shares[i].is_empty]
        _check_copies({here[i]: shares[i] for i in full}, ", ".join(map(str, held[some[0]])))
    counting = sorted(some[0] for some in copies.values())
    _check_unnamed([(here[i], held[i]) for i in counting])
    _check_disjoint([(here[i], held[i]) for i in counting])
    first, *others = [shares[i] for i in counting]
    wholes = (Part(part.shape, name=part.name) for some in held for part in some)
    return first.merge(others), tuple(dict.fromkeys(wholes))


def _said(part: Part | None) -> list[object] | None:
    return None if part is None else [part.shape, part.runs, part.flat, part.name]


def _heard(said: list[object]) -> Part:
    shape, runs, flat, name = said
    return Part(shape, None if flat else runs, flat, name)  # type: ignore[arg-type]


def _check_copies(of_rank: Mapping[int, Share], part: str) -> None:
    """Raises ValueError where ranks that hold one part have moments of it that differ in a bit."""
    differ: dict[tuple[str, ...], list[int]] = {}
    for rank, share in of_rank.items():
        differ.setdefault(tuple(map(float.hex, _numbers(share))), []).append(rank)
    if len(differ) > 1:
        which = " / ".join(map(ranks.listing, differ.values()))
        raise ValueError(
            f"ranks that hold the same part must hold the same values, but ranks {which} differ in "
            f"the moments of {part}"
        )


def _check_unnamed(held: Sequence[tuple[int, Sequence[Part]]]) -> None:
    """Raises ValueError where parts without a name cannot be of the same parameters on all ranks."""
    shapes = {rank: {part.shape for part in some if part.name is None} for rank, some in held}
    first, *others = shapes
    for rank in others:
        if shapes[rank] != shapes[first]:
            said = (", ".join(map(str, sorted(shapes[r]))) or "none" for r in (first, rank))
            a, b = said
            raise ValueError(
                f"parts without a name must be of the same parameters on all ranks, but their full "
                f"shapes are {a} on rank {first} and {b} on rank {rank}: name them (Part(name=))"
            )


def _check_disjoint(held: Sequence[tuple[int, Sequence[Part]]]) -> None:
    """Raises ValueError where two ranks' parts of one parameter overlap, or say two shapes of it."""
    owners: dict[tuple[str | None, tuple[int, ...]], dict[Part, int]] = {}
    for rank, parts in held:
        for part in set(parts):
            known = owners.setdefault((part.name, part.shape), {})
            if known.setdefault(part, rank) != rank:
                raise ValueError(_overlap(part, part, known[part], rank))
    for name in {name for name, _ in owners if name is not None}:
        one_shape(name, [shape for its, shape in owners if its == name])
    for known in owners.values():
        if _is_grid(known):
            continue
        boxes = [(rank, part, _boxes(part)) for part, rank in known.items()]
        for (a, one, some), (b, two, others) in itertools.combinations(boxes, 2):
            if a != b and any(_meet(x, y) for x in some for y in others):
                raise ValueError(_overlap(one, two, a, b))


def _overlap(one: Part, two: Part, a: int, b: int) -> str:
    return (
        f"parts of one parameter must be the same or have no element in common, but rank {a} has {one} "
        f"and rank {b} has {two}"
    )


def _is_grid(parts: Iterable[Part]) -> bool:
    """Whether along each dimension any two parts have the same indices, or none in common."""
    by_dim = list(zip(*(((part.flat,),) if part.flat else part.runs for part in parts)))
    for dim in by_dim:
        runs = sorted(itertools.chain(*set(dim)))
        if any(start + length > after for (start, length), (after, _) in itertools.pairwise(runs)):
            return False
    return len({part.flat is None for part in parts}) == 1


Box = list[tuple[int, int]]
"""(first, end) of the indices of each dimension."""


def _boxes(part: Part) -> list[Box]:
    pieces = part.pieces(torch.empty(part.local_shape, device="meta"))
    return [
        [(first, first + size) for first, size in zip(which.start, which.sizes)]
        for _, which in pieces
    ]


def _meet(one: Box, two: Box) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, two))
