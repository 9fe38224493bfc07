"""DTensors of tensors that all ranks have: each keeps its part, and nothing is sent."""

from __future__ import annotations

import inspect
from typing import Any

import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import distribute_tensor

    # torch 2.6 has no such option, and sends what the first rank has: that is the same.
    _OPTIONS = (
        {"src_data_rank": None}
        if "src_data_rank" in inspect.signature(distribute_tensor).parameters
        else {}
    )


def distributed(full: Tensor, mesh: Any, placements: Any) -> Any:
    """It, on a mesh."""
    return distribute_tensor(full, mesh, placements, **_OPTIONS)
