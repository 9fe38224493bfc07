"""Moments in plain torch: slow, readable, and what the kernels' are compared with.

The raw moments of a set of values are float64 [7], with the fields below, or [11] where the higher ones
are asked for. The CPU's kernels sum in one
order (``csrc/moments.h``), GPUs' in another (``csrc/cuda/runs.cuh``): each gives the same bits on every
run, and they agree to 1e-12. This sums in a third order, and agrees with them to 12 digits. The merging
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
SIZES, LEAST, M3, M4 = range(FIELDS, 11)
"""The higher ones: the sum of absolute values, the least of them above 0, and the sums of third and
fourth powers of distances from the mean. A sum that float64 does not hold is infinite."""
ALL_FIELDS = 11
POWERS = 0, 1, 2, 1, 1, 0, 0, 1, 1, 3, 4
"""Of each field, with which power of the values' unit it goes."""

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


def moments(view: Tensor, by_column: bool, fields: int = FIELDS) -> Tensor:
    """Raw moments of a tensor, float64 [fields], or of its last dimension's indices, [channels, fields].

    In float64, chunk by chunk, each around its own mean. It holds the fourth powers of all shorter
    types; for the sake of squares, float64 values are brought near 1 by a power of two.
    """
    if view.numel() > CHUNK:
        dims = view.dim() - by_column
        dim = max(range(dims), key=view.size)
        if view.size(dim) > 1:
            half = view.size(dim) // 2
            rest = view.narrow(dim, half, view.size(dim) - half)
            first = view.narrow(dim, 0, half)
            return merged(moments(first, by_column, fields), moments(rest, by_column, fields))
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
    if fields == ALL_FIELDS:
        raw = torch.cat((raw, _higher(x, finite, raw)), dim=-1)
    return raw if by_column else raw[0]


def _higher(x: Tensor, finite: Tensor, raw: Tensor) -> Tensor:
    """SIZES to M4 of the columns of x, [columns, 4], around the means that are known."""
    sizes = torch.where(finite, x.abs(), 0.0)
    above = torch.where(sizes > 0, sizes, torch.inf)
    least = above.amin(0) if len(x) else raw[:, COUNT] + torch.inf
    count, mean, m2 = raw[:, COUNT], raw[:, MEAN], raw[:, M2]
    d = torch.where(finite, x - mean, 0.0)
    square = d.square()
    off = d.sum(0) / count.clamp(min=1)  # what the mean was rounded by
    m3 = (square * d).sum(0) - off * (3 * m2 + count * off * off)
    m4 = (square * square).sum(0) - off * (4 * m3 + off * (6 * m2 + count * off * off))
    return torch.stack((sizes.sum(0), least, _or_infinity(m3), _or_infinity(m4)), dim=-1)


def _or_infinity(sums: Tensor) -> Tensor:
    """What is too large for float64 is infinite, also where two such parts would give NaN."""
    return torch.where(torch.isfinite(sums), sums, torch.inf)


def merged(a: Tensor, b: Tensor) -> Tensor:
    """Raw moments of two sets together; ``merge`` in csrc/moments.h.

    Chan, Golub & LeVeque (1979); Pebay, "Formulas for robust, one-pass parallel computation of
    covariances and arbitrary-order statistical moments" (2008, SAND2008-6212).

    Raises:
        ValueError: only one has the higher moments.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError("moments with higher=True do not merge with moments without")
    count = a[..., COUNT] + b[..., COUNT]
    share = torch.where(count > 0, b[..., COUNT] / count, 0.0)
    a_mean, b_mean = a[..., MEAN], b[..., MEAN]
    step = b_mean - a_mean
    # The mean does not overflow, but the way to it may.
    quarters = a_mean / 4 + (b_mean / 4 - a_mean / 4) * share
    apart = step * (a[..., COUNT] * share) * step
    fields = [
        count,
        torch.where(torch.isfinite(step), a_mean + step * share, 4 * quarters),
        a[..., M2] + b[..., M2] + apart,
        torch.minimum(a[..., MIN], b[..., MIN]),
        torch.maximum(a[..., MAX], b[..., MAX]),
        a[..., ZEROS] + b[..., ZEROS],
        a[..., NONFINITE] + b[..., NONFINITE],
    ]
    if a.shape[-1] == ALL_FIELDS:
        p, q = torch.where(count > 0, a[..., COUNT] / count, 0.0), share
        far = torch.where((a[..., COUNT] > 0) & (b[..., COUNT] > 0), step, 0.0)
        m3 = far * (apart * (p - q)) + 3 * far * (p * b[..., M2] - q * a[..., M2])
        m4 = (
            far * (far * (apart * (p * p - p * q + q * q)))
            + far * (6 * far * (p * p * b[..., M2] + q * q * a[..., M2]))
            + 4 * far * (p * b[..., M3] - q * a[..., M3])
        )
        fields += [
            a[..., SIZES] + b[..., SIZES],
            torch.minimum(a[..., LEAST], b[..., LEAST]),
            _or_infinity(a[..., M3] + b[..., M3] + m3),
            _or_infinity(a[..., M4] + b[..., M4] + m4),
        ]
    return torch.stack(fields, dim=-1)
