"""LSUV: weights scaled so that each layer's output has the variance asked for, in one forward pass.

Mishkin & Matas, "All you need is a good init" (ICLR 2016, arXiv 1511.06422). The published procedure
runs the net once for each layer and repetition. Here each layer's output is measured when the layer
has run and rescaled where it lies, the pass goes on, and the weights are scaled when it has ended well.
The scale of an affine layer follows from its output's moments; any other is repeated on its own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinit import init
from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.base.ranks import Group
from fastinit.elements import shards as shard
from fastinit.fills.layer_kinds import EMBEDDINGS
from fastinit.plan.parameters import reshard_
from fastinit.record.weights_on_demand import InMemory, weights_of
from fastinit.stream.keys import draw_seed
from fastinit.variance.layers import Layer, Which, find, other_weights
from fastinit.variance.lsuv.alike import check_alike
from fastinit.variance.lsuv.batches import Batches, Call
from fastinit.variance.lsuv.hooks import Hooks, PassEnded
from fastinit.variance.lsuv.passes import PASSES, Options, Passes
from fastinit.variance.lsuv.ranks import Ranks
from fastinit.variance.lsuv.result import LSUVResult
from fastinit.variance.lsuv.schedules import Schedule
from fastinit.variance.lsuv.shards import lays_out
from fastinit.variance.lsuv.strategies import Trials
from fastinit.variance.lsuv.unchanged import RandomNumbers, same_random_numbers, unchanged
from fastinit.variance.lsuv.verify import Verification


def lsuv_(
    model: nn.Module,
    *inputs: Any,
    batches: Iterable[Any] | None = None,
    get_input: Callable[[Any], Any] | None = None,
    step: Callable[..., object] | None = None,
    layers: Which = None,
    target_std: float | Mapping[str, float] | Schedule = 1.0,
    tol: float = 0.02,
    max_iter: int = 10,
    pre: str = "keep",
    center: bool = False,
    activation: Callable[[Tensor], Tensor] | None = None,
    reuse: str = "first",
    unbuilt: str | None = None,
    dead: str = "error",
    verify: bool = False,
    group: Group = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> LSUVResult:
    """Scales the weights of ``model`` so that every layer's output has the std ``target_std``.

    Runs ``model(*inputs, **kwargs)`` once, without gradients, in the mode that the model is in. A layer
    whose forward is torch's own follows from its output's moments; any other with a weight is run again
    on its own inputs, with what is hooked to it, until its std fits, or is left with a note. Only
    weights (and, with ``center``, biases) change, and they only if all went well; whatever else the
    model writes is put back (:func:`fastinit.variance.lsuv.unchanged.unchanged`). Weights that need no
    gradient are measured and left alone, tied ones are scaled once. A model that was built within
    :func:`fastinit.deferred` stays on meta: each parameter is written as it is used and dropped after
    that module, so that the model may be larger than memory, and the scales become part of its record.
    Beyond the pass itself it needs a few numbers for each layer, for one MultiheadAttention at a time a
    copy of its input projections, and copies of what the model writes and of the weights that are tried.

    Args:
        batches: in place of inputs, batches that are tensors, tuples of arguments or dicts of keyword
            arguments. Moments are those of all of them together; that takes up to 5 passes, so it has to
            be a list, a DataLoader or another thing that can be iterated again. Each pass begins with
            the same random numbers.
        get_input: gives of a batch what the model takes, as above: of (inputs, targets), the inputs.
        step: called in place of the model, with the same arguments; without ``batches``, there may be
            none. It runs the model in its own way, as a pipeline or a generation does.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``.
        target_std: a number; numbers by layer name (1 for the others); or a schedule of factors
            (:mod:`fastinit.variance.lsuv.schedules`).
        tol: how far the variance of a repeated layer may be from the target, relative to it.
        max_iter: repetitions of a layer that is not affine in its weight, or with ``activation``.
        pre: "keep" takes the weights as they are, "orthonormal" first draws orthonormal ones, as the
            paper does (embeddings, and weights under weight_norm, are kept).
        center: shifts biases so that each output's mean is 0, as fast.ai's version does.
        activation: the std is that of ``activation(output)``; costs two tensors of the output's size.
        reuse: of a layer that is called several times, "first": the first call decides; "pool": all
            calls together, in up to 5 passes.
        unbuilt: the name of the Linear that runs last, with torch's own forward, and without a bias or
            forward hooks: it is measured by :func:`fastinit.linear_moments` and the pass ends there, so
            that its output, of a language model's head as large as the rest of the pass, is never built.
        dead: of layers whose output is all the same or its bias, as of those that are zero on purpose:
            "error" names them all, "skip" leaves them as they are, with a note.
        verify: runs one more pass, plain, and measures every layer in it; keeps a copy of the weights.
        group: the ranks that have this model too, where it does not say so itself: a process group or a
            device mesh. Where neither says it, this rank scales alone, and of several is warned
            (ScaledAloneWarning).
        device: of a model that was built within ``deferred``, where its parameters are written as they
            are used; by default where the constructor would have put them. Inputs and buffers have to be
            there.

    Ranks that share the model, sharded (DTensors: FSDP2, HSDP, tensor parallelism) or replicated
    (DistributedDataParallel, or ``group``), call this together, each with inputs of its own or all with
    the same. Every layer's moments are those of all ranks' outputs, merged in the order of ranks by one
    small collective; what several have counts once. So all find the same scales, those of the whole
    model on the whole batch, and each applies them to what it holds. An error of one is one of all.

    Raises:
        LSUVError: an output that is constant, not finite or has fewer than two values, or a bias whose
            variance is already as large as the target; it names the layers and their moments. With
            ``verify``, layers whose variance is not the target's within
            ``tol``, or not what the result would say. The model is as it was.
        TypeError, ValueError: arguments that are no good; also a schedule's factor that is no number, or
            not positive and finite; layers whose weights have a part of their memory in common.
            Ranks whose layers, options or numbers of batches differ, or the values of what they share:
            of functions names are compared, and the scales that all come to.
        NotImplementedError: a parameter that is not here, or a part of one, on ranks that nothing names
            (``fastinit.elements.shards.check_runs``); an output that is a DTensor of partial sums;
            "orthonormal" for input projections of a MultiheadAttention whose rows are on several ranks.
        RuntimeError: another rank failed, or has ended; the plans or seeds of recorded models differ.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> result = lsuv_(net, torch.randn(1000, 64))
    >>> [round(m.std, 6) for m in result.layers]
    [1.0, 1.0]
    """
    reshard_(model)  # what is gathered now is not what is to be scaled
    ranks = Ranks.of(model, group)
    with ranks.together():
        target_std = _checked(target_std)
        tol, max_iter = number.real("tol", tol), number.integer("max_iter", max_iter, least=1)
        if not 0.0 < tol < 1.0:
            number.out_of_range("tol", "in (0, 1)", tol)
        _check_choice("pre", pre, "keep", "orthonormal")
        _check_choice("reuse", reuse, "first", "pool")
        _check_choice("dead", dead, "error", "skip")
        if batches is not None and (inputs or kwargs):
            raise ValueError("batches and inputs exclude each other, but both were given")
        if batches is None and get_input is not None:
            raise ValueError("get_input is of batches, but there are none")
        for name, parameter in model.named_parameters():
            shard.check_runs(parameter, name, ranks_said=group is not None)
        found, passed = find(model, layers)
        if layers is None:
            passed = other_weights(model, found) | passed
        _check(found, passed, target_std, unbuilt)
        if any(layer.weight_in.requires_grad for layer in found):  # of others nothing is changed
            ranks.warn_if_alone(group)
        trials = Trials(tol, max_iter, activation)
        options = Options(target_std, center, reuse == "pool", dead == "skip", unbuilt, trials)
        weights = weights_of(model, device)
        asked = {
            "target_std": target_std,
            "tol": tol,
            "max_iter": max_iter,
            "pre": pre,
            "center": bool(center),
            "activation": activation,
            "reuse": reuse,
            "unbuilt": unbuilt,
            "dead": dead,
            "verify": bool(verify),
            "batches": batches is not None,
            "layers": [_said(layer) for layer in found],
            "what is on meta": (plan := None if ranks.alone else weights.plan()) is not None,
        }
        check_alike(ranks, asked, model, plan)
        data = Batches(Call(inputs, kwargs), batches, get_input, ranks)
        run = Run(model, step or model, data, weights)
        return _scaled(run, found, passed, options, ranks, pre == "orthonormal", verify)


class Run(NamedTuple):
    """What runs, and with what."""

    model: nn.Module
    step: Callable[..., Any]
    data: Batches
    weights: InMemory


def _scaled(
    run: Run,
    found: list[Layer],
    passed: dict[str, str],
    options: Options,
    ranks: Ranks,
    orthonormal: bool,
    verify: bool,
) -> LSUVResult:
    model, step, data, weights = run
    random = RandomNumbers(model)
    with (
        weights.unchanged_on_failure(),
        same_random_numbers(random),
        _without_autocast_cache(),
        _orthonormal(found if orthonormal else [], weights, ranks),
    ):
        passes = Passes(model, found, options, ranks)
        with unchanged(model, ranks.before_collective) as state:
            hooks = Hooks(passes, state, random)
            for count in range(1, PASSES + 1):
                passes.begin()
                with same_random_numbers(random):
                    for args, named, passes.counting in data.one_pass():
                        with hooks.hooked(), weights.present(passes.scale_held), _one_run(model):
                            step(*args, **named)
                last = count == PASSES
                if passes.settled(last, data.why_unsettled()):
                    break
        passes.check_alike()  # all are about to change their weights, or none is
        with passes.kept() if verify else nullcontext():
            with weights.writable():
                passes.apply()
            if verify:
                _verify(run, passes, random)
    measured = passes.measured
    passed |= {layer.name: "not called" for layer in found if layer.name not in measured}
    return LSUVResult(list(measured.values()), passed, count, passes.product, weights.plan())


def _verify(run: Run, passes: Passes, random: RandomNumbers) -> None:
    model, step, data, weights = run
    looked = Verification(passes.found, passes.options, passes.ranks)
    with unchanged(model, passes.ranks.before_collective), same_random_numbers(random):
        for args, named, counts in data.one_pass():
            if counts:
                with looked.looking(), weights.present(lambda _: 1.0), _one_run(model):
                    step(*args, **named)
    said = "in a plain pass the std of these layers is another than was asked for or found"
    looked.check(list(passes.measured.values()), said + data.why_unsettled())
    passes.ranks.gathered([], "the end of the plain pass")


@contextmanager
def _one_run(model: nn.Module) -> Iterator[None]:
    """In the block the model runs, at most to the layer that is not built."""
    try:
        yield
    except PassEnded:
        reshard_(model, cut_short=True)


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
def _orthonormal(found: list[Layer], weights: InMemory, ranks: Ranks) -> Iterator[None]:
    """Draws the layers' weights, and undoes it if the block fails."""
    for layer in found:
        if is_lazy(layer.weight_in):
            raise ValueError(
                f"pre='orthonormal' must have weights, but {layer.name} is not initialised"
            )
    drawn = [
        layer
        for layer in found
        if len(layer.shape) > 1
        and layer.weight_in.requires_grad
        and layer.direction is None
        and not isinstance(layer.module, EMBEDDINGS)
    ]
    for layer in drawn:
        _check_drawn(layer)
    before = [(w, w.clone()) for w in (layer.weight for layer in drawn) if not w.is_meta]
    try:
        with weights.writable():
            for layer in drawn:
                # On all ranks the same, whatever their generators are.
                seed = None if ranks.alone else ranks.first(draw_seed(), "the seeds")
                init.orthogonal_(layer.weight, seed=seed)
        yield
    except BaseException:
        for weight, copy in reversed(before):
            weight.copy_(copy)
        raise


