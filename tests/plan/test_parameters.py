"""Parameters on meta get memory: all of them, and nothing else changes."""

import pytest
import torch
from torch import nn

from fastinit.plan.parameters import allocate_


def test_allocate_keeps_ties_strides_and_real_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Conv2d(3, 3, 3))
    model[2].to(memory_format=torch.channels_last)
    strides = model[2].weight.stride()
    real = model[1].bias
    for module in (model[0], model[2]):
        module.to("meta")
    model[1].weight = model[0].weight
    allocate_(model, dtype=torch.bfloat16)
    assert model[1].weight is model[0].weight
    assert model[0].weight.dtype is torch.bfloat16
    assert model[1].bias is real
    assert model[2].weight.stride() == strides
    with pytest.raises(ValueError, match="device must be one that holds values"):
        allocate_(model, "meta")
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype"):
        allocate_(model, dtype=torch.int8)
