"""LSUV's ranks: those that run one model together, and what a layer gave on all of them.

Each rank sees some rows of the batch, or some columns, or the same as another. What it measured is
merged in the order of ranks, so that all find the same scale; what several have is counted once. Before
every collective of the model's own the ranks ask each other whether all go on, so that none waits for
one that failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base import distributed_internals as distributed
from fastinit.base import ranks as base
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.statistics.tensor import Moments, moments
from fastinit.stream import keys
from fastinit.stream.reference_moments import FIELDS, NONFINITE, merged
from fastinit.variance.lsuv.affine import AffineSums

_DOING = "lsuv_"


class Part(NamedTuple):
    """Which part of a layer's output this rank has, as far as that is known."""

    mesh: int = -1
    """The first rank of the mesh over which one output lies; -1 if unknown."""
    which: int = -1
    """Equal on ranks of that mesh that have the same elements."""


UNKNOWN = Part()


class ScaledAloneWarning(UserWarning):
    """There are several ranks, and nothing says whether others have the model that one of them scales.

    Replicas that each rank scales by a batch of its own are no longer the same.
    """


class Ranks:
    """The ranks that run a model together, or this process alone."""

    def __init__(self, group: base.Group, alone: bool = False) -> None:
        self.group, self.alone = group, alone or len(base.members(group)) < 2

    @classmethod
    def of(cls, model: nn.Module, group: base.Group = None) -> Ranks:
        """Those of a group, or those that the model says share its parameters."""
        groups = [*([] if group is None else [group]), *_groups(model)]
        return cls(_joined(groups)) if groups else cls(None, alone=True)

    def warn_if_alone(self, group: base.Group) -> None:
        """Warns where there are other ranks, of which nothing says anything; to be called by lsuv_."""
        count = len(base.members(None)) if base.is_up() else 1
        if group is None and self.alone and count > 1:
            warnings.warn(
                f"group is None, and nothing says which of the {count} ranks have this model too: this "
                "one scales it alone, by its own inputs. Where it is replicated or will be sharded, "
                "give group=, such as torch.distributed.group.WORLD, on all of them",
                ScaledAloneWarning,
                stacklevel=3,
            )

    def together(self) -> AbstractContextManager[None]:
        """Within the block an error of one rank is an error of all."""
        return nullcontext() if self.alone else base.together(self.group, _DOING)

    def gathered(self, numbers: Sequence[float], doing: str) -> list[list[float]]:
        """The numbers of all ranks, in their order."""
        if self.alone:
            return [list(numbers)]
        return base.gathered(self.group, list(numbers), f"{_DOING}: {doing}")

    def named(self, places: Sequence[int]) -> str:
        """Of ranks by their place in the group, the text that names them."""
        ranks = [base.members(self.group)[place] for place in places]
        return f"rank{'s' if len(ranks) > 1 else ''} {base.listing(ranks)}"

    def facts(self, flags: Sequence[bool], doing: str) -> list[bool]:
        """Which of the flags are set on any rank."""
        return [any(column) for column in zip(*self.gathered(flags, doing))]

    def which(self, flag: bool, doing: str) -> str:
        """The ranks on which a flag is set."""
        rows = self.gathered([flag], doing)
        return self.named([place for place, (there,) in enumerate(rows) if there])

    def first(self, number: int, doing: str) -> int:
        """The number that the first rank has: an integer of 64 bits."""
        return int(self.gathered([keys.signed(number)], doing)[0][0]) & (1 << 64) - 1

    @property
    def before_collective(self) -> Callable[[Any, Any, Any], None] | None:
        """What is called with each operation of a model that runs, before it: of a collective, those who
        call it wait for each other. Others may have none: of another tensor-parallel group, say."""
        return None if self.alone else self._before_collective

    def _before_collective(self, func: Any, args: Any, kwargs: Any) -> None:
        if (group := distributed.group_of_collective(func, args, kwargs)) is not None:
            doing = f"{_DOING}: the model's own {internals.operator_name(func)}"
            base.before(self.group, group, doing)


