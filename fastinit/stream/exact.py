"""Exact: the float64 laws, in plain torch, which is their specification and their only form.

Keys, counters and words are the stream's (``fastinit.stream.reference``). Element i takes two words of
block i div 2, the first two or the last two by i mod 2, as one number of 64 bits, of which the upper 53
count. All that follows is float64 sums, products, quotients and square roots, each rounded once and a
kernel of its own, so that the bits are the same on every machine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastinit.stream import functions
from fastinit.stream.kinds import Params
from fastinit.stream.laws import NORMAL, UNIFORM
from fastinit.stream.reference import philox_words

TURN = 1 << 53


def fraction(high: Tensor, low: Tensor) -> Tensor:
    """The upper 53 of the 64 bits of two words, as an int64 number k: of [0, 1), k * 2^-53."""
    return high << 21 | low >> 11


def clamped(value: Tensor, p: Params) -> Tensor:
    value = torch.where(value > p.lo, value, p.lo)  # torch.clamp does not say which of two zeros
    return torch.where(value < p.hi, value, p.hi)


def uniform(k: Tensor, p: Params) -> Tensor:
    return clamped(k.double() * p.mul + p.add, p)


def normal_pair(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Box & Muller 1958, of two numbers in [0, 2^53): the largest is 8.5717."""
    r = functions.sqrt(functions.log((radius + 1).double() * 2.0**-53) * -2.0)
    quarter = angle + TURN // 8 >> 51  # to the nearest quarter of a turn, so that the rest is small
    rest = (angle - (quarter << 51)).double() * (2.0 * math.pi / TURN)
    cos, sin = functions.cos_sin(rest)
    swapped = quarter & 1 == 1
    x, y = torch.where(swapped, sin, cos), torch.where(swapped, cos, sin)
    x = torch.where(quarter + 1 & 2 == 2, -x, x)
    y = torch.where(quarter & 2 == 2, -y, y)
    return r * x, r * y


def _polynomials(above: str, below: str) -> tuple[list[float], list[float]]:
    return [float(c) for c in above.split()], [1.0, *(float(c) for c in below.split())]


# Wichura 1988, "Algorithm AS 241: The percentage points of the normal distribution" (PPND16): numerators
# and denominators, from the constant terms on.
CENTRE = _polynomials(
    """3.3871328727963666080e0 1.3314166789178437745e2 1.9715909503065514427e3 1.3731693765509461125e4
    4.5921953931549871457e4 6.7265770927008700853e4 3.3430575583588128105e4 2.5090809287301226727e3""",
    """4.2313330701600911252e1 6.8718700749205790830e2 5.3941960214247511077e3 2.1213794301586595867e4
    3.9307895800092710610e4 2.8729085735721942674e4 5.2264952788528545610e3""",
)
NEAR = _polynomials(
    """1.42343711074968357734e0 4.63033784615654529590e0 5.76949722146069140550e0
    3.64784832476320460504e0 1.27045825245236838258e0 2.41780725177450611770e-1
    2.27238449892691845833e-2 7.74545014278341407640e-4""",
    """2.05319162663775882187e0 1.67638483018380384940e0 6.89767334985100004550e-1
    1.48103976427480074590e-1 1.51986665636164571966e-2 5.47593808499534494600e-4
    1.05075007164441684324e-9""",
)
FAR = _polynomials(
    """6.65790464350110377720e0 5.46378491116411436990e0 1.78482653991729133580e0
    2.96560571828504891230e-1 2.65321895265761230930e-2 1.24266094738807843860e-3
    2.71155556874348757815e-5 2.01033439929228813265e-7""",
    """5.99832206555887937690e-1 1.36929880922735805310e-1 1.48753612908506148525e-2
    7.86869131145613259100e-4 1.84631831751005468180e-5 1.42151175831644588870e-7
    2.04426310338993978564e-15""",
)


def quantile(x: Tensor, tail: Tensor) -> Tensor:
    """The standard normal's quantile of a probability p.

    Args:
        x: 2 p - 1.
        tail: the smaller of p and 1 - p.
    """
    q = x * 0.5
    centre = q * _ratio(CENTRE, 0.180625 - q * q)
    r = functions.sqrt(-functions.log(tail))
    outside = torch.where(r <= 5.0, _ratio(NEAR, r - 1.6), _ratio(FAR, r - 5.0))
    return torch.where(q.abs() <= 0.425, centre, torch.where(x < 0.0, -outside, outside))


def _ratio(of: tuple[list[float], list[float]], x: Tensor) -> Tensor:
    above, below = of
    return functions.series(x, above) / functions.series(x, below)


def truncated_normal(k: Tensor, p: Params) -> Tensor:
    """The quantile of a uniform probability in the window, from the tail that holds less."""
    x = (k - TURN // 2).double() * p.x_mul + p.x_add
    is_below = x < 0.0
    steps = torch.where(is_below, k, TURN - 1 - k).double()
    ends = torch.tensor([p.t_above, p.t_below], dtype=torch.float64, device=k.device)
    tail = steps * p.t_mul + ends[is_below.long()]
    return clamped(quantile(x, tail) * p.mul + p.add, p)


def values(kind: int, p: Params, seed: int, stream: int, index: Tensor) -> Tensor:
    """The values of some elements of a stream: float64 [...]. Arguments are the reference's."""
    words = philox_words(seed, stream, index >> 1)
    place = index & 1
    first, second = (fraction(words[..., i], words[..., i + 1]) for i in (0, 2))
    if kind == NORMAL:
        x, y = normal_pair(first, second)
        return torch.where(place == 0, x, y) * p.mul + p.add
    k = torch.where(place == 0, first, second)
    return uniform(k, p) if kind == UNIFORM else truncated_normal(k, p)
