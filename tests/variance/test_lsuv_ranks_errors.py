"""LSUV on ranks: an error of one is an error of all, at once, and changes nothing."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, on_ranks
from selection import cases
from sharded_nets import LAYOUTS, WORLD, data, fsdp, mesh_of, mine, net, same
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard

import fastinit
from fastinit.elements import shards


def message(call: Callable[[], object]) -> str:
    """The error of a call, which every rank has to give, soon."""
    started = time.monotonic()
    try:
        call()
    except Exception as error:
        assert time.monotonic() - started < 60
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def fails_at(place: int, calls: int = 0) -> Callable[[nn.Module], dict[str, Any]]:
    """Rank 1 fails before a module runs, after some calls; what is counted nobody puts back."""

    def put(model: nn.Module) -> dict[str, Any]:
        inner: Any = model.module if hasattr(model, "module") else model
        left = [None] * calls

        def fail(*_: object) -> None:
            if dist.get_rank() == 1 and not left:
                raise ValueError("no, said this one")
            del left[:1]

        model.broken = inner[place].register_forward_pre_hook(fail)
        return {"verify": calls > 0}

    return put


def raises(on: int) -> Any:
    if dist.get_rank() == on:
        raise ValueError("no, said this one")


def endless(batch: Tensor, on: int) -> Iterator[Tensor]:
    yield batch
    raises(on)
    yield batch


def inputs_of(batch: Tensor) -> Tensor:
    raises(1)
    return batch


class Iterated:
    def __init__(self, make: Callable[[], Iterator[Tensor]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Tensor]:
        return self.make()


def squared_unless(x: Tensor) -> Tensor:
    raises(1)
    return x.square()


Arguments = dict[str, Any]
OWN = "ValueError: no, said this one"
# Where one rank fails: what is done to the model, and the options; batches stand for the input.
FAULTS: dict[str, Callable[[Any, Tensor], Arguments]] = {
    "before the first layer": lambda model, x: fails_at(0)(model),
    "between layers": lambda model, x: fails_at(1)(model),
    "in the last": lambda model, x: fails_at(4)(model),
    "in the plain pass": lambda model, x: fails_at(1, calls=1)(model),
    "between batches": lambda model, x: {"batches": Iterated(lambda: endless(x, 1))},
    "in get_input": lambda model, x: {"batches": [x], "get_input": inputs_of},
    "in the activation": lambda model, x: {"activation": squared_unless},
    "in the step": lambda model, x: {"step": lambda x: (raises(1), model(x))},
}


def state(model: nn.Module) -> list[Tensor]:
    return [shards.local(p).detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("layout", cases(["DDP", "FSDP2 over columns"], always=["DDP"]))
@pytest.mark.parametrize("fault", FAULTS)
@on_ranks(WORLD)
def test_an_error_of_one_is_an_error_of_all(fault: str, layout: str) -> None:
    """Also where the others would wait for it in a collective of the model's own; nothing is lost."""
    shard, parts = LAYOUTS[layout]
    model, rank = shard(net()), dist.get_rank()
    before, x = state(model), mine(data(), parts, rank)
    asked = FAULTS[fault](model, x)
    inputs = () if "batches" in asked else (x,)
    said = message(lambda: fastinit.lsuv_(model, *inputs, **asked))
    assert said == (OWN if rank == 1 else f"RanksError: rank 1 failed: {OWN}"), said
    assert all(map(torch.equal, state(model), before))
    if hasattr(model, "broken"):
        model.broken.remove()
    same(fastinit.lsuv_(model, x), fastinit.lsuv_(net(), data()))


ALIKE: Arguments = {
    "target_std": 1.0,
    "tol": 0.02,
    "max_iter": 10,
    "pre": "keep",
    "center": False,
    "activation": None,
    "reuse": "first",
    "unbuilt": None,
    "dead": "error",
    "verify": False,
    "layers": None,
}
ALTERNATING = fastinit.schedules.alternating
# Options of rank 2, in place of the above on all; those of rank 3 are also as said.
UNLIKE: list[Arguments] = [
    {"center": True},
    {"target_std": 2.0},
    {"target_std": {"0": 1.0}},
    {"target_std": ALTERNATING(1.25)},
    {"tol": 0.01},
    {"max_iter": 9},
    {"pre": "orthonormal"},
    {"activation": torch.relu},
    {"activation": nn.ReLU()},
    {"reuse": "pool"},
    {"dead": "skip"},
    {"verify": True},
    {"layers": ["0"]},
    {"tol": 0.01, "verify": True},
]


