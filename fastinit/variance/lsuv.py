"""LSUV: weights scaled so that each layer's output has the variance asked for, in one forward pass.

Mishkin & Matas, "All you need is a good init" (ICLR 2016, arXiv 1511.06422). The published procedure
runs the net once for each layer and repetition. Here each layer's output is measured when the layer
has run and rescaled where it lies, the pass goes on, and the weights are scaled when it has ended well.
The scale of an affine layer follows from its output's moments; any other is repeated on its own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastinit import init
from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.fills.layer_kinds import EMBEDDINGS
from fastinit.record.weights_on_demand import InMemory, weights_of
from fastinit.variance.layers import Layer, Which, find, other_weights
from fastinit.variance.lsuv_passes import PASSES, Options, PassEnded, Passes
from fastinit.variance.lsuv_result import LSUVResult
from fastinit.variance.lsuv_strategies import Trials
from fastinit.variance.schedules import Schedule
from fastinit.variance.unchanged import same_random_numbers, unchanged


def lsuv_(
    model: nn.Module,
    *inputs: Any,
    batches: Iterable[Any] | None = None,
    layers: Which = None,
    target_std: float | Mapping[str, float] | Schedule = 1.0,
    tol: float = 0.02,
    max_iter: int = 10,
    pre: str = "keep",
    center: bool = False,
    activation: Callable[[Tensor], Tensor] | None = None,
    reuse: str = "first",
    unbuilt: str | None = None,
    **kwargs: Any,
) -> LSUVResult:
    """Scales the weights of ``model`` so that every layer's output has the std ``target_std``.

    Runs ``model(*inputs, **kwargs)`` once, without gradients, in the mode that the model is in. Only
    weights (and, with ``center``, biases) change, and they only if all went well; whatever else the
    model writes is put back (:func:`fastinit.variance.unchanged.unchanged`). Weights that need no
    gradient are measured and left alone, tied ones are scaled once. A model that was built within
    :func:`fastinit.deferred` stays on meta: each parameter is written as it is used and dropped after
    that module, so that the model may be larger than memory, and the scales become part of its record.
    Beyond the pass itself it needs a few numbers for each layer, for one MultiheadAttention at a time a
    copy of its input projections, and copies of what the model writes.

    Args:
        batches: in place of inputs, batches that are tensors, tuples of arguments or dicts of keyword
            arguments. Moments are those of all of them together; that takes up to 3 passes, so it has to
            be a list or another thing that can be iterated again.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``.
        target_std: a number; numbers by layer name (1 for the others); or a schedule of factors
            (:mod:`fastinit.variance.schedules`).
        tol: how far the variance of a repeated layer may be from the target, relative to it.
        max_iter: repetitions of a layer that is not affine in its weight, or with ``activation``.
        pre: "keep" takes the weights as they are, "orthonormal" first draws orthonormal ones, as the
            paper does (embeddings, and weights under weight_norm, are kept).
        center: shifts biases so that each output's mean is 0, as fast.ai's version does.
        activation: the std is that of ``activation(output)``; costs two tensors of the output's size.
        reuse: of a layer that is called several times, "first": the first call decides; "pool": all
            calls together, in up to 3 passes.
        unbuilt: the name of the Linear that runs last, without a bias: it is measured by
            :func:`fastinit.linear_moments` and the pass ends there, so that its output, of a language
            model's head as large as the rest of the pass, is never built.

    On ranks that share a model of DTensors, each has to see the same outputs.

    Raises:
        LSUVError: an output that is constant, not finite or has fewer than two values, or a bias whose
            variance is already as large as the target; it names the layer and its moments. Ranks that
            measured differently.
        TypeError, ValueError: arguments that are no good; also a schedule's factor that is no number, or
            not positive and finite.
        NotImplementedError: a parameter that is not here (``fastinit.elements.shards.check_held``).

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> result = lsuv_(net, torch.randn(1000, 64))
    >>> [round(m.std, 6) for m in result.layers]
    [1.0, 1.0]
    """
    target_std = _checked(target_std)
    tol, max_iter = number.real("tol", tol), number.integer("max_iter", max_iter, least=1)
    if not 0.0 < tol < 1.0:
        number.out_of_range("tol", "in (0, 1)", tol)
    if pre not in ("keep", "orthonormal"):
        raise ValueError(f"pre must be 'keep' or 'orthonormal', but got {pre!r}")
    if reuse not in ("first", "pool"):
        raise ValueError(f"reuse must be 'first' or 'pool', but got {reuse!r}")
    if batches is not None and (inputs or kwargs):
        raise ValueError("batches and inputs exclude each other, but both were given")
    found, passed = find(model, layers)
    if not found:
        reasons = "".join(f"; {name} {why}" for name, why in passed.items())
        raise ValueError(f"layers must name at least one layer with a weight, but none is{reasons}")
    if isinstance(target_std, Mapping):
        strange = target_std.keys() - {layer.name for layer in found}
        if strange:
            raise ValueError(f"target_std names layers that are not: {', '.join(sorted(strange))}")
    _check_unbuilt(found, unbuilt)
    for name, parameter in model.named_parameters():
        shard.check_held(parameter, name, constant=True)
    trials = Trials(tol, max_iter, activation)
    options = Options(target_std, center, reuse == "pool", unbuilt, trials)
    weights = weights_of(model)
    drawn = found if pre == "orthonormal" else []
    with (
        weights.unchanged_on_failure(),
        same_random_numbers(model),
        _without_autocast_cache(),
        _orthonormal(drawn, weights),
    ):
        with unchanged(model) as state:
            run = Passes(found, options, state)
            for passes in range(1, PASSES + 1):
                count = 0
                for args, named in (
                    [(inputs, kwargs)] if batches is None else map(_arguments, batches)
                ):
                    with run.hooked(), weights.present(run.scale_held), suppress(PassEnded):
                        model(*args, **named)
                    count += 1
                if not count:
                    raise ValueError(f"batches must not be empty, but was in pass {passes}")
                if run.settled(last=passes == PASSES):
                    break
        with weights.writable():
            run.apply()
    passed |= {layer.name: "not called" for layer in found if layer.name not in run.measured}
    passed = (other_weights(model, found) if layers is None else {}) | passed
    return LSUVResult(list(run.measured.values()), passed, passes, run.product, weights.plan())


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Autocast keeps what it made of weights; within the block, and after it, weights are others."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _orthonormal(found: list[Layer], weights: InMemory) -> Iterator[None]:
    """Draws the layers' weights, and undoes it if the block fails."""
    drawn = [
        layer
        for layer in found
        if len(layer.shape) > 1
        and layer.weight_in.requires_grad
        and layer.direction is None
        and not isinstance(layer.module, EMBEDDINGS)
    ]
    before = [(w, w.clone()) for w in (layer.weight for layer in drawn) if not w.is_meta]
    try:
        with weights.writable():
            for layer in drawn:
                init.orthogonal_(layer.weight)
        yield
    except BaseException:
        for weight, copy in reversed(before):
            weight.copy_(copy)
        raise


def _check_unbuilt(found: list[Layer], unbuilt: str | None) -> None:
    if unbuilt is None:
        return
    layer = next((layer for layer in found if layer.name == unbuilt), None)
    if layer is None or not isinstance(layer.module, nn.Linear):
        raise ValueError(f"unbuilt must name one of the layers, a Linear, but got {unbuilt!r}")
    if layer.bias is not None:
        raise ValueError(f"unbuilt must name a Linear without a bias, but {unbuilt!r} has one")


def _checked(target_std: Any) -> float | Mapping[str, float] | Schedule:
    """The targets with their numbers as floats; a schedule's are checked as it gives them."""
    if isinstance(target_std, Mapping):
        return {n: number.positive(f"target_std[{n!r}]", std) for n, std in target_std.items()}
    if callable(target_std):
        schedule: Schedule = target_std
        return schedule
    return number.positive("target_std", target_std)
