"""What the tests of LSUV share: nets, faults, and what a plain pass gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.running_models import differences

# Weights and outputs are rounded to float32 after the scale is known: some 1e-6 of the std.
EXACT = pytest.approx(1.0, abs=1e-5)


def mlp(depth: int = 6, width: int = 64, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(width, width, bias=bias), nn.ReLU()))
    )


def stds(model: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, float]:
    """What a plain forward pass gives, by module."""
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            found.setdefault(name, out.float().std().item())

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None or isinstance(module, nn.MultiheadAttention)
    ]
    with torch.no_grad():
        model(*inputs, **kwargs)
    for handle in handles:
        handle.remove()
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert differences(before, after) == []


class Fault(nn.Module):
    """Does something at its turn."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)
