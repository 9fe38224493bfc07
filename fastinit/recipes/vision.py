"""Vision transformers, as timm initialises them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastinit.fills import fans
from fastinit.plan.fill import Fill
from fastinit.recipes.fills import ZERO, normal, uniform, within
from fastinit.recipes.roles import by_role, own_name, role
from fastinit.recipes.torch_layers import torch_default

_SMALL = 1e-6
"""The std of class tokens and of JAX's biases."""


def vit(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """timm's own: Linear weights truncated normal(0, 0.02), biases 0; the patch convolution torch's.

    Positions are truncated normal(0, 0.02), class and register tokens normal(0, 1e-6), layer scales
    their ``init_values``, norms weight 1, bias 0. timm cuts off at -2 and 2, that is not at all.

    Source: timm, ``models/vision_transformer.py``: ``init_weights`` and ``init_weights_vit_timm``.
    """
    if isinstance(module, nn.Linear):
        weight = Fill.truncated_normal(0.0, 0.02, -2.0, 2.0)
        return by_role(role(name, module, shape), weight=weight)
    return _others(name, module, shape, config)


def vit_jax(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """As Google's ViT in JAX: Xavier uniform, the head 0, biases of the MLPs normal(0, 1e-6).

    Convolutions: LeCun normal (truncated at 2 of its standard deviations), bias 0; the rest as
    :func:`vit`.

    Source: timm, ``init_weights_vit_jax`` (``weight_init="jax"``).
    """
    is_layer = isinstance(module, (nn.Linear, nn.Conv2d))
    part = role(name, module, shape)
    if is_layer and part is None:
        return None
    if isinstance(module, nn.Linear):
        if name.startswith("head"):
            return ZERO
        if part == "bias":
            return normal(_SMALL) if "mlp" in name else ZERO
        return uniform(fans.xavier_std(fans.fans_of(shape)))
    if isinstance(module, nn.Conv2d):
        if part == "bias":
            return ZERO
        return Fill.truncated_normal(*fans.variance_scaling(fans.fans_of(shape)).arguments)
    return _others(name, module, shape, config)


def vit_moco(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """As MoCo v3: Xavier uniform, of q, k and v each by itself; biases 0; the rest as :func:`vit`.

    Source: timm, ``init_weights_vit_moco`` (``weight_init="moco"``).
    """
    if isinstance(module, nn.Linear):
        part = role(name, module, shape)
        if part != "weight":
            return ZERO if part == "bias" else None
        if "qkv" in name:
            return within(math.sqrt(6.0 / (shape[0] // 3 + shape[1])))
        return uniform(fans.xavier_std(fans.fans_of(shape)))
    return _others(name, module, shape, config)


def _others(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    own = own_name(name)
    if own == "pos_embed":
        return Fill.truncated_normal(0.0, 0.02, -2.0, 2.0)
    if own in ("cls_token", "reg_token"):
        return normal(_SMALL)
    scale: Any = getattr(module, "init_values", None)  # of LayerScale
    if own == "gamma" and scale is not None:
        return Fill.constant(scale)
    return torch_default(name, module, shape, config)