class Seen:
    """One call of a layer, as all ranks see it.

    Attributes:
        where: " on ranks 1, 2", those whose values were not finite when last measured; or "".
    """

    def __init__(self, ranks: Ranks, name: str, part: Part = UNKNOWN) -> None:
        self.ranks, self.name, self.part, self.where = ranks, name, part, ""

    def moments(self, values: Tensor) -> Moments:
        """Those of the values on all ranks."""
        return self.merged(moments(values), values)

    def merged(self, mine: Moments, values: Tensor) -> Moments:
        """Those of all ranks; this one's are of ``values``, or of what follows from them."""
        if self.ranks.alone:
            return mine
        rows = self.ranks.gathered([*self.part, *mine.raw.tolist()], f"the output of {self.name}")
        return _merged([rows[i][len(self.part) :] for i in self.counted(rows, values)])

    def call(
        self, facts: Sequence[bool], mine: AffineSums | None, values: Tensor
    ) -> tuple[list[bool], AffineSums | None]:
        """Of a call, what any rank saw, and the sums on all ranks, if all have some.

        Args:
            mine: this rank's sums of ``values``.
        """
        if self.ranks.alone:
            return list(facts), mine
        skipped, some = len(facts) + 1, len(self.part)
        there = [] if mine is None else [*self.part, *mine.numbers()]
        rows = self.ranks.gathered([*facts, 0.0, *there], f"a call of {self.name}")
        facts = [any(row[i] for row in rows) for i in range(len(facts))]
        tables = [row[skipped:] for row in rows]
        if not all(tables):
            return facts, None
        counted = self.counted([table[: some + FIELDS] for table in tables], values)
        total, *others = (AffineSums.from_numbers(self.name, tables[i][some:]) for i in counted)
        for other in others:
            total = total.merge(other)
        return facts, total

    def counted(self, rows: list[list[float]], values: Tensor) -> list[int]:
        """The ranks, by their place, whose values count: of several that have the same, the first.

        Those that share a mesh know it by their parts; others have the same if they measured the same
        and a checksum says so. Whether that is asked all decide alike.

        Args:
            rows: of each rank, its part and raw moments.
        """
        bad = [i for i, row in enumerate(rows) if row[len(self.part) + NONFINITE]]
        self.where = f" on {self.ranks.named(bad)}" if bad else ""
        known: dict[Any, int] = {}
        for i, (mesh, which, *_) in enumerate(rows):
            known.setdefault((mesh, which) if mesh >= 0 else (-1, i), i)
        alike: dict[Any, int] = {}
        for i in known.values():
            alike.setdefault(tuple(rows[i][1:]), i)
        if len(alike) == len(known):
            return list(known.values())
        sums = self.ranks.gathered([checksum(values)], f"the checksum of {self.name}")
        alike = {}
        for i in known.values():
            alike.setdefault((*rows[i][1:], sums[i][0]), i)
        return list(alike.values())


def digest_of(thing: object) -> int:
    """64 bits, of what it is as a text: of numbers, texts and collections of these."""
    digest = blake2b(repr(thing).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def checksum(values: Tensor, block: int = 1 << 20) -> int:
    """Of the values' bits in their order, modulo 2^64."""
    here = tensors.values(values).contiguous().flatten().view(torch.uint8)
    words = here[: len(here) // 8 * 8].view(torch.int64)
    # Odd factors, another for each place in a block; a sum of blocks is multiplied as it goes on.
    factors = torch.arange(1, 2 * min(block, max(len(words), 8)), 2, device=here.device)
    total = here.new_zeros((), dtype=torch.int64)
    for part in (*words.split(block), here[len(words) * 8 :].to(torch.int64)):
        total = total * 6364136223846793005 + (part * factors[: len(part)] ** 3).sum()
    return int(total)


def _merged(rows: list[list[float]]) -> Moments:
    """Of raw moments, in their order."""
    total = torch.tensor(rows[0], dtype=torch.float64, device="cpu")
    for row in rows[1:]:
        total = merged(total, torch.tensor(row, dtype=torch.float64, device="cpu"))
    return Moments(total)


def _groups(model: nn.Module) -> Iterator[Any]:
    """Those over which a model's parameters are sharded or replicated."""
    if not base.is_up():
        return
    seen: list[Any] = []
    for parameter in model.parameters():
        if shard.is_dtensor(parameter) and parameter.device_mesh not in seen:
            seen.append(parameter.device_mesh)
            if parameter.device_mesh.get_coordinate() is not None:
                yield parameter.device_mesh
    for module in model.modules():
        if (replicas := distributed.replicas_of(module)) is not None:
            yield replicas.group


def _joined(groups: list[base.Group]) -> base.Group:
    """All ranks of some groups."""
    kept: list[base.Group] = []
    for group in sorted(groups, key=lambda group: -len(base.members(group))):
        ranks = set(base.members(group))
        if not any(ranks <= set(base.members(other)) for other in kept):
            kept.append(group)
    return kept[0] if len(kept) == 1 else base.Grid(kept)