@on_ranks(WORLD)
def test_ranks_that_ask_for_different_things() -> None:
    models = [fsdp(net(), mesh_of(4)), nn.parallel.DistributedDataParallel(net()), net()]
    rank = dist.get_rank()
    for i, unlike in enumerate(UNLIKE):
        model = models[i % 3]
        if isinstance(model, nn.parallel.DistributedDataParallel) and "layers" in unlike:
            unlike = {"layers": ["module.0"]}
        before = state(model)
        asked = {**ALIKE, "group": dist.group.WORLD, **(unlike if rank == 2 else {})}
        said = message(lambda asked=asked, model=model: fastinit.lsuv_(model, data(), **asked))
        names = ", ".join(name for name in ALIKE if name in unlike)
        assert said.startswith("ValueError: ranks must call lsuv_ alike"), said
        differ = f"rank 2 not as the first: {names} differ"
        assert differ in said, (said, differ)
        assert all(map(torch.equal, state(model), before))
    for how, expected in {
        "batches": r"alike.*batches differs",
        "functions of two names": r"alike.*but rank 3 not as the first: activation differs",
        "arguments of a function": r"alike.*but rank 3 not as the first: target_std differs",
        "schedules": "ranks must find the same scales, but rank 3 found others than the first",
        "a bad argument": r"tol must be in \(0, 1\)",
    }.items():
        asked = {
            "batches": {"batches": [data()]} if rank == 3 else {},
            "functions of two names": {"activation": torch.relu if rank == 3 else torch.tanh},
            "arguments of a function": {"target_std": ALTERNATING(1.5 if rank == 3 else 1.25)},
            "schedules": {"target_std": lambda place: 1.5 if rank == 3 else 1.25},
            "a bad argument": {"tol": 2.0 if rank else 0.1},
        }[how]
        inputs = () if "batches" in asked else (data(),)
        before = state(models[0])
        said = message(lambda a=asked, x=inputs: fastinit.lsuv_(models[0], *x, **a))
        assert re.search(expected, said), said
        assert all(map(torch.equal, state(models[0]), before))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@on_ranks(WORLD)
def test_orthonormal_weights_that_are_rows_of_what_is_cut_by_rows() -> None:
    """Before the model is sharded all of it is there, which the error says."""
    torch.manual_seed(0)
    plain, x = Attending().double(), data().view(6, 4, 12)
    model = fully_shard(copy.deepcopy(plain), mesh=mesh_of(4))
    before = state(model)
    said = message(lambda: fastinit.lsuv_(model, x, pre="orthonormal"))
    assert re.search(
        r"^NotImplementedError: pre='orthonormal' cannot draw attention\.q_proj: .*", said
    )
    assert "Run lsuv_ before the model is sharded, on many ranks with group=" in said
    assert all(map(torch.equal, state(model), before))
    torch.manual_seed(dist.get_rank())
    fastinit.lsuv_(plain, x, pre="orthonormal", group=dist.group.WORLD)
    sharded = fully_shard(plain, mesh=mesh_of(4))
    scales = fastinit.lsuv_(sharded, x).scales
    assert list(scales.values()) == pytest.approx([1.0] * 4, rel=1e-6)


def one_bit(weight: Tensor) -> None:
    """The last that float32 has: moments in float64 show it, and it alone, in what is of float32."""
    with torch.no_grad():
        weight.view(-1)[-1:].view(torch.int64).bitwise_xor_(1 << 52 - 23)


