"""What torch's own modules give their parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.fills import fans
from fastinit.fills.layer_kinds import CONVOLUTIONS, EMBEDDINGS, NORMS
from fastinit.plan.fill import Fill
from fastinit.recipes.fills import ONE, ZERO, embedding, normal, uniform, within
from fastinit.recipes.roles import own_name, role, torch_class

_OUT_PROJ = type(nn.MultiheadAttention(1, 1).out_proj)
"""A class of its own, with a bias of 0."""


def torch_default(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """What the modules of ``torch.nn`` give their parameters in ``reset_parameters``.

    Linear and convolutions: uniform within 1 / sqrt(fan_in), written as kaiming_uniform with
    a = sqrt(5); Bilinear, RNN, LSTM, GRU and their cells: uniform within 1 / sqrt(size);
    MultiheadAttention: Xavier, biases 0; embeddings: normal(0, 1), a padding row 0; norms: weight 1,
    bias 0; PReLU: its constant. ``nn.Transformer`` initialises its parts anew:
    :func:`torch_transformer`. A module that has a ``reset_parameters`` of its own gives them something
    else, so there is no rule for it.

    Source: torch 2.13, ``torch/nn/modules``.
    """
    part = role(name, module, shape)
    if part is None or _resets_itself(module):
        return None
    if isinstance(module, _OUT_PROJ) and part == "bias":
        return ZERO  # MultiheadAttention.out_proj
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        if part == "weight":
            return uniform(fans.kaiming_std(fans.fans_of(shape), a=math.sqrt(5.0)))
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or role("weight", module, weight.shape) is None:
            return None
        fan_in, _ = fans.fans_of(weight.shape)
        return within(1.0 / math.sqrt(fan_in) if fan_in else 0.0)
    if isinstance(module, nn.Bilinear):
        return within(1.0 / math.sqrt(module.in1_features))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return within(1.0 / math.sqrt(module.hidden_size) if module.hidden_size else 0.0)
    if isinstance(module, nn.MultiheadAttention):
        if own_name(name) == "in_proj_bias":
            return ZERO
        std = fans.xavier_std(fans.fans_of(shape))
        return normal(std) if part == "bias" else uniform(std)
    if isinstance(module, EMBEDDINGS):
        return embedding(module, shape, normal(1.0))
    if isinstance(module, NORMS):
        return ZERO if part == "bias" else ONE
    if isinstance(module, nn.PReLU):
        return Fill.constant(module.init)
    return None


def _resets_itself(module: nn.Module) -> bool:
    """Whether it has another way than its class of torch to give its parameters values."""
    of = torch_class(module)
    return any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(of, name, None)
        for name in ("reset_parameters", "_reset_parameters")
    )


def torch_transformer(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """What ``nn.Transformer`` gives: Xavier uniform to all matrices, else :func:`torch_default`.

    Source: torch 2.13, ``nn.Transformer._reset_parameters``.
    """
    if len(shape) > 1 and role(name, module, shape) is not None:
        return uniform(fans.xavier_std(fans.fans_of(shape)))
    return torch_default(name, module, shape, config)
