"""The laws that the values follow: goodness of fit, moments, tails, and independence.

Every test turns what it measures into p-values, each of which must be at least LEVEL = 1e-4. Seeds and
streams are fixed, so an outcome never changes while the stream does not. Of a right stream with other
seeds, each p-value would fail with probability 1e-4. The quick tests take 48 of them (one for a whole
family of correlations, by Bonferroni's inequality): together below 0.5 %. The slow ones take 25: 0.25 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from fastinit.fills import operator as ops
from fastinit.stream import laws
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law

LEVEL = 1e-4
SEED = 20240229
Doubles = NDArray[np.float64]


class Case(NamedTuple):
    """A law with the bounds that its values are conditioned on, in standard deviations."""

    law: Law
    a: float = -math.inf
    b: float = math.inf

    def cdf(self, x: Doubles) -> tuple[Doubles, Doubles]:
        """P(X <= x) and P(X > x), both to full relative precision where the window allows it."""
        if self.law.kind == laws.UNIFORM:  # a value stands for the 2^-24 that begin with it
            u = x + 2.0**-25
            return u, 1 - u
        below, above = special.ndtr(self.a), special.ndtr(-self.b)
        mass = special.ndtr(self.b) - below
        return (special.ndtr(x) - below) / mass, (special.ndtr(-x) - above) / mass

    def moment(self, power: int) -> float:
        """E X^power."""
        if self.law.kind == laws.UNIFORM:
            return 1 / (power + 1)
        nodes, weights = np.polynomial.legendre.leggauss(200)  # of the order of 1e-14 off
        low, high = max(self.a, -12.0), min(self.b, 12.0)
        x = (low + high) / 2 + (high - low) / 2 * nodes
        weights = weights * np.exp(-x * x / 2)
        return float(weights @ x**power / weights.sum())


CASES = {
    "uniform": Case(laws.uniform(0.0, 1.0)),
    "normal": Case(laws.normal(0.0, 1.0)),
    "±2σ": Case(laws.truncated_normal(0.0, 1.0, -2.0, 2.0), -2.0, 2.0),
    "[0, ∞)": Case(laws.truncated_normal(0.0, 1.0, 0.0, math.inf), 0.0, math.inf),
    "[-0.01σ, 0.01σ]": Case(laws.truncated_normal(0.0, 1.0, -0.01, 0.01), -0.01, 0.01),
    "[2.5σ, 4σ]": Case(laws.truncated_normal(0.0, 1.0, 2.5, 4.0), 2.5, 4.0),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def draw(law: Law, n: int, seed: int = SEED, stream: int = 0, first: int = 0) -> torch.Tensor:
    """Elements [first, first + n) of a stream."""
    window = ops.Window((1,), first)
    return ops.fill_(torch.empty(n), law, seed=seed, stream=stream, window=window)


def kolmogorov_smirnov(u: Doubles) -> float:
    """The p-value that ascending u come from the uniform law."""
    n = len(u)
    steps = np.arange(n)
    distance = max(float(np.max((steps + 1) / n - u)), float(np.max(u - steps / n)))
    return float(stats.kstwobign.sf(math.sqrt(n) * distance))


def anderson_darling_p(z: float) -> float:
    """P(A² > z) in the limit of many samples (Marsaglia & Marsaglia 2004, adinf; within 2e-6)."""
    if z < 2:
        c = (2.00012, 0.247105, -0.0649821, 0.0347962, -0.011672, 0.00168691)
        cdf = math.exp(-1.2337141 / z) / math.sqrt(z) * np.polynomial.polynomial.polyval(z, c)
    else:
        c = (1.0776, -2.30695, 0.43424, -0.082433, 0.008056, -0.0003146)
        cdf = math.exp(-math.exp(np.polynomial.polynomial.polyval(z, c)))
    return float(1 - cdf)


def two_sided(z: float) -> float:
    """The p-value of a standard normal statistic."""
    return math.erfc(abs(z) / math.sqrt(2))


def count_p(count: int, expected: float) -> float:
    """The two-sided p-value of a count of rare things."""
    fewer, more = stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected)
    return min(1.0, 2 * float(min(fewer, more)))


def moment_ps(case: Case, powers: Doubles, n: int) -> list[float]:
    """The p-values of the means of x, x², x³, x⁴, each against its exact mean and variance."""
    ps = []
    for k, measured in enumerate(powers, start=1):
        exact, variance = case.moment(k), case.moment(2 * k) - case.moment(k) ** 2
        ps.append(two_sided((float(measured) - exact) / math.sqrt(variance / n)))
    return ps


def powers(x: torch.Tensor) -> Doubles:
    """The sums of x, x², x³, x⁴ in float64."""
    x = x.double()
    square = x * x
    return np.array(
        [float(x.sum()), *(float(square.dot(y)) for y in (torch.ones_like(x), x, square))]
    )


# --- one value -------------------------------------------------------------------------------------


@every_case
def test_goodness_of_fit(case: Case) -> None:
    """Kolmogorov-Smirnov and Anderson-Darling against the exact law, 2^20 samples: 12 p-values."""
    x = np.sort(draw(case.law, 1 << 20).numpy().astype(np.float64))
    below, above = (np.clip(p, 2.0**-33, 1.0) for p in case.cdf(x))  # a word's own half step
    n = len(x)
    odd = 2 * np.arange(1, n + 1) - 1
    statistic = -n - float(np.mean(odd * (np.log(below) + np.log(above[::-1]))))
    assert kolmogorov_smirnov(below) >= LEVEL
    assert anderson_darling_p(statistic) >= LEVEL


@every_case
def test_moments(case: Case) -> None:
    """Moments to order 4, 2^20 samples: 24 p-values."""
    n = 1 << 20
    assert min(moment_ps(case, powers(draw(case.law, n, stream=1)) / n, n)) >= LEVEL


def test_tails() -> None:
    """Normals beyond 3 and 4 standard deviations on either side, 2^22 samples: 4 p-values."""
    n = 1 << 22
    z = draw(laws.normal(), n, stream=2)
    for limit in (3.0, 4.0):
        for side in (z, -z):
            count = int((side > limit).sum())
            assert count_p(count, n * float(special.ndtr(-limit))) >= LEVEL


# --- several values --------------------------------------------------------------------------------


def correlation_p(correlations: Doubles, n: int) -> float:
    """The p-value of the largest of many correlations, each of n pairs of independent values."""
    largest = float(np.max(np.abs(correlations)))
    return min(1.0, correlations.size * two_sided(largest * math.sqrt(n)))


def between(rows: torch.Tensor) -> float:
    """The p-value of the correlations of all pairs of rows."""
    c = np.corrcoef(rows.numpy())
    return correlation_p(c[np.triu_indices(len(c), 1)], rows.shape[1])


@pytest.mark.parametrize("transform", ["value", "square"])
def test_lags(transform: str) -> None:
    """Correlations of normals, and of their squares, at lags 1 to 64, 2^20 samples: 2 p-values."""
    n = 1 << 20
    z = draw(laws.normal(), n, stream=3).double()
    x = z if transform == "value" else (z * z - 1) / math.sqrt(2)
    lags = [float(x[lag:].dot(x[:-lag])) / (n - lag) for lag in range(1, 65)]
    assert correlation_p(np.array(lags), n) >= LEVEL


STREAMS = [*range(32), *(1 << bit for bit in range(5, 64)), *map(stream_id, "abcdef")]


@pytest.mark.parametrize("transform", ["value", "square"])
def test_streams(transform: str) -> None:
    """All pairs of 97 streams (0 to 31, single bits, names), 2^13 samples each: 2 p-values."""
    z = torch.stack([draw(laws.normal(), 1 << 13, stream=stream) for stream in STREAMS])
    assert between(z if transform == "value" else z * z) >= LEVEL


@pytest.mark.parametrize("transform", ["value", "square"])
def test_seeds_that_differ_in_one_bit(transform: str) -> None:
    """All pairs of a seed and its 64 neighbours, 2^13 samples each: 2 p-values."""
    seeds = [SEED, *(SEED ^ 1 << bit for bit in range(64))]
    z = torch.stack([draw(laws.normal(), 1 << 13, seed=seed) for seed in seeds])
    assert between(z if transform == "value" else z * z) >= LEVEL


@pytest.mark.parametrize("key", ["seed", "stream"])
def test_one_bit_of_the_key_flips_half_of_the_bits(key: str) -> None:
    """The 24 bits of a uniform, for each of 64 one-bit changes of the key, 2^12 samples: 2 p-values."""
    n = 1 << 12

    def words(value: int) -> NDArray[np.int64]:
        keys = {"seed": SEED, "stream": 5, key: value}
        return (draw(laws.uniform(), n, **keys).double() * 2**24).long().numpy()

    base = SEED if key == "seed" else 5
    changed = np.array([words(base) ^ words(base ^ 1 << bit) for bit in range(64)])
    flipped = (changed[..., None] >> np.arange(24) & 1).sum(1)  # of n, for each change and bit
    z = (flipped - n / 2) / math.sqrt(n / 4)
    assert min(1.0, z.size * two_sided(float(np.max(np.abs(z))))) >= LEVEL


# --- many values -----------------------------------------------------------------------------------

MANY = 1 << 30
CHUNK = 1 << 22
FINE, COARSE = 1 << 16, 1 << 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "normal", "±2σ"])
def test_many(name: str) -> None:
    """The first 2^30 elements of a stream: 7 p-values for each law, and 4 more for the normal one.

    Kolmogorov-Smirnov and Anderson-Darling take the empirical distribution at 2^16 - 1 points of equal
    probability; in between it cannot move by more than 2^-16, and the tails beyond the first and last
    point add 2^-15 to A² on average. χ² takes 2^10 cells: narrower ones would see the float32 grid.
    Moments to order 4. Of normals, also those beyond 4, 5 and 6 standard deviations, and the largest.
    """
    case = CASES[name]
    limits = (4.0, 5.0, 6.0)
    counts = np.zeros(FINE, dtype=np.int64)
    sums = np.zeros(4)
    tails = np.zeros(len(limits), dtype=np.int64)
    largest = 0.0
    for first in range(0, MANY, CHUNK):
        x = draw(case.law, CHUNK, stream=4, first=first)
        sums += powers(x)
        if name == "normal":
            size = x.abs()
            tails += [int((size > limit).sum()) for limit in limits]
            largest = max(largest, float(size.max()))
        u = x.double() if name == "uniform" else torch.special.ndtr(x.double())
        if name == "±2σ":
            below = float(special.ndtr(case.a))
            u = (u - below) / (1 - 2 * below)
        cells = (u * FINE).clamp_(0, FINE - 1).to(torch.int32)
        counts += torch.bincount(cells, minlength=FINE).numpy()
    assert counts.sum() == MANY

    edges = np.arange(1, FINE) / FINE
    off = np.cumsum(counts)[:-1] / MANY - edges
    ps = {"KS": float(stats.kstwobign.sf(math.sqrt(MANY) * np.max(np.abs(off))))}
    ps["AD"] = anderson_darling_p(MANY * float(np.mean(off**2 / (edges * (1 - edges)))))
    ps["χ²"] = float(stats.chisquare(counts.reshape(COARSE, -1).sum(1)).pvalue)
    for power, p in enumerate(moment_ps(case, sums / MANY, MANY), start=1):
        ps[f"moment {power}"] = p
    if name == "normal":
        for limit, count in zip(limits, tails):
            ps[f"beyond {limit}σ"] = count_p(int(count), MANY * 2 * float(special.ndtr(-limit)))
        # P(all below) = exp(-expected number above)
        beyond = MANY * 2 * float(special.ndtr(-largest))
        ps["largest"] = 2 * min(math.exp(-beyond), -math.expm1(-beyond))
    print(ps)
    assert min(ps.values()) >= LEVEL, ps
