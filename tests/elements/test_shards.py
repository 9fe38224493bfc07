"""Shards: each rank's part of a DTensor is the slice of the whole parameter, without communication.

Tests see any rank of any mesh from one process (torch's fake process group, whose collectives do
nothing: what needed one would be wrong here). What is behind them is for real processes, which
test_ranks runs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import warm
from dtensors import distributed
from same_bits import assert_values
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import init
from fastinit.base import ranks
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.fills import operator as ops
from fastinit.plan import write
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.stream import laws

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
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


def one(tensor: torch.Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(tensor))
    return model


def whole(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a plan writes where nothing is sharded."""
    return Plan({"w": fill}, seed=5).apply_(one(torch.zeros(shape, dtype=dtype))).w.detach()


LAYOUTS = [
    ((4,), [Shard(0)], (8, 3)),
    ((4,), [Shard(0)], (5, 3)),  # 2, 2, 1 and nothing
    ((4,), [Shard(0)], (1, 7)),
    ((4,), [Shard(1)], (5, 7)),
    ((4,), [Shard(0)], (0, 3)),
    ((4,), [Shard(2)], (3, 2, 5, 2)),
    ((4,), [Replicate()], (5, 3)),
    ((2, 2), [Shard(0), Shard(1)], (5, 7)),
    ((2, 2), [Shard(1), Shard(1)], (3, 7)),
    ((2, 2), [Replicate(), Shard(1)], (5, 7)),
    ((2, 2), [Shard(0), Replicate()], (7,)),
    ((4, 1), [Shard(0), Replicate()], (7, 2)),
    ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)], (8, 3)),  # FSDP2 over parallel columns
    ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)], (5, 3)),
    ((2, 2), [_StridedShard(0, split_factor=2), Replicate()], (9, 3)),  # several blocks a rank
    ((2, 2), [_StridedShard(0, split_factor=3), _StridedShard(1, split_factor=2)], (11, 9)),
    ((4,), [_StridedShard(1, split_factor=3)], (3, 29, 2)),
]


@pytest.mark.parametrize(("mesh_shape", "placements", "shape"), LAYOUTS)
def test_every_rank_writes_its_slice_of_the_whole(mesh_shape, placements, shape) -> None:
    plan, full = Plan({"w": Fill.normal()}, seed=5), whole(Fill.normal(), shape)
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of(mesh_shape)
            model = one(sharded(torch.zeros(shape), mesh, placements))
            parameter, address = model.w, shard.local(model.w).data_ptr()
            plan.apply_(model)
            expected = sharded(full, mesh, placements).to_local()
            assert torch.equal(shard.local(model.w), expected)
            assert model.w is parameter
            assert shard.local(model.w).data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize(
    "fill", [Fill.uniform(-1, 2), Fill.truncated_normal(), Fill.constant(0.5)], ids=str
)
def test_every_law_and_dtype(fill: Fill, dtype: torch.dtype) -> None:
    if dtype.is_complex and fill.distribution == "truncated_normal":
        pytest.skip("no such law")
    full = whole(fill, (5, 7), dtype)
    for rank in range(WORLD):
        with as_rank(rank):
            mesh, placements = mesh_of((2, 2)), [Shard(1), Shard(0)]
            model = one(sharded(torch.zeros(5, 7, dtype=dtype), mesh, placements))
            Plan({"w": fill}, seed=5).apply_(model)
            assert torch.equal(shard.local(model.w), sharded(full, mesh, placements).to_local())