REPLICAS = {
    "a group": (net, r"ranks 0, 1, 2 / 3 differ in parameter {}:"),
    "DDP": (
        lambda: nn.parallel.DistributedDataParallel(net()),
        r"ranks 0, 1, 2 / 3 differ in parameter module\.{}:",
    ),
    "HSDP": (lambda: fsdp(net(), mesh_of(2, 2)), r"ranks 1 / 3 differ in parameter {}:"),
    "columns, then rows": (
        lambda: LAYOUTS["columns, then rows"][0](net()),  # its biases are on all
        r"ranks 0, 1, 2 / 3 differ in parameter {}:",
    ),
    "a group over columns": (
        lambda: LAYOUTS["a group over columns"][0](net()),
        r"ranks (0, 1, 2|1) / 3 differ in parameter {}:",
    ),
}


@pytest.mark.parametrize("way", REPLICAS)
@on_ranks(WORLD)
def test_replicas_that_differ(way: str) -> None:
    """In one element of a weight, or of a bias."""
    make, expected = REPLICAS[way]
    for name in ("0.weight", "2.bias", "4.weight"):
        if way == "columns, then rows" and name == "0.weight":
            continue  # which is in parts
        model, rank, x = make(), dist.get_rank(), data()
        parameters = dict(model.named_parameters())
        changed = next(p for full, p in parameters.items() if full.endswith(name))
        if rank == 3:
            one_bit(shards.local(changed))
        before = state(model)
        said = message(lambda model=model, x=x: fastinit.lsuv_(model, x, group=dist.group.WORLD))
        assert "ValueError: ranks must have the same values of what they share" in said
        assert re.search(expected.format(re.escape(name)), said), said
        assert all(map(torch.equal, state(model), before))


@pytest.mark.parametrize("way", ["wrapped", "composable"])
@on_ranks(WORLD)
def test_what_ranks_may_have_of_their_own_is_not_compared(way: str) -> None:
    """What DistributedDataParallel was told to leave alone, and buffers."""
    plain, rank, x = net(), dist.get_rank(), data()
    plain[1].register_buffer("seen", torch.tensor(float(rank)))
    plain[1].own = nn.Parameter(torch.tensor(float(rank)))
    if way == "wrapped":
        plain._ddp_params_and_buffers_to_ignore = ["1.own"]
        model: nn.Module = nn.parallel.DistributedDataParallel(plain)
    else:
        model = replicate(plain, ignored_modules=[plain[1]])
        model(x)
    same(fastinit.lsuv_(model, mine(x, 4, rank)), fastinit.lsuv_(net(), x))


