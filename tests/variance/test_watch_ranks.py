"""A watch of several ranks sees what a watch of the whole model on the whole batch sees."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from ranks import on_ranks, pool
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from watched_ranks import WORLD, Block, assert_alike, ddp, inputs, mesh_of

import fastinit
from fastinit.base import ranks as group_of


class Net(nn.Module):
    """[B, 8] -> [B, 3], with dead units, an embedding, a layer of zeros and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.zeros = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=generator)
            self.up.weight[3:6] = 0  # three units whose output never varies
            self.zeros.weight.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for _ in range(2):
            x = x + self.down(self.up(x).relu())
        return self.head(x + self.zeros(x))


def tokens() -> Tensor:
    return torch.randint(11, (4 * WORLD, 2), generator=torch.Generator().manual_seed(2))


def seen(model: nn.Module, x: Tensor, group: Any, **options: Any) -> str:
    """The table, and all numbers."""
    every = {"gradients": True, "inputs": True, "weight_gradients": True}
    with fastinit.watch(model, group=group, **every, **options) as watched:
        out = model(x)
        out = out.full_tensor() if isinstance(out, DTensor) else out
        out.square().sum().backward()
    assert watched.table()
    return watched.to_json()


def whole() -> str:
    return seen(Net(), tokens(), None)


def in_parallel(model: nn.Module, mesh: DeviceMesh, rows: Any = None, **options: Any) -> None:
    plan = {
        "up": ColwiseParallel(**options),
        "down": RowwiseParallel(**(rows or {})),
        "zeros": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)


def fsdp(model: nn.Module) -> tuple[nn.Module, int, int]:
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh_of(WORLD))
    return model, dist.get_rank(), WORLD


def hsdp(model: nn.Module) -> tuple[nn.Module, int, int]:
    return fully_shard(model, mesh=mesh_of(2, 2)), dist.get_rank(), WORLD


def tensor_parallel(model: nn.Module) -> tuple[nn.Module, int, int]:
    in_parallel(model, mesh_of(WORLD))
    return model, 0, 1


def both(model: nn.Module) -> tuple[nn.Module, int, int]:
    mesh = mesh_of(2, 2)
    in_parallel(model, mesh["tensor"])
    return fully_shard(model, mesh=mesh["data"]), mesh.get_local_rank("data"), 2


def columns_as_dtensors(model: nn.Module) -> tuple[nn.Module, int, int]:
    in_parallel(model, mesh_of(WORLD), use_local_output=False)
    return model, 0, 1


WAYS: dict[str, Callable[[nn.Module], tuple[nn.Module, int, int]]] = {
    way.__name__: way for way in (fsdp, hsdp, ddp, tensor_parallel, both, columns_as_dtensors)
}


def watched_by(way: str) -> str:
    model, batch, batches = WAYS[way](Net())
    return seen(model, tokens().chunk(batches)[batch], dist.group.WORLD)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_see_what_the_whole_model_shows(way: str) -> None:
    first, *others = pool(WORLD).run(watched_by, way)
    expected = whole()
    if way == "ddp":
        expected = expected.replace('"name": "', '"name": "module.')
    mean_of = {"fsdp": 4, "hsdp": 4, "ddp": 4, "both": 2}.get(way, 1)
    assert_alike(first, expected, mean_of=mean_of)
    assert all(other == first for other in others)


def told_by(directory: str) -> list[int]:
    model, batch, batches = fsdp(Net())
    steps: list[int] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with fastinit.watch(
        model,
        group=dist.group.WORLD,
        every=2,
        to=[f"{directory}/stats.jsonl", lambda measured: steps.append(measured.step)],
        optimizer=optimizer,
    ) as watched:
        for _ in range(4):
            model(tokens().chunk(batches)[batch]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watched.layers[0].forward.count == 8 * tokens().numel()
    return steps


def test_of_whole_trainings_the_first_rank_tells(tmp_path: Path) -> None:
    told = pool(WORLD).run(told_by, str(tmp_path))
    assert told == [[0, 2], [], [], []]
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2]


def shared_rows(down: RowwiseParallel | None, **options: Any) -> str:
    model, mesh = Block(), mesh_of(WORLD)
    columns = ColwiseParallel(**options)
    parallelize_module(model, mesh, {"up": columns, **({"down": down} if down else {})})
    return seen(model, inputs(), mesh)


OUTPUTS: dict[str, Callable[[], str]] = {
    # Uneven: 10 rows on 4 ranks. Of what is sharded by rows a rank has a plain tensor.
    "sequence parallel": lambda: shared_rows(RowwiseParallel(output_layouts=Shard(0))),
    "rows as DTensors": lambda: shared_rows(
        RowwiseParallel(output_layouts=Shard(0), use_local_output=False)
    ),
    "replicated DTensors": lambda: shared_rows(
        RowwiseParallel(output_layouts=Replicate(), use_local_output=False)
    ),
}


def outputs(case: str) -> str:
    return OUTPUTS[case]()


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_ranks_share_count_once(case: str) -> None:
    first, *others = pool(WORLD).run(outputs, case)
    assert_alike(first, seen(Block(), inputs(), None))
    assert all(other == first for other in others)


@on_ranks(WORLD)
def test_parts_of_a_sum_are_no_output() -> None:
    model, mesh = Block(), mesh_of(WORLD)
    rows = RowwiseParallel(output_layouts=Partial(), use_local_output=False)
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": rows})
    with fastinit.watch(model, group=mesh) as watched:
        model(inputs())
    assert [layer.name for layer in watched.layers] == ["up"]
    assert "placement Partial" in watched.missing["down"]


