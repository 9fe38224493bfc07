"""An optimizer's groups of parameters, with the settings that a recipe gives each."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastinit.base import number
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.ruled import Rule
from fastinit.recipes.rules import Scaling, check_optimizer, check_rule, scaling_of


def param_groups(
    model: nn.Module,
    rule: Rule,
    *,
    lr: float,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    config: Any = None,
) -> list[dict[str, Any]]:
    """What an optimizer of torch is made of, so that the recipe's parametrisation holds in training.

    :func:`mup`, :func:`spectral`, :func:`completep` and :func:`depth_mup` scale learning rates, weight
    decay and eps by parameter; other rules don't, and of one of them there is one group. Of rules that
    are made of others (:func:`by_name`, :func:`first_of`) it is each one's own.

    Args:
        model: the parameters that require a gradient; they may be on meta.
        rule: a recipe, the same that the weights are from.
        lr, weight_decay, eps: for a parameter that is not scaled: the base model's.
        optimizer: "adam" (also AdamW), or "sgd", whose groups have no eps.
        config: as of :meth:`fastinit.Plan.from_model`.

    Returns:
        Groups of different settings, in the order of the model: {"params", "lr", "weight_decay", "eps"}.

    Raises:
        ValueError: another optimizer; a model that the rule is not made for.
        NumberTypeError, NumberRangeError: settings that are no numbers, or not positive (``lr``), or
            negative.

    >>> base, wide = (nn.Sequential(nn.Linear(8, n), nn.Linear(n, n)) for n in (16, 64))
    >>> from fastinit.recipes import mup, torch_default
    >>> groups = param_groups(wide, mup(base, torch_default), lr=1e-2)
    >>> [(group["lr"], len(group["params"])) for group in groups]
    [(0.01, 3), (0.0025, 1)]
    """
    check_optimizer(optimizer)
    settings = {
        "lr": number.positive("lr", lr),
        "weight_decay": number.multiplier("weight_decay", weight_decay),
        "eps": number.multiplier("eps", eps),
    }
    if optimizer == "sgd":
        del settings["eps"]
    if config is None:
        config = getattr(model, "config", None)
    found = list(distinct_parameters(model))
    check_rule(rule, [names[0] for names, _, _ in found])
    groups: dict[Scaling, list[nn.Parameter]] = {}
    for names, module, parameter in found:
        if parameter.requires_grad:
            shape = parameter.shape
            scaling = scaling_of(rule, names[0], module, shape, config, optimizer) or Scaling()
            groups.setdefault(scaling, []).append(parameter)
    return [
        {
            "params": parameters,
            **{name: value * getattr(scaling, name) for name, value in settings.items()},
        }
        for scaling, parameters in groups.items()
    ]
