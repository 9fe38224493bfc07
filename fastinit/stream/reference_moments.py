"""Moments in plain torch: slow, readable, and what the kernels' are compared with.

The raw moments of a set of values are float64 [7], with the fields below. The CPU's kernels sum in one
order (``csrc/moments.h``), CUDA's in another (``csrc/cuda/runs.cuh``): each gives the same bits on every
run, and they agree to 1e-13. This sums in a third order, and agrees with them to 12 digits. The merging
of two is the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastinit.stream.reference import CHUNK

COUNT, MEAN, M2, MIN, MAX, ZEROS, NONFINITE = range(7)
"""The fields of raw moments, as in csrc/moments.h: all but NONFINITE are of finite values, M2 is the
sum of squared distances from the mean."""
FIELDS = 7

TRUSTED = 2.0**-400, 2.0**400  # the largest float64 values whose squares are not lost
UP = 2.0**600  # brings others there


def widened(x: Tensor) -> Tensor:
    """float64, also of denormal numbers, which torch.set_flush_denormal(True) makes zeros of."""
    wide = x.to(torch.float64)
    if x.dtype is torch.float64:
        return wide
    info = torch.finfo(x.dtype)
    word = x.view(torch.int16 if x.itemsize == 2 else torch.int32)
    size = word & torch.iinfo(word.dtype).max
    denormal = size.to(torch.float64) * (info.smallest_normal * info.eps)
    denormal = torch.where(word < 0, -denormal, denormal)
    return torch.where(size < round(1 / info.eps), denormal, wide)


def moments(view: Tensor, by_column: bool) -> Tensor:
    """Raw moments of a tensor, float64 [7], or of each index of its last dimension, [channels, 7].

    In float64, chunk by chunk, each around its own mean. It holds the squares of all shorter types;
    float64 values are brought near 1 by a power of two.
    """
    if view.numel() > CHUNK:
        dims = view.dim() - by_column
        dim = max(range(dims), key=view.size)
        if view.size(dim) > 1:
            half = view.size(dim) // 2
            rest = view.narrow(dim, half, view.size(dim) - half)
            return merged(moments(view.narrow(dim, 0, half), by_column), moments(rest, by_column))
    x = widened(view).reshape(-1, view.shape[-1] if by_column else 1)
    finite = torch.isfinite(x)
    count = finite.sum(0).to(torch.float64)
    low = torch.where(finite, x, torch.inf).amin(0) if len(x) else count + torch.inf
    high = torch.where(finite, x, -torch.inf).amax(0) if len(x) else count - torch.inf
    scale = torch.ones_like(count)
    if view.dtype is torch.float64:
        most = torch.maximum(high, -low)
        scale = torch.where(most > TRUSTED[1], 1 / UP, torch.where(most < TRUSTED[0], UP, scale))
    scaled = x * scale
    mean = torch.where(finite, scaled, 0.0).sum(0) / count.clamp(min=1)
    # Once more, so that the mean of a constant is that constant.
    mean = mean + torch.where(finite, scaled - mean, 0.0).sum(0) / count.clamp(min=1)
    m2 = torch.where(finite, scaled - mean, 0.0).square().sum(0)
    raw = torch.stack(
        (
            count,
            mean / scale,
            m2 / scale / scale,
            low,
            high,
            (finite & (x == 0)).sum(0).to(torch.float64),
            (~finite).sum(0).to(torch.float64),
        ),
        dim=-1,
    )
    return raw if by_column else raw[0]


def merged(a: Tensor, b: Tensor) -> Tensor:
    """Raw moments of two sets together (Chan, Golub & LeVeque 1979; ``merge`` in csrc/moments.h)."""
    count = a[..., COUNT] + b[..., COUNT]
    share = torch.where(count > 0, b[..., COUNT] / count, 0.0)
    a_mean, b_mean = a[..., MEAN], b[..., MEAN]
    step = b_mean - a_mean
    # The mean does not overflow, but the way to it may.
    quarters = a_mean / 4 + (b_mean / 4 - a_mean / 4) * share
    return torch.stack(
        (
            count,
            torch.where(torch.isfinite(step), a_mean + step * share, 4 * quarters),
            a[..., M2] + b[..., M2] + step * (a[..., COUNT] * share) * step,
            torch.minimum(a[..., MIN], b[..., MIN]),
            torch.maximum(a[..., MAX], b[..., MAX]),
            a[..., ZEROS] + b[..., ZEROS],
            a[..., NONFINITE] + b[..., NONFINITE],
        ),
        dim=-1,
    )
