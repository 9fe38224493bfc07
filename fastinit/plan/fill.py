"""Fill: what one parameter shall be: a distribution, its parameters and a scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from fastinit.base import number
from fastinit.elements.regions import Region
from fastinit.stream import laws
from fastinit.stream.laws import Law


class Structure(NamedTuple):
    """A distribution of whole tensors: one of fastinit.init's functions, with its arguments."""

    name: str
    parameters: dict[str, float]


def orthogonal(gain: float = 1.0) -> Structure:
    return Structure("orthogonal", {"gain": number.multiplier("gain", gain, negative=True)})


def delta_orthogonal(gain: float = 1.0) -> Structure:
    return Structure("delta_orthogonal", {"gain": number.multiplier("gain", gain, negative=True)})


def sparse(sparsity: float, std: float = 0.01) -> Structure:
    return Structure(
        "sparse",
        {"sparsity": number.share("sparsity", sparsity), "std": laws.normal(0.0, std).p1},
    )


def eye() -> Structure:
    return Structure("eye", {})


def dirac(groups: float = 1) -> Structure:
    count = number.positive("groups", groups)
    if not count.is_integer():
        number.out_of_range("groups", "a positive whole number", groups)
    return Structure("dirac", {"groups": count})


LAWS: dict[str, Callable[..., Law]] = {
    "uniform": laws.uniform,
    "normal": laws.normal,
    "truncated_normal": laws.truncated_normal,
    "constant": laws.constant,
}
STRUCTURES: dict[str, Callable[..., Structure]] = {
    "orthogonal": orthogonal,
    "delta_orthogonal": delta_orthogonal,
    "sparse": sparse,
    "eye": eye,
    "dirac": dirac,
}
CONSTRUCTORS: dict[str, Callable[..., Law | Structure]] = {**LAWS, **STRUCTURES}


class Part(NamedTuple):
    """Some elements of a parameter that are filled otherwise than the rest."""

    region: Region
    fill: Fill


