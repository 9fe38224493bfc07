"""fill_missing_ of tensors that are not whole: shards, rows that a larger model has more, parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from half_loaded import assigned, build, garbage_, whole
from torch import nn

import fastinit
from fastinit import (
    DeferredError,
    Plan,
    deferred,
    fill_missing_,
    recipes,
    recorded_plan,
)


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield torch.distributed.init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["empty", "assign", "nothing"])
def test_sharded_by_fsdp2(mesh: Any, way: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    expected, model = whole(), build()
    fully_shard(model, mesh=mesh)
    loaded = DTensor.from_local(
        torch.full((2, 3), 2.0), mesh, [Shard(0)], shape=(5, 3), stride=(3, 1)
    )
    missing = None
    if way == "empty":
        garbage_(model)
    if way != "nothing":
        result = model.load_state_dict(
            {"embed.weight": loaded}, strict=False, assign=way == "assign"
        )
        missing = result.missing_keys
    done = fill_missing_(model, missing)
    assert model.out.weight is model.embed.weight
    for name, parameter in model.named_parameters():
        full = expected.get_parameter(name).chunk(2)
        part = full[1] if len(full) > 1 else full[0][:0]
        wanted = torch.full((2, 3), 2.0) if name in done.loaded else part
        assert torch.equal(parameter.to_local(), wanted), name
    assert ("embed.weight" in done.filled) == (way == "nothing")
    assert torch.equal(model.table, expected.table)
    assert torch.equal(model.noise, expected.noise)


def test_numbers_drawn_for_shards_within_a_block_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    def build() -> None:
        with deferred():
            nn.init.normal_(nn.Parameter(distribute_tensor(torch.zeros(6, 4), mesh, [Shard(0)])))

    with pytest.raises(DeferredError, match=r"normal_.* writes a tensor of .*DTensor"):
        build()


def test_a_load_into_shards_on_meta_is_seen(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    model = build()
    fully_shard(model, mesh=mesh)
    loaded = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], shape=(5, 3), stride=(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict({"embed.weight": loaded}, strict=False)
    with pytest.raises(ValueError, match=r"written on meta, .*: tensor embed.weight"):
        fill_missing_(model)


ROWS = {
    "slice": slice(4, None),
    "range": range(4, 6),
    "numbers": [5, -2],
    "tensor": torch.tensor([4, 5]),
    "bools": torch.arange(6) > 3,
}


@pytest.mark.parametrize("rows", ROWS)
def test_new_rows_are_those_of_the_larger_model(rows: str) -> None:
    plan = Plan({"weight": fastinit.Fill.normal(std=0.5)}, seed=2)
    larger = plan.apply_(nn.Embedding(6, 3))
    model = nn.Embedding.from_pretrained(torch.ones(6, 3))
    done = fill_missing_(model, {"weight": ROWS[rows]}, plan=plan)
    assert torch.equal(model.weight[4:], larger.weight[4:])
    assert torch.equal(model.weight[:4], torch.ones(4, 3))
    assert done.tensors[0].note == "rows 4:6 filled, the others loaded"


def test_rows_of_any_fill_and_of_what_is_tied() -> None:
    """A padding row is 0, as the constructor makes it; orthogonal ones are those of the whole."""
    model = whole()
    with torch.no_grad():
        model.embed.weight.fill_(9.0)
    plan = recorded_plan(build())
    done = fill_missing_(model, {"out.weight": [0, 1, 3]}, plan=plan)
    expected = whole().embed.weight
    assert torch.equal(model.embed.weight[[0, 1, 3]], expected[[0, 1, 3]])
    assert not model.embed.weight[1].any()
    assert (model.embed.weight[[2, 4]] == 9.0).all()
    assert done.tied == {"out.weight": "embed.weight"}
    linear, turned = nn.Linear(4, 4, bias=False), Plan({"weight": fastinit.Fill.orthogonal()})
    fill_missing_(linear, {"w*": [2]}, plan=turned)
    other = turned.apply_(nn.Linear(4, 4, bias=False))
    assert torch.equal(linear.weight[2], other.weight[2])
    assert not torch.equal(linear.weight, other.weight)


def test_rows_of_shards(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard

    plan = Plan({"weight": fastinit.Fill.normal()})
    larger = plan.apply_(nn.Embedding(6, 4))
    for dim, held in ((0, larger.weight[3:]), (1, larger.weight[:, 2:])):
        model = nn.Embedding(6, 4)
        model.weight = nn.Parameter(
            DTensor.from_local(torch.ones(6, 4).chunk(2, dim)[1].clone(), mesh, [Shard(dim)])
        )
        fill_missing_(model, {"weight": slice(2, 5)}, plan=plan)
        wanted = torch.ones(6, 4).chunk(2, dim)[1].clone()
        rows = slice(0, 2) if dim == 0 else slice(2, 5)
        wanted[rows] = held[rows]
        assert torch.equal(model.weight.to_local(), wanted)


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (slice(0), ValueError, None),
        ([7], ValueError, r"missing\['weight'\] must be rows of 6, but got 7"),
        (["a"], TypeError, "weight"),
        ("ab", TypeError, "must be a slice or whole numbers, but got 'ab'"),
        (torch.ones(3), TypeError, "must be of one dimension and whole"),
        (torch.ones(3, dtype=torch.bool), ValueError, "must have 6 bools, but got 3"),
    ],
)
def test_rows_must_be_rows(rows: Any, error: type[Exception], match: str | None) -> None:
    model = nn.Embedding.from_pretrained(torch.ones(6, 3))
    plan = Plan({"weight": fastinit.Fill.normal()})
    if match is not None:
        with pytest.raises(error, match=match):
            fill_missing_(model, {"weight": rows}, plan=plan)
    else:
        fill_missing_(model, {"weight": rows}, plan=plan)  # none
    assert torch.equal(model.weight, torch.ones(6, 3))


def test_rows_of_what_has_none_are_refused() -> None:
    model = build()
    assigned(model)
    with pytest.raises(ValueError, match=r"only rows are missing .*: tensor head.weight"):
        fill_missing_(model, {"head.weight": [1], "*": None})
    with pytest.raises(ValueError, match="noise has no rows"):
        fill_missing_(model, {"noise": [1]})


def test_parts_are_filled_as_parts() -> None:
    """A rank of tensor parallelism: its half of one parameter was loaded, that of another was not."""
    plan = Plan.from_model(nn.Linear(4, 6), recipes.torch_default)
    full = plan.apply_(nn.Linear(4, 6))
    model = nn.Linear(4, 3)
    halves = {n: fastinit.Part(tuple(p.shape)).chunk(0, 2, 1) for n, p in full.named_parameters()}
    kept = model.bias.detach().clone()
    fill_missing_(model, "weight", plan=plan, parts=halves)
    assert torch.equal(model.weight, full.weight[3:])
    assert torch.equal(model.bias, kept)
    fill_missing_(model, {"bias": [4]}, plan=plan, parts=halves)
    assert torch.equal(model.bias, torch.stack([kept[0], full.bias[4], kept[2]]))
