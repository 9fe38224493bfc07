"""The moments of a layer's output at every scale of its weight, from those at one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastinit.statistics.tensor import Moments, moments
from fastinit.stream.reference_moments import FIELDS, M2, MEAN, merged
from fastinit.variance.layers import Layer


class LSUVError(RuntimeError):
    """A layer's output cannot be given the variance asked for. The model is as it was."""


class Impossible(LSUVError):
    """One layer's: others may still be measured. ``dead`` if no weight would give it a variance."""

    def __init__(self, message: str, dead: bool = False) -> None:
        super().__init__(message)
        self.dead = dead


class AffineSums:
    """What is known of a + b, where a is proportional to the weight and b is the bias.

    The variance of s a + b is s² aa + 2 s ab + bb. Within a channel b is constant, so ab and bb follow
    from the channels' means, and aa from them and the variance of all values.
    """

    def __init__(self, name: str, whole: Moments) -> None:
        """Of values without a bias."""
        self.name, self.whole, self.raw = name, whole, whole.raw.cpu()
        self.count, self.a_mean, m2 = map(float, self.raw[: M2 + 1].tolist())
        self.aa, self.ab, self.bb, self.b_mean = m2 / max(self.count, 1.0), 0.0, 0.0, 0.0
        self.lost = 0.0
        """Of aa, to rounding."""

    @classmethod
    def of(cls, layer: Layer, out: Tensor, bias: Tensor | None) -> AffineSums:
        """Of a layer's output, and its bias in a shape that adds to it."""
        if bias is None or out.numel() == 0:
            return cls(layer.name, moments(out))
        channels = moments(out, dim=layer.channel_dim(out)).raw.cpu()
        sums = cls(layer.name, _together(channels))
        b = bias.flatten().to(out.dtype).to("cpu", torch.float64)  # autocast rounds it as well
        count, mean, m2 = channels[:, : M2 + 1].unbind(1)
        share = count / count.sum()
        sums.b_mean = (share @ b).item()
        sums.a_mean -= sums.b_mean
        a, b = mean - b - sums.a_mean, b - sums.b_mean
        sums.aa = m2.sum().item() / max(sums.count, 1.0) + (share @ a.square()).item()
        sums.ab, sums.bb = (share @ (a * b)).item(), (share @ b.square()).item()
        # Values that are b but for what the output's dtype rounds.
        power = sums.bb + sums.b_mean**2
        sums.lost = power * torch.finfo(out.dtype).eps ** 2
        return sums

    def numbers(self) -> list[float]:
        """All that these are: raw moments, then the sums."""
        sums = self.a_mean, self.b_mean, self.aa, self.ab, self.bb, self.lost
        return [*self.raw.tolist(), *sums]

    @classmethod
    def from_numbers(cls, name: str, numbers: Sequence[float]) -> AffineSums:
        """Those of which :meth:`numbers` gave these."""
        made = cls(name, Moments(torch.tensor(numbers[:FIELDS], dtype=torch.float64, device="cpu")))
        made.a_mean, made.b_mean, made.aa, made.ab, made.bb, made.lost = numbers[FIELDS:]
        return made

    def merge(self, other: AffineSums) -> AffineSums:
        """Of both together, as Moments are merged."""
        both = AffineSums(self.name, self.whole.merge(other.whole))
        if not other.count or not self.count:
            one = self if self.count else other
            return AffineSums.from_numbers(self.name, [*both.raw.tolist(), *one.numbers()[FIELDS:]])
        share = other.count / both.count
        mine, apart = 1.0 - share, share * (1.0 - share)
        a, b = other.a_mean - self.a_mean, other.b_mean - self.b_mean
        both.a_mean, both.b_mean = self.a_mean + share * a, self.b_mean + share * b
        both.aa = mine * self.aa + share * other.aa + apart * a * a
        both.ab = mine * self.ab + share * other.ab + apart * a * b
        both.bb = mine * self.bb + share * other.bb + apart * b * b
        both.lost = mine * self.lost + share * other.lost
        return both

    def unscaled(self, factor: float, shift: float) -> AffineSums:
        """Of what these are the sums of, but for a factor of the weight and a shift of the bias."""
        sums = AffineSums(self.name, self.whole)
        sums.a_mean, sums.b_mean = self.a_mean / factor, self.b_mean - shift
        sums.aa, sums.ab, sums.bb = self.aa / factor**2, self.ab / factor, self.bb
        sums.lost = self.lost / factor**2
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

    def check_alive(self) -> None:
        if not self.aa > self.lost:
            why = f"{self.name} is dead but for its bias: {self.moments(1.0, 0.0)!r}"
            raise Impossible(why, dead=True)

    def scale_for(self, std: float) -> float:
        """The positive scale with which the values' standard deviation (n - 1) is ``std``."""
        wanted = std * std * (self.count - 1) / self.count
        if self.bb >= wanted:
            raise Impossible(
                f"{self.name}: the variance of its bias alone, {self.bb:.6g}, is not below the "
                f"{wanted:.6g} asked for: {self.moments(1.0, 0.0)!r}"
            )
        self.check_alive()
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


def _together(channels: Tensor) -> Moments:
    """The moments of all channels, [channels, 7]."""
    while len(channels) > 1:
        half = len(channels) // 2
        pairs = merged(channels[:half], channels[half : 2 * half])
        channels = torch.cat((pairs, channels[2 * half :]))
    return Moments(channels[0])
