"""Fills that several recipes share: of a std, of norms, of embeddings with a padding row."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastinit.plan.fill import Fill

ZERO = Fill.constant(0.0)
ONE = Fill.constant(1.0)


def within(bound: float) -> Fill:
    """Uniform on [-bound, bound)."""
    return Fill.uniform(-bound, bound)


def uniform(std: float) -> Fill:
    """Uniform of this std."""
    return within(math.sqrt(3.0) * std)


def normal(std: float) -> Fill:
    """Normal of this std."""
    return Fill.normal(0.0, std)


def embedding(module: nn.Embedding | nn.EmbeddingBag, shape: torch.Size, fill: Fill) -> Fill:
    """The fill, but 0 in the padding row, which gets no gradient and stays so."""
    if module.padding_idx is None:
        return fill
    return fill.with_part(torch.empty(shape, device="meta")[module.padding_idx], ZERO)