class Sizes(TorchDispatchMode):
    """Sees how large the tensors are that operations give, but for those without values."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if type(out) is torch.Tensor and not out.is_meta:
            self.largest = max(self.largest, out.numel())
        return out


def _of_blocks() -> Fill:
    view = torch.empty(9, 8, device="meta")
    fill = Fill.normal().with_part(view[3], Fill.constant(0.0))
    fill = fill.with_part(view[:, 2:7], Fill.uniform(5.0, 6.0))
    return fill.with_part(view[6:8, 1:3], Fill.constant(9.0))


def _of_many_blocks() -> Fill:
    view = torch.empty(9, 8, device="meta")
    fill = Fill.normal().with_part(view[::2, 1::3], Fill.uniform(5.0, 6.0))
    return fill.with_part(view.flatten()[5:21], Fill.constant(0.0))


def _of_its_own() -> Fill:
    """Turned, over the ends of rows, and with steps."""
    view = torch.empty(9, 8, device="meta")
    ramp = Fill.arange(1.0, 1.0, 0).then("log")
    fill = (
        Fill.uniform(0.5, 2.0).then("log").scaled(3.0).with_part(view[1:4, 2:7].T, ramp, own=True)
    )
    fill = fill.with_part(view.flatten()[37:52], Fill.normal(), own=True)
    return fill.with_part(view[::3, 1], Fill.normal().then("exp"))


def _of_an_orthogonal_part() -> Fill:
    part = torch.empty(9, 8, device="meta")[2:6]
    return Fill.normal().with_part(part, Fill.orthogonal(), own=True)


def _fused() -> Fill:
    """Two heads of q, k and v, of 3 inputs each by turns."""
    view = torch.empty(3, 3, 2, 4, device="meta")
    fills = (Fill.normal(), Fill.uniform(), Fill.arange(dim=1))
    return Fill.fused({f"w{i}": (view[:, i], fill) for i, fill in enumerate(fills)})


@pytest.mark.parametrize(
    ("fill", "by_blocks"),
    [
        (_of_blocks(), True),
        (_of_many_blocks(), True),
        (_of_its_own(), True),
        (_fused(), True),
        (Fill.arange(-1.0, 0.25, 0).then("tanh"), True),
        (_of_an_orthogonal_part(), False),
        (Fill.orthogonal().scaled(2.0), False),
        (Fill.sparse(0.3), False),
        (Fill.eye(), False),
    ],
    ids=[
        "blocks",
        "many blocks",
        "own",
        "fused",
        "ramp",
        "own orthogonal",
        "orthogonal",
        "sparse",
        "eye",
    ],
)
def test_parts_and_distributions_of_whole_tensors(fill: Fill, by_blocks: bool) -> None:
    full = whole(fill, (9, 8))
    sizes = Sizes()
    for layout in ([Shard(0), Shard(0)], [Shard(1), Shard(0)], [Replicate(), Shard(1)]):
        for rank in range(WORLD):
            with as_rank(rank):
                mesh = mesh_of((2, 2))
                model = one(sharded(torch.zeros(9, 8), mesh, layout))
                version = model.w._version
                with sizes:
                    Plan({"w": fill}, seed=5).apply_(model)
                expected = sharded(full, mesh, layout).to_local()
                assert_values(shard.local(model.w), expected, str(fill))
                assert model.w._version > version
    assert (sizes.largest < full.numel()) == by_blocks  # which never take the memory of the whole


def test_a_part_of_too_many_blocks_is_written_by_way_of_the_whole(monkeypatch) -> None:
    fill = _of_its_own()
    full = whole(fill, (9, 8))
    monkeypatch.setattr(write, "BLOCKS", 2)
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((2, 2))
            model = one(sharded(torch.zeros(9, 8), mesh, [Shard(1), Shard(0)]))
            with Sizes() as sizes:
                Plan({"w": fill}, seed=5).apply_(model)
            assert sizes.largest == full.numel()
            assert torch.equal(
                shard.local(model.w), sharded(full, mesh, [Shard(1), Shard(0)]).to_local()
            )


def test_a_local_tensor_of_any_strides() -> None:
    full = whole(Fill.normal(), (8, 6))
    with as_rank(2):
        mesh = mesh_of((4,))
        local = torch.zeros(12, 4)[::2, ::2].t()  # [2, 6]
        dtensor = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        Plan({"w": Fill.normal()}, seed=5).apply_(one(dtensor))
        assert torch.equal(local, full[4:6])


def test_dims_that_shard_in_an_order_of_their_own() -> None:
    spec = pytest.importorskip("torch.distributed.tensor._dtensor_spec")
    if not hasattr(spec, "ShardOrderEntry"):
        pytest.skip("a torch without shard orders")
    full = init.normal_(torch.empty(8, 3), seed=5)
    starts = []
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((2, 2))
            layout = spec.DTensorSpec(
                mesh,
                (Shard(0), Shard(0)),
                tensor_meta=spec.TensorMeta(torch.Size((8, 3)), (3, 1), torch.float32),
                shard_order=(spec.ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0)),),
            )
            dtensor = DTensor(torch.zeros(2, 3), layout, requires_grad=False)
            init.normal_(dtensor, seed=5)  # no parameter: torch forgets the order in making one
            (piece,) = shard.pieces(dtensor)
            starts.append(piece.which.start[0])
            assert torch.equal(dtensor.to_local(), full[starts[-1] : starts[-1] + 2])
    assert starts == [0, 4, 2, 6]


@pytest.mark.parametrize(
    ("mesh_shape", "turns", "made"),
    [
        ((4, 2), (2, 1), (1, 0)),  # FSDP2 over tensor parallelism
        ((2, 4), (4, 1), (1, 0)),
        ((2, 2, 2), (4, 1, 1), (1, 2, 0)),
        ((2, 2, 2), (2, 2, 1), (2, 0, 1)),
        ((4, 1, 2), (2, 1, 1), (1, 2, 0)),
    ],
)
def test_strided_shards_of_any_size_are_what_was_cut_last(mesh_shape, turns, made) -> None:
    """Also where torch, which deals indices out in turns, would distribute others."""
    placements = [_StridedShard(0, split_factor=n) if n > 1 else Shard(0) for n in turns]
    for rank in range(world := math.prod(mesh_shape)):
        with as_rank(rank, world):
            mesh = mesh_of(mesh_shape)
            for size in range(1, 28):
                held = Part((size,))
                for dim in made:
                    held = held.chunk(0, mesh_shape[dim], mesh.get_coordinate()[dim])
                local = torch.empty(held.local_shape)
                tensor = DTensor.from_local(
                    local, mesh, placements, run_check=False, shape=(size,), stride=(1,)
                )
                assert shard.part_of(tensor) == held


def test_a_rank_outside_the_mesh_writes_nothing() -> None:
    with as_rank(3):
        mesh = DeviceMesh("cpu", [0, 1], _init_backend=False)
        model = one(DTensor.from_local(torch.zeros(0), mesh, [Shard(0)], run_check=False))
        assert shard.pieces(model.w) == []
        Plan({"w": Fill.normal()}, seed=5).apply_(model)


@pytest.mark.parametrize("order", [[1, 0], [[0, 3], [2, 1]], [[2, 3], [0, 1]]])
def test_a_mesh_whose_ranks_are_not_in_order_is_refused_where_it_cuts(order: list[Any]) -> None:
    """torch's offsets are by places in the mesh, its collectives by ranks."""
    with as_rank(1):
        mesh = DeviceMesh("cpu", order, _init_backend=False)
        everywhere: list[Placement] = [Replicate()] * mesh.ndim
        for dim in range(mesh.ndim):
            cut = [*everywhere[:dim], Shard(0), *everywhere[dim + 1 :]]
            local = torch.zeros(2, 3)
            dtensor = DTensor.from_local(
                local, mesh, cut, run_check=False, shape=(4, 3), stride=(3, 1)
            )
            if all(
                sorted(line) == line for line in mesh.mesh.movedim(dim, -1).view(-1, 2).tolist()
            ):
                assert shard.pieces(dtensor)
                continue
            with pytest.raises(NotImplementedError, match=r"ascending order.*sort the ranks"):
                Plan({"w": Fill.normal()}, seed=5).apply_(one(dtensor))
            assert not local.any()
        whole = DTensor.from_local(torch.zeros(4, 3), mesh, everywhere, run_check=False)
        assert shard.pieces(whole)


