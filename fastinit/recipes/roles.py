"""Roles: what a parameter is to its module, as far as the module's class says so.

A recipe has laws for the parameters that a class of torch has by itself: the weight of a Linear, the
biases of an LSTM. What somebody added (``lora_B``, a quantiser's ``weight_scale``, the ``weight_g`` of
weight_norm) or exchanged for something of another form has no role, so no recipe guesses its law.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from fastinit.fills.layer_kinds import CONVOLUTIONS, EMBEDDINGS, NORMS, is_conv1d
from fastinit.plan.fill import Fill
from fastinit.recipes.fills import ZERO

Role = Literal["weight", "bias"]

ANY = -1
"""Dimensions: any number of them."""

_LINEAR = {"weight": 2, "bias": 1}
_GATES = {"weight_ih": 2, "weight_hh": 2, "weight_hr": 2, "bias_ih": 1, "bias_hh": 1}
_ATTENTION = {
    **dict.fromkeys(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 2),
    "in_proj_bias": 1,
    **dict.fromkeys(("bias_k", "bias_v"), 3),
}

_DIMENSIONS: dict[type[nn.Module], Mapping[str, int]] = {
    nn.Linear: _LINEAR,
    nn.Bilinear: {"weight": 3, "bias": 1},
    **{of: {"weight": 3 + place % 3, "bias": 1} for place, of in enumerate(CONVOLUTIONS)},
    **{of: {"weight": 2} for of in EMBEDDINGS},
    **{of: {"weight": ANY, "bias": ANY} for of in NORMS},
    nn.PReLU: {"weight": 1},
    nn.MultiheadAttention: _ATTENTION,
    nn.RNNBase: _GATES,
    nn.RNNCellBase: _GATES,
}
"""The parameters of each class, and of its subclasses, and how many dimensions they have."""

_OF_LAYER = re.compile(r"(.+)_l([0-9]+)(_reverse)?")


def role(name: str, module: nn.Module, shape: torch.Size) -> Role | None:
    """What a parameter is to the module that has it; None if its class does not say.

    >>> role("fc.bias", nn.Linear(2, 3), torch.Size([3]))
    'bias'
    >>> role("fc.lora_B", nn.Linear(2, 3), torch.Size([3, 1])) is None
    True
    """
    own = own_name(name)
    if _dimensions(own, module) not in (ANY, len(shape)):
        return None
    return "bias" if "bias" in own else "weight"


def by_role(part: Role | None, *, weight: Fill, bias: Fill = ZERO) -> Fill | None:
    """The Fill of a parameter with this role, if it has one."""
    return weight if part == "weight" else bias if part == "bias" else None


def is_matrix(name: str, module: nn.Module, shape: torch.Size) -> bool:
    """Whether it is a weight that multiplies what its module is given."""
    return (
        role(name, module, shape) == "weight"
        and len(shape) > 1
        and _dimensions(own_name(name), module) != ANY
    )


def own_name(name: str) -> str:
    """The last part of a parameter's name: what its module calls it."""
    return name.rpartition(".")[2]


def _dimensions(own: str, module: nn.Module) -> int | None:
    if is_conv1d(module):
        return _LINEAR.get(own)
    if (of := torch_class(module)) is None:
        return None
    if isinstance(module, nn.RNNBase):
        of_layer = _OF_LAYER.fullmatch(own)
        if of_layer is None or int(of_layer[2]) >= module.num_layers:
            return None
        own = of_layer[1]
    return _DIMENSIONS[of].get(own)


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch that says what a module's parameters are; None if none does."""
    return next((of for of in _DIMENSIONS if isinstance(module, of)), None)
