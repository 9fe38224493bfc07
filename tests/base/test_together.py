"""Ranks tell each other numbers, texts and errors: fastinit/base/ranks.py, on real processes."""

import math
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import TIMEOUT, RankFailed, Ranks, on_ranks, pool
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import fastinit
from fastinit import checkpoint
from fastinit.base import ranks as group_of

RANK = "rank {} failed: ValueError: no, said {}"


def message(call: object, *args: object) -> str:
    try:
        call(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# --- what is gathered ----------------------------------------------------------------------------


def test_a_process_alone_is_a_group_of_one() -> None:
    assert group_of.gathered(None, [1, -(2**63)]) == [[1, -(2**63)]]
    assert group_of.gathered(None, [1, 0.5]) == [[1.0, 0.5]]
    assert group_of.gathered_texts(None, "σ") == ["σ"]
    assert group_of.members(None) == [0]
    with pytest.raises(KeyError), group_of.together():
        raise KeyError
    with group_of.together():
        pass


@on_ranks(4)
def test_groups_that_a_rank_is_not_in_and_what_is_none() -> None:
    """Whoever takes a group says the same of it; a group of one other rank is not this process alone."""
    rank = dist.get_rank()
    groups = [dist.new_group([0, 2]), dist.new_group([1]), DeviceMesh("cpu", [0, 3])]
    groups.append(DeviceMesh("cpu", [2]))
    plan = fastinit.Plan({})
    for group, those in zip(groups, [(0, 2), (1,), (0, 3), (2,)]):
        if rank in those:
            assert group_of.place(group) == those.index(rank)
            continue
        for said in (
            message(group_of.place, group),
            message(lambda group: checkpoint.layout(nn.Linear(2, 2), group=group), group),
        ):
            assert said == "ValueError: this rank is not in the group"
        for said in (
            message(lambda group: fastinit.moments(torch.ones(3)).all_merge(group), group),
            message(lambda group: fastinit.agreement.compare(plan, group), group),
        ):
            assert said.startswith("ValueError: this rank is not in the")
    for wrong in (3, "world", [0, 1], object()):
        for call in (
            group_of.members,
            lambda group: checkpoint.layout(nn.Linear(2, 2), group=group),
            lambda group: checkpoint.write_dcp(nn.Linear(2, 2), "nowhere", group=group),
            lambda group: fastinit.moments(torch.ones(3)).all_merge(group),
            lambda group: fastinit.agreement.compare(plan, group),
        ):
            assert message(call, wrong).startswith("TypeError: group must be a process group")


NUMBERS = [
    lambda rank: [rank, -(2**63), 2**63 - 1],
    lambda rank: [0.1 * rank, math.inf, -0.0, 5e-324],
    lambda rank: [],
    lambda rank: list(range(60)),  # what just fits, and what does not
    lambda rank: list(range(61)),
    lambda rank: [float(rank)] * (100 * rank),  # each as many as it has
    lambda rank: [1.5] if rank else [2**60],  # of a kind of its own
]
TEXTS = [lambda rank: "", lambda rank: f"Größe {rank}", lambda rank: "é" * 300 * rank]


@on_ranks(4)
def test_every_rank_has_all_in_the_order_of_the_group() -> None:
    world, rank = 4, dist.get_rank()
    reversed_pairs = dist.new_group([3, 1])
    groups: list[tuple[object, list[int]]] = [
        (None, [0, 1, 2, 3]),
        (dist.group.WORLD, [0, 1, 2, 3]),
        (init_device_mesh("cpu", (2, 2)), [0, 1, 2, 3]),
        (init_device_mesh("cpu", (2, 1, 2)), [0, 1, 2, 3]),
        (DeviceMesh("cpu", [[2, 0], [3, 1]]), [2, 0, 3, 1]),
        (DeviceMesh("cpu", [1, 2, 3]), [1, 2, 3]),
        (DeviceMesh("cpu", [2]), [2]),
    ]
    for group, ranks in groups:
        if rank not in ranks:
            for ask in (group_of.gathered, group_of.gathered_texts):
                assert "ValueError: this rank is not in the mesh" in message(ask, group, "")
            continue
        assert group_of.members(group) == ranks
        for numbers in NUMBERS:
            got = group_of.gathered(group, numbers(rank))
            expected = [numbers(r) for r in ranks]
            assert repr(got) == repr(expected)
        for text in TEXTS:
            assert group_of.gathered_texts(group, text(rank)) == [text(r) for r in ranks]
    if rank in (1, 3):
        ranks = dist.get_process_group_ranks(reversed_pairs)
        assert group_of.gathered(reversed_pairs, [rank]) == [[r] for r in ranks]
    else:
        assert "not in the group" in message(group_of.gathered, reversed_pairs, [0])
    assert len(group_of.gathered(None, [])) == world


@on_ranks(2)
def test_one_small_collective_does() -> None:
    asked = []
    gather = group_of.all_gather
    group_of.all_gather = lambda *a: (asked.append(a[1]), gather(*a))[1]
    try:
        group_of.gathered(None, [0.5] * 60)
    finally:
        group_of.all_gather = gather
    assert [len(row) for row in asked] == [64]


@on_ranks(4)
def test_ranks_at_different_places_are_told_so() -> None:
    rank = dist.get_rank()
    said = message(group_of.gathered, None, [rank], "layer a" if rank < 3 else "layer b")
    assert said.startswith("RanksError: ranks are not at the same place: rank")
    assert ("in layer b, others (0, 1, 2)" if rank == 3 else "in layer a, others (3) a") in said
    assert group_of.gathered(None, [rank]) == [[0], [1], [2], [3]]  # and can go on


Turns = list[tuple[str, tuple[int, ...]]]
# What each rank is about to do with which ranks, and then all; and whether all get there.
APART: dict[str, tuple[Callable[[int], Turns], bool]] = {
    "all alike": (lambda rank: [("sum", (0, 1, 2, 3))] * 2, True),
    "some not at all": (lambda rank: [("sum", (2, 3))] * (rank > 1), True),
    "two groups at once": (lambda rank: [("sum", (0, 2) if rank in (0, 2) else (1, 3))], True),
    "more of them on some": (
        lambda rank: [("sum", (0, 1) if rank < 2 else (2, 3))] * (1 + rank // 2),
        True,
    ),
    "one after another": (
        lambda rank: [[("a", (0, 1))], [("a", (0, 1)), ("b", (1, 2, 3))]][rank > 0][(rank > 1) :],
        True,
    ),
    "one lacks": (lambda rank: [("sum", (1, 2, 3))] * (rank in (1, 2)), False),
    "another one of the same": (lambda rank: [(f"do {rank == 3}", (2, 3))] * (rank > 1), False),
    "in a ring": (
        lambda rank: [(str(i), (i, (i + 1) % 4)) for i in (rank, (rank - 1) % 4)],
        False,
    ),
}


@pytest.mark.parametrize("case", APART)
@on_ranks(4)
def test_ranks_wait_for_those_alone_that_take_part(case: str) -> None:
    turns, well = APART[case]
    groups = {
        ranks: DeviceMesh("cpu", list(ranks))
        for ranks in sorted({ranks for rank in range(4) for _, ranks in turns(rank)})
    }
    before = []

    def go() -> None:
        for doing, ranks in turns(dist.get_rank()):
            group_of.before(None, groups[ranks], doing)
            before.append(doing)
        group_of.gathered(None, [1], "the layer after it")

    said = message(go)
    assert (said == "") == well, said
    assert well or said.startswith("RanksError: ranks are not at the same place"), said
    assert not well or before == [doing for doing, _ in turns(dist.get_rank())]
    assert len(group_of.gathered(None, [])) == 4


def groups() -> int:
    """Makes some; how many there were."""
    there = len(dist.distributed_c10d._world.pg_map)
    init_device_mesh("cpu", (2, 2))
    return there


def test_groups_end_with_the_test_that_made_them() -> None:
    assert pool(4).run(groups) == [1] * 4
    assert pool(4).run(groups) == [1] * 4


# --- an error on one is an error on all ----------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration, AssertionError])
@pytest.mark.parametrize("where", ["body", "numbers"])
@on_ranks(3)
def test_whatever_ends_one_is_heard_by_all(where: str, kind: type[BaseException]) -> None:
    def fail() -> list[int]:
        if dist.get_rank() == 1:
            raise kind("so")
        return [1]

    started = time.monotonic()
    try:
        with group_of.together(None, "the test"):
            if where == "numbers":
                group_of.gathered(None, fail)
            fail()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    own = f"{kind.__name__}: so"
    assert said == (own if dist.get_rank() == 1 else f"RanksError: rank 1 failed: {own}")
    assert time.monotonic() - started < TIMEOUT / 4


def body(failing: list[int], asking: bool) -> None:
    with group_of.together(None, "the test"):
        if dist.get_rank() in failing:
            raise ValueError(f"no, said {dist.get_rank()}" + "!" * 500)
        if asking:
            group_of.gathered(None, [1.0], "a layer")


@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("failing", [[], [2], [0, 3], [0, 1, 2, 3]], ids=str)
def test_an_error_on_one_rank_is_one_on_all(failing: list[int], asking: bool) -> None:
    start = time.monotonic()
    said = pool(4).run(message, body, failing, asking)
    heard = "; ".join(RANK.format(rank, rank) + "!" * 500 for rank in failing)
    for rank in range(4):
        own = f"ValueError: no, said {rank}" + "!" * 500
        expected = own if rank in failing else f"RanksError: {heard}" if failing else ""
        assert said[rank] == expected
    assert time.monotonic() - start < TIMEOUT / 4
    assert pool(4).run(message, body, [], True) == [""] * 4


@on_ranks(4)
def test_in_a_mesh_of_some_ranks_the_others_hear_nothing() -> None:
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))["columns"]

    def fail() -> None:
        with group_of.together(mesh):
            if rank == 1:
                raise KeyError("x")

    expected = {0: "RanksError: rank 1 failed: KeyError: 'x'", 1: "KeyError: 'x'"}
    assert message(fail) == expected.get(rank, "")


