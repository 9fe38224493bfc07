"""Layers: the modules whose output is affine in one weight, and what that output looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

_CONVOLUTIONS = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}

Which = type | tuple[type, ...] | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Which layers: types, names, a predicate of (name, module), or None for all known kinds."""


class Layer(NamedTuple):
    """A module with the weight that its output is proportional to, apart from the bias."""

    name: str
    module: nn.Module
    weight: nn.Parameter
    bias: nn.Parameter | None
    affine: bool = True
    """Whether output - bias is proportional to weight; else only the module itself can tell."""

    def channel_dim(self, output: Tensor) -> int:
        """The dimension of the output along which the bias lies."""
        spatial = _CONVOLUTIONS.get(_kind(self.module), 0)
        return output.dim() - spatial - 1

    def bias_like(self, output: Tensor) -> Tensor | None:
        """The bias in a shape that adds to the output; None if there is none or it is all zeros."""
        if self.bias is None or not bool(self.bias.detach().any()):
            return None
        shape = [1] * output.dim()
        shape[self.channel_dim(output)] = -1
        return self.bias.detach().view(shape)


def find(model: nn.Module, which: Which = None) -> tuple[list[Layer], dict[str, str]]:
    """The layers of a model in the order of registration, and why others that were named are none.

    A module that is registered twice counts once. Known kinds are Linear, the convolutions, Embedding
    and EmbeddingBag, Bilinear, MultiheadAttention's output projection, and transformers' Conv1D.

    Raises:
        TypeError: ``which`` is none of what it may be.
        ValueError: a name that the model has no module of, or a module without a weight.
    """
    wanted = _wanted(model, which)
    layers, passed = [], {}
    for name, module in model.named_modules():
        if not wanted(name, module):
            continue
        owner, prefix = module, name
        if isinstance(module, nn.MultiheadAttention):
            owner, prefix = module.out_proj, f"{name}.out_proj"
            passed[f"{name}.in_proj"] = (
                "inside MultiheadAttention, whose inputs it is not applied to alone"
            )
        elif isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            continue  # MultiheadAttention's, which is not called as a module
        weight = getattr(owner, "weight", None)
        if not isinstance(weight, nn.Parameter):
            passed[name] = "has no weight" if weight is None else "its weight is computed"
            continue
        bias = getattr(owner, "bias", None)
        bias = bias if isinstance(bias, nn.Parameter) else None
        layers.append(Layer(prefix, module, weight, bias, _known(module)))
    return layers, passed


def _known(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return False  # a renormalised weight is not proportional to anything
    return (
        isinstance(module, kinds)
        or _kind(module) in _CONVOLUTIONS
        or type(module).__name__ == "Conv1D"
    )


def _kind(module: nn.Module) -> type:
    return next((kind for kind in _CONVOLUTIONS if isinstance(module, kind)), type(module))


def _wanted(model: nn.Module, which: Which) -> Callable[[str, nn.Module], bool]:
    if which is None:
        return lambda name, module: _known(module)
    if isinstance(which, (type, tuple)) and all(
        isinstance(kind, type) for kind in (which if isinstance(which, tuple) else (which,))
    ):
        return lambda name, module: isinstance(module, which)
    if isinstance(which, Iterable):
        names = [which] if isinstance(which, str) else list(which)
        known = {name for name, _ in model.named_modules()}
        if strange := [name for name in names if name not in known]:
            raise ValueError(
                f"layers names modules that the model has not: {', '.join(map(str, strange))}"
            )
        return lambda name, module: name in names
    if callable(which):
        return which
    raise TypeError(f"layers must be types, names or a predicate, but got {which!r}")
