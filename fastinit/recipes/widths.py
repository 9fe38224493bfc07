"""muP, the maximal update parametrisation: a recipe for one width, carried over to any other.

Yang et al. 2022, "Tensor Programs V", arXiv 2203.03466. Its tables say how three things depend on
width: the variance of initial weights (:func:`mup`), learning rates, which belong to the optimizer
(:func:`fastinit.recipes.param_groups`, or by name :func:`mup_learning_rates`), and multipliers in the
forward pass, which belong to the model, as does attention's 1/d in place of 1/sqrt(d) (README of
microsoft/mup).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.base import number
from fastinit.base.text import listing
from fastinit.fills.layer_kinds import EMBEDDINGS, TRANSPOSED, is_conv1d
from fastinit.plan.fill import Fill
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.recipes.roles import is_matrix
from fastinit.recipes.rules import Checked, Scaling, check_optimizer

Shapes = Mapping[str, Sequence[int]]
"""Parameter name to shape."""

TABLES = (3, 8)


class Growth(NamedTuple):
    """How much larger than in the base model a parameter's fans are; 1 for those that stay."""

    fan_in: float
    fan_out: float

    @property
    def is_hidden(self) -> bool:
        """Whether it is a weight from width to width."""
        return self.fan_in != 1 and self.fan_out != 1

    @property
    def is_output(self) -> bool:
        """Whether it is a weight from width to a size that stays."""
        return self.fan_in != 1 and self.fan_out == 1


