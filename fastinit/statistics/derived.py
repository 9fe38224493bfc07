"""What users see of moments: numbers that are made of the raw ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DERIVED = (
    *("count", "mean", "var", "std", "min", "max", "absmax", "zeros", "nonfinite"),
    *("rms", "l2", "crest"),
)
"""The fields that users see."""
HIGHER = ("l1", "absmean", "smallest", "dynamic_range", "skewness", "kurtosis")
"""Those that are there if the higher moments are."""


def derived(raw: Tensor, correction: float) -> Tensor:
    """``DERIVED``, and ``HIGHER`` if there, float64 [fields, ...] on the CPU, of raw moments."""
    here = raw.cpu()  # the one wait for the device
    count, mean, m2, low, high, zeros, nonfinite, *more = here.unbind(-1)
    left, differ = count - correction, (low < high).to(torch.float64)
    least = differ * torch.finfo(torch.float64).smallest_normal
    var = torch.where(left > 0, torch.maximum(m2 / left, least), math.nan)
    mean = torch.where(count > 0, mean, math.nan)
    absmax = torch.maximum(high, -low)
    rms = torch.where(_held(m2) | (low >= high), torch.hypot((m2 / count).sqrt(), mean), math.nan)
    l2 = torch.where(count > 0, rms * count.sqrt(), 0.0)
    known = [count, mean, var, var.sqrt(), low, high, absmax, zeros, nonfinite]
    known += [rms, l2, absmax / rms]
    if more:
        l1, least, m3, m4 = more
        binades = torch.where(least < math.inf, absmax.log2() - least.log2(), math.nan)
        m2 = torch.where(_held(m4), m2, math.nan)
        known += [l1, l1 / count, least, binades]
        known += [m3 / m2 * (count / m2).sqrt(), m4 / m2 / m2 * count]
    return torch.stack(known)


def _held(sums: Tensor) -> Tensor:
    """Whether sums of powers neither left float64's range nor are 0."""
    return torch.isfinite(sums) & (sums >= torch.finfo(torch.float64).smallest_normal)
