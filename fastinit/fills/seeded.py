"""Draw: one random write that a user asked for, with its seed or generator and a stream's name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from fastinit.base import torch_internals as internals
from fastinit.base.torch_internals import base_of
from fastinit.elements import partitioned, tensors
from fastinit.elements import shards as shard
from fastinit.elements.part import Part, check_part
from fastinit.fills import operator as ops
from fastinit.fills.at_hand import at_hand, fill_at_hand
from fastinit.fills.blocks import Blocks, Target
from fastinit.stream import laws
from fastinit.stream.keys import ANONYMOUS, stream_id
from fastinit.stream.laws import Law

_record_gradients = internals.record_gradients
_is_compiling = torch.compiler.is_compiling
_traced = torch.compiler.is_dynamo_compiling
_is_marked = partitioned.is_marked
_PLAIN = shard.PLAIN


class LostWriteWarning(UserWarning):
    """The tensor written is computed from others, so the values will not reach the module."""


def draw_(
    tensor: Target,
    law: Law,
    generator: torch.Generator | None,
    seed: int | None,
    name: str | None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """``ops.fill_`` with the stream of ``name``; to be called by the public function itself."""
    if part is not None:
        name = name_of(name, part)
    if scale is not None or exact is not False:
        law = laws.exactly(law if scale is None else laws.scaled(law, scale), exact)
        laws.check_dtype(law, tensor.format if isinstance(tensor, Blocks) else tensor.dtype)
    stream = ANONYMOUS if name is None else stream_id(name)
    if part is None and fill_at_hand(tensor, law, seed, stream, generator):
        return tensor
    if isinstance(tensor, Tensor):
        warn_if_lost(tensor, stacklevel=4)
    return ops.fill_(tensor, law, seed=seed, stream=stream, generator=generator, window=part)


def write_(
    tensor: Tensor,
    write: Callable[[Tensor], object],
    check: Callable[[Tensor], None],
    part: Part | None = None,
    *,
    whole: bool = False,
) -> Tensor:
    """Has torch write a tensor, unseen by autograd; to be called by the public function itself.

    Args:
        check: raises for what cannot be written; not asked of what is at hand.
        whole: ``write`` is a function of whole tensors, of which a part gets its elements.
    """
    if part is None and not has_torch_function_variadic(tensor) and at_hand(tensor):
        recording = torch.is_grad_enabled()
        _record_gradients(False)
        try:
            write(tensor)
        finally:
            _record_gradients(recording)
        return tensor
    check(tensor)
    warn_if_lost(tensor, stacklevel=4)
    if whole and tensors.is_left_alone(tensor):
        return tensor
    if whole and writes_whole(tensor, part):
        return shard.write_whole_(tensor, write, part)
    with torch.no_grad():
        write(tensor)
    return tensor


def name_of(name: str | None, part: Part | None) -> str | None:
    """The parameter's name: as given, or as its part says it.

    Raises:
        ValueError: both say one, and not the same. TypeError: the part is no Part.
    """
    if part is None:
        return name
    its = check_part(part).name
    if name is not None and its is not None and name != its:
        raise ValueError(f"name is {name!r}, but part.name is {its!r}")
    return its if name is None else name


def full_shape(tensor: Tensor | Blocks, part: Part | None = None) -> Sequence[int]:
    """The shape of the parameter that a tensor is, or that it is a part of.

    Raises:
        TypeError: it is no tensor, or the part is no Part.
        NotImplementedError: it is a part, and nothing says which
            (``fastinit.elements.shards.check_held``).
    """
    if isinstance(tensor, Blocks):
        return tensor.shape if part is None else check_part(part).shape
    if type(tensor) in _PLAIN and part is None and not (_traced() or _is_marked(tensor)):
        return tensors.sizes(tensor) if tensor.is_nested else tensor.shape  # of most
    check_tensor(tensor)
    if part is not None:
        return check_part(part).shape
    if not _traced():
        shard.check_held(tensor)
    return tensors.sizes(tensor)


def writes_whole(tensor: Tensor, part: Part | None) -> bool:
    """Whether a function of whole tensors has to make another than this, of which it holds elements."""
    return part is not None or (not _is_compiling() and shard.is_dtensor(tensor))


def check_reaches(tensor: Tensor) -> None:
    """Raises NotImplementedError for what a number cannot be written to so that its parameter has it.

    And RuntimeError for freed memory, which torch's own operators would write, and for what an
    optimizer will overwrite.
    """
    check_tensor(tensor)
    if not _is_compiling():
        tensors.check_memory(tensor)
        partitioned.check_stays(tensor)
        shard.check_held(tensor, constant=True)


def check_tensor(tensor: object) -> None:
    """Raises TypeError for what is no tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, but got {type(tensor).__name__}")


def _is_computed(tensor: Tensor) -> bool:
    """Whether a graph leads to the tensor, or to what it is a view of.

    A view is not asked itself: autograd would look whether its base was written since, and refuse one
    of several views that are written in turn (``for gate in weight.chunk(4)``), as torch does not.
    """
    if _traced():
        return False
    base = base_of(tensor)
    return not (tensor if base is None else base).is_leaf and not _is_compiling()


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
