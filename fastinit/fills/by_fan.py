"""Scaled weights: the std follows from the fans (xavier, kaiming, variance scaling, lecun)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastinit.elements.part import Part
from fastinit.fills import fans
from fastinit.fills.blocks import Blocks, Target
from fastinit.fills.fans import Fans, check_fans
from fastinit.fills.seeded import draw_, full_shape
from fastinit.stream import laws


def xavier_uniform_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the uniform law of std gain * sqrt(2 / (fan_in + fan_out)): Glorot & Bengio 2010.

    Args:
        tensor: at least 2-D, unless ``fan`` is given: [out, in, ...], trailing sizes count for both
            fans.
        gain: see :func:`fastinit.fills.fans.calculate_gain`.
        generator, seed, name, part, scale, exact: as for :func:`fastinit.init.normal_`.
        fan: (fan_in, fan_out), by default from the shape.

    Raises:
        ValueError: fewer than 2 dimensions and no ``fan``; and as :func:`fastinit.init.normal_`.
        NumberRangeError: a gain that is negative, NaN or infinite.
    """
    std = fans.xavier_std(_fans(tensor, fan, part), gain)
    return draw_(tensor, fans.uniform_of_std(std), generator, seed, name, part, scale, exact)


def xavier_normal_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the normal law of std gain * sqrt(2 / (fan_in + fan_out)): Glorot & Bengio 2010.

    Arguments and errors are those of :func:`xavier_uniform_`.
    """
    std = fans.xavier_std(_fans(tensor, fan, part), gain)
    return draw_(tensor, laws.normal(0.0, std), generator, seed, name, part, scale, exact)


def kaiming_uniform_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the uniform law of std gain(nonlinearity, a) / sqrt(fan): He et al. 2015.

    Args:
        tensor: at least 2-D, unless ``fan`` is given: [out, in, ...], trailing sizes count for both
            fans.
        a: the negative slope, for leaky_relu.
        mode: "fan_in" keeps the variance of activations, "fan_out" of gradients; case does
            not matter.
        nonlinearity: see :func:`fastinit.fills.fans.calculate_gain`.
        generator, seed, name, part, scale, exact: as for :func:`fastinit.init.normal_`.
        fan: (fan_in, fan_out), by default from the shape.

    Raises:
        ValueError: fewer than 2 dimensions and no ``fan``; an unknown mode or nonlinearity; and as
            :func:`fastinit.init.normal_`.
        NumberTypeError, NumberRangeError: ``a`` is no number, or not finite.

    Warns:
        UserWarning: a tensor without elements, which is left alone before anything else is checked.
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(
            kaiming_uniform_,
            (tensor,),
            tensor,
            a=a,
            mode=mode,
            nonlinearity=nonlinearity,
            generator=generator,
            seed=seed,
            name=name,
            fan=fan,
            part=part,
            scale=scale,
            exact=exact,
        )
    shape = full_shape(tensor, part)
    if 0 in shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = fans.kaiming_std(_of(shape, fan), a, mode, nonlinearity)
    return draw_(tensor, fans.uniform_of_std(std), generator, seed, name, part, scale, exact)


def kaiming_normal_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the normal law of std gain(nonlinearity, a) / sqrt(fan): He et al. 2015.

    Arguments, errors and warnings are those of :func:`kaiming_uniform_`.
    """
    shape = full_shape(tensor, part)
    if 0 in shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = fans.kaiming_std(_of(shape, fan), a, mode, nonlinearity)
    return draw_(tensor, laws.normal(0.0, std), generator, seed, name, part, scale, exact)


def variance_scaling_(
    tensor: Target,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    exact: bool = False,
) -> Target:
    """Fills with mean 0 and variance scale / n, as ``variance_scaling`` of JAX and TensorFlow.

    Args:
        tensor: at least 2-D, unless ``fan`` is given: [out, in, ...], trailing sizes count for both
            fans.
        scale: at least 0; 2 for relu with fan_in.
        mode: n is "fan_in", "fan_out", "fan_avg" (their mean) or "fan_geo_avg" (geometric mean).
        distribution: "normal", "uniform" or "truncated_normal", cut at two standard deviations and
            widened so that the values have the variance asked for.
        generator, seed, name, part, exact: as for :func:`fastinit.init.normal_`.
        fan: (fan_in, fan_out), by default from the shape.

    Raises:
        ValueError: fewer than 2 dimensions and no ``fan``; an unknown mode or distribution; and as
            :func:`fastinit.init.normal_`.
        NumberRangeError: a scale that is negative, NaN or infinite.
    """
    law = fans.variance_scaling(_fans(tensor, fan, part), scale, mode, distribution)
    return draw_(tensor, law, generator, seed, name, part, exact=exact)


def lecun_normal_(
    tensor: Target,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with a truncated normal of variance 1 / fan_in: LeCun et al. 1998, for selu.

    As in JAX and Keras: :func:`variance_scaling_` with its defaults; arguments and errors are
    there.
    """
    law = fans.variance_scaling(_fans(tensor, fan, part), 1.0, "fan_in", "truncated_normal")
    return draw_(tensor, law, generator, seed, name, part, scale, exact)


def lecun_uniform_(
    tensor: Target,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    fan: Fans | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the uniform law of variance 1 / fan_in: LeCun et al. 1998.

    :func:`variance_scaling_` with distribution "uniform"; arguments and errors are there.
    """
    law = fans.variance_scaling(_fans(tensor, fan, part), 1.0, "fan_in", "uniform")
    return draw_(tensor, law, generator, seed, name, part, scale, exact)


def _fans(tensor: Tensor | Blocks, fan: Fans | None, part: Part | None) -> Fans:
    return fans.fans_of(full_shape(tensor, part)) if fan is None else check_fans(fan)


def _of(shape: Sequence[int], fan: Fans | None) -> Fans:
    return fans.fans_of(shape) if fan is None else check_fans(fan)