def test_a_partial_or_ill_shaped_tensor_is_refused_and_nothing_written() -> None:
    plan = Plan({"a": Fill.normal(), "w": Fill.normal()})
    with as_rank(0):
        mesh = mesh_of((4,))
        for placement, shape, message in (
            (Partial(), (4, 2), r"w is a DTensor with placement Partial.*redistribute\(\)"),
            (Shard(0), (4, 2), r"w is a DTensor whose local tensor has shape \(4, 2\), but its"),
        ):
            dtensor = DTensor.from_local(
                torch.zeros(shape), mesh, [placement], run_check=False, shape=(9, 2), stride=(2, 1)
            )
            model = one(dtensor)
            model.a = nn.Parameter(torch.zeros(4))
            with pytest.raises(NotImplementedError, match=message):
                plan.apply_(model)
            assert not model.a.any()
            with pytest.raises(NotImplementedError, match=r"\.tensor is a DTensor w"):
                init.normal_(dtensor, seed=1)


def test_functions_of_init_write_the_shard() -> None:
    full = init.kaiming_normal_(torch.empty(9, 6), seed=4, name="w")
    drawn = init.normal_(torch.empty(9, 6), generator=torch.Generator().manual_seed(3))
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            w = nn.Parameter(sharded(torch.zeros(9, 6), mesh, [Shard(0)]))
            versions = w._version, shard.local(w)._version
            assert init.kaiming_normal_(w, seed=4, name="w") is w
            assert torch.equal(shard.local(w), sharded(full, mesh, [Shard(0)]).to_local())
            assert w._version > versions[0]
            assert shard.local(w)._version > versions[1] or not shard.local(w).numel()
            init.normal_(w, generator=torch.Generator().manual_seed(3))
            assert torch.equal(shard.local(w), sharded(drawn, mesh, [Shard(0)]).to_local())
            assert (shard.local(init.ones_(w)) == 1).all()


