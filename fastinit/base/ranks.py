"""Ranks: what the processes of a group tell each other, and how an error of one is an error of all.

All that travels are a few numbers or a text, in one small collective: each rank's message has 64 words,
and only what does not fit follows in a second. Since each says what it is doing, and whether it failed,
ranks that are not at the same place find that out, instead of reading each other's numbers as their own.
torch.distributed is only looked at if someone has imported it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fastinit.base import distributed_internals as distributed
from fastinit.base import torch_internals as internals
from fastinit.base.process_groups import PATIENCE, all_gather, lines
from fastinit.base.process_groups import Grid as Grid
from fastinit.base.process_groups import Group as Group
from fastinit.base.process_groups import group_of as group_of
from fastinit.base.process_groups import here as here
from fastinit.base.process_groups import is_up as is_up
from fastinit.base.process_groups import members as members
from fastinit.base.process_groups import place as place

INTEGERS, FLOATS, TEXT, SOME, HEARD, FAILURE = range(6)
"""Kinds of messages; SOME is of what only so many ranks have to be at, HEARD of an error that a smaller
group told this rank of."""
KIND, TASK, RANK, LENGTH, HEAD = range(5)
WORDS = 64
"""A message is its kind, what is being done (a hash), the rank and the length; then words, as far as
they fit in so many."""

_KEY = "fastinit/failed/{}"  # of the store, and a rank


class RanksError(RuntimeError):
    """What every rank of the group knows: another one failed, or they are not at the same place."""


class RanksLost(RuntimeError):
    """A collective failed: a rank's process has ended, or cannot be reached."""


Error = TypeVar("Error", bound=BaseException)
Numbers: TypeAlias = "Sequence[int | float]"


def is_first(group: Group = None) -> bool:
    """Whether this rank is the group's first, which speaks for all; alone it is."""
    return not is_up() or members(group)[0] == torch.distributed.get_rank()


def gathered(
    group: Group, numbers: Numbers | Callable[[], Numbers], doing: str = "a gather"
) -> list[list[Any]]:
    """The numbers of every rank of the group, in the order of :func:`members`; a collective.

    Args:
        numbers: integers of 64 bits, or floats (integers among these become such), as many as each rank
            likes. All come out bit for bit as they went in. Or a function that gives them, whose error
            on one rank is an error on all.
        doing: what this is for, the same on all ranks: it is compared, and shown in errors.

    Raises:
        RanksError: on every rank, if one failed (:func:`together`) or does something else.
        RanksLost: the collective failed, as where a rank's process has ended.
        ValueError: this rank is not in the group.
    """
    numbers = _given(group, numbers, doing)
    with internals.without_modes():
        if any(isinstance(number, float) for number in numbers):
            bits = torch.tensor(numbers, dtype=torch.float64, device="cpu").view(torch.int64)
            table = _exchange(group, FLOATS, bits.tolist(), doing)
        else:
            table = _exchange(group, INTEGERS, list(map(int, numbers)), doing)
        whole: list[list[Any]] = table.tolist()
        floats: list[list[Any]] = table.view(torch.float64).tolist()
    return [
        (real if row[KIND] == FLOATS else row)[HEAD : HEAD + row[LENGTH]]
        for row, real in zip(whole, floats)
    ]


def gathered_texts(group: Group, text: str, doing: str = "a gather of texts") -> list[str]:
    """:func:`gathered` for a text."""
    with internals.without_modes():
        return [_text(row) for row in _exchange(group, TEXT, _words_of(text), doing)]


def same(
    group: Group, numbers: Numbers | Callable[[], Numbers], doing: str = "a comparison"
) -> dict[tuple[int, ...], list[int]]:
    """Which ranks have which integers; a single entry where all have the same. As :func:`gathered`."""
    mine = list(map(int, _given(group, numbers, doing)))
    with internals.without_modes():
        words = _exchange(group, INTEGERS, mine, doing)[:, HEAD : HEAD + len(mine)]
        if bool((words == torch.tensor(mine, device="cpu")).all()):
            return {tuple(mine): members(group)}
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, others in zip(members(group), words.tolist()):
            found.setdefault(tuple(others), []).append(rank)
    return found


