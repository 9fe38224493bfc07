"""The moments of a layer's output at every scale of its weight, from those at one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastinit.statistics.tensor import Moments, moments
from fastinit.stream.reference_moments import M2, MEAN
from fastinit.variance.layers import Layer


class LSUVError(RuntimeError):
    """A layer's output cannot be given the variance asked for. The model is as it was."""


class AffineSums:
    """What is known of a + b, where a is proportional to the weight and b is the bias.

    The variance of s a + b is s² aa + 2 s ab + bb. Within a channel b is constant, so ab and bb follow
    from the channels' means, and aa from them and the variance of all values.
    """

    def __init__(self, name: str, whole: Moments) -> None:
        """Of values without a bias."""
        self.name, self.whole, self.raw = name, whole, whole.raw.cpu()
        self.bias: Tensor | None = None
        self.count, self.a_mean, m2 = map(float, self.raw[: M2 + 1].tolist())
        self.aa, self.ab, self.bb, self.b_mean = m2 / max(self.count, 1.0), 0.0, 0.0, 0.0
        self.lost = 0.0  # of aa, to rounding

    @classmethod
    def of(cls, layer: Layer, out: Tensor) -> AffineSums:
        """Of a layer's output, with or without a bias."""
        sums = cls(layer.name, moments(out))
        sums.bias = bias = layer.bias_like(out)
        if bias is not None and sums.count > 0:
            channel = layer.channel_dim(out) % out.dim()
            others = [d for d in range(out.dim()) if d != channel]
            wide = torch.promote_types(out.dtype, torch.float32)
            b = bias.flatten().to("cpu", torch.float64)
            a = (out.mean(others, dtype=wide) if others else out).to("cpu", torch.float64) - b
            sums.b_mean = b.mean().item()
            sums.a_mean -= sums.b_mean
            sums.bb = b.var(correction=0).item()
            sums.ab = ((a - a.mean()) @ (b - sums.b_mean)).item() / len(b)
            sums.aa -= 2 * sums.ab + sums.bb
            # Of the channels' means, and of values that are b but for what the output's dtype rounds.
            eps = max(8 * torch.finfo(wide).eps, torch.finfo(out.dtype).eps ** 2)
            sums.lost = eps * b.square().mean().item()
        return sums

    def mean(self, scale: float) -> float:
        return scale * self.a_mean + self.b_mean

    def moments(self, scale: float, shift: float) -> Moments:
        """Those of scale * a + b + shift. Extremes are only known of what was read."""
        if scale == 1.0 and shift == 0.0:
            return self.whole
        raw = self.raw.clone()
        raw[MEAN] = self.mean(scale) + shift
        raw[M2] = (scale * scale * self.aa + 2 * scale * self.ab + self.bb) * self.count
        return Moments(raw)

    def scale_for(self, std: float) -> float:
        """The positive scale with which the values' standard deviation (n - 1) is ``std``."""
        wanted = std * std * (self.count - 1) / self.count
        if self.bb >= wanted:
            raise LSUVError(
                f"{self.name}: the variance of its bias alone, {self.bb:.6g}, is not below the "
                f"{wanted:.6g} asked for: {self.moments(1.0, 0.0)!r}"
            )
        if not self.aa > self.lost:
            raise LSUVError(f"{self.name} is dead but for its bias: {self.moments(1.0, 0.0)!r}")
        root = math.sqrt(self.ab * self.ab - self.aa * (self.bb - wanted))
        return (root - self.ab) / self.aa


def rescale(out: Tensor, bias: Tensor | None, scale: float, shift: float) -> Tensor:
    """The output of an affine layer in place: as if its weight were multiplied and its bias shifted."""
    if bias is not None and scale != 1.0 and out.requires_grad and torch.is_grad_enabled():
        return out.mul_(scale).add_(bias * (1.0 - scale) + shift)  # a forward that differentiates
    if bias is not None and scale != 1.0:
        return torch.add(bias * (1.0 - scale) + shift, out, alpha=scale, out=out)
    if scale != 1.0:
        out.mul_(scale)
    return out.add_(shift) if shift else out