def _check_drawn(layer: Layer) -> None:
    """Raises NotImplementedError for the rows of a DTensor that is cut by rows: others have some."""
    if layer.projection is not None and shard.is_dtensor(layer.weight_in):
        try:
            shard.check_held(layer.weight)
        except NotImplementedError:
            raise NotImplementedError(
                f"pre='orthonormal' cannot draw {layer.name}: it is some rows of the attention's "
                f"in_proj_weight, which is a DTensor with placements {layer.weight_in.placements}. Run "
                f"lsuv_ before the model is sharded, on many ranks with group=; or draw the weights "
                f"before it is, and give pre='keep'"
            ) from None


def _check(found: list[Layer], passed: Mapping[str, str], target_std: Any, unbuilt: Any) -> None:
    """Raises for layers that cannot be measured, or are none."""
    if not found:
        reasons = "".join(f"; {name} {why}" for name, why in passed.items())
        raise ValueError(f"layers must name at least one layer with a weight, but none is{reasons}")
    if isinstance(target_std, Mapping):
        strange = target_std.keys() - {layer.name for layer in found}
        if strange:
            raise ValueError(f"target_std names layers that are not: {', '.join(sorted(strange))}")
    _check_unbuilt(found, unbuilt)
    _check_apart(found)


def _said(layer: Layer) -> tuple[Any, ...]:
    """What ranks have to have in common of a layer."""
    bias = layer.bias_in
    trained = layer.weight_in.requires_grad, bias is not None and bias.requires_grad
    shape = None if is_lazy(layer.weight_in) else layer.shape
    return layer.name, shape, bias is None, layer.affine, trained


