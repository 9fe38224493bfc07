"""Networks that keep norms: orthogonal matrices, and convolutions with one at their centre."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastinit.base import number
from fastinit.fills import fans
from fastinit.fills.layer_kinds import CONVOLUTIONS, TRANSPOSED
from fastinit.plan.fill import Fill
from fastinit.plan.ruled import Rule
from fastinit.recipes.fills import ZERO
from fastinit.recipes.roles import by_role, role
from fastinit.recipes.rules import first_of
from fastinit.recipes.torch_layers import torch_default


def _gain(nonlinearity: str, gain: float | None) -> float:
    if gain is None:
        return fans.calculate_gain(nonlinearity)
    return number.multiplier("gain", gain, negative=True)


def orthogonal(
    nonlinearity: str = "linear", *, gain: float | None = None, rest: Rule = torch_default
) -> Rule:
    """Weights of Linear, convolutions and plain RNNs orthogonal times a gain, their biases 0.

    Source: Saxe et al. 2014, arXiv 1312.6120 ("random orthogonal initial conditions"): with gain 1 the
    product of linear layers is orthogonal at every depth. A convolution is taken as the matrix
    [out, in x kernel], as torch's ``orthogonal_`` does; :func:`delta_orthogonal` is the one that keeps
    norms.

    Args:
        nonlinearity: of which ``fastinit.init.calculate_gain`` gives the gain.
        gain: instead of that one.
        rest: for parameters of other modules (LSTM and GRU, whose weights are several matrices, too).
    """
    factor = _gain(nonlinearity, gain)

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        if isinstance(module, (nn.Linear, nn.RNN, nn.RNNCell, *CONVOLUTIONS)):
            return by_role(role(name, module, shape), weight=Fill.orthogonal(factor))
        return None

    return first_of(rule, rest)


def delta_orthogonal(
    nonlinearity: str = "linear", *, gain: float | None = None, rest: Rule = torch_default
) -> Rule:
    """Convolutions delta-orthogonal, Linear weights orthogonal, biases 0.

    Source: Xiao et al. 2018, arXiv 1806.05393, algorithm 2 (TensorFlow's ``ConvolutionDeltaOrthogonal``
    and JAX's ``delta_orthogonal`` too): the kernel's centre is orthogonal and the rest 0, so that each
    position's norm is kept; 10,000 layers train.

    A convolution with more inputs than outputs, with groups or transposed cannot keep norms and gets no
    Fill, which ``Plan.from_model`` raises as an error, unless another rule has one (``first_of``).

    Args:
        nonlinearity: of which ``fastinit.init.calculate_gain`` gives the gain.
        gain: instead of that one. (The paper's tanh nets are at the edge of chaos, with a gain little
            above 1, the square root of its variance of weights, rather than tanh's 5/3.)
        rest: for parameters of other modules.
    """
    factor = _gain(nonlinearity, gain)

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return rest(name, module, shape, config)
        part = role(name, module, shape)
        if part != "weight":
            return ZERO if part == "bias" else None
        if isinstance(module, nn.Linear):
            return Fill.orthogonal(factor)
        if isinstance(module, TRANSPOSED) or module.groups > 1 or shape[1] > shape[0]:
            return None
        return Fill.delta_orthogonal(factor)

    return rule
