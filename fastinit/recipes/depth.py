"""Rules of depth: a recipe for a net of a few residual blocks, carried over to one of many.

With m times the blocks of a base model, each branch is multiplied by m^-alpha. CompleteP has alpha 1,
Depth-muP 1/2. Widths may grow as well, and are muP's (:mod:`fastinit.recipes.widths`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastinit.base import number
from fastinit.base.patterns import Patterns, matches, several
from fastinit.base.text import listing
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.recipes.rules import Checked, Scaling, check_optimizer, count_of
from fastinit.recipes.widths import Growth, base_shapes, growth, learning_rate, mup

BLOCK = ("*layers.[0-9]*", "*layer.[0-9]*", "*blocks.[0-9]*", "h.[0-9]*", "*.h.[0-9]*")
"""Parameters of residual blocks, in torch, transformers, timm and GPTs."""

LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
"""What a configuration calls the number of blocks."""


def depth_multiplier(layers: int, base_layers: int, *, alpha: float = 1.0) -> float:
    """What a model of ``layers`` blocks multiplies its branches by: (layers / base_layers)^-alpha.

    Args:
        layers, base_layers: residual blocks of the model and of the base.
        alpha: 1 for :func:`completep`, 0.5 for :func:`depth_mup`.

    Raises:
        NumberTypeError, NumberRangeError: numbers of layers that are none; alpha not in [0, 1].

    >>> depth_multiplier(32, 2)
    0.0625
    """
    n = number.integer("layers", layers, least=1)
    base = number.integer("base_layers", base_layers, least=1)
    return float((n / base) ** -number.share("alpha", alpha))


def completep(
    base: nn.Module,
    rule: Rule,
    *,
    layers: int | None = None,
    base_layers: int | None = None,
    base_config: Any = None,
    table: int = 3,
    block: Patterns = BLOCK,
    last: Patterns = (),
) -> Rule:
    """CompleteP: what ``rule`` is for ``base``, at any width and depth, for Adam.

    Branches are multiplied by base_layers / layers. That is the model's forward pass to do
    (:func:`depth_multiplier`), unless ``last`` is given. Weights and learning rates are
    :func:`fastinit.recipes.mup`'s, those of all blocks as the base's. Adam's eps falls with the width,
    as gradients do, and in blocks by the multiplier (:func:`fastinit.recipes.param_groups`).

    With ``last`` the multiplier goes into the parameters that end a branch, so that the forward pass
    stays as it is: weights and rates are smaller by it, eps and weight decay larger. That is the same
    net (Yang et al. 2022, arXiv 2203.03466, lemma J.1).

    Source: Dey et al. 2025, arXiv 2505.01618, table 1 (alpha = 1) and equation 40 (eps);
    EleutherAI/nanoGPT-mup, branch completep.

    Args:
        base: the same model with fewer blocks, whose parameters go by the same names; it may be on meta.
        rule: what ``base`` gets; it has to fill all its blocks alike.
        layers: the number of blocks; by default the config's ``num_hidden_layers`` (or ``n_layer``).
        base_layers: the base's; by default from ``base_config``.
        base_config: by default ``base.config``.
        table: as of :func:`fastinit.recipes.mup`.
        block: patterns of the parameters in residual blocks.
        last: patterns of those that end a branch (``*c_proj.*``), in a model that does not multiply its
            branches.

    Raises:
        NumberTypeError, NumberRangeError: numbers of layers that are none.
        ValueError: no number of layers; a rule that fills the base's blocks differently; patterns that
            match nothing in the base; from ``Plan.from_model`` a model with other parameters than the
            base's; from ``param_groups``, of SGD.
    """
    return _by_depth(base, rule, layers, base_layers, base_config, table, block, last, 1.0)


def depth_mup(
    base: nn.Module,
    rule: Rule,
    *,
    layers: int | None = None,
    base_layers: int | None = None,
    base_config: Any = None,
    table: int = 3,
    block: Patterns = BLOCK,
    last: Patterns = (),
) -> Rule:
    """Depth-muP: as :func:`completep`, but branches are multiplied by sqrt(base_layers / layers).

    Adam's rates in blocks are smaller by the same factor; SGD's are muP's.

    Source: Yang, Yu, Zhu & Hayou 2023, arXiv 2310.02244, table 1; eps is that of Dey et al. 2025, arXiv
    2505.01618, equation 40, with alpha = 1/2.

    Args:
        base, rule, layers, base_layers, base_config, table, block, last: as of :func:`completep`.

    Raises:
        as :func:`completep`.
    """
    return _by_depth(base, rule, layers, base_layers, base_config, table, block, last, 0.5)


def _by_depth(
    base: nn.Module,
    rule: Rule,
    layers: int | None,
    base_layers: int | None,
    base_config: Any,
    table: int,
    block: Patterns,
    last: Patterns,
    alpha: float,
) -> Rule:
    config_of_base = getattr(base, "config", None) if base_config is None else base_config
    few = _count("base_layers", base_layers, config_of_base)
    many = None if layers is None else number.integer("layers", layers, least=1)
    wider, shapes = mup(base, rule, base_config=base_config, table=table), base_shapes(base)
    for what in (block, last) if last else (block,):
        if not any(matches(name, what) for name in shapes):
            said = " or ".join(several(what))
            raise ValueError(f"no parameter of the base model matches {said}")
    alike = _alike(Plan.from_model(base, rule, config=base_config), shapes, block)

    def known(name: str) -> str:
        """The name of the base's parameter that is as this one."""
        is_new = name not in shapes and matches(name, block)
        return alike.get(_in_any_block(name, block), name) if is_new else name

    def multiplier(config: Any) -> float:
        count = _count("layers", None, config) if many is None else many
        return depth_multiplier(count, few, alpha=alpha)

    def filled(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        fill = wider(known(name), module, shape, config)
        return fill.scaled(multiplier(config)) if fill and matches(name, last) else fill

    def scaling(
        name: str, module: nn.Module, shape: torch.Size, config: Any, optimizer: str
    ) -> Scaling | None:
        check_optimizer(optimizer)
        if optimizer == "sgd" and alpha != 0.5:
            raise ValueError("CompleteP's learning rates are Adam's: it has none for SGD")
        if (own := known(name)) not in shapes:
            return None
        grown = growth(name, module, shape, shapes[own])
        wide = learning_rate(grown, optimizer, table)
        c = multiplier(config) if matches(name, block) else 1.0
        folded = c if matches(name, last) else 1.0
        if optimizer == "sgd":
            return Scaling(wide * folded**2, 1 / wide / folded**2)
        deep = c ** (1 / alpha - 1)  # m^(alpha - 1)
        return Scaling(wide * deep * folded, 1 / wide / folded, _eps(grown, table) * c / folded)

    def check(names: Sequence[str]) -> None:
        there = set(map(known, names))
        strange = [name for name in names if known(name) not in shapes]
        missing = [n for n in shapes if n not in there and not matches(n, block)]
        if strange:
            raise ValueError(f"the base model has no {listing('parameter', strange)}")
        if missing:
            raise ValueError(f"the base model alone has {listing('parameter', missing)}")

    return Checked(filled, check, scaling)


def _count(what: str, given: int | None, config: Any) -> int:
    return count_of(config, *LAYERS) if given is None else number.integer(what, given, least=1)


def _eps(grown: Growth, table: int) -> float:
    """How a parameter's gradients shrink as it grows."""
    if grown.is_output:
        return 1.0 if table == 3 else 1 / grown.fan_in
    return 1 / grown.fan_out


def _alike(plan: Plan, shapes: Mapping[str, Sequence[int]], block: Patterns) -> dict[str, str]:
    """By what parameters of blocks are called in any of them, the first of each.

    Raises:
        ValueError: they are not alike.
    """
    found: dict[str, str] = {}
    for name in plan:
        if matches(name, block):
            first = found.setdefault(_in_any_block(name, block), name)
            if (plan[first], shapes[first]) != (plan[name], shapes[name]):
                raise ValueError(
                    f"all blocks of the base model must be alike, but {first} and {name} are not"
                )
    return found


def _in_any_block(name: str, block: Patterns) -> str:
    """A parameter's name without the number of its block, at which the patterns begin to match.

    >>> _in_any_block("layers.7.mlp.2.weight", BLOCK)
    'layers.*.mlp.2.weight'
    """
    words = name.split(".")
    for i, word in enumerate(words):
        if word.isdigit() and matches(".".join(words[: i + 1]), block):
            return ".".join([*words[:i], "*", *words[i + 1 :]])
    return name