def _check_unbuilt(found: list[Layer], unbuilt: str | None) -> None:
    if unbuilt is None:
        return
    layer = next((layer for layer in found if layer.name == unbuilt), None)
    if layer is None or not isinstance(layer.module, nn.Linear):
        raise ValueError(f"unbuilt must name one of the layers, a Linear, but got {unbuilt!r}")
    if layer.bias is not None:
        raise ValueError(f"unbuilt must name a Linear without a bias, but {unbuilt!r} has one")
    hooked = internals.global_hooks() or not all(
        map(lays_out, layer.module._forward_hooks.values())
    )
    if hooked or not layer.affine:
        what = "a forward hook, which may change it" if hooked else "a forward of its own"
        raise ValueError(f"unbuilt must name a Linear and no more, but {unbuilt!r} has {what}")


def _check_apart(found: list[Layer]) -> None:
    """Weights are in other memory each, or in the same."""
    places = sorted(
        {layer.key for layer in found}, key=lambda place: (str(place.memory), place[1:])
    )
    names = {layer.key: layer.name for layer in reversed(found)}
    for place, following in pairwise(places):
        if place.overlaps(following):
            raise ValueError(
                f"layers must have weights of their own or the same, but {names[place]} and "
                f"{names[following]} have part of their memory in common: choose one with layers="
            )


def _check_choice(argument: str, given: str, *choices: str) -> None:
    if given not in choices:
        said = " or ".join(map(repr, choices))
        raise ValueError(f"{argument} must be {said}, but got {given!r}")


def _checked(target_std: Any) -> float | Mapping[str, float] | Schedule:
    """The targets with their numbers as floats; a schedule's are checked as it gives them."""
    if isinstance(target_std, Mapping):
        return {n: number.positive(f"target_std[{n!r}]", std) for n, std in target_std.items()}
    if callable(target_std):
        schedule: Schedule = target_std
        return schedule
    return number.positive("target_std", target_std)
