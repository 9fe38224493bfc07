"""Layers: the modules whose output is affine in one weight, and what that output looks like."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastinit.elements import shards as shard
from fastinit.fills.layer_kinds import EMBEDDINGS, kind_of

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_ATTEND = nn.MultiheadAttention.forward
_OUT_PROJ = type(nn.MultiheadAttention(1, 1).out_proj)  # a class of its own

Which = type | tuple[type, ...] | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Which layers: types, names, a predicate of (name, module), or None for all known kinds."""


class Layer(NamedTuple):
    """A module with the weight that its output is proportional to, apart from the bias.

    MultiheadAttention is four of them: the projections of query, key and value, which run inside it and
    whose weights may be rows of one parameter, and that of its output.
    """

    name: str
    module: nn.Module
    weight_in: nn.Parameter
    """What ``weight`` is, or is rows of."""
    bias_in: nn.Parameter | None
    affine: bool = True
    """Whether output - bias is proportional to weight; else only the module itself can tell."""
    projection: int | None = None
    """Which of query, key and value MultiheadAttention projects here; None: the module's own output."""

    @property
    def weight(self) -> Tensor:
        """A view, without a gradient."""
        return self._own(self.weight_in)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        rows, shape = self._rows(self.weight_in), tuple(self.weight_in.shape)
        return shape if rows is None else (rows.stop - rows.start, *shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """A view, without a gradient."""
        return None if self.bias_in is None else self._own(self.bias_in)

    @property
    def trained_bias(self) -> Tensor | None:
        """The bias, if it needs a gradient: only then it may be shifted."""
        return self.bias if self.bias_in is not None and self.bias_in.requires_grad else None

    @property
    def key(self) -> tuple[int, int | None]:
        """Equal for layers whose weights are tied."""
        if self.projection is None or self._rows(self.weight_in) is None:
            return id(self.weight_in), None
        return id(self.weight_in), self.projection

    def has_bias_of(self, other: Layer) -> bool:
        return self.bias_in is other.bias_in and self.projection == other.projection

    def _own(self, parameter: nn.Parameter) -> Tensor:
        rows = self._rows(parameter)
        return parameter.detach() if rows is None else parameter.detach()[rows]

    def _rows(self, parameter: nn.Parameter) -> slice | None:
        """Those of a parameter that are this layer's; None for all."""
        if self.projection is None or len(parameter) == self.module.embed_dim:
            return None
        size = len(parameter) // len(PROJECTIONS)
        return slice(self.projection * size, (self.projection + 1) * size)

    def projected(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What MultiheadAttention computes inside, from its arguments; None if there is no argument."""
        assert self.projection is not None
        name = ("query", "key", "value")[self.projection]
        x = args[self.projection] if self.projection < len(args) else kwargs.get(name)
        return nn.functional.linear(x, self.weight, self.bias) if isinstance(x, Tensor) else None

    def channel_dim(self, output: Tensor) -> int:
        """The dimension of the output along which the bias lies."""
        kind = kind_of(self.module)
        return output.dim() - 1 - (0 if kind is None else kind.spatial)

    def bias_like(self, output: Tensor) -> Tensor | None:
        """The bias in a shape that adds to the output; None if there is none or it is all zeros.

        Raises:
            NotImplementedError: a bias of which this rank holds a part.
        """
        bias = self.bias
        if shard.is_dtensor(bias):
            if shard.is_part(bias):
                raise NotImplementedError(
                    f"{self.name}.bias is a DTensor with placements {bias.placements}: of an output "
                    f"whose bias is spread over ranks nothing is known here"
                )
            bias = shard.local(bias)
        if bias is None or not bool(bias.any()):
            return None
        shape = [1] * output.dim()
        shape[self.channel_dim(output)] = -1
        return bias.view(shape)


def find(model: nn.Module, which: Which = None) -> tuple[list[Layer], dict[str, str]]:
    """The layers of a model in the order of registration, and why others that were named are none.

    A module that is registered twice counts once. Known kinds are Linear, the convolutions, Embedding
    and EmbeddingBag, Bilinear, MultiheadAttention and transformers' Conv1D. MultiheadAttention is
    ``<name>.q_proj``, ``.k_proj``, ``.v_proj`` and ``.out_proj``: its own name chooses all four.

    Raises:
        TypeError: ``which`` is none of what it may be.
        ValueError: a name that the model has no module of, or a module without a weight.
    """
    wanted = _wanted(model, which)
    layers, passed = [], {}
    for prefix, module in model.named_modules():
        if isinstance(module, _OUT_PROJ):
            continue  # MultiheadAttention's, which is not called as a module
        for name, weight, bias, projection in _parts(prefix, module):
            if not wanted(name, module):
                continue
            own = prefix if projection is None else name  # as long as its output can be seen
            if not isinstance(weight, nn.Parameter):
                passed[own] = "has no weight" if weight is None else "its weight is computed"
            elif projection is not None and type(module).forward is not _ATTEND:
                passed[own] = "inside a forward that is not MultiheadAttention's own"
            else:
                bias = bias if isinstance(bias, nn.Parameter) else None
                layers.append(Layer(name, module, weight, bias, _known(module), projection))
    return layers, passed


def projections(found: Iterable[Layer]) -> dict[nn.Module, list[Layer]]:
    """The input projections among the layers, by their MultiheadAttention."""
    by_module: dict[nn.Module, list[Layer]] = {}
    for layer in found:
        if layer.projection is not None:
            by_module.setdefault(layer.module, []).append(layer)
    return by_module


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, Any, Any, int | None]]:
    """The layers that a module may be: name, weight, bias and, of MultiheadAttention's, which."""
    if not isinstance(module, nn.MultiheadAttention):
        yield name, _registered(module, "weight"), _registered(module, "bias"), None
        return
    out, q_k_v = module.out_proj, _registered(module, "in_proj_weight")
    bias = _registered(module, "in_proj_bias")
    for i, own in enumerate(_names(name)):
        if i == len(PROJECTIONS):
            yield own, _registered(out, "weight"), _registered(out, "bias"), None
        elif q_k_v is not None:
            yield own, q_k_v, bias, i
        else:
            yield own, _registered(module, f"{PROJECTIONS[i]}_weight"), bias, i


def _registered(module: nn.Module, name: str) -> Any:
    """A parameter, or what stands in its place, which is not computed: that may change the module."""
    if name in module._parameters:
        return module._parameters[name]
    return inspect.getattr_static(module, name, None)


def _names(attention: str) -> list[str]:
    """Of MultiheadAttention's layers, in the order in which they run."""
    prefix = f"{attention}." if attention else ""
    return [prefix + part for part in (*PROJECTIONS, "out_proj")]


def _known(module: nn.Module) -> bool:
    if isinstance(module, EMBEDDINGS) and module.max_norm is not None:
        return False  # a renormalised weight is not proportional to anything
    return kind_of(module) is not None


def _wanted(model: nn.Module, which: Which) -> Callable[[str, nn.Module], bool]:
    if which is None:
        return lambda name, module: _known(module)
    if isinstance(which, (type, tuple)) and all(
        isinstance(kind, type) for kind in (which if isinstance(which, tuple) else (which,))
    ):
        return lambda name, module: isinstance(module, which)
    if isinstance(which, Iterable):
        names = [which] if isinstance(which, str) else list(which)
        known = set()
        for name, module in model.named_modules():
            known.add(name)
            if isinstance(module, nn.MultiheadAttention):
                known.update(_names(name))
                names += _names(name) if name in names else []
        if strange := [name for name in names if name not in known]:
            raise ValueError(
                f"layers names modules that the model has not: {', '.join(map(str, strange))}"
            )
        return lambda name, module: name in names
    if callable(which):
        return which
    raise TypeError(f"layers must be types, names or a predicate, but got {which!r}")


def abbreviated(name: str, room: int) -> str:
    """A dotted name with its first words cut to a letter, as many as it takes to fit.

    >>> abbreviated("transformer.h.11.attn.c_proj", 20)
    't.h.11.attn.c_proj'
    """
    words = name.split(".")
    for i, word in enumerate(words[:-1]):
        if len(".".join(words)) <= room:
            break
        words[i] = word if word.isdigit() else word[:1]
    return ".".join(words)