class Summed(nn.Module):
    """Its output is on its way when the hooks see it."""

    def forward(self, x: Tensor) -> Tensor:
        return funcol.all_reduce(x, "sum", dist.group.WORLD)


@on_ranks(WORLD)
def test_outputs_that_are_on_their_way_are_waited_for() -> None:
    model = nn.Sequential(Summed(), nn.ReLU())
    x = inputs()
    with fastinit.watch(model, layers=Summed, group=dist.group.WORLD) as watched:
        out = model(x)
    assert watched.layers[0].forward.count == x.numel()  # the same on all: once
    assert watched.layers[0].forward.max == (WORLD * x).max()
    assert out.sum() > 0


@on_ranks(WORLD)
def test_who_looks_at_it_alone_waits_for_nobody() -> None:
    """As a notebook does that shows what a rank has."""
    model, shown = Net(), list[bool]()
    for every in (None, 1):
        w = fastinit.watch(model, group=dist.group.WORLD, every=every)
        for stage in ("before", "within", "after"):
            if stage == "within":
                with w:
                    for _ in range(2):
                        model(tokens())
                        if dist.get_rank() == 0:
                            shown.append("<table>" in (w._repr_html_() or repr(w)))
                        if every:
                            w.step()
            elif dist.get_rank() == 0:
                shown.append("<table>" in (w._repr_html_() or repr(w)))
    if dist.get_rank() == 0:
        assert shown == [False, False, False, True, False, False, False, True]
    assert len(group_of.same(None, [1])) == 1  # nobody is ahead


@on_ranks(WORLD)
def test_one_batch_counts_once_and_batches_add_up() -> None:
    model, rank = Net(), dist.get_rank()
    alike, some = tokens()[:2], tokens().chunk(WORLD)[rank]
    for x, count in ((alike, 4), (some, 4 * len(some) * 2)):
        with fastinit.watch(model, group=dist.group.WORLD) as watched:
            model(x)
        by_name = {layer.name: layer for layer in watched.layers}
        assert by_name["head"].forward.count == 3 * count
        assert (
            by_name["zeros"].forward.zeros == 8 * count
        )  # that of each rank's batch, alike or not
        assert by_name["up"].dead == 3


# --- errors ----------------------------------------------------------------------------------------


@on_ranks(WORLD)
def test_an_error_in_the_block_is_one_on_all_ranks() -> None:
    model, rank = Block(), dist.get_rank()
    watch = fastinit.watch(model, group=dist.group.WORLD)
    said = ""
    try:
        with watch:
            model(inputs())
            if rank == 1:
                raise ZeroDivisionError("in the step")
    except (ZeroDivisionError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    heard = "ZeroDivisionError: in the step"
    assert said == (heard if rank == 1 else f"RanksError: rank 1 failed: {heard}")
    assert not model.up._forward_hooks
    assert watch.layers[0].forward.count == 120  # what this rank saw until then
    with watch:
        model(inputs())
    assert watch.layers[0].forward.count == 120
    if rank == 0:  # alone, and nobody waits
        assert "up" in watch.table()
        assert pickle.loads(pickle.dumps(watch)).to_json() == watch.to_json()


ARGUMENTS = {
    "a layer that is not there": {"layers": ["nope"]},
    "no whole number": {"every": 0.5},
    "no file": {"every": 1, "to": "/"},
    "no flag": {"higher": 3},
    "no blocks": {"residual": True},
}


@pytest.mark.parametrize("why", ARGUMENTS)
@on_ranks(WORLD)
def test_an_argument_that_is_no_good_on_one_rank_is_an_error_on_all(why: str) -> None:
    model, options = nn.Sequential(nn.Linear(8, 8)), dict(ARGUMENTS[why])
    others = {"every": 1} if "every" in options else {}
    mine: dict[str, Any] = options if dist.get_rank() == 0 else others
    said = ""
    try:
        with fastinit.watch(model, group=dist.group.WORLD, **mine):
            model(torch.ones(2, 8))
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    assert said.startswith("RanksError: rank 0 failed: ") == (dist.get_rank() != 0)
    assert said
    assert not model[0]._forward_hooks


@on_ranks(2)
def test_plain_parts_are_said_to_be_parts() -> None:
    """As Megatron marks them; of a layer that is whole nothing is said."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    for dim, layer in enumerate(model[:2]):
        layer.weight.tensor_model_parallel, layer.weight.partition_dim = True, dim
    with fastinit.watch(model) as w:
        model(torch.ones(2, 6))
    assert ["this rank's part" in row.note for row in w.layers] == [True, True, False]
    assert [row.fan_in for row in w.layers] == [6, 4, 6]


@pytest.mark.parametrize("shard", [tensor_parallel, fsdp])
@on_ranks(WORLD)
def test_a_batch_without_rows_has_no_values(shard: Callable[[nn.Module], Any]) -> None:
    model, x = shard(Net())[0], tokens()[:0, 0]  # torch cannot view [0, 2, 16] by columns of ranks
    got, expected = (
        json.loads(seen(m, x, g)) for m, g in ((model, dist.group.WORLD), (Net(), None))
    )
    for a, b in zip(got["layers"], expected["layers"], strict=True):
        for moments in ("forward", "backward", "input", "weight"):
            assert (a[moments] or {}).get("count") == (b[moments] or {}).get("count"), moments
        assert a["forward"]["count"] == 0
