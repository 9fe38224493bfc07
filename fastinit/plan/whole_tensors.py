"""Structures: the distributions of whole tensors that a Fill may name, and what writes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastinit.fills.identity_and_sparse import dirac_, eye_, sparse_
from fastinit.fills.orthogonal import delta_orthogonal_, orthogonal_
from fastinit.plan.fill import Fill

_DRAWN: dict[str, Callable[..., Tensor]] = {
    "orthogonal": orthogonal_,
    "delta_orthogonal": delta_orthogonal_,
    "sparse": sparse_,
}


def write_structure(tensor: Tensor, fill: Fill, seed: int, name: str) -> None:
    """Writes a Fill of a whole tensor (parts apart), with the numbers of ``name``.

    Raises:
        ValueError: a shape that the function does not take. So does a meta tensor, for checking.
    """
    structure = fill.structure
    if structure.name in _DRAWN:
        _DRAWN[structure.name](tensor, **structure.parameters, seed=seed, name=name)
    elif structure.name == "eye":
        eye_(tensor)
    else:
        dirac_(tensor, int(structure.parameters["groups"]))
    if fill.scale != 1.0:
        with torch.no_grad():
            tensor.mul_(fill.scale)
