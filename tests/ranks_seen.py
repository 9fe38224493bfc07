"""Any rank of any mesh seen from one process, and models that real ranks shard."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from dtensors import distributed
from same_bits import assert_values
from torch import nn

import fastinit
from fastinit.base import ranks
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

WORLD = 4


@contextmanager
def as_rank(rank: int, world: int = WORLD) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        with mock.patch.object(ranks, "PATIENCE", 0.0):  # nobody is there to hear of an error
            yield
    finally:
        dist.destroy_process_group()


def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    """All ranks in order. Named by rank, as torch caches meshes, with their rank, by equality."""
    names = tuple(f"rank{dist.get_rank()}_{dim}" for dim in range(len(shape)))
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def sharded(full: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """Of this rank; its own copy, split by torch."""
    return distributed(full.clone(), mesh, placements)


def normal(*_: object) -> Fill:
    return Fill.normal()


def one(tensor: torch.Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(tensor))
    return model


def whole(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a plan writes where nothing is sharded."""
    return Plan({"w": fill}, seed=5).apply_(one(torch.zeros(shape, dtype=dtype))).w.detach()


# --- real processes ------------------------------------------------------------------------------


class Net(nn.Module):
    """[B, 6] -> [B, 5]: layers of uneven sizes, a buffer, an embedding's row of zeros, QR."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 9)
        self.norm = nn.BatchNorm1d(9)
        self.down = nn.Linear(9, 5, bias=False)
        self.table = nn.Embedding(7, 6, padding_idx=3)
        nn.init.orthogonal_(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x + self.table.weight.sum(0))).relu())


def recorded() -> tuple[Net, Plan]:
    with fastinit.deferred(seed=3):
        model = Net()
    return model, fastinit.recorded_plan(model)


def check(model: nn.Module, plan: Plan) -> None:
    """Gathers what all ranks have written."""
    plain = plan.apply_(Net())
    for (name, got), expected in zip(model.named_parameters(), plain.parameters()):
        assert isinstance(got, DTensor), name
        assert_values(got.full_tensor(), expected, plan[name].distribution, name)
    x = torch.arange(24.0).view(4, 6)
    torch.testing.assert_close(model(x), plain(x))


def fsdp() -> None:
    """Deferred, planned, sharded, then written; from meta in two ways, and over again."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model, plan = recorded()
    fully_shard(model.up, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match=r"take plan = recorded_plan\(model\) before fully_shard"):
        fastinit.materialize_(model)
    plan.apply_(model, device="cpu")
    check(model, plan)
    # Now the root's parameters are whole: what is written must not be dropped with them.
    assert not isinstance(model.down.weight, DTensor)
    again = Plan(dict(plan), seed=plan.seed + 1, aliases=plan.aliases)
    again.apply_(model)
    model.norm.reset_running_stats()
    check(model, again)

    model, plan = recorded()
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    model.norm.reset_running_stats()  # to_empty empties buffers as well
    plan.apply_(model)
    check(model, plan)


def fsdp_in_parts() -> None:
    """A dtype is that of shards, whatever FSDP2 computes in; a part is written for itself."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"up": nn.Linear(6, 9), "down": nn.Linear(9, 5)})

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        with fastinit.deferred(seed=3):
            model = build()
        plan = fastinit.recorded_plan(model)
        for layer in model.values():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        plan.apply_(model, device="cpu", dtype=dtype)
        plain = plan.apply_(build().to(dtype))
        optimizer = torch.optim.Adam(model.parameters())
        hidden = model["up"](torch.ones(4, 6))
        assert hidden.dtype == torch.bfloat16
        model["down"](hidden).sum().backward()
        optimizer.step()
        for parameter in model.parameters():
            assert parameter.dtype == parameter.to_local().dtype == dtype
            assert optimizer.state[parameter]["exp_avg"].dtype == dtype
        stepped = model["down"].weight.full_tensor()
        assert not torch.equal(stepped, plain["down"].weight)
        plan.apply_(model, only="up.*", dtype=dtype)
        assert torch.equal(model["down"].weight.full_tensor(), stepped)
        assert torch.equal(model["up"].weight.full_tensor(), plain["up"].weight)
        plan.apply_(model["down"], prefix="down.")
        assert torch.equal(model["down"].weight.full_tensor(), plain["down"].weight)
        with pytest.raises(ValueError, match=r"memory of another dtype.*up\.weight"):
            plan.apply_(model, dtype=torch.float64, only="up.*")

    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5))
    plan = Plan.from_model(model, fastinit.recipes.torch_default, seed=3)
    fully_shard(model, mesh=mesh)
    model(torch.ones(4, 6))  # all of it is gathered together, and its parts are not told
    assert not isinstance(model[1].weight, DTensor)
    plan.apply_(model[1], prefix="1.")
    plain = plan.apply_(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5)))
    assert torch.equal(model[1].weight.full_tensor(), plain[1].weight)


def fsdp_and_tensor_parallel() -> None:
    """On (2, 2) ranks: FSDP2 over column- and row-wise parallel layers."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))

    with fastinit.deferred(seed=3):
        model = build()
    plan = fastinit.recorded_plan(model)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    strided = [
        name
        for name, parameter in model.named_parameters()
        if any(isinstance(p, _StridedShard) for p in parameter.placements)
    ]
    assert strided == ["0.weight", "0.bias"]
    plan.apply_(model, device="cpu")
    plain = plan.apply_(build())
    for got, expected in zip(model.parameters(), plain.parameters()):
        assert torch.equal(got.full_tensor(), expected)
    x = torch.arange(24.0).view(4, 6)
    torch.testing.assert_close(model(x), plain(x))
