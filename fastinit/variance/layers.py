"""Layers: modules with a weight, what their output is, and whether that is affine in the weight.

A layer is what its forward does: only one whose forward, parameters and their types are the known ones
is affine in its weight. Of any other with a weight nothing is taken for granted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills.layer_kinds import EMBEDDINGS, NORMS, changed_parts, kind_of
from fastinit.variance.places import Place, place_of, rows_here

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
COMPUTED = "its weight is computed"

Which = type | tuple[type, ...] | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Which layers: types, names, a predicate of (name, module), or None for all known kinds."""


class Direction(NamedTuple):
    """Of a weight under weight_norm: what it is but for its length, and along which dimension."""

    v: Tensor
    dim: int
    """-1: all together have one length."""


@dataclass(eq=False)
class Layer:
    """A module with the parameter by which its weight is scaled: the weight, or weight_norm's g.

    MultiheadAttention is four of them: the projections of query, key and value, which run inside it and
    whose weights may be rows of one parameter, and that of its output.
    """

    name: str
    module: nn.Module
    weight_in: nn.Parameter
    """What is scaled, or what that is rows of."""
    bias_in: nn.Parameter | None
    affine: bool = True
    """Whether output - bias is proportional to weight; else only the module itself can tell."""
    projection: int | None = None
    """Which of query, key and value MultiheadAttention projects here; None: the module's own output."""
    direction: Direction | None = None
    """Under weight_norm: what g gives a length."""
    key: Place = field(init=False)
    """Equal for layers whose weights are tied. It stays, where the weight's memory may come and go."""
    bias_key: Place | None = field(init=False)
    spatial: int = field(init=False)
    """Dimensions of an output behind that of its units."""
    owners: set[nn.Module] = field(init=False)
    """Who of the module and those inside it have its parameters, but for what FSDP2 puts there."""

    def __post_init__(self) -> None:
        own = {id(self.weight_in), id(self.bias_in)} - {id(None)}
        modules = self.module.modules()
        self.owners = {m for m in modules if own & set(map(id, m._parameters.values()))}
        kind = kind_of(self.module)
        self.spatial = 0 if kind is None else kind.spatial
        self.key = self._place(self.weight_in)
        self.bias_key = None if self.bias_in is None else self._place(self.bias_in)

    @property
    def is_sharded(self) -> bool:
        """Whether one of its parameters is a DTensor."""
        return shard.is_dtensor(self.weight_in) or shard.is_dtensor(self.bias_in)

    @property
    def scaled(self) -> Tensor:
        """What is multiplied in order to scale the weight: a view, without a gradient."""
        return self._own(self.weight_in)

    @property
    def weight(self) -> Tensor:
        """Without a gradient: a view; under weight_norm, a copy."""
        if self.direction is None:
            return self.scaled
        v, dim = self.direction
        return v.detach() * (self.scaled / torch.norm_except_dim(v.detach(), 2, dim))

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        whole = self.weight_in if self.direction is None else self.direction.v
        rows, shape = self._rows(self.weight_in), tuple(whole.shape)
        return shape if rows is None else (rows.stop - rows.start, *shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """A view, without a gradient."""
        return None if self.bias_in is None else self._own(self.bias_in)

    def in_use(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias as the module uses them: views, without gradients."""
        return self.scaled, self.bias

    @property
    def trained_bias_in(self) -> nn.Parameter | None:
        """What the bias is of, if it needs a gradient: only then it may be shifted."""
        return self.bias_in if self.bias_in is not None and self.bias_in.requires_grad else None

    def here(self, parameter: nn.Parameter) -> list[Tensor]:
        """What this rank has of the layer's part of a parameter, in place."""
        rows = self._rows(parameter)
        if rows is None or not shard.is_dtensor(parameter):
            return [tensors.local(self._own(parameter))]
        return list(rows_here(parameter, rows))

    def own(self, present: Tensor) -> Tensor:
        """The layer's part of what is in a parameter's place: a view."""
        rows = self._rows(present)
        return present if rows is None else present[rows]

    def _own(self, parameter: nn.Parameter) -> Tensor:
        return self.own(shard.detached(parameter))

    def _place(self, parameter: nn.Parameter) -> Place:
        if is_lazy(parameter) or (tensors.unreadable(parameter) and not parameter.is_meta):
            return Place(("parameter", id(parameter), self.projection), 0, 1)
        if shard.is_dtensor(parameter) and (rows := self._rows(parameter)):
            whole = place_of(parameter, parameter)
            return Place((whole.memory, "rows"), rows.start, rows.stop)
        return place_of(self._own(parameter), parameter)

    def _rows(self, parameter: Tensor) -> slice | None:
        """Those of a parameter that are this layer's; None for all."""
        if self.projection is None or len(parameter) == self.module.embed_dim:
            return None
        size = len(parameter) // len(PROJECTIONS)
        return slice(self.projection * size, (self.projection + 1) * size)

    def runs_with_another(self) -> bool:
        """Whether another weight is in the place of the layer's, as within torch.func.functional_call.

        Of those that FSDP2 gathers the layer's own is a part.
        """
        if self.direction is not None or isinstance(self.module, nn.MultiheadAttention):
            return False
        now = self.module._parameters.get("weight", self.weight_in)
        return now is not self.weight_in and not shard.is_dtensor(self.weight_in)

    def projected(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        in_use: tuple[Tensor, Tensor | None],
    ) -> Tensor | None:
        """What MultiheadAttention computes inside, from its arguments; None if there is no argument.

        Args:
            in_use: the weight and the bias as the module is about to use them.
        """
        assert self.projection is not None
        name = ("query", "key", "value")[self.projection]
        x = args[self.projection] if self.projection < len(args) else kwargs.get(name)
        if not isinstance(x, Tensor):
            return None
        return nn.functional.linear(x, *in_use)

    def channel_dim(self, output: Tensor) -> int:
        """The dimension of the output along which the bias lies."""
        return output.dim() - 1 - self.spatial

    def bias_like(self, output: Tensor, bias: Tensor | None) -> Tensor | None:
        """The bias in a shape that adds to the output; None if there is none or it is all zeros."""
        if bias is None or not bool(bias.any()):
            return None
        shape = [1] * output.dim()
        shape[self.channel_dim(output)] = -1
        return bias.view(shape)


def find(
    model: nn.Module, which: Which = None, compiled: bool = False
) -> tuple[list[Layer], dict[str, str]]:
    """The layers of a model in the order of registration, and why others that were named are none.

    A module that is registered twice counts once. By default they are of the known kinds and what
    inherits from them: Linear, the convolutions, Embedding and EmbeddingBag, Bilinear,
    MultiheadAttention and transformers' Conv1D. MultiheadAttention is ``<name>.q_proj``, ``.k_proj``,
    ``.v_proj`` and ``.out_proj``: its own name chooses all four. No parametrisation is run.

    Args:
        compiled: also those in compiled modules.

    Raises:
        TypeError: ``which`` is none of what it may be.
        ValueError: a name that the model has no module of, or a module without a weight.
    """
    wanted, out_projs = _wanted(model, which), _out_projs(model)
    closed = without_hooks(model, compiled)
    layers, passed = [], {}
    for prefix, module in model.named_modules():
        if module in out_projs:
            continue  # is not called as a module
        for name, weight, bias, projection in _parts(prefix, module):
            if not wanted(name, module):
                continue
            own = prefix if projection is None else name  # as long as its output can be seen
            direction = None
            if module not in closed and projection is None and not isinstance(weight, nn.Parameter):
                weight, direction = _normed(module) or (weight, None)
            if module in closed:
                if which is not None:  # else all in it are one thing
                    passed[own] = closed[module]
            elif not isinstance(weight, nn.Parameter):
                passed[own] = why_no_layer(module) if projection is None else COMPUTED
            elif projection is not None and "forward" in changed_parts(module):
                passed[own] = "inside a forward that is not MultiheadAttention's own"
            else:
                affine = kind_of(module) is not None and is_affine(module, weight, bias, direction)
                bias = bias if isinstance(bias, nn.Parameter) else None
                layers.append(Layer(name, module, weight, bias, affine, projection, direction))
    return layers, passed


def without_hooks(model: nn.Module, compiled: bool = False) -> dict[nn.Module, str]:
    """The modules in which no hooks run, those inside them included, and why: scripted or compiled.

    Args:
        compiled: the hooks are such that they are compiled too.
    """
    closed: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            why = "scripted: no hooks run in it"
        elif internals.is_compiled(module) and not compiled:
            why = "compiled: no hooks run in it"
        else:
            continue
        closed.update((inner, why) for inner in module.modules() if inner not in closed)
    return closed


def other_weights(
    model: nn.Module, layers: Iterable[Layer], compiled: bool = False
) -> dict[str, str]:
    """By name, the modules that are none of the layers but own a weight, and why they are none.

    A weight is a parameter of two dimensions or more; that of a norm is none.
    """
    closed = without_hooks(model, compiled)
    known = {layer.module for layer in layers} | _out_projs(model)
    found, seen = {}, set[nn.Module]()
    for name, module in model.named_modules():
        if module in known or module in seen or isinstance(module, parametrize.ParametrizationList):
            continue
        if module in closed:
            seen.update(module.modules())
            if next(module.parameters(), None) is not None:
                found[name] = closed[module]
        elif _owned(module):
            found[name] = why_no_layer(module)
    return found


def why_no_layer(module: nn.Module) -> str:
    """Why a module is no layer, at least as long as nobody names it."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent: its output follows from no one weight"
    weight = _registered(module, "weight")
    if weight is not None and not isinstance(weight, nn.Parameter):
        return "its weight is a buffer" if "weight" in module._buffers else COMPUTED
    if isinstance(module, EMBEDDINGS):
        return "renormalises its weight"
    if isinstance(module, nn.MultiheadAttention):
        return COMPUTED  # that of its output
    if owned := _owned(module):
        return f"no known kind of layer: it has {', '.join(owned)}"
    return "has no weight"


def _out_projs(model: nn.Module) -> set[nn.Module]:
    return {m.out_proj for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def _owned(module: nn.Module) -> list[str]:
    """The names of a module's own parameters that may be a weight."""
    of_norm = isinstance(module, NORMS) and not changed_parts(module)
    own = {**module._parameters, **(dict.fromkeys(("weight", "bias")) if of_norm else {})}
    return [name for name, p in own.items() if p is not None and (is_lazy(p) or p.dim() > 1)]


def _normed(module: nn.Module) -> tuple[nn.Parameter, Direction] | None:
    """The g and v of a weight that weight_norm makes, in its old form or its new, and nothing else."""
    g: Any
    v: Any
    dim: Any
    if parametrize.is_parametrized(module, "weight"):
        held: Any = module.get_submodule("parametrizations.weight")
        if len(held) != 1 or not internals.is_weight_norm(held[0]):
            return None
        g, v, dim = _registered(held, "original0"), _registered(held, "original1"), held[0].dim
    else:
        norms = [h for h in module._forward_pre_hooks.values() if type(h) is OldWeightNorm]
        if [norm.name for norm in norms] != ["weight"]:
            return None
        g, v = (_registered(module, f"weight_{part}") for part in "gv")
        dim = norms[0].dim
    both = isinstance(g, nn.Parameter) and isinstance(v, nn.Parameter)
    return (g, Direction(v, dim)) if both else None


def is_affine(
    module: nn.Module, weight: nn.Parameter, bias: Any, direction: Direction | None = None
) -> bool:
    """Whether a layer of a known kind, or a norm, is certain to be affine in its weight."""
    if changed_parts(module) - ({"weight"} if direction else set()):
        return False
    if _renormalised(module):
        return False  # its weight is not proportional to anything
    # Of a class that may have operators of its own nothing is known.
    plain = (nn.Parameter, nn.UninitializedParameter, type(None))
    return all(type(part) in plain or shard.is_dtensor(part) for part in (weight, bias))


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
    for registered in (module._parameters, module._buffers):
        if name in registered:
            return registered[name]
    return inspect.getattr_static(module, name, None)


def _names(attention: str) -> list[str]:
    """Of MultiheadAttention's layers, in the order in which they run."""
    prefix = f"{attention}." if attention else ""
    return [prefix + part for part in (*PROJECTIONS, "out_proj")]


def _renormalised(module: nn.Module) -> bool:
    return isinstance(module, EMBEDDINGS) and module.max_norm is not None


def _wanted(model: nn.Module, which: Which) -> Callable[[str, nn.Module], bool]:
    if which is None:
        return lambda name, module: kind_of(module) is not None and not _renormalised(module)
    if isinstance(which, (type, tuple)) and all(
        isinstance(kind, type) for kind in (which if isinstance(which, tuple) else (which,))
    ):
        return lambda name, module: isinstance(module, which)
    if isinstance(which, Iterable):
        names = [which] if isinstance(which, str) else list(which)
        known, first = set[str](), dict[nn.Module, str]()
        for name, module in model.named_modules(remove_duplicate=False):
            known.add(name)
            own = first.setdefault(module, name)  # of a module with several, by which it goes
            names += [own] if name in names else []
            if isinstance(module, nn.MultiheadAttention):
                known.update(_names(name))
                names += _names(own) if name in names else []
        if strange := [name for name in names if name not in known]:
            raise ValueError(
                f"layers names modules that the model has not: {', '.join(map(str, strange))}"
            )
        return lambda name, module: name in names
    if callable(which):
        return which
    raise TypeError(f"layers must be types, names or a predicate, but got {which!r}")
