"""What the tests of a watch of several ranks share: models, inputs, and how they are sharded."""

import json
import math

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

WORLD = 4


def assert_alike(got: str, expected: str, but: tuple[str, ...] = (), mean_of: int = 1) -> None:
    """Numbers of float32 that matrix products of other shapes gave: to 1e-5; counts are the same.

    Args:
        mean_of: how many batches a weight's gradient is the mean of, whose sum is expected.
    """
    one, other = json.loads(got), json.loads(expected)
    assert [layer["name"] for layer in one["layers"]] == [
        layer["name"] for layer in other["layers"]
    ]
    for a, b in zip(one["layers"], other["layers"]):
        for key in ("units", "dead", "calls", "fan_in", "fan_out", "note"):
            assert a[key] == b[key], (a["name"], key)
        for moments in ("forward", "backward", "input", "weight", "weight_gradient"):
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
                value = m[field] * (mean_of if moments == "weight_gradient" else 1)
                near = math.isclose(value, n[field], rel_tol=1e-5, abs_tol=1e-5 * scale)
                assert near, (a["name"], moments, field, m[field], n[field])


def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[: len(shape)])


def ddp(model: nn.Module) -> tuple[nn.Module, int, int]:
    return nn.parallel.DistributedDataParallel(model), dist.get_rank(), WORLD


# --- outputs that are shared otherwise -------------------------------------------------------------


class Block(nn.Module):
    """[B, 8] -> [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def inputs(rows: int = 10) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(4))
