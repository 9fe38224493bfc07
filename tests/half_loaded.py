"""A small model, and ways in which a load leaves out some of its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastinit import (
    deferred,
    materialize_,
)

FILE = {"embed.weight": torch.full((5, 3), 2.0), "norm.weight": torch.full((3,), 3.0)}
"""What is loaded: of the tied parameter one name, as safetensors has it."""

FILLED = ["copy", "norm.bias", "head.weight", "head.bias"]
"""Parameters that FILE lacks."""


class Net(nn.Module):
    """Tied embeddings with a padding row, a norm, buffers of every kind, and a copy of a parameter."""

    table: Tensor
    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=1)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        self.copy = nn.Parameter(self.embed.weight.detach().clone())
        self.register_buffer("table", torch.arange(4.0) / 3, persistent=False)
        self.register_buffer("noise", torch.randn(4))


def build(seed: int = 0) -> Net:
    with deferred(seed):
        return Net()


def whole(seed: int = 0) -> Net:
    return materialize_(build(seed))


def garbage_(model: nn.Module) -> nn.Module:
    """What to_empty leaves, and more surely so."""
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(77)
    return model


def assigned(model: Net) -> Any:
    return model.load_state_dict(FILE, strict=False, assign=True).missing_keys


def assigned_unnamed(model: Net) -> Any:
    assigned(model)


def emptied(model: Net) -> Any:
    return garbage_(model).load_state_dict(FILE, strict=False).missing_keys


def emptied_data(model: Net) -> Any:
    garbage_(model)
    for name, values in FILE.items():
        model.get_parameter(name).data.copy_(values)
    return [name for name in model.state_dict() if name not in FILE and "num_" not in name]


def half_emptied(model: Net) -> Any:
    missing = assigned(model)
    model.head.to_empty(device="cpu")
    return missing


def exchanged(model: Net) -> Any:
    model.embed.weight = nn.Parameter(FILE["embed.weight"].clone())
    model.norm.weight = nn.Parameter(FILE["norm.weight"].clone())


def patterns(model: Net) -> Any:
    assigned(model)
    return ["out.*", "head.*", "norm.bias", "norm.run*", "co[p]y", "noise"]
