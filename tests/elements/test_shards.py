"""Shards: each rank's part of a DTensor is the slice of the whole parameter, without communication.

Tests see any rank of any mesh from one process (torch's fake process group, whose collectives do
nothing: what needed one would be wrong here). What is behind them is for real processes, which
test_ranks runs.
"""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from same_bits import assert_values
from torch.utils._python_dispatch import TorchDispatchMode

from fastinit import init
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.plan import write
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
from ranks_seen import WORLD, as_rank, mesh_of, one, sharded, whole
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

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
    from torch.distributed.tensor import _dtensor_spec as spec

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
