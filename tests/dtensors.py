"""DTensors of tensors that all ranks have: each keeps its part, and nothing is sent."""

from __future__ import annotations

import inspect
from typing import Any

import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    _SENDS = "src_data_rank" not in inspect.signature(distribute_tensor).parameters


def distributed(full: Tensor, mesh: Any, placements: Any) -> Any:
    """It, on a mesh."""
    if not _SENDS:
        return distribute_tensor(full, mesh, placements, src_data_rank=None)
    # torch 2.6's sends what the first rank has; this knows no strided shards there.
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=placements)
