"""Draw: one random write that a user asked for, with its seed or generator and a stream's name."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fastinit import ops, shard
from fastinit.keys import ANONYMOUS, stream_id
from fastinit.laws import Law


class LostWriteWarning(UserWarning):
    """The tensor written is computed from others, so the values will not reach the module."""


def draw_(
    tensor: Tensor,
    law: Law,
    generator: torch.Generator | None,
    seed: int | None,
    name: str | None,
) -> Tensor:
    """``ops.fill_`` with the stream of ``name``; to be called by the public function itself."""
    if not getattr(tensor, "is_leaf", True):  # what is not a tensor, fill_ refuses by name
        warn_if_lost(tensor, stacklevel=4)
    return ops.fill_(
        tensor,
        law,
        seed=seed,
        stream=ANONYMOUS if name is None else stream_id(name),
        generator=generator,
    )


def full_shape(tensor: Tensor) -> torch.Size:
    """The shape of the parameter that a tensor is.

    Raises:
        NotImplementedError: it is a part, whose shape says nothing (``fastinit.shard.check_held``).
    """
    if not torch.compiler.is_compiling():
        shard.check_held(tensor)
    return tensor.shape


def check_reaches(tensor: Tensor) -> None:
    """Raises NotImplementedError for what a number cannot be written to so that its parameter has it."""
    if not torch.compiler.is_compiling() and isinstance(tensor, Tensor):
        shard.check_held(tensor, constant=True)


def warn_if_lost(tensor: Tensor, stacklevel: int = 3) -> None:
    """Warns if ``tensor`` is the result of a computation, and no view of what it came from.

    ``module.weight`` under ``weight_norm``, ``spectral_norm`` or any other parametrization is such a
    result: a temporary, computed anew for each access, and writing it changes nothing. A warning
    and no error, because torch lets such calls pass and published models contain them. Nothing tells
    a temporary made under ``no_grad``, or from frozen parameters, from an ordinary tensor:
    no graph leads back from it, so those are not seen.
    """
    if torch.compiler.is_compiling() or tensor.is_leaf:
        return
    base = tensor._base
    if (tensor if base is None else base).is_leaf:
        return
    made_by = type(tensor.grad_fn).__name__
    warnings.warn(
        f"tensor (shape {tuple(tensor.shape)}) is the result of a computation ({made_by}), not a "
        "parameter: the values are written to a temporary and lost. If it is a weight under "
        "weight_norm or parametrize, initialise it before that is applied, or assign the result: "
        "module.weight = init(torch.empty_like(module.weight))",
        LostWriteWarning,
        stacklevel=stacklevel,
    )
