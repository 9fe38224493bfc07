"""The table of layers: fans are what a layer of ones makes of ones, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastinit.fills.layer_kinds import CONVOLUTIONS, KINDS, kind_of, layer_fans


class Conv1D(nn.Module):
    """Not transformers', whatever it is called."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes))


def transformers_conv1d() -> Any:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(3, 5, bias=False),
    lambda: transformers_conv1d()(5, 3),
    *(lambda of=of: of(4, 6, 4, groups=2, stride=2, bias=False) for of in CONVOLUTIONS),
]


@pytest.mark.parametrize("make", LAYERS)
def test_fans_are_how_many_ones_meet(make: Callable[[], nn.Module]) -> None:
    layer = make()
    nn.init.ones_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    spatial = kind_of(layer).spatial
    x = torch.ones(1, *((4, *(20,) * spatial) if spatial else (3,)), requires_grad=True)
    out = layer(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    inner = (slice(None), slice(None), *(slice(6, -6),) * spatial)  # whatever the edges do
    fan_in, fan_out = layer_fans(layer, layer.weight.shape)
    transposed = getattr(layer, "transposed", False)
    if transposed or not spatial:
        assert out[inner if out.shape[-1] > 12 else ...].mean() == fan_in
        assert (grad[inner if spatial else ...] == fan_out).all()
    else:  # stride leaves some outputs out, of which fan_out knows nothing
        assert (out == fan_in).all()
        assert grad[inner].mean() * layer.stride[0] ** spatial == fan_out


def test_tables_have_no_fans() -> None:
    for table in (nn.Embedding(5, 3), nn.EmbeddingBag(5, 3)):
        assert all(map(math.isnan, layer_fans(table, table.weight.shape)))
    assert kind_of(nn.ReLU()) is None
    assert kind_of(Conv1D(3, 5)) is None
    assert kind_of(nn.LazyLinear(3)) is KINDS[nn.Linear]
