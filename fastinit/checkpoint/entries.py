"""Stored: which tensors a checkpoint of a model holds, under which names, and what each is made of.

Names are those that ``save_pretrained`` gives: of tied tensors the one that is loaded, and where
transformers stores a family otherwise than its classes hold it (Mixtral's experts, each by itself),
views of the parameters as transformers cuts them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.checkpoint.sources import Source
from fastinit.elements.strided import Strided, row_major
from fastinit.plan.fill import Fill
from fastinit.plan.replay import Computed

METHOD = "compressed-tensors"
"""What a ``quantization_config`` calls that package."""

WHOLE = 1 << 28
"""Bytes, in float32, of the largest parameter that is made in one piece where it has to be."""


class Stored(NamedTuple):
    """A tensor of a checkpoint: a view of a source, whose elements count in row-major order."""

    name: str
    source: Source
    which: Strided

    @property
    def numel(self) -> int:
        """How many elements."""
        return self.which.numel

    @property
    def values(self) -> int:
        """How many values of the model these are."""
        return self.numel * self.source.each

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.numel * self.source.dtype.itemsize

    @property
    def block(self) -> Strided | None:
        """It as a range of indices in each of the source's dimensions; None if it is no such block."""
        if not self.numel:
            return Strided(0, (0,) * len(self.source.shape), row_major(self.source.shape))
        return self.which.block(self.source.shape)

    @property
    def needs_whole(self) -> bool:
        """Whether no element can be made without all of the source."""
        content = self.source.content
        if isinstance(content, Fill):
            return not content.is_by_elements or bool(content.parts and not self.which.is_run)
        return isinstance(content, Computed)


def stored_tensors(model: nn.Module, sources: Mapping[str, Source]) -> list[Stored]:
    """What a checkpoint of the model holds, in order.

    Args:
        sources: by their names in ``state_dict``.

    Raises:
        ValueError: a tensor larger than ``WHOLE`` that cannot be made in pieces.
    """
    stored = _as_saved(model, sources)
    for tensor in stored:
        check_whole(tensor)
    return stored


def check_whole(stored: Stored) -> None:
    """Raises ValueError for a tensor that has to be made whole, and is too large for that."""
    source = stored.source
    elements = math.prod(source.shape)
    if stored.needs_whole and elements * max(4, source.dtype.itemsize) > WHOLE:
        raise ValueError(
            f"{source.name} ({source.content}) has {elements:,} elements and cannot be made in "
            f"pieces; the most that a checkpoint makes at once is {WHOLE // 4:,}"
        )


def _as_saved(model: nn.Module, sources: Mapping[str, Source]) -> list[Stored]:
    """The tensors under the names that they are loaded from."""
    stand_ins = {
        source: torch.empty(source.shape, dtype=source.dtype, device="meta")
        for source in dict.fromkeys(sources.values())
    }
    kept = {name: stand_ins[sources[name]] for name in _untied(model, sources)}
    by_storage = {internals.storage_id(t): source for source, t in stand_ins.items()}
    tensors = _reverted(model, kept)
    if any(internals.storage_id(tensor) not in by_storage for tensor in tensors.values()):
        tensors = kept  # computed from the parameters: from_pretrained knows their own names too
    found = _views(tensors, by_storage)
    if all(some.block is not None for some in found if some.source.is_apart):
        return found
    return _views(
        kept, by_storage
    )  # who has a part of a parameter cannot tell a row of its transpose


def _views(tensors: Mapping[str, Tensor], by_storage: Mapping[int, Source]) -> list[Stored]:
    return [
        Stored(name, by_storage[internals.storage_id(tensor)], Strided.of(tensor))
        for name, tensor in tensors.items()
    ]


def _untied(model: nn.Module, sources: Mapping[str, Source]) -> list[str]:
    """One name of each tensor: of a tied one the first that transformers does not tie to another."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tied = _tied_names(model)
    names: dict[Source, list[str]] = {}
    for name, source in sources.items():
        if name not in ignored:
            names.setdefault(source, []).append(name)
    chosen = {next((n for n in some if n not in tied), some[0]) for some in names.values()}
    return [name for name in sources if name in chosen]


def _tied_names(model: nn.Module) -> Iterable[str]:
    """Names of parameters that from_pretrained takes from others."""
    return getattr(model, "all_tied_weights_keys", None) or ()


class _Views(internals.TorchDispatchMode):
    """While in force, copies are views: what was only moved can be told from what was computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        if any(map(internals.is_written, internals.schema_arguments(func))):
            raise NotImplementedError(f"{func} changes values")
        return func(*args, **(kwargs or {}))


def _reverted(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as transformers stores them, where its version has a conversion for the family."""
    if not hasattr(model, "save_pretrained"):
        return tensors
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 classes hold what is stored
        return tensors
    try:
        with _Views():  # type: ignore[no-untyped-call]
            return dict(revert_weight_conversion(model, dict(tensors)))
    except (NotImplementedError, RuntimeError):  # more than views
        return tensors


def saved_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What tensors of a model would be called in a file, by their names in it, if it had them."""
    tensors = {name: torch.empty(2, 2, device="meta") for name in names}
    own = {internals.storage_id(tensor): name for name, tensor in tensors.items()}
    saved = _reverted(model, tensors)
    found = {own.get(internals.storage_id(tensor)): name for name, tensor in saved.items()}
    return {name: found.get(name, name) for name in tensors}


def replaced() -> Collection[str]:
    """Classes that transformers replaces by others, of other tensors, to load what METHOD stores."""
    if "transformers" not in sys.modules:
        return ()
    try:
        from transformers.quantizers import base
    except ImportError:
        return ()
    known = getattr(base, "MODULES_TO_PATCH_FOR_QUANTIZATION", {})
    return [name for name, its in known.items() if METHOD in its["quantization_methods"]]