def mup(base: nn.Module, rule: Rule, *, base_config: Any = None, table: int = 3) -> Rule:
    """The rule that is ``rule`` at the width of ``base`` and muP's of it at others.

    Of a matrix whose fan_in is r times the base's, the std is r^-1/2 times the base's if its fan_out
    grows too (hidden weights), and r^-1 if not (output weights). What reads a fixed size (input
    weights, embeddings) and vectors (biases, norms) are as in the base. Of orthogonal matrices and the
    like it is the root mean square that is so: hidden ones keep their norm where all widths grow alike.

    Source: Yang et al. 2022, arXiv 2203.03466, tables 3 and 8 ("Init. Var."); for the base, and for
    sizes that do not grow with the width, microsoft/mup (``init.py``, ``infshape.py``).

    Args:
        base: the same model with other widths, with the same parameter names; it may be on meta.
        rule: what ``base`` gets.
        base_config: for ``rule``; by default ``base.config``, where there is one.
        table: 3, or 8 for a model that multiplies its output by the base's fan_in / fan_in, in which
            case output weights are as in the base; needed where they are tied to the embedding.

    Raises:
        ValueError: another table; from ``Plan.from_model`` a model with other parameters than the base.
    """
    _check_table(table)
    plan = Plan.from_model(base, rule, config=base_config)
    shapes = base_shapes(base)

    def scaled(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        fill = plan[name] if name in shapes else None
        if not isinstance(fill, Fill):
            return None
        grown = growth(name, module, shape, shapes[name])
        ratio = grown.fan_in
        factor = 1.0
        if grown.is_hidden:
            factor = ratio**-0.5
        elif grown.is_output and table == 3:
            factor = 1 / ratio

        def moved(fill: Fill, base: Sequence[int], here: Sequence[int]) -> Fill:
            if fill.distribution not in STRUCTURES:
                return fill if factor == 1 else fill.scaled(factor)
            rms = STRUCTURES[fill.distribution].rms  # larger matrices of norm 1 have smaller values
            return fill.scaled(factor * rms(base) / rms(here))

        if not fill.parts:
            return moved(fill, shapes[name], shape)
        here = rule(
            name, module, shape, config
        )  # parts lie elsewhere in a parameter of another size
        regions = [part.region for part in here.parts] if here is not None else []
        parts = [
            part._replace(
                region=region,
                fill=moved(part.fill, part.region.sizes, region.sizes),
            )
            for region, part in zip(regions, fill.parts, strict=True)
        ]
        base_fill = fill.base and moved(fill.base, shapes[name], shape)
        return replace(base_fill or fill, parts=tuple(parts))

    def scaling(
        name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
    ) -> Scaling | None:
        if name not in shapes:
            return None
        rate = learning_rate(growth(name, module, shape, shapes[name]), optimizer, table)
        return Scaling(rate, 1 / rate)

    def check(names: Sequence[str]) -> None:
        strange = [name for name in names if name not in shapes]
        missing = [name for name in shapes if name not in names]
        if strange:
            raise ValueError(f"muP's base model has no {listing('parameter', strange)}")
        if missing:
            raise ValueError(f"muP's base model alone has {listing('parameter', missing)}")

    return Checked(scaled, check, scaling)


def mup_learning_rates(
    model: nn.Module, base: nn.Module | Shapes, *, optimizer: str = "adam", table: int = 3
) -> dict[str, float]:
    """What to multiply the learning rate of each parameter by, for the rate tuned on ``base``.

    Adam, also AdamW: 1 / r for hidden weights, and for output weights in table 3, where r is how many
    times the base's their fan_in is. SGD: input weights and biases times the growth of their fan_out,
    output weights 1 / r (table 3) or r (table 8), hidden weights the growth of fan_out / r, which is 1
    where all widths grow alike.

    Source: Yang et al. 2022, arXiv 2203.03466, tables 3 and 8 ("SGD LR", "Adam LR"); microsoft/mup's
    ``optim.py`` (table 8), which also divides the weight decay by these, since optimizers multiply it
    by the rate.

    Args:
        model: its names and shapes; it may be on meta.
        base: the model of the tuned width, or its shapes by name (:func:`base_shapes`).
        optimizer: "adam" or "sgd".
        table: as of :func:`mup`.

    Raises:
        ValueError: another optimizer or table; a parameter that the base lacks or has with other
            dimensions.
    """
    check_optimizer(optimizer)
    _check_table(table)
    shapes = base_shapes(base) if isinstance(base, nn.Module) else base
    rates = {}
    for names, module, parameter in distinct_parameters(model):
        if names[0] not in shapes:
            raise ValueError(f"muP's base model has no parameter {names[0]}")
        grown = growth(names[0], module, parameter.shape, shapes[names[0]])
        rates[names[0]] = learning_rate(grown, optimizer, table)
    return rates


def learning_rate(grown: Growth, optimizer: str, table: int) -> float:
    """What muP multiplies a parameter's learning rate by, as :func:`mup_learning_rates` says."""
    ratio = grown.fan_in
    if grown.is_hidden:
        return (1 if optimizer == "adam" else grown.fan_out) / ratio
    if grown.is_output:
        return 1 / ratio if table == 3 else ratio if optimizer == "sgd" else 1.0
    return grown.fan_out if optimizer == "sgd" else 1.0


def base_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name: what muP has to know of the base model."""
    return {names[0]: tuple(p.shape) for names, _, p in distinct_parameters(model)}


def growth(name: str, module: nn.Module, shape: Sequence[int], base: Sequence[int]) -> Growth:
    """How a parameter's fans compare to the base's.

    A matrix is [out, in, ...], but [in, out, ...] in embeddings, transposed convolutions and
    transformers' Conv1D. A parameter of a module that multiplies by no matrix, such as positions, is a
    vector for each position, of which one size at most grows, as a fan_out.

    Raises:
        ValueError: other dimensions than the base's, or more of them grow than a matrix has.
    """
    if len(shape) != len(base):
        raise ValueError(f"{name} has shape {tuple(shape)}, but {tuple(base)} in muP's base model")
    ratios = [size / other for size, other in zip(shape, base)]
    grown = [dim for dim, ratio in enumerate(ratios) if ratio != 1]
    if len(grown) > 2 or (len(grown) == 2 and grown != [0, 1]):
        raise ValueError(f"{name} grows in more than a matrix's two sizes: {base} to {shape}")
    multiplies = is_matrix(name, module, torch.Size(shape))
    if multiplies or (len(shape) > 1 and len(grown) == 2):
        is_flipped = isinstance(module, (*EMBEDDINGS, *TRANSPOSED)) or is_conv1d(module)
        return Growth(*(ratios[:2] if multiplies and is_flipped else ratios[1::-1]))
    return Growth(1.0, math.prod(ratios))


def _check_table(table: int) -> None:
    if number.integer("table", table) not in TABLES:
        number.out_of_range("table", f"one of {', '.join(map(str, TABLES))}", table)