@pytest.mark.parametrize("raiser", [0, 3])
def test_errors_of_a_part_of_the_ranks_reach_all(raiser: int) -> None:
    said = pool(4).run(nested, raiser)
    heard = f"RanksError: rank {raiser} failed: KeyError: 'x'"
    assert said == ["KeyError: 'x'" if rank == raiser else heard for rank in range(4)]
    assert pool(4).run(message, body, [], True) == [""] * 4


def nested(raiser: int) -> str:
    """An error within a block of two ranks within two blocks of all."""
    pair = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))["columns"]

    def fail() -> None:
        with group_of.together(None), group_of.together(None), group_of.together(pair):
            if dist.get_rank() == raiser:
                raise KeyError("x")

    return message(fail)


def within_a_collective_of_its_own(patience: float) -> str:
    """Rank 2 fails where the others wait in the model's own collective, and its process ends."""
    group_of.PATIENCE = patience

    def step() -> None:
        with group_of.together(None, "the pass"):
            if dist.get_rank() == 2:
                raise ValueError("a bad batch")
            dist.all_reduce(torch.ones(1000), group=rows)

    rows = dist.new_group([0, 1, 2])
    said = message(step)
    if dist.get_rank() == 2:
        os._exit(0)
    return said


def test_those_who_wait_elsewhere_hear_it_when_the_process_ends() -> None:
    start = time.monotonic()
    with Ranks(3) as ranks:
        said = ranks.answers(within_a_collective_of_its_own, 0.3)
    heard = "RanksError: rank 2 failed: ValueError: a bad batch"
    assert said == [(True, heard), (True, heard), (False, "its process ended")]
    assert time.monotonic() - start < TIMEOUT / 4


