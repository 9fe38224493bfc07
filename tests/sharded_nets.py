"""A small net, sharded and replicated in all ways, for what is to be as of the whole one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastinit.variance.lsuv.result import LSUVResult

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

WORLD = 4
ROWS = 24
# Merging rounds float64 moments once more for each rank, and a BLAS may sum a product of fewer rows, or
# of a part of the columns, in another order: both some 1e-16 of the sums, which have up to 20 terms.
EXACT = 1e-12


def net() -> nn.Sequential:
    """Of sizes that four ranks cannot share evenly, and with biases that matter."""
    torch.manual_seed(0)
    layers = nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 7)
    return nn.Sequential(*layers).double()


def data() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, 12, dtype=torch.float64)


def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("outer", "inner")[-len(shape) :])


def fsdp(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for layer in list(model.children())[::2]:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tp(model: nn.Module, mesh: DeviceMesh, *plan: Any) -> nn.Module:
    return parallelize_module(model, mesh, dict(zip(("0", "2", "4"), plan)))


def fsdp_over_tp(model: nn.Module) -> nn.Module:
    mesh = mesh_of(2, 2)
    return fsdp(tp(model, mesh["inner"], ColwiseParallel(), RowwiseParallel()), mesh["outer"])


def copies_over_tp(model: nn.Module) -> nn.Module:
    """Replicated over a group that the model does not know of."""
    return tp(model, mesh_of(2, 2)["inner"], ColwiseParallel(), RowwiseParallel())


def sequence(model: nn.Module) -> nn.Module:
    """Rows of one batch between the layers, as of a sequence."""
    rows, columns = {"input_layouts": Shard(0)}, {"output_layouts": Shard(0)}
    plan = (
        ColwiseParallel(**rows),
        RowwiseParallel(**columns),
        ColwiseParallel(**rows, **columns),
    )
    return tp(model, mesh_of(4), *plan)


def dtensors(model: nn.Module) -> nn.Module:
    local = {"use_local_output": False}
    return tp(
        model, mesh_of(4), *(kind(**local) for kind in (ColwiseParallel, RowwiseParallel) * 2)
    )


def gathered(model: nn.Module) -> nn.Module:
    """FSDP2 whose parameters are whole when lsuv_ is called."""
    fsdp(model, mesh_of(4), reshard_after_forward=False)(data())
    return model


def replicated(model: nn.Module) -> nn.Module:
    """The composable DistributedDataParallel, which its first forward sets up."""
    model = replicate(model)
    model(data())
    return model


# Each with how many parts there are of the batch: ranks that are no more have one in turns.
LAYOUTS: dict[str, tuple[Callable[[nn.Module], nn.Module], int]] = {
    "FSDP2": (lambda model: fsdp(model, mesh_of(4)), 4),
    "FSDP2 of the whole": (lambda model: fully_shard(model, mesh=mesh_of(4)), 4),
    "FSDP2, gathered": (gathered, 4),
    "FSDP2, one batch": (lambda model: fsdp(model, mesh_of(4)), 1),
    "HSDP": (lambda model: fsdp(model, mesh_of(2, 2)), 4),
    "DDP": (nn.parallel.DistributedDataParallel, 4),
    "DDP, one batch": (nn.parallel.DistributedDataParallel, 1),
    "DDP, composable": (replicated, 4),
    "a group": (lambda model: model, 4),
    "columns, then rows": (
        lambda model: tp(model, mesh_of(4), ColwiseParallel(), RowwiseParallel()),
        1,
    ),
    "columns, gathered": (
        lambda model: tp(model, mesh_of(4), *[ColwiseParallel(output_layouts=Replicate())] * 3),
        1,
    ),
    "parts of a sequence": (sequence, 4),
    "DTensors": (dtensors, 1),
    "FSDP2 over columns": (fsdp_over_tp, 2),
    "a group over columns": (copies_over_tp, 2),
}


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def named(result: LSUVResult) -> list[tuple[Any, ...]]:
    """All that a result says, with the names of the model that is wrapped."""
    return [
        (
            *(m.name.removeprefix("module."), m.scale, m.shift, m.std, m.before.var),
            *(m.before.count, m.iterations, m.calls, m.note),
        )
        for m in result.layers
    ]


def same(got: LSUVResult, expected: LSUVResult) -> None:
    for ours, theirs in zip(named(got), named(expected), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1:5] == pytest.approx(theirs[1:5], rel=EXACT, abs=EXACT), (ours, theirs)
        assert ours[5:] == theirs[5:], (ours, theirs)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, repr(got.layers))
    assert len(set(everywhere)) == 1


def mine(x: Tensor, parts: int, rank: int) -> Tensor:
    return x.chunk(parts)[rank * parts // WORLD]