@dataclass(frozen=True)
class Fill:
    """A distribution with its parameters, and a scale that multiplies every value drawn from it.

    Args:
        distribution: of values, ``"uniform"``, ``"normal"``, ``"truncated_normal"`` or ``"constant"``;
            or of whole tensors, ``"orthogonal"``, ``"delta_orthogonal"``, ``"sparse"``, ``"eye"`` or
            ``"dirac"``, which need the dimensions that the functions of :mod:`fastinit.init` do.
        parameters: in the order of the constructor of that name: (a, b); (mean, std);
            (mean, std, a, b); (value,); (gain,); (gain,); (sparsity, std); (); (groups,).
        scale: positive and finite.
        parts: what is written after the rest, each over some of the elements (:meth:`with_part`).
        stream: the name whose numbers are drawn, by default the parameter's own. With another
            parameter's name and distribution, the values are that parameter's.

    Raises:
        ValueError: unknown distribution or wrong number of parameters.
        NumberTypeError: a parameter or a scale that is no number.
        NumberRangeError: a scale that is not positive and finite; parameters that the law refuses
            (``fastinit.stream.laws``), also after scaling.

    >>> Fill.normal(std=0.02).scaled(0.5).std
    0.01
    """

    distribution: str
    parameters: tuple[float, ...]
    scale: float = 1.0
    parts: tuple[Part, ...] = ()
    stream: str | None = None

    def __post_init__(self) -> None:
        if self.distribution not in CONSTRUCTORS:
            known = ", ".join(CONSTRUCTORS)
            raise ValueError(f"distribution must be one of {known}, but got {self.distribution!r}")
        object.__setattr__(self, "scale", number.positive("scale", self.scale))
        try:
            unscaled = CONSTRUCTORS[self.distribution](*self.parameters)
        except number.NumberTypeError:
            raise
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
        if self.has_law:
            _ = self.law  # refuses what scaling takes out of range
        for _, part in self.parts:
            if part.parts or not part.has_law:
                raise ValueError(f"a part must be one law of values, but got {part!r}")

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

    @classmethod
    def orthogonal(cls, gain: float = 1.0) -> Fill:
        """gain times a random matrix of orthonormal rows or columns (``init.orthogonal_``)."""
        return cls("orthogonal", (gain,))

    @classmethod
    def delta_orthogonal(cls, gain: float = 1.0) -> Fill:
        """A convolution's centre orthogonal, the rest 0 (``init.delta_orthogonal_``)."""
        return cls("delta_orthogonal", (gain,))

    @classmethod
    def sparse(cls, sparsity: float, std: float = 0.01) -> Fill:
        """Normal with a fraction of zeros in each column (``init.sparse_``)."""
        return cls("sparse", (sparsity, std))

    @classmethod
    def eye(cls) -> Fill:
        """The identity matrix (``init.eye_``)."""
        return cls("eye", ())

    @classmethod
    def dirac(cls, groups: int = 1) -> Fill:
        """The identity convolution (``init.dirac_``)."""
        return cls("dirac", (groups,))

    def scaled(self, factor: float) -> Fill:
        """This Fill with every value multiplied by ``factor``, positive and finite."""
        factor = number.positive("factor", factor)
        return replace(
            self,
            scale=self.scale * factor,
            parts=tuple(Part(region, fill.scaled(factor)) for region, fill in self.parts),
        )

    def affine(self, factor: float, shift: float = 0.0) -> Fill | None:
        """The law of ``factor * value + shift``, for any finite numbers; None if it is no Fill.

        A negative factor mirrors the law; the values are then not this Fill's mirrored.
        """
        factor, shift = number.finite("factor", factor), number.finite("shift", shift)
        if shift == 0.0 and factor > 0.0:
            return self.scaled(factor)
        if not self.has_law:
            return None
        parts = []
        for region, fill in self.parts:
            if (moved := fill.affine(factor, shift)) is None:
                return None
            parts.append(Part(region, moved))
        law = self.law
        if factor == 0.0 or law.kind == laws.CONSTANT:
            made = Fill.constant(factor * law.p0 + shift if law.kind == laws.CONSTANT else shift)
        elif law.kind == laws.NORMAL:
            made = Fill.normal(factor * law.p0 + shift, abs(factor) * law.p1)
        else:
            bounds = (law.p0, law.p1) if law.kind == laws.UNIFORM else (law.p2, law.p3)
            low, high = sorted(factor * bound + shift for bound in bounds)
            if law.kind == laws.UNIFORM:
                made = Fill.uniform(low, high)
            else:
                mean, std = factor * law.p0 + shift, abs(factor) * law.p1
                made = Fill.truncated_normal(mean, std, low, high)
        return replace(made, parts=tuple(parts), stream=self.stream)

    def with_part(self, view: Tensor, fill: Fill) -> Fill:
        """This Fill, with ``fill`` written over a part of the parameter.

        Args:
            view: of the contiguous parameter, which may be on meta: ``parameter[padding_idx]``.
            fill: one law of values; it draws the numbers that the elements have in the parameter.
        """
        return replace(self, parts=(*self.parts, Part(Region.of(view), fill)))

    @property
    def has_law(self) -> bool:
        """Whether every value is drawn from one law by itself (parts apart)."""
        return self.distribution in LAWS

    @property
    def law(self) -> Law:
        """The law of a value, with the scale multiplied in.

        Raises:
            TypeError: a distribution of whole tensors.
        """
        if not self.has_law:
            raise TypeError(f"{self.distribution} is not a law of single values")
        return LAWS[self.distribution](*(self.scale * p for p in self.parameters))

    @property
    def structure(self) -> Structure:
        """The function and arguments of a distribution of whole tensors, unscaled."""
        return STRUCTURES[self.distribution](*self.parameters)

    @property
    def mean(self) -> float:
        """The expectation of the values, parts apart; NaN where that depends on the shape."""
        return _moments(self.law)[0] if self.has_law else math.nan

    @property
    def std(self) -> float:
        """The standard deviation of the values (of a truncated normal: after truncation).

        Parts apart; NaN where that depends on the shape.
        """
        return _moments(self.law)[1] if self.has_law else math.nan

    def __repr__(self) -> str:
        """With all numbers, but of more than two parts only how many there are."""
        said = [repr(self.distribution), repr(self.parameters)]
        if self.scale != 1.0:
            said.append(f"scale={self.scale!r}")
        if self.parts:
            some = repr(self.parts) if len(self.parts) <= 2 else f"<{len(self.parts)} of them>"
            said.append(f"parts={some}")
        if self.stream is not None:
            said.append(f"stream={self.stream!r}")
        return f"Fill({', '.join(said)})"

    def __str__(self) -> str:
        if self.distribution == "constant":
            said = f"constant {self.law.p0:g}"
        else:
            said = self.distribution.replace("_", " ")
        return (
            f"{said}, {', '.join(sorted({str(f) for _, f in self.parts}))}" if self.parts else said
        )


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
