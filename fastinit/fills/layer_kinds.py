"""Kinds of layers: how each lays out its weight and its output, in one table.

Who asks what a layer's fans are, whether its weight begins with its inputs, or along which dimension of
its output the channels lie, asks here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fastinit.fills.fans import Fans, fans_of


class Kind(NamedTuple):
    """A row of the table."""

    weight: str
    """"out in": [out, in, ...]; "in out": [in, out, ...]; "rows": [rows, out], of which one is taken."""
    spatial: int = 0
    """Dimensions of an output behind its channels."""


EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
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


def kind_of(module: nn.Module) -> Kind | None:
    """A layer's row, by its class or one that it inherits from; None of other modules."""
    if is_conv1d(module):
        return _CONV1D
    return next((kind for of, kind in KINDS.items() if isinstance(module, of)), None)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a Linear with its weight transposed; it is not imported."""
    return type(module).__name__ == "Conv1D"


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
