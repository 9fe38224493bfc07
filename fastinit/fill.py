"""Fill: what one parameter shall be: a distribution, its parameters and a scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastinit import laws
from fastinit.laws import Law

CONSTRUCTORS: dict[str, Callable[..., Law]] = {
    "uniform": laws.uniform,
    "normal": laws.normal,
    "truncated_normal": laws.truncated_normal,
    "constant": laws.constant,
}


@dataclass(frozen=True)
class Fill:
    """A distribution with its parameters, and a scale that multiplies every value drawn from it.

    Args:
        distribution: ``"uniform"``, ``"normal"``, ``"truncated_normal"`` or ``"constant"``.
        parameters: in the order of the constructor of that name: (a, b); (mean, std);
            (mean, std, a, b); (value,).
        scale: positive and finite.

    Raises:
        ValueError: unknown distribution, wrong number of parameters, or a scale that is not
            positive and finite.
        RuntimeError: parameters that the law refuses (``fastinit.laws``), also after scaling.

    >>> Fill.normal(std=0.02).scaled(0.5).std
    0.01
    """

    distribution: str
    parameters: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in CONSTRUCTORS:
            known = ", ".join(CONSTRUCTORS)
            raise ValueError(f"distribution must be one of {known}, but got {self.distribution!r}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)):
            raise ValueError(f"scale must be a number, but got {self.scale!r}")
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, but got {self.scale}")
        object.__setattr__(self, "scale", float(self.scale))
        try:
            unscaled = CONSTRUCTORS[self.distribution](*self.parameters)
        except TypeError as error:
            raise ValueError(
                f"parameters do not fit {self.distribution}: got {self.parameters!r}"
            ) from error
        names = unscaled.parameters
        if len(self.parameters) != len(names):
            raise ValueError(
                f"{self.distribution} takes {len(names)} parameters ({', '.join(names)}), "
                f"but got {self.parameters!r}"
            )
        object.__setattr__(self, "parameters", tuple(names.values()))
        _ = self.law  # refuses what scaling takes out of range

    @classmethod
    def uniform(cls, a: float = 0.0, b: float = 1.0) -> Fill:
        """The uniform law on [a, b)."""
        return cls("uniform", (a, b))

    @classmethod
    def normal(cls, mean: float = 0.0, std: float = 1.0) -> Fill:
        """The normal law."""
        return cls("normal", (mean, std))

    @classmethod
    def truncated_normal(
        cls, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
    ) -> Fill:
        """The normal law conditioned on [a, b]; a and b are values, not multiples of std."""
        return cls("truncated_normal", (mean, std, a, b))

    @classmethod
    def constant(cls, value: float) -> Fill:
        """One value everywhere."""
        return cls("constant", (value,))

    def scaled(self, factor: float) -> Fill:
        """This Fill with every value multiplied by ``factor``, positive and finite."""
        return Fill(self.distribution, self.parameters, self.scale * factor)

    @property
    def law(self) -> Law:
        """The law with the scale multiplied in."""
        return CONSTRUCTORS[self.distribution](*(self.scale * p for p in self.parameters))

    @property
    def mean(self) -> float:
        """The expectation of the values."""
        return _moments(self.law)[0]

    @property
    def std(self) -> float:
        """The standard deviation of the values (of a truncated normal: after truncation)."""
        return _moments(self.law)[1]

    def __str__(self) -> str:
        if self.distribution == "constant":
            return f"constant {self.law.p0:g}"
        return self.distribution.replace("_", " ")


def _moments(law: Law) -> tuple[float, float]:
    """Mean and standard deviation of a law, in doubles.

    For the truncated normal see Johnson, Kotz & Balakrishnan, Continuous Univariate Distributions 1
    (1994), section 13.10.1.
    """
    if law.kind == laws.UNIFORM:
        return (law.p0 + law.p1) / 2, (law.p1 - law.p0) / math.sqrt(12.0)
    if law.kind == laws.NORMAL:
        return law.p0, law.p1
    if law.kind == laws.CONSTANT:
        return law.p0, 0.0
    mean, std, a, b = law[1:]
    if std == 0.0 or a == b:
        return min(max(mean, a), b), 0.0
    alpha, beta = (a - mean) / std, (b - mean) / std
    if beta - alpha < 1e-3:
        # The formula cancels to 1e-16 / (beta - alpha)^2, and the density is flat to 1e-3 of itself
        # times the distance from the mean: the uniform law.
        return (a + b) / 2, (b - a) / math.sqrt(12.0)
    if alpha + beta > 0:  # the mass from the tail that holds less of it
        mass = math.erfc(alpha / math.sqrt(2)) - math.erfc(beta / math.sqrt(2))
    else:
        mass = math.erfc(-beta / math.sqrt(2)) - math.erfc(-alpha / math.sqrt(2))
    mass /= 2
    density_a, density_b = _density(alpha), _density(beta)
    shift = (density_a - density_b) / mass
    pull = (alpha * density_a if density_a else 0.0) - (beta * density_b if density_b else 0.0)
    return mean + std * shift, std * math.sqrt(max(0.0, 1.0 + pull / mass - shift * shift))


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