def one_is_killed(where: str) -> str:
    group = init_device_mesh("cpu", (2, 3)) if where == "a mesh" else None

    def step() -> None:
        with group_of.together(group, "the pass"):
            for layer in range(3):
                if dist.get_rank() == 1 and layer == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                if where == "the model's own collective":
                    dist.all_reduce(torch.ones(1))
                else:
                    group_of.gathered(group, [layer], f"layer {layer}")

    return message(step)


@pytest.mark.parametrize(
    ("where", "size"), [("a group", 5), ("a mesh", 6), ("the model's own collective", 3)]
)
def test_a_rank_that_dies_ends_the_others_with_a_clear_message(where: str, size: int) -> None:
    """All others, also those that had nothing to do with it, while the others' processes live on."""
    start = time.monotonic()
    with Ranks(size) as ranks:
        said = ranks.answers(one_is_killed, where)
    assert said.pop(1) == (False, "its process ended")
    doing = "the end of the pass" if where == "the model's own collective" else "layer 2"
    heard = f"RanksLost: in {doing}, ranks lost each other: one of them has ended"
    assert all(good and answer.startswith(heard) for good, answer in said), said
    assert time.monotonic() - start < TIMEOUT / 4


# --- the pool itself -----------------------------------------------------------------------------


def fails_on(rank: int, hangs: bool) -> int:
    if dist.get_rank() == rank:
        if hangs:
            time.sleep(1000)
        raise ArithmeticError("so")
    return dist.get_rank()


def test_failures_of_ranks_are_named() -> None:
    with Ranks(2) as ranks:
        assert ranks.run(fails_on, 5, False) == [0, 1]
        with pytest.raises(RankFailed, match=r"(?s)rank 1: .*in fails_on.*ArithmeticError: so"):
            ranks.run(fails_on, 1, False)
        for timeout in (0.4, 4, 40, 400):  # as long as the other's answer takes on a busy machine
            answers = ranks.answers(fails_on, 0, True, timeout=timeout)
            if answers[1][0]:
                break
        assert answers == [(False, "gave no answer, and was killed"), (True, 1)]
        with pytest.raises(RankFailed, match=r"^rank 0: gave no answer, and was killed"):
            ranks.run(fails_on, 0, True, timeout=0.1)
        assert ranks.run(fails_on, 5, False) == [0, 1]
