"""A watch of several ranks sees what a watch of the whole model on the whole batch sees."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

import torch.distributed as dist
from ranks import pool
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fastinit

WORLD = 4


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
    with fastinit.watch(model, gradients=True, group=group, **options) as watched:
        out = model(x)
        out = out.full_tensor() if isinstance(out, DTensor) else out
        out.square().sum().backward()
    assert watched.table()
    return watched.to_json()


def whole() -> str:
    return seen(Net(), tokens(), None)


def assert_alike(got: str, expected: str, but: tuple[str, ...] = ()) -> None:
    """Numbers of float32 that matrix products of other shapes gave: to 1e-5; counts are the same."""
    one, other = json.loads(got), json.loads(expected)
    assert [layer["name"] for layer in one["layers"]] == [
        layer["name"] for layer in other["layers"]
    ]
    for a, b in zip(one["layers"], other["layers"]):
        for key in ("units", "dead", "calls", "fan_in", "fan_out", "note"):
            assert a[key] == b[key], (a["name"], key)
        for moments in ("forward", "backward", "weight"):
            m, n = a[moments], b[moments]
            assert (m is None) == (n is None)
            if m is None or (moments, a["name"]) in but:
                continue
            assert (m["count"], m["nonfinite"]) == (n["count"], n["nonfinite"]), (
                a["name"],
                moments,
            )
            scale = max(abs(n["min"]), abs(n["max"]))
            for field in ("mean", "std", "min", "max"):
                near = math.isclose(m[field], n[field], rel_tol=1e-5, abs_tol=1e-5 * scale)
                assert near, (a["name"], moments, field, m[field], n[field])


def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[: len(shape)])


def in_parallel(model: nn.Module, mesh: DeviceMesh, rows: Any = None, **options: Any) -> None:
    plan = {
        "up": ColwiseParallel(**options),
        "down": RowwiseParallel(**(rows or {})),
        "zeros": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)


def fsdp(model: nn.Module) -> tuple[nn.Module, int, int]:
    """The model, and which of how many batches is this rank's."""
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh_of(WORLD))
    return model, dist.get_rank(), WORLD


def hsdp(model: nn.Module) -> tuple[nn.Module, int, int]:
    return fully_shard(model, mesh=mesh_of(2, 2)), dist.get_rank(), WORLD


def ddp(model: nn.Module) -> tuple[nn.Module, int, int]:
    return nn.parallel.DistributedDataParallel(model), dist.get_rank(), WORLD


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


def rows_in_shards(model: nn.Module) -> tuple[nn.Module, int, int]:
    """Sequence parallel: each rank has some rows of what is computed together, as a plain tensor."""
    mesh = mesh_of(WORLD)
    in_parallel(model, mesh, {"output_layouts": Shard(0)})

    def gather(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return (
            DTensor.from_local(output, mesh, [Shard(0)])
            .redistribute(mesh, [Replicate()])
            .to_local()
        )

    later = model.forward
    down = model.down.forward
    assert later
    assert down
    model.gathered = gather
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
    assert_alike(first, expected)
    assert all(other == first for other in others)
