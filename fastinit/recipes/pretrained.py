"""What transformers does to modules of any family, where a family does not do otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastinit.fills import fans
from fastinit.fills.layer_kinds import CONVOLUTIONS
from fastinit.plan.fill import Fill
from fastinit.recipes.fills import ONE, ZERO, embedding, normal, uniform
from fastinit.recipes.roles import by_role, own_name, role
from fastinit.recipes.rules import number_of
from fastinit.recipes.torch_layers import torch_default

# Those that _init_weights knows by class: not InstanceNorm, which layer_kinds.NORMS has.
_OTHER_NORMS = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def std_of(config: Any) -> float:
    """The std of ``PreTrainedModel._init_weights``, which reads a range of 0 as none.

    Args:
        config: ``initializer_range``, ``init_std`` or ``initializer_factor``, by default 0.02.

    Raises:
        NumberTypeError, NumberRangeError: it is no number, or negative.
    """
    names = ("initializer_range", "init_std", "initializer_factor")
    return number_of(config, *names, default=0.02) or 0.02


def plain(name: str, module: nn.Module, shape: torch.Size, std: float) -> Fill | None:
    """What ``PreTrainedModel._init_weights`` does to the parameters of modules that it knows.

    Source: transformers 5, modeling_utils.py.

    Args:
        name, module, shape: as of every rule.
        std: of weights.
    """
    part, kind = role(name, module, shape), type(module).__name__
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and kind != "ConvTranspose3d":
        return by_role(part, weight=normal(std))
    if part is None and isinstance(module, (nn.LSTM, nn.Embedding)):
        return None
    if isinstance(module, nn.LSTM):
        return ZERO if part == "bias" else uniform(fans.xavier_std(fans.fans_of(shape)))
    if isinstance(module, nn.Embedding):
        return embedding(module, shape, normal(std))
    if isinstance(module, nn.MultiheadAttention):
        return torch_default(name, module, shape, None)
    named = "LayerNorm" in kind or "RMSNorm" in kind
    if named or isinstance(module, _OTHER_NORMS):
        return {"weight": ONE, "bias": ZERO}.get(own_name(name))
    return None
