"""orthogonal_ beside torch's: square, tall and wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.timing import race
from fastinit import init

SHAPES = ((1024, 1024), (4096, 4096), (16384, 1024), (1024, 16384))


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One record for each shape; the error is the largest entry of |QᵀQ - I| (or |QQᵀ - I|)."""
    for shape in SHAPES:
        tensor = torch.empty(shape)
        timings = race(
            {
                "fastinit": lambda t=tensor: init.orthogonal_(t),
                "torch": lambda t=tensor: torch.nn.init.orthogonal_(t),
            },
            rounds,
        )
        q = init.orthogonal_(tensor, seed=0)
        gram = q.T @ q if shape[0] >= shape[1] else q @ q.T
        yield {
            "shape": list(shape),
            "seconds": timings["fastinit"].median,
            "spread": timings["fastinit"].spread,
            "times torch": timings["torch"].median / timings["fastinit"].median,
            "error": (gram - torch.eye(len(gram))).abs().max().item(),
        }
