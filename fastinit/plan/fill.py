"""Fill: what one parameter shall be: a distribution, its parameters and a scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base import number
from fastinit.elements.strided import Strided
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.stream import laws
from fastinit.stream.kinds import KINDS
from fastinit.stream.laws import Law

PARAMETERS: dict[str, tuple[str, ...]] = {
    **{kind.name: kind.parameters for kind in KINDS},
    **{name: structure.parameters for name, structure in STRUCTURES.items()},
}
"""Of each distribution, of values and of whole tensors, in the order of a Fill's."""


class Part(NamedTuple):
    """Some elements of a parameter that are filled otherwise than the rest."""

    region: Strided
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
        ValueError: unknown distribution or wrong number of parameters; a part that is no law of values,
            or that has an element twice, or negative or too large numbers.
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
        if self.distribution not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise ValueError(f"distribution must be one of {known}, but got {self.distribution!r}")
        object.__setattr__(self, "scale", number.positive("scale", self.scale))
        names, given = PARAMETERS[self.distribution], self.parameters
        if not isinstance(given, Iterable) or len(given := tuple(given)) != len(names):
            raise ValueError(
                f"{self.distribution} takes {len(names)} parameters ({', '.join(names)}), "
                f"but got {self.parameters!r}"
            )
        if self.has_law:
            checked = laws.make(self.distribution, *given).arguments
        else:
            checked = STRUCTURES[self.distribution].check(*given)
        # One NaN for all: then Fills of it are equal, as they give the same bits.
        checked = tuple([math.nan if value != value else value for value in checked])
        object.__setattr__(self, "parameters", checked)
        if self.has_law:
            _ = self.law  # refuses what scaling takes out of range
        for region, part in self.parts:
            region.check("a part")
            if part.parts or not part.has_law:
                raise ValueError(f"a part must be one law of values, but got {part!r}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # NaN is another when it is unpickled

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
        made = self.law.affine(factor, shift)
        return Fill(made.name, made.arguments, parts=tuple(parts), stream=self.stream)

    def with_part(self, view: Tensor, fill: Fill) -> Fill:
        """This Fill, with ``fill`` written over a part of the parameter.

        Args:
            view: of the contiguous parameter, which may be on meta: ``parameter[padding_idx]``.
            fill: one law of values; it draws the numbers that the elements have in the parameter.
        """
        return replace(self, parts=(*self.parts, Part(Strided.of(view).merged(), fill)))

    @property
    def has_law(self) -> bool:
        """Whether every value is drawn from one law by itself (parts apart)."""
        return self.distribution not in STRUCTURES

    @property
    def is_random(self) -> bool:
        """Whether any value is drawn (parts apart)."""
        if self.has_law:
            return self.law.kind != laws.CONSTANT
        return STRUCTURES[self.distribution].is_random

    @property
    def law(self) -> Law:
        """The law of a value, with the scale multiplied in.

        Raises:
            TypeError: a distribution of whole tensors.
        """
        if not self.has_law:
            raise TypeError(f"{self.distribution} is not a law of single values")
        return laws.make(self.distribution, *(self.scale * p for p in self.parameters))

    @property
    def mean(self) -> float:
        """The expectation of the values, parts apart; NaN where that depends on the shape."""
        return self.law.mean if self.has_law else math.nan

    @property
    def std(self) -> float:
        """The standard deviation of the values (of a truncated normal: after truncation).

        Parts apart; NaN where that depends on the shape.
        """
        return self.law.std if self.has_law else math.nan

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
        said = str(self.law) if self.has_law else self.distribution.replace("_", " ")
        return (
            f"{said}, {', '.join(sorted({str(f) for _, f in self.parts}))}" if self.parts else said
        )


def write_whole_(tensor: Tensor, fill: Fill, seed: int, name: str) -> None:
    """Writes a Fill of a whole tensor (parts apart), with the numbers of ``name``.

    Raises:
        ValueError: a shape that the function does not take. So does a meta tensor, for checking.
    """
    structure = STRUCTURES[fill.distribution]
    key = {"seed": seed, "name": name} if structure.is_random else {}
    structure.write(tensor, *fill.parameters, **key)
    if fill.scale != 1.0:
        with torch.no_grad():
            tensor.mul_(fill.scale)
