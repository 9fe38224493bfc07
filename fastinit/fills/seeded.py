"""Draw: one random write that a user asked for, with its seed or generator and a stream's name."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fastinit.base.torch_internals import base_of
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills import operator as ops
from fastinit.stream.keys import ANONYMOUS, stream_id
from fastinit.stream.laws import Law

_is_compiling = torch.compiler.is_compiling


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
    if getattr(tensor, "requires_grad", False) and _is_computed(tensor):
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
        TypeError: it is no tensor.
        NotImplementedError: it is a part, whose shape says nothing
        (``fastinit.elements.shards.check_held``).
    """
    _check_tensor(tensor)
    if not _is_compiling():
        shard.check_held(tensor)
    return tensors.sizes(tensor)


def check_reaches(tensor: Tensor) -> None:
    """Raises NotImplementedError for what a number cannot be written to so that its parameter has it.

    And RuntimeError for freed memory, which torch's own operators would write.
    """
    _check_tensor(tensor)
    if not _is_compiling():
        tensors.check_memory(tensor)
        shard.check_held(tensor, constant=True)


def _check_tensor(tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, but got {type(tensor).__name__}")


def _is_computed(tensor: Tensor) -> bool:
    """Whether a graph leads to the tensor, or to what it is a view of.

    A view is not asked itself: autograd would look whether its base was written since, and refuse one
    of several views that are written in turn (``for gate in weight.chunk(4)``), as torch does not.
    """
    if _is_compiling():
        return False
    return not _source(tensor).is_leaf


def _source(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or itself."""
    base = base_of(tensor)
    return tensor if base is None else base


def warn_if_lost(tensor: Tensor, stacklevel: int = 3) -> None:
    """Warns if ``tensor`` is the result of a computation, and no view of what it came from.

    ``module.weight`` under ``weight_norm``, ``spectral_norm`` or any other parametrization is such a
    result: a temporary, computed anew for each access, and writing it changes nothing. A warning
    and no error, because torch lets such calls pass and published models contain them. Nothing tells
    a temporary made under ``no_grad``, or from frozen parameters, from an ordinary tensor:
    no graph leads back from it, so those are not seen.
    """
    if not _is_computed(tensor):
        return
    made_by = type(_source(tensor).grad_fn).__name__
    warnings.warn(
        f"tensor (shape {tuple(tensor.shape)}) is the result of a computation ({made_by}), not a "
        "parameter: the values are written to a temporary and lost. If it is a weight under "
        "weight_norm or parametrize, initialise it before that is applied, or assign the result: "
        "module.weight = init(torch.empty_like(module.weight))",
        LostWriteWarning,
        stacklevel=stacklevel,
    )
