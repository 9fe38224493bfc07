"""What the tests of watching share."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastinit.statistics.tensor import Moments
from fastinit.variance.watch.watch import Watch


def mlp(depth: int = 4, width: int = 32, inplace: bool = False) -> nn.Sequential:
    pairs = ((nn.Linear(width, width), nn.ReLU(inplace)) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


def saved(model: nn.Module) -> nn.Module:
    """A copy, by way of a file."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def assert_moments(m: Moments | None, *values: Tensor) -> None:
    x = torch.cat([v.detach().flatten() for v in values]).double()
    assert m is not None
    assert m.count == x.numel()
    for name in ("mean", "var", "min", "max"):
        expected = getattr(x, name)().item()
        scale = x.abs().max().item()
        assert getattr(m, name) == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale), name
    assert (m.zeros, m.nonfinite) == ((x == 0).sum().item(), 0)


def assert_alike(a: Watch, b: Watch) -> None:
    """Two passes over the same: float32 sums of torch's own, up to some roundings."""
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    for one, other in zip(a.layers, b.layers):
        assert (one.calls, one.units, one.dead, one.note) == (
            *(other.calls, other.units, other.dead, other.note),
        )
        for seen, wanted in ((one.forward, other.forward), (one.backward, other.backward)):
            torch.testing.assert_close(seen.raw, wanted.raw, rtol=1e-5, atol=1e-6)


def hooks(model: nn.Module) -> list[Any]:
    """What a watch could leave behind."""
    modules = list(model.modules())
    tensors = [len(p._backward_hooks or ()) for p in model.parameters()]
    own = [[len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))] for m in modules]
    return own + tensors
