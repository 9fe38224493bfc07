"""Kinds of layers: how each lays out its weight and its output, in one table.

Who asks what a layer's fans are, whether its weight begins with its inputs, along which dimension of its
output the channels lie, or whether its forward is the one that is known, asks here.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from fastinit.base.hooks import is_own
from fastinit.fills.fans import Fans, fans_of


class Kind(NamedTuple):
    """A row of the table."""

    weight: str
    """"out in": [out, in, ...]; "in out": [in, out, ...]; "rows": [rows, out], of which one is taken."""
    spatial: int = 0
    """Dimensions of an output behind its channels."""


EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*_PLAIN, *TRANSPOSED)

KINDS: dict[type[nn.Module], Kind] = {
    **dict.fromkeys((nn.Linear, nn.Bilinear, nn.MultiheadAttention), Kind("out in")),
    **dict.fromkeys(EMBEDDINGS, Kind("rows")),
    **{of: Kind("out in", spatial) for spatial, of in enumerate(_PLAIN, 1)},
    **{of: Kind("in out", spatial) for spatial, of in enumerate(TRANSPOSED, 1)},
}
_CONV1D = Kind("in out")
_KNOWN: tuple[type[nn.Module], ...] = (*KINDS, *NORMS)
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {of: of.forward for of in _KNOWN}
"""As they are when this is imported: who replaces one later has another layer."""


def kind_of(module: nn.Module) -> Kind | None:
    """How a layer lays out its weight: the row of its class, or of one that it inherits from.

    None of other modules. What its forward does with the weight is :func:`changed_parts`' to say.
    """
    if is_conv1d(module):
        return _CONV1D
    return next((kind for of, kind in KINDS.items() if isinstance(module, of)), None)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a Linear with its weight transposed; it is not imported."""
    conv1d = _conv1d()
    return conv1d is not None and isinstance(module, conv1d)


def changed_parts(module: nn.Module) -> set[str]:
    """What of its kind's forward, of the functions that calls, and of the parameters that it reads a
    module has in a way of its own: nothing of a layer, or a norm, whose forward is the known one.

    It is asked what the module has, not what its class is called; nothing of it is run.

    >>> changed_parts(nn.Linear(3, 3))
    set()

    Raises:
        TypeError: a module of no known kind, and no norm.
    """
    of = _conv1d() if is_conv1d(module) else _of_class(module)
    if of is None:
        raise TypeError(f"{type(module).__name__} is no known kind of layer")

    def is_changed(name: str) -> bool:
        if _static(type(module), name) is not (known := _static(of, name)):
            return True
        # A parameter is something else only where it is computed, or isn't trained.
        own = (name in vars(module) and not is_own(module, name)) or name in module._buffers
        return own and (callable(known) or name.endswith(("weight", "bias")))

    changed = {name for name in _reads(of) if is_changed(name)}  # type: ignore[arg-type]
    return changed if of.forward is _FORWARDS.get(of, of.forward) else changed | {"forward"}


@cache
def _reads(of: type) -> frozenset[str]:
    """The names that a class's forward reads, and those that its methods read which that calls."""
    found, methods = {"forward"}, ["forward"]
    while methods:
        code = getattr(_static(of, methods.pop()), "__code__", None)
        for name in set(getattr(code, "co_names", ())) - found - set(dir(nn.Module)):
            found.add(name)
            if inspect.isfunction(_static(of, name)):
                methods.append(name)
    return frozenset(found)


def _static(of: type, name: str) -> Any:
    return inspect.getattr_static(of, name, None)


def _of_class(module: nn.Module) -> type[nn.Module] | None:
    return next((of for of in _KNOWN if isinstance(module, of)), None)


def _conv1d() -> type[nn.Module] | None:
    utilities = sys.modules.get("transformers.pytorch_utils")
    return None if utilities is None else getattr(utilities, "Conv1D", None)


def layer_fans(module: nn.Module, shape: Sequence[int]) -> Fans:
    """(fan_in, fan_out) of a layer with a weight of this shape; NaN where it has none.

    A transposed convolution spreads its inputs over stride times as many outputs: fan_in is their mean.
    What is of no known kind is taken for [out, in, ...].

    >>> layer_fans(nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2), (8, 3, 4, 4))
    (16.0, 48)
    """
    kind = kind_of(module) or KINDS[nn.Linear]
    if kind.weight == "rows" or len(shape) < 2:
        return math.nan, math.nan
    fan_in, fan_out = fans_of(shape)
    if isinstance(module, TRANSPOSED):
        return fan_out / module.groups / math.prod(module.stride), fan_in
    if kind.weight == "in out":
        return fan_out, fan_in
    groups = getattr(module, "groups", 1)
    return fan_in, (fan_out // groups if isinstance(groups, int) else fan_out)