def before(group: Group, some: Group, doing: str) -> None:
    """Waits until those ranks of the group that are also in ``some`` are all about to do this.

    A collective of the group, in which others may be about to do something else, before one of ``some``:
    so nobody waits there for a rank that failed. Raises as :func:`gathered`.
    """
    both = sorted({*members(group)} & {*members(some)})
    with internals.without_modes():
        _exchange(group, SOME, [len(both)], doing, among=both)


def _given(group: Group, numbers: Numbers | Callable[[], Numbers], doing: str) -> Numbers:
    if not callable(numbers):
        return numbers
    with telling(group, doing):
        return numbers()


@contextmanager
def telling(group: Group, doing: str) -> Iterator[None]:
    """An error of the body is one on all ranks of the group, which next ask each other something.

    They need not enter this; without an error nothing is communicated.
    """
    try:
        yield
    except BaseException as error:  # KeyboardInterrupt too: the others wait all the same
        _tell(error, group, doing)
        raise


@contextmanager
def together(group: Group = None, doing: str = "what all do together") -> Iterator[None]:
    """An error of the body on one rank is an error on all ranks of the group, which all enter this.

    The others hear it where they next ask each other something: at the end of the body, or in a
    :func:`gathered` within it. Where they are in a collective of the model's own, which only the failed
    rank's end can end, they hear it then. On the rank that failed its own error is raised.

    Raises:
        RanksError: "rank 2 failed: ValueError: ...", on the ranks that did not.
        RanksLost: a rank's process has ended.
        ValueError: this rank is not in the group.
    """
    lines(group)
    end = f"the end of {doing}"
    with telling(group, end):
        yield
        with internals.without_modes():
            _exchange(group, INTEGERS, [], end)


def _tell(error: BaseException, group: Group, doing: str) -> None:
    """Tells the others of this rank's error, unless they know. Raises what they had said before."""
    known = frozenset(members(group)) <= getattr(error, "_fastinit_known", frozenset())
    if known or not lines(group):
        return
    heard = isinstance(error, RanksError)
    text = str(error) if heard else f"{type(error).__name__}: {error}"
    try:
        with internals.without_modes():
            _exchange(group, HEARD if heard else FAILURE, _words_of(text), doing, hasty=True)
        _make_known(error, group)
    except RanksLost as lost:
        if said := _said_before(group):
            raise RanksError(said) from error
        if isinstance(lost.__cause__, TimeoutError):
            _leave_word(text)
        elif isinstance(error, RuntimeError) and not heard:  # torch's, of a collective in the body
            raise


def _make_known(error: Error, group: Group) -> Error:
    """Notes that every rank of the group knows of an error, or has one of its own."""
    known: frozenset[int] = getattr(error, "_fastinit_known", frozenset())
    error._fastinit_known = known.union(members(group))  # type: ignore[attr-defined]
    return error


# --- one exchange --------------------------------------------------------------------------------


