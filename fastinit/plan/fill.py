"""Fill: what one parameter shall be: a distribution, its parameters and a scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from fastinit.base import number
from fastinit.elements.pieces import tile
from fastinit.elements.strided import Strided
from fastinit.plan import distributions, law_moments
from fastinit.plan import steps as its_steps
from fastinit.plan.distributions import FUSED, RAMP
from fastinit.plan.steps import Step
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.stream.laws import CODES, Law


class FillPart(NamedTuple):
    """Some elements of a parameter that are filled otherwise than the rest.

    A part of its own is a tensor by itself, of the region's sizes: its elements count from 0, in its
    order, and are those that a parameter of its stream's name and of this shape would have.
    """

    region: Strided
    fill: Fill
    own: bool = False

    @property
    def which(self) -> Strided:
        """The elements of its stream, in the places of the region."""
        return Strided.contiguous(self.region.sizes) if self.own else self.region


@dataclass(frozen=True)
class Fill:
    """A distribution with its parameters, and a scale that multiplies every value drawn from it.

    Args:
        distribution: of values, ``"uniform"``, ``"normal"``, ``"truncated_normal"``, ``"constant"`` or
            ``"arange"``; of whole tensors, ``"orthogonal"``, ``"delta_orthogonal"``, ``"sparse"``,
            ``"eye"`` or ``"dirac"``, which need the dimensions that the functions of
            :mod:`fastinit.init` do; or ``"fused"``, which is its parts and nothing else.
        parameters: in the order of the constructor of that name: (a, b); (mean, std);
            (mean, std, a, b); (value,); (start, step, dim); (gain,); (gain,); (sparsity, std); ();
            (groups,); ().
        scale: positive and finite; multiplies what the steps make.
        parts: what is written after the rest, each over some of the elements (:meth:`with_part`).
        stream: the name whose numbers are drawn, by default the parameter's own. With another
            parameter's name and distribution, the values are that parameter's.
        steps: what is done to each value, in this order (:meth:`then`).
        exact: of a law; values are drawn and go through steps in float64 (``init.normal_``), for
            float64 and complex128 parameters alone. By default they are float32 values, widened.

    Raises:
        ValueError: unknown distribution or step, wrong number of parameters or arguments; steps after a
            distribution of whole tensors; a part that is neither of values nor of a tensor of its own,
            or that has an element twice, or negative or too large numbers; parts that a fused parameter
            is not made of.
        NumberTypeError: a parameter or a scale that is no number.
        NumberRangeError: a scale that is not positive and finite; parameters that the law refuses
            (``fastinit.stream.laws``), also after scaling; steps that make NaN of some values.

    >>> Fill.normal(std=0.02).scaled(0.5).std
    0.01
    """

    distribution: str
    parameters: tuple[float, ...]
    scale: float = 1.0
    parts: tuple[FillPart, ...] = ()
    stream: str | None = None
    steps: tuple[Step, ...] = ()
    exact: bool = False
    _law: Law | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checked = distributions.check(self.distribution, self.parameters)
        object.__setattr__(self, "scale", number.positive("scale", self.scale))
        object.__setattr__(self, "parameters", checked)
        if number.flag("exact", self.exact) and self.distribution not in CODES:
            raise ValueError(f"exact is of {', '.join(CODES)}, but got {self.distribution!r}")
        object.__setattr__(self, "steps", its_steps.checked(self.steps))
        if self.steps:
            self._check_takes_steps()
            its_steps.image(*law_moments.support(self.distribution, self.parameters), self.steps)
        if self.distribution in CODES and not self.steps:  # it refuses what scaling overflows
            law = distributions.law(self.distribution, self.parameters, self.scale, self.exact)
            object.__setattr__(self, "_law", law)
        for part in self.parts:
            part.region.check("a part")
            alone = part.fill.is_elementwise or (part.own and part.fill.distribution in STRUCTURES)
            if part.fill.parts or not alone:
                raise ValueError(
                    f"a part must be one law of values, or of a tensor of its own, but got {part.fill!r}"
                )
        if self.distribution == FUSED:
            regions = tuple(part.region for part in self.parts)
            if not tile(regions, max((r.end for r in regions), default=-1)):
                raise ValueError(f"fused parts must have every element once, but got {regions}")

    def _check_takes_steps(self) -> None:
        if not self.is_elementwise:
            raise ValueError(f"steps follow a law of values, but {self.distribution} is none")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # NaN is another when it is unpickled

    @classmethod
    def uniform(cls, a: float = 0.0, b: float = 1.0, *, exact: bool = False) -> Fill:
        """The uniform law on [a, b)."""
        return cls("uniform", (a, b), exact=exact)

    @classmethod
    def normal(cls, mean: float = 0.0, std: float = 1.0, *, exact: bool = False) -> Fill:
        """The normal law."""
        return cls("normal", (mean, std), exact=exact)

    @classmethod
    def truncated_normal(
        cls,
        mean: float = 0.0,
        std: float = 1.0,
        a: float = -2.0,
        b: float = 2.0,
        *,
        exact: bool = False,
    ) -> Fill:
        """The normal law conditioned on [a, b]; a and b are values, not multiples of std."""
        return cls("truncated_normal", (mean, std, a, b), exact=exact)

    @classmethod
    def constant(cls, value: float, *, exact: bool = False) -> Fill:
        """One value everywhere, as the dtype has it (steps take it as float32, unless it is exact)."""
        return cls("constant", (value,), exact=exact)

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

    @classmethod
    def arange(cls, start: float = 0.0, step: float = 1.0, dim: int = -1) -> Fill:
        """start, start + step, start + 2 step, ... along one dimension, and the same along the others.

        >>> Fill.arange(1).then("log")  # Mamba's A_log: the logarithms of 1, 2, ... in each row
        Fill('arange', (1.0, 1.0, -1.0), steps=(log,))
        """
        return cls(RAMP, (start, step, dim))

    @classmethod
    def fused(cls, parts: Mapping[str, tuple[torch.Tensor, Fill]]) -> Fill:
        """Several parameters in one, each with the values that it would have by itself.

        Args:
            parts: the name whose numbers a part has, to its place (a view, as in :meth:`with_part`) and
                its Fill. Together they have every element once.

        >>> w = torch.empty(8, 3, 4, 32, device="meta")  # heads, (q, k, v), a head's size, inputs
        >>> normal = Fill.normal(std=0.02)
        >>> fill = Fill.fused({name: (w[:, i], normal) for i, name in enumerate(["wq", "wk", "wv"])})
        >>> print(fill)
        normal
        """
        made = [
            FillPart(Strided.of(view), replace(fill, stream=name), own=True)
            for name, (view, fill) in parts.items()
        ]
        return cls(FUSED, (), parts=tuple(made))

    def then(self, name: str, *arguments: float) -> Fill:
        """This Fill with a step after it: an operation on every value, parts included.

        The float32 value of the law goes through all steps, and is multiplied by the scale, in float64;
        then it is rounded to float32, and to the tensor's dtype. The functions are sums and products in
        one order (``fastinit.stream.functions``): these bits too are the same everywhere.

        Args:
            name: of the operation, as torch calls it: one of ``fastinit.plan.steps.STEPS``.
            arguments: finite numbers: the bound of ``clamp_min``.

        Raises:
            ValueError: no such operation; a distribution of whole tensors; too many steps.
            NumberTypeError, NumberRangeError: arguments that are no finite numbers; values of which the
                step makes NaN, as the logarithm of negative ones does.

        >>> dt = Fill.uniform(math.log(1e-3), math.log(0.1)).then("exp").then("clamp_min", 1e-4)
        >>> print(dt.then("inverse_softplus"))  # Mamba's dt_bias
        inverse_softplus(clamp_min(exp(uniform), 0.0001))
        """
        step = its_steps.step(name, *arguments)
        parts = tuple([p._replace(fill=p.fill.then(*step.flat)) for p in self.parts])
        if self.distribution == FUSED:
            return replace(self, parts=parts)
        self._check_takes_steps()
        if self.distribution == "constant":
            return self._of("constant", (its_steps.of_constant(self.law.p0, step),), parts)
        if not self.steps and self.distribution in CODES:
            return replace(
                self, parameters=self.law.arguments, scale=1.0, steps=(step,), parts=parts
            )
        scaling = () if self.scale == 1.0 else (Step("mul", (self.scale,)),)
        return replace(self, scale=1.0, steps=(*self.steps, *scaling, step), parts=parts)

    def plus(self, other: Fill) -> Fill | None:
        """The Fill of the sum of both, where each value of both is made of the same drawn value.

        None if no step is that sum: so far it is ``inverse_softplus``, for x + log(-expm1(-x)).

        >>> dt = Fill.uniform(0.1, 0.2).then("clamp_min", 0.15)
        >>> print(dt.plus(dt.then("neg").then("expm1").then("neg").then("log")))
        inverse_softplus(clamp_min(uniform, 0.15))
        """
        steps = its_steps.of_sum(self.steps, other.steps)
        if steps is None or not self.is_elementwise or self.scale != 1.0:
            return None
        if replace(self, steps=()) != replace(other, steps=()):
            return None
        return replace(self, steps=steps)

    def scaled(self, factor: float) -> Fill:
        """This Fill with every value multiplied by ``factor``, positive and finite."""
        factor = number.positive("factor", factor)
        scaled = tuple([part._replace(fill=part.fill.scaled(factor)) for part in self.parts])
        scale = self.scale if self.distribution == FUSED else self.scale * factor
        return replace(self, scale=scale, parts=scaled)

    def affine(self, factor: float, shift: float = 0.0) -> Fill | None:
        """The law of ``factor * value + shift``, for any finite numbers; None if it is no Fill.

        A negative factor mirrors the law; the values are then not this Fill's mirrored.
        """
        factor, shift = number.finite("factor", factor), number.finite("shift", shift)
        if shift == 0.0 and factor > 0.0:
            return self.scaled(factor)
        parts = []
        for part in self.parts:
            if (moved := part.fill.affine(factor, shift)) is None:
                return None
            parts.append(part._replace(fill=moved))
        if self.distribution == FUSED:
            return replace(self, parts=tuple(parts))
        if not self.is_elementwise:
            return None
        if factor == 0.0:
            return self._of("constant", (shift,), parts)
        if self.has_law:
            made = self.law.affine(factor, shift)
            return self._of(made.name, made.arguments, parts)
        moved = replace(self, parts=()).then("mul", factor)
        moved = moved if shift == 0.0 else moved.then("add", shift)
        return replace(moved, parts=tuple(parts))

    def _of(self, name: str, numbers: tuple[float, ...], parts: Iterable[FillPart]) -> Fill:
        """Another law of the same numbers, without scale and steps."""
        return Fill(name, numbers, parts=tuple(parts), stream=self.stream, exact=self.exact)

    def with_part(self, view: torch.Tensor, fill: Fill, *, own: bool = False) -> Fill:
        """This Fill, with ``fill`` written over a part of the parameter.

        Args:
            view: of the contiguous parameter, which may be on meta: ``parameter[padding_idx]``.
            fill: of values. It draws the numbers that the elements have in the parameter.
            own: the part is a tensor by itself, of the view's shape. It has the values that a parameter
                of this shape and of the name ``fill.stream`` would have; by default of the parameter's
                name with the part's place, as in ``experts.weight[0]``. So ``fill`` may also be a
                distribution of whole tensors.

        >>> experts = torch.empty(4, 16, 16, device="meta")
        >>> fill = Fill.constant(0.0)
        >>> for matrix in experts:
        ...     fill = fill.with_part(matrix, Fill.orthogonal(), own=True)
        """
        region = Strided.of(view)
        part = FillPart(region if own else region.merged(), fill, own)
        return replace(self, parts=(*self.parts, part))

    @property
    def base(self) -> Fill | None:
        """This Fill without its parts; None if it is nothing else."""
        if self.distribution == FUSED:
            return None
        return replace(self, parts=()) if self.parts else self

    @property
    def has_law(self) -> bool:
        """Whether every value is as one law of the stream gives it (parts apart)."""
        return self._law is not None

    @property
    def is_elementwise(self) -> bool:
        """Whether every value is made by itself, of its index alone (parts apart)."""
        return self.distribution in CODES or self.distribution == RAMP

    @property
    def is_by_elements(self) -> bool:
        """Whether every value is made by itself, in the parts too."""
        fills = (self.base, *(part.fill for part in self.parts))
        return all(fill is None or fill.is_elementwise for fill in fills)

    @property
    def is_random(self) -> bool:
        """Whether any value is drawn (parts apart; of a fused one, in any)."""
        if self.distribution == FUSED:
            return any(part.fill.is_random for part in self.parts)
        return distributions.is_random(self.distribution)

    @property
    def law(self) -> Law:
        """The law of a value, with the scale multiplied in.

        Raises:
            TypeError: a distribution of whole tensors; steps.
        """
        if self._law is None:
            raise TypeError(f"{self} is not a law of single values")
        return self._law

    @property
    def drawn(self) -> Law:
        """The law that the steps and the scale come after."""
        return distributions.law(self.distribution, self.parameters, 1.0, self.exact)

    @property
    def mean(self) -> float:
        """The expectation of the values, parts apart; NaN where that depends on the shape.

        After steps by quadrature, to 1e-3 of the standard deviation, or NaN; of fused ones of all.
        """
        return self._moments()[0]

    @property
    def std(self) -> float:
        """The standard deviation of the values (of a truncated normal: after truncation).

        Parts apart; NaN where that depends on the shape; otherwise as :attr:`mean`.
        """
        return self._moments()[1]

    def _moments(self) -> tuple[float, float]:
        if self.has_law:
            return self.law.mean, self.law.std
        if self.distribution == FUSED:
            return law_moments.mixed([(p.region.numel, *p.fill._moments()) for p in self.parts])
        if self.distribution not in CODES:
            return math.nan, math.nan
        mean, std = law_moments.moments(self.drawn, self.steps)
        return self.scale * mean, self.scale * std

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
        if self.steps:
            said.append(f"steps=({', '.join(map(str, self.steps))},)")
        if self.exact:
            said.append("exact=True")
        return f"Fill({', '.join(said)})"

    def __str__(self) -> str:
        others = sorted({str(part.fill) for part in self.parts})
        if self.distribution == FUSED:
            return ", ".join(others)
        elementwise = self.distribution in CODES
        said = str(self.drawn if self.steps else self.law) if elementwise else self.distribution
        said = said.replace("_", " ")
        return ", ".join((its_steps.text(said, self.steps), *others))
