"""The spectral parametrisation: weights and their updates of a spectral norm that suits any width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastinit.fills.fans import Fans
from fastinit.fills.layer_kinds import EMBEDDINGS, NORMS, layer_fans
from fastinit.plan.fill import Fill
from fastinit.recipes.fills import ONE, ZERO, embedding, normal
from fastinit.recipes.roles import is_matrix, role
from fastinit.recipes.rules import Checked, Scaling, check_optimizer


def _spectral(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """The spectral parametrisation: std 1 / sqrt(fan_in) min(1, sqrt(fan_out / fan_in)), biases 0.

    So a weight's spectral norm is of the order sqrt(fan_out / fan_in) at every width. Its updates' is
    so too with the learning rates of :func:`fastinit.recipes.param_groups`: for SGD fan_out / fan_in
    times the given one, for Adam 1 / fan_in, since its updates have entries of one size, and so a norm
    of up to sqrt(fan_in fan_out) times the rate. What is given is then the rate of a layer with one
    input. Of fan_in 1 is what has one input for each output: a bias, a norm's weight (1, its bias 0),
    and an embedding, of which a row is taken. The products of rate and weight decay stay, as with muP.

    Source: Yang, Simon & Bernstein 2023, arXiv 2310.17813, parametrization 1 (std and SGD's rate), and
    its condition 1, from which Adam's follows.
    """
    part = role(name, module, shape)
    if part is None:
        return None
    if isinstance(module, NORMS):
        return ONE if part == "weight" else ZERO
    if part == "bias":
        return ZERO
    if not is_matrix(name, module, shape):
        return None
    fan_in, fan_out = _fans(name, module, shape)
    fill = normal(min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in) if fan_in else 0.0)
    return embedding(module, shape, fill) if isinstance(module, EMBEDDINGS) else fill


def _scaling(
    name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
) -> Scaling | None:
    check_optimizer(optimizer)
    if role(name, module, shape) is None:
        return None
    fan_in, fan_out = _fans(name, module, shape)
    rate = (fan_out if optimizer == "sgd" else 1.0) / max(fan_in, 1.0)
    return Scaling(rate, 1 / rate if rate else 1.0)


def _fans(name: str, module: nn.Module, shape: torch.Size) -> Fans:
    """(fan_in, fan_out), also of what is no matrix."""
    if not is_matrix(name, module, shape):
        return 1.0, float(shape.numel())
    return (1.0, shape[1]) if isinstance(module, EMBEDDINGS) else layer_fans(module, shape)


spectral = Checked(_spectral, scaling=_scaling)