def test_what_cannot_be_written_by_shards_says_so() -> None:
    with as_rank(1):
        mesh = mesh_of((4,))
        w = sharded(torch.zeros(9, 6), mesh, [Shard(0)])
        with pytest.raises(ValueError, match="seed and generator exclude"):
            init.normal_(w, seed=1, generator=torch.Generator())
        with pytest.raises(NotImplementedError, match="DTensor, which has a window of its own"):
            ops.fill_(w, laws.normal(), seed=1, window=ops.Window((6, 1)))
        assert not w.to_local().any()
        meta = sharded(torch.zeros(9, 6, device="meta"), mesh, [Shard(0)])
        assert init.normal_(meta) is meta  # as any meta tensor


def test_progress_counts_this_rank() -> None:
    with as_rank(1):
        model = one(sharded(torch.zeros(9, 6), mesh_of((4,)), [Shard(0)]))
        calls: list[tuple[int, int]] = []
        Plan({"w": Fill.normal()}).apply_(model, progress=lambda *call: calls.append(call))
        assert calls == [(18, 18)]


def test_meta_parameters_get_memory_for_the_shard_only() -> None:
    full = whole(Fill.normal(), (9, 6))
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            model = one(sharded(torch.empty(9, 6, device="meta"), mesh, [Shard(0)]))
            model.w.note = "kept"
            model.w.requires_grad_(False)
            with pytest.raises(ValueError, match="device='cpu'"):
                Plan({"w": Fill.normal()}, seed=5).apply_(model)
            Plan({"w": Fill.normal()}, seed=5).apply_(model, device="cpu")
            local = shard.local(model.w)
            assert isinstance(model.w, DTensor)
            assert isinstance(model.w, nn.Parameter)
            assert torch.equal(local, sharded(full, mesh, [Shard(0)]).to_local())
            assert local.untyped_storage().nbytes() == 4 * local.numel()
            assert (model.w.note, model.w.requires_grad) == ("kept", False)


def test_a_record_is_lost_by_sharding_and_the_error_says_what_to_do() -> None:
    with fastinit.deferred():
        model = nn.Linear(4, 8)
    with as_rank(0):
        mesh = mesh_of((4,))
        model.weight = nn.Parameter(sharded(model.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(
            ValueError, match=r"tensor weight;.*take plan = recorded_plan\(model\) b"
        ):
            fastinit.materialize_(model)


def test_computed_parameters_are_sliced() -> None:
    def build() -> nn.Module:
        model = nn.Linear(6, 9)
        with torch.no_grad():
            model.weight.copy_(torch.linalg.qr(model.weight)[0])
            model.bias.copy_(torch.arange(9.0))
        return model

    with fastinit.deferred(seed=5):
        model = build()
    plan = fastinit.recorded_plan(model)
    full = fastinit.materialize_(model)
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            here = nn.Linear(6, 9)
            for name, parameter in here.named_parameters():
                setattr(here, name, nn.Parameter(sharded(parameter.detach(), mesh, [Shard(0)])))
            plan.apply_(here)
            for a, b in zip(here.parameters(), full.parameters()):
                expected = sharded(b.detach(), mesh, [Shard(0)]).to_local()
                torch.testing.assert_close(shard.local(a), expected)  # torch's QR


def test_nothing_of_torch_distributed_is_imported_for_plain_tensors() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import fastinit; fastinit.init.normal_(torch.empty(3))\n"
        "sys.exit(any(m.startswith('torch.distributed') for m in set(sys.modules) - before))"
    )
    assert warm.run(code).returncode == 0


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