class Small(nn.Sequential):
    def __init__(self, std: float = 0.02) -> None:
        super().__init__(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
        nn.init.normal_(self[2].weight, std=std)


@on_ranks(WORLD)
def test_recorded_models_whose_seeds_or_plans_differ() -> None:
    rank, x, world = dist.get_rank(), data().float(), dist.group.WORLD

    def recorded(seed: int = 5, std: float = 0.02) -> nn.Module:
        with fastinit.deferred(seed=seed):
            return Small(std)

    for model, expected in (
        (recorded(seed=5 + (rank == 2)), "seed of their plans: 5 on 0, 1, 3; 6 on 2"),
        (
            recorded(std=0.02 + (rank == 1)),
            "what their plans say of the same parameters: 0, 2, 3 / 1",
        ),
        (recorded() if rank else Small(), "not as the first: what is on meta differs"),
    ):
        said = message(lambda model=model: fastinit.lsuv_(model, x, group=world))
        assert expected in said, said
        assert all(p.is_meta for p in model.parameters()) or not rank
    scales = fastinit.lsuv_(recorded(), x, group=world).scales
    assert scales == pytest.approx(fastinit.lsuv_(fastinit.materialize_(recorded()), x).scales)


@on_ranks(WORLD)
def test_as_many_batches_on_each_rank() -> None:
    model, rank, x = fsdp(net(), mesh_of(4)), dist.get_rank(), data()
    said = message(lambda: fastinit.lsuv_(model, batches=[x] * (3 if rank in (1, 2) else 2)))
    assert said.startswith("ValueError: batches must be as many on each rank, but in pass 1"), said
    assert "ranks 0, 3 had 2, and others more" in said


@on_ranks(WORLD)
def test_values_that_are_not_finite_on_one_rank() -> None:
    x, rank = data(), dist.get_rank()
    for values, where in ((x * math.inf if rank == 2 else x, " on rank 2:"),):
        said = message(lambda values=values: fastinit.lsuv_(fsdp(net(), mesh_of(4)), values))
        assert f"the output of 0 has values that are not finite{where}" in said, said
    batches = [x, x * math.nan if rank == 3 else x]
    said = message(lambda: fastinit.lsuv_(fsdp(net(), mesh_of(4)), batches=batches))
    assert "not finite on rank 3" in said, said


@on_ranks(WORLD)
def test_a_rank_without_rows_and_one_whose_layer_is_dead() -> None:
    """As long as others have some, and theirs are alive."""
    rank, x = dist.get_rank(), data()
    parts = [x[:4], x[:0], x[4:5], x[5:]]
    for shard in (LAYOUTS["FSDP2"][0], LAYOUTS["DDP"][0]):
        same(fastinit.lsuv_(shard(net()), parts[rank]), fastinit.lsuv_(net(), x))
    parts[2] = parts[2] * 0 + 1  # one row, whose outputs differ by their columns alone
    plain, flat = net(), torch.cat(parts)
    with torch.no_grad():
        plain[0].weight.copy_(plain[0].weight[:1].expand(20, -1))
        plain[0].bias.zero_()  # so that all of a row are the same
    model = fsdp(copy.deepcopy(plain), mesh_of(4))
    same(fastinit.lsuv_(model, parts[rank]), fastinit.lsuv_(plain, flat))


@on_ranks(WORLD)
def test_dead_on_all() -> None:
    plain, rank, x = net(), dist.get_rank(), data()
    plain[4] = nn.Linear(12, 7).double()
    for parameter in plain[4].parameters():
        nn.init.zeros_(parameter)
    model = fsdp(copy.deepcopy(plain), mesh_of(4))
    said = message(lambda: fastinit.lsuv_(model, mine(x, 4, rank)))
    assert "LSUVError: the output of 4 is dead" in said, said
    got = fastinit.lsuv_(model, mine(x, 4, rank), dead="skip")
    # Of zeros that are everywhere the same nobody can tell whether they are copies.
    got.layers[2].before = fastinit.moments(plain(x))
    same(got, fastinit.lsuv_(plain, x, dead="skip"))
    assert got.layers[2].note == "dead: left as it is"


def with_one_that_dies(layout: str) -> str:
    shard, parts = LAYOUTS[layout]
    model, rank = shard(net()), dist.get_rank()
    inner = model.module if hasattr(model, "module") else model
    kill = inner[2].register_forward_pre_hook
    if rank == 1:
        kill(lambda *_: os.kill(os.getpid(), signal.SIGKILL), prepend=True)
    before = state(model)
    said = message(lambda: fastinit.lsuv_(model, mine(data(), parts, rank)))
    assert all(map(torch.equal, state(model), before))
    return said


@pytest.mark.parametrize("layout", ["FSDP2", "DDP"])
def test_a_rank_that_dies_ends_the_others(layout: str) -> None:
    with Ranks(WORLD) as four:
        answers = four.answers(with_one_that_dies, layout, timeout=60)
    assert answers[1] == (False, "its process ended")
    for good, said in (answers[rank] for rank in (0, 2, 3)):
        assert good, said
        assert said.startswith("RanksLost: in lsuv_"), said


@pytest.mark.parametrize("layout", cases(LAYOUTS, {"FSDP2", "a group", "columns, then rows"}))
@on_ranks(WORLD)
def test_a_batch_without_rows_is_what_it_is_in_one_process(layout: str) -> None:
    shard, parts = LAYOUTS[layout]
    plain, x = net(), data()[:0]
    model = shard(copy.deepcopy(plain))
    group = {"group": dist.group.WORLD} if layout == "a group" else {}
    before = [shards.local(parameter).clone() for parameter in model.parameters()]
    said = message(lambda: fastinit.lsuv_(model, mine(x, parts, dist.get_rank()), **group))
    assert said == message(lambda: fastinit.lsuv_(plain, x))
    assert "has fewer than two values" in said
    assert all(map(torch.equal, map(shards.local, model.parameters()), before))
