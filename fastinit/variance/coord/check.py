"""Coordinate checks: whether what a net computes, and what training changes of it, depend on its width.

Yang et al. 2022, "Tensor Programs V", arXiv 2203.03466, appendix D.1 ("coordinate checking"), and its
desiderata J.1: in muP the coordinates of every layer's output, and of its changes in training, are of
order 1 at any width. By the standard parametrisation they grow with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastinit import init
from fastinit.base import number
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.recipes.optimizer_groups import param_groups
from fastinit.recipes.rules import OPTIMIZERS
from fastinit.variance.coord.result import CoordCheck, Coordinates
from fastinit.variance.coord.training import Loss, MakeOptimizer, Measured, Training, built, trained
from fastinit.variance.layers import Which
from fastinit.variance.watch.outputs import tensor_in

NORMS = ("rms", "l1")
RATES = {"adam": 1e-3, "sgd": 0.1}
"""Learning rates by default."""


def coord_check(
    build: Callable[[int], nn.Module],
    widths: Iterable[int],
    batch: Any,
    steps: int = 4,
    optimizer: str | MakeOptimizer = "adam",
    *,
    recipe: Rule | Plan | None = None,
    lr: float | None = None,
    loss: Loss | None = None,
    layers: Which = None,
    norm: str = "rms",
    seeds: int = 3,
    tolerance: float = 0.25,
) -> CoordCheck:
    """Trains a model for a few steps at several widths, and says how its activations go with the width.

    Of each layer's output the size at each step is measured, and that of its change since step 0, all on
    one batch; and of both the slope against the width, on logarithmic scales, with its error. In a
    parametrisation that carries over from width to width (:func:`fastinit.recipes.mup`, ``spectral``)
    they are 0; theory knows multiples of 1/2, as +1 for hidden layers of the standard one under Adam.

    A model is built once for each width, within :func:`fastinit.deferred`, and written once for each
    seed. Dropout drops the same at each step. torch's generators are as before afterwards.

    Args:
        build: makes the model of a width. What is scaled may be anything, such as a depth.
        widths: two or more; each is twice the one before, say.
        batch: what the model is called with: a tensor, a tuple of arguments, a mapping of keywords. The
            model is where the batch is.
        steps: forward passes, at least 2; the optimizer steps between them.
        optimizer: "adam" or "sgd", with the groups that the recipe gives it
            (:func:`fastinit.recipes.param_groups`), or a function that makes one for a model.
        recipe: a rule for the weights, or a plan, the same at every width; by default what the
            constructors do.
        lr: of the base model; by default 1e-3 for Adam, 0.1 for SGD.
        loss: of what the model gives, a scalar; by default its ``loss``, or what it gives if that is
            a scalar, else the mean square of the difference to fixed standard normal values.
        layers: as of :func:`fastinit.watch`.
        norm: "rms", the root mean square, or "l1", the mean of absolute values.
        seeds: how many there are, from 0 on; with two widths at least 2, since a slope's error takes
            three points.
        tolerance: slopes within it of 0 are flat, those beyond are not, if two standard errors exclude
            the other: slopes twice as far, or 0.

    Raises:
        TypeError: what is no function, no recipe, no module; a loss that is no scalar.
        NumberTypeError, NumberRangeError: numbers that are none, or too few.
        ValueError: another optimizer or norm, ``lr`` for an optimizer that is made; a width that is
            there twice; a model that has its values already; no layer that ran at every width; what
            the recipe raises.

    >>> from fastinit import deferred, recipes
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
    ...                          nn.Linear(width, 4))
    >>> x = torch.linspace(-1, 1, 64).view(8, 8)
    >>> coord_check(build, [64, 128, 256], x)
    CoordCheck(3 layers: 1 flat, 2 grows)
    >>> with deferred():
    ...     base = build(64)
    >>> coord_check(build, [64, 128, 256], x, recipe=recipes.mup(base, recipes.torch_default))
    CoordCheck(all 3 layers flat)
    """
    if not callable(build):
        raise TypeError(f"build must be a function from a width to a model, but got {build!r}")
    sizes = _widths(widths)
    steps = number.integer("steps", steps, least=2)
    seeds = number.integer("seeds", seeds, least=1 if len(sizes) > 2 else 2)
    tolerance = number.positive("tolerance", tolerance)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, but got {norm!r}")
    if not (recipe is None or isinstance(recipe, Plan) or callable(recipe)):
        raise TypeError(f"recipe must be a rule or a Plan, but got {recipe!r}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of what the model gives, but got {loss!r}")
    training = Training(batch, steps, _maker(optimizer, recipe, lr), loss or _loss, norm)
    found = []
    with training.generators_kept():
        models = built(build, sizes, training.device)
        while models:  # of which one at a time has memory
            found.append(trained(models.pop(0), recipe, layers, seeds, training))
    return _result(sizes, found, norm, tolerance)


def _result(widths: list[int], found: list[Measured], norm: str, tolerance: float) -> CoordCheck:
    """The layers that ran at every width."""
    names = [name for name in found[0].layers if all(name in each.layers for each in found)]
    missing: dict[str, str] = {}
    for each in found:
        missing |= each.missing
    for name in dict.fromkeys(name for each in found for name in each.layers):
        if name not in names:
            missing.setdefault(name, "is not there at every width")
    if not names:
        reasons = "".join(f"; {name or 'the model'}: {why}" for name, why in missing.items())
        raise ValueError(f"no layer ran at every width{reasons}")
    made = []
    for name in names:
        at = [each.layers[name] for each in found]
        sizes, changes = (torch.stack([getattr(x, w) for x in at]) for w in ("sizes", "changes"))
        widens = len({x.count for x in at}) > 1
        made.append(Coordinates.of(name, at[0].kind, widths, sizes, changes, widens, tolerance))
    return CoordCheck(made, widths, norm, tolerance, missing)


def _widths(widths: Iterable[int]) -> list[int]:
    if isinstance(widths, str) or not isinstance(widths, Iterable):
        raise TypeError(f"widths must be several numbers, but got {widths!r}")
    given = [number.integer(f"widths[{i}]", width, least=1) for i, width in enumerate(widths)]
    if len(given) < 2 or len(set(given)) < len(given):
        raise ValueError(f"widths must be two or more, each once, but got {given}")
    return sorted(given)


def _maker(
    optimizer: str | MakeOptimizer, recipe: Rule | Plan | None, lr: float | None
) -> MakeOptimizer:
    """A function that makes the optimizer of a model."""
    if not isinstance(optimizer, str) and callable(optimizer):
        if lr is not None:
            raise ValueError(f"lr must be said to the optimizer that is made, but got {lr!r}")
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be {' or '.join(OPTIMIZERS)}, or a function that makes one for a model, "
            f"but got {optimizer!r}"
        )
    name = str(optimizer)
    rate = RATES[name] if lr is None else number.positive("lr", lr)
    rule = recipe if callable(recipe) else _unscaled
    make: Any = torch.optim.Adam if name == "adam" else torch.optim.SGD
    return lambda model: make(param_groups(model, rule, lr=rate, optimizer=name))


def _unscaled(name: str, module: nn.Module, shape: torch.Size, config: Any) -> None:
    """The rule of those that scale no learning rates."""


def _loss(given: Any) -> Tensor:
    """Of a model that was given no other: as :func:`coord_check` says."""
    if isinstance(own := getattr(given, "loss", None), Tensor):
        return own
    x = tensor_in(given)
    if x is None:
        raise TypeError(f"loss must be given for a model that gives {type(given).__name__}")
    if x.dim() == 0:
        return x
    target = init.normal_(torch.empty(x.shape, device=x.device), seed=0, name="target")
    return (x.float() - target).square().mean()
