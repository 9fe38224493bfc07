"""Agreement: ranks that share a tensor and draw its seed each for itself have to draw the same.

Without ``seed=`` a DTensor's seed is drawn on each rank of its mesh, from generators that are in the
same state if the program treats them alike. Whether they are is asked of all ranks once, by one small
collective at the first such draw (of a mesh's ranks, with a generator). It does not see generators
that part later: ``check = "always"`` does. A plan is compared, by one number, with that of the others
who share a parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch

from fastinit.base.torch_internals import without_dispatch
from fastinit.stream import keys

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fastinit.base.ranks import Group

check: Literal["once", "always", "never"] = "once"
"""When ranks compare the seeds that they drew: at the first draw, at each, or never. Plans, with their
seeds, are compared whenever they are applied to DTensors, unless "never".

To be set alike on all ranks (``fastinit.agreement.check = "never"``), since a collective needs them all.
"""

_Agreed = MutableMapping[torch.Generator, set[frozenset[int]]]
# By process group, as what was agreed ends with it; sets of ranks, as submeshes are made anew each time.
_agreed: WeakKeyDictionary[object, _Agreed] = WeakKeyDictionary()
# torch 2.11's generators have no weak references, and stay until the group ends.
_BY_GENERATOR: Callable[[], _Agreed] = (
    WeakKeyDictionary if torch.Generator.__weakrefoffset__ else dict
)


def draw_seed(mesh: DeviceMesh, generator: torch.Generator | None = None) -> int:
    """:func:`fastinit.stream.keys.draw_seed` for a mesh's tensor: the same on all ranks, or an error.

    A rank that is not in the mesh draws as the others do, and is not asked.

    Raises:
        RuntimeError: on every rank of the mesh, if they differ.
        ValueError: :data:`check` is none of the three.
    """
    seed = keys.draw_seed(generator)
    _check_check()
    if check == "never" or mesh.size() == 1 or mesh.get_coordinate() is None:
        return seed
    with without_dispatch():
        ranks = frozenset(mesh.mesh.flatten().tolist())
        agreed = _agreed_here().setdefault(generator or torch.default_generator, set())
        # If more ranks agreed, so did these; and those all know it, so that none waits for another.
        if check == "always" or not any(ranks <= more for more in agreed):
            _compare(mesh, seed)
            agreed.add(ranks)
    return seed


def _agreed_here() -> _Agreed:
    world = torch.distributed.group.WORLD
    if (agreed := _agreed.get(world)) is None:
        agreed = _agreed[world] = _BY_GENERATOR()
    return agreed


def _compare(mesh: DeviceMesh, seed: int) -> None:
    """Raises unless all ranks drew the same; a collective."""
    from fastinit.base import ranks as group_of

    found = group_of.same(mesh, [keys.signed(seed)], "comparing the seeds that ranks drew")
    if len(found) > 1:
        said = "; ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {group_of.listing(ranks)} drew {n & (1 << 64) - 1}"
            for (n,), ranks in list(found.items())[:8]
        )
        raise RuntimeError(
            f"ranks differ in the seed that they drew for a DTensor: {said}. Each rank writes its shard "
            f"by itself, so bring their generators into the same state (torch.manual_seed), or give "
            f'seed=. Nothing was written. (fastinit.agreement.check = "never" leaves out this check.)'
        )


@contextmanager
def agreeing(meshes: Iterable[DeviceMesh], seed: int) -> Iterator[dict[DeviceMesh, str]]:
    """The ranks of each mesh, all of which enter this, prepare to write the same.

    At the end of the block they compare, by one number for each mesh. An error on one is one on all.

    Args:
        meshes: each in which the model has a DTensor.
        seed: of the plan.

    Yields:
        What is to be filled with texts that say what is written, the same on ranks that agree.

    Raises:
        RuntimeError: on every rank of a mesh, if they differ, or if one failed.
    """
    from fastinit.base import ranks as group_of

    _check_check()
    error: BaseException | None = None
    texts: dict[DeviceMesh, str] = {}
    try:
        yield texts
    except BaseException as why:  # the others wait for it, whatever it is
        error = why
    # In one order on all ranks, so that none waits for one that waits for it.
    for mesh in sorted(set(meshes), key=lambda mesh: (group_of.members(mesh), tuple(mesh.shape))):
        if check != "never" and mesh.size() > 1 and mesh.get_coordinate() is not None:
            try:
                _compare_plans(mesh, seed, texts.get(mesh, ""), error)
            except BaseException as why:
                error = error or why
    if error is not None:
        raise error


def _compare_plans(mesh: DeviceMesh, seed: int, text: str, error: BaseException | None) -> None:
    from fastinit.base import ranks as group_of

    def digest() -> list[int]:
        if error is not None:
            raise error
        return [keys.signed(seed), _digest(text)]

    same = group_of.same(mesh, digest, "comparing the plans of ranks")
    if len(same) > 1:
        seeds = {signed & (1 << 64) - 1 for signed, _ in same}
        what = (
            "the seed of their plans"
            if len(seeds) > 1
            else "what their plans say of a parameter, or in its dtype"
        )
        raise RuntimeError(
            f"ranks differ in {what}: {' / '.join(map(group_of.listing, same.values()))}. Each rank "
            f"writes its shard by itself, so give all the same plan. Nothing was written. "
            f'(fastinit.agreement.check = "never" leaves out this check.)'
        )


def compare(plan: Mapping[str, object], group: Group = None) -> None:
    """Raises unless the ranks' plans agree; a collective, to be called by all of them.

    Plans of DTensors are compared when they are applied. Of plain tensors nobody knows which ranks share
    them: this is for those.

    Args:
        plan: a :class:`fastinit.Plan`. Ranks may have plans for other parameters, as of pipeline stages:
            those of the same parameters have to say the same.
        group: a process group or device mesh; by default all ranks.

    Raises:
        RuntimeError: on every rank, if seeds or what plans for the same names say differ, or one failed.
        TypeError: it is no Plan.
    """
    from fastinit.base import ranks as group_of

    def digests() -> list[int]:
        if not isinstance(seed := getattr(plan, "seed", None), int):
            raise TypeError(f"plan must be a fastinit.Plan, but got {type(plan).__name__}")
        return [keys.signed(seed), _digest(" ".join(plan)), _digest(text_of(plan.items()))]

    rows = group_of.same(group, digests, "comparing plans")
    by_seed: dict[int, list[int]] = {}
    by_names: dict[int, dict[int, list[int]]] = {}
    for (signed, its_names, its_fills), ranks in rows.items():
        by_seed.setdefault(signed & (1 << 64) - 1, []).extend(ranks)
        by_names.setdefault(its_names, {}).setdefault(its_fills, []).extend(ranks)
    if len(by_seed) > 1:
        said = "; ".join(f"{n} on {group_of.listing(ranks)}" for n, ranks in by_seed.items())
        raise RuntimeError(f"ranks differ in the seed of their plans: {said}")
    for said_of in by_names.values():
        if len(said_of) > 1:
            which = " / ".join(map(group_of.listing, said_of.values()))
            raise RuntimeError(
                f"ranks differ in what their plans say of the same parameters: {which}"
            )


def text_of(fills: Iterable[tuple[str, Any]]) -> str:
    """What is to be written by name, the same in every process; of what is computed, only its shape.

    >>> text_of([("a", 0.5), ("b", 1.5), ("c", 0.5)])
    'a 0 b 1 c 0 0.5 1.5'
    """
    known: dict[Any, int] = {}
    words = []
    for name, fill in fills:
        said = fill.shape if hasattr(fill, "contents") else fill
        words.append(f"{name} {known.setdefault(said, len(known))}")
    # A fill's own words tell only the number of its parts.
    return " ".join([*words, *(" ".join(map(repr, (f, *getattr(f, "parts", ())))) for f in known)])


def _digest(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_check() -> None:
    if check not in ("once", "always", "never"):
        raise ValueError(
            f'fastinit.agreement.check must be "once", "always" or "never", but got {check!r}'
        )