def _exchange(
    group: Group,
    kind: int,
    words: list[int],
    doing: str,
    hasty: bool = False,
    among: Sequence[int] = (),
) -> Tensor:
    """The messages of all ranks, int64 [ranks, words].

    Args:
        hasty: gives up after PATIENCE. This rank failed: its own message is not an error to it.
        among: of SOME, the ranks that have to be here.
    """
    over = lines(group)
    if not over:
        return torch.tensor([[kind, 0, 0, len(words), *words]], device="cpu")
    until = time.monotonic() + PATIENCE if hasty else None
    what = f"{doing} {among}".encode() if among else doing.encode()
    task = int.from_bytes(blake2b(what, digest_size=8).digest(), "little", signed=True)
    while True:
        row = [kind, task, torch.distributed.get_rank(), len(words), *words[: WORDS - HEAD]]
        try:
            table = all_gather(over, row + [0] * (WORDS - len(row)), until)
            longest = int(table[:, LENGTH].max())
            if longest > WORDS - HEAD:
                rest = words[WORDS - HEAD :]
                rest += [0] * (longest - (WORDS - HEAD) - len(rest))
                table = torch.cat((table, all_gather(over, rest, until)), dim=1)
        except (RuntimeError, OSError) as why:
            said = _said_before(group) or "one of them has ended, or cannot be reached any more"
            lost = RanksLost(f"in {doing}, ranks lost each other: {said} ({_line(why)})")
            raise _make_known(lost, group) from why
        # A group's own order, and a mesh's, need not be that of its lines.
        place = {rank: i for i, rank in enumerate(members(group))}
        order = [place[rank] for rank in table[:, RANK].tolist()]
        table = table[torch.tensor(order, device="cpu").argsort()]
        if isinstance(group, Grid):  # of groups that share several ranks rows are there twice
            table = table.unique_consecutive(dim=0)
        if failures := _failures(table):
            if hasty:
                return table
            raise _make_known(RanksError(failures), group)
        if bool((others := table[:, TASK] != task).any()):
            if task in (ready := _ready(table)):
                return table
            if ready:  # go on, with what this rank has no part in
                continue
            where = listing(table[others, RANK].tolist())
            here = torch.distributed.get_rank()
            error = RanksError(
                f"ranks are not at the same place: rank {here} is in {doing}, others ({where}) are not"
            )
            raise _make_known(error, group)
        return table


def _failures(table: Tensor) -> str:
    """What failed on which ranks; what these heard of others only if none says it itself."""
    if (worst := int(table[:, KIND].max())) < HEARD:
        return ""
    rows = table[table[:, KIND] == worst]
    texts = [_text(row) for row in rows]
    if worst == FAILURE:
        texts = [_failure(int(rank), text) for rank, text in zip(rows[:, RANK], texts)]
    texts = list(dict.fromkeys(texts))
    more = [f"and {len(texts) - 8} more"] if len(texts) > 8 else []
    return "; ".join(texts[:8] + more)


def _ready(table: Tensor) -> set[int]:
    """What some ranks do, all who have to."""
    some = table[table[:, KIND] == SOME][:, [TASK, HEAD]].tolist()
    return {task for task, needed in some if some.count([task, needed]) == needed}


# --- texts ---------------------------------------------------------------------------------------


def _text(row: Tensor) -> str:
    return _from_words(row[HEAD : HEAD + int(row[LENGTH])].tolist())


def _words_of(text: str) -> list[int]:
    """The text's bytes in UTF-8, eight in an integer of 64 bits; zeros fill the last, as no text ends
    with one."""
    data = text.rstrip("\0").encode("utf-8", "replace")
    data += b"\0" * (-len(data) % 8)
    return [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8)]


def _from_words(words: Sequence[int]) -> str:
    """What :func:`_words_of` took."""
    data = b"".join(word.to_bytes(8, "little", signed=True) for word in words)
    return data.rstrip(b"\0").decode("utf-8")


def listing(ranks: Sequence[int]) -> str:
    """The first few.

    >>> listing(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7 and 4 more'
    """
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(map(str, ranks[:8])) + more


def _line(error: BaseException) -> str:
    line = f"{type(error).__name__}: {error}".split("\n")[0]
    return line if len(line) <= 160 else f"{line[:160]}..."


def _failure(rank: int, text: str) -> str:
    return f"rank {rank} failed: {text}"


# --- the last word of a rank that nobody listened to ---------------------------------------------


def _leave_word(text: str) -> None:
    """For those who find this rank's process ended."""
    with suppress(RuntimeError, ValueError):  # no store any more: they hear that a rank has ended
        distributed.default_store().set(_KEY.format(torch.distributed.get_rank()), text)


def _said_before(group: Group) -> str:
    """The words that other ranks left."""
    try:
        store, here = distributed.default_store(), torch.distributed.get_rank()
        left = [r for r in members(group) if r != here and store.check([_KEY.format(r)])]
        words = {rank: store.get(_KEY.format(rank)).decode() for rank in left[:8]}
        # The store of torch's fake groups says from 2.14 on that it has everything, and gives nothing.
        return "; ".join(_failure(rank, said) for rank, said in words.items() if said)
    except (RuntimeError, ValueError):
        return ""
