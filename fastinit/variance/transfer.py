"""Moving a scale from one layer's weight to the next one's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastinit.base import number
from fastinit.base.holders import living
from fastinit.elements import tensors
from fastinit.fills.layer_kinds import EMBEDDINGS, NORMS
from fastinit.statistics.tensor import moments
from fastinit.variance.layers import Layer, find, is_affine, why_no_layer
from fastinit.variance.places import place_of


def transfer_scale_(layer: nn.Module, following: nn.Module, factor: float) -> None:
    """Multiplies one layer's weight and divides the next one's: the function stays the same.

    It does where nothing stands between them, hooks of theirs included, that is not homogeneous (He et
    al. 2015, section 2.2: ReLU is), where no hook writes their weights, and where ``layer`` has no bias
    or its bias is multiplied too, as it is here. What would change it is refused before anything is
    written.

    Args:
        layer: a module with a weight that its output is proportional to, but for a bias: Linear, a
            convolution, an embedding, a norm, with torch's own forward. Under weight_norm its g is
            multiplied.
        following: a Linear, a convolution or another module whose output is linear in its input and
            in its weight, with torch's own forward.
        factor: positive and finite.

    Raises:
        NumberTypeError, NumberRangeError: a factor that is no number; not positive and finite.
        ValueError: a module without a weight, or with a forward of its own; an embedding with
            ``max_norm``; a parameter that another module has too, which is named; one that its dtype
            cannot hold with the factor.
        NotImplementedError, RuntimeError: a parameter without plain memory, before any is written
            (``fastinit.elements.tensors.memory``).
    """
    factor = number.positive("factor", factor)
    first, second = _layer("layer", layer), _layer("following", following)
    if isinstance(following, (*EMBEDDINGS, *NORMS)):
        raise ValueError(f"following is not linear in its input: {following!r}")
    if first.key.overlaps(second.key):
        raise ValueError("layer and following have the same weight")
    biases = first.bias_key, second.bias_key
    if biases[0] is not None and biases[1] is not None and biases[0].overlaps(biases[1]):
        raise ValueError("layer.bias is also following.bias, which would change")
    scaled = {"layer.weight": (first.scaled, factor), "layer.bias": (first.bias, factor)}
    scaled["following.weight"] = (second.scaled, 1.0 / factor)
    written = {name: (x, by) for name, (x, by) in scaled.items() if x is not None}
    for name, (parameter, by) in written.items():
        _check_range(name, tensors.memory(parameter, name), by)
    _check_alone({name: x for name, (x, _) in written.items()}, first.owners | second.owners)
    with torch.no_grad():
        for parameter, _ in list(written.values())[:-1]:
            parameter.mul_(factor)
        second.scaled.div_(factor)


def _layer(argument: str, module: nn.Module) -> Layer:
    """A module as a layer that is affine in its weight."""
    if isinstance(module, EMBEDDINGS) and module.max_norm is not None:
        raise ValueError(f"{argument} renormalises its weight's rows to max_norm: {module!r}")
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if isinstance(module, NORMS) and weight is not None and is_affine(module, weight, bias):
        return Layer("", module, weight, bias)
    found, passed = find(module, lambda name, inner: inner is module)
    if len(found) != 1:
        raise ValueError(f"{argument} {passed.get('', why_no_layer(module))}: {module!r}")
    if not found[0].affine:
        raise ValueError(f"{argument} has a forward of its own, or no plain weight: {module!r}")
    return found[0]


def _check_range(name: str, here: Tensor, factor: float) -> None:
    """Raises ValueError if a dtype does not hold a tensor's values with a factor."""
    if here.is_meta or not here.numel():
        return
    m, info = moments(here), torch.finfo(here.dtype)
    largest = torch.tensor(m.absmax * factor, dtype=torch.float64, device="cpu").to(here.dtype)
    if not bool(largest.isfinite()):
        raise ValueError(
            f"{name} would overflow: its largest value, {m.absmax:.6g}, times {factor:.6g} is more "
            f"than {here.dtype} holds"
        )
    if 0.0 < math.hypot(m.mean, 0.0 if math.isnan(m.std) else m.std) * factor < info.tiny:
        raise ValueError(
            f"{name} would underflow: its values, times {factor:.6g}, are less than {here.dtype}'s "
            f"smallest normal number, {info.tiny:.6g}"
        )


def _check_alone(written: dict[str, Tensor], own: set[nn.Module]) -> None:
    """Raises ValueError if a module that is none of those has a parameter in the memory of one.

    Whatever model it is in: all modules that there are in this process are asked.
    """
    places = {name: place_of(parameter, parameter) for name, parameter in written.items()}
    modules = list(living(nn.Module, lambda module: module not in own))
    for module in modules:
        for key, other in vars(module).get("_parameters", {}).items():
            there = None if other is None else place_of(other, other)
            for name, place in places.items():
                if there is not None and there.overlaps(place):
                    root, path = _path(module, modules)
                    raise ValueError(
                        f"{name} is also {path}{key} of a {type(root).__name__}, which would change"
                    )


def _path(module: nn.Module, modules: list[nn.Module]) -> tuple[nn.Module, str]:
    """What a module is in, as far as that is known, and its name there, with a dot."""
    parents = {
        inner: (outer, name)
        for outer in modules
        for name, inner in vars(outer).get("_modules", {}).items()
    }
    path = ""
    while module in parents and path.count(".") < 99:
        module, name = parents[module]
        path = f"{name}.{path}"
    return module, path
