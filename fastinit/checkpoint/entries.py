"""Stored: which tensors a checkpoint of a model holds, under which names, and what each is made of.

Names are those that ``save_pretrained`` gives: of tied tensors the one that is loaded, and where
transformers stores a family otherwise than its classes hold it (Mixtral's experts, each by itself),
views of the parameters as transformers cuts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.fit import fitted
from fastinit.plan.plan import Plan
from fastinit.plan.replay import Computed, known_values
from fastinit.plan.write import Entry, check_entries
from fastinit.record.materialize import recorded_buffers, recorded_plan

WHOLE = 1 << 28
"""Bytes, in float32, of the largest parameter that is made in one piece where it has to be."""


@dataclass(frozen=True, eq=False)
class Source:
    """A parameter or buffer of the model: its values, or what they shall be.

    Args:
        name: that of its stream.
        shape: of the whole.
        dtype: in which it is stored.
        content: what a plan says of it, or its values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    content: Fill | Computed | Tensor

    def __repr__(self) -> str:
        what = "values" if isinstance(self.content, Tensor) else self.content
        return f"Source({self.name!r}, {self.shape}, {self.dtype}, {what})"


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
    def nbytes(self) -> int:
        """How many bytes."""
        return self.numel * self.source.dtype.itemsize

    @property
    def needs_whole(self) -> bool:
        """Whether no element can be made without all of the source."""
        content = self.source.content
        if isinstance(content, Fill):
            return not content.is_by_elements or bool(content.parts and not self.which.is_run)
        return isinstance(content, Computed)


def stored_tensors(
    model: nn.Module, plan: Plan | None = None, dtype: torch.dtype | None = None
) -> tuple[list[Stored], int]:
    """(what a checkpoint of the model holds, in order; the seed of its numbers).

    Args:
        model: as :func:`fastinit.deferred` built it, or with values, which are then stored.
        plan: what its parameters shall be; by default what was recorded.
        dtype: of floating-point parameters; by default the model's.

    Raises:
        ValueError: a plan that does not fit the model, a tensor without values, or one larger than
            ``WHOLE`` that cannot be made in pieces.
        NotImplementedError, RuntimeError: a parameter that cannot be written, or is a part of one.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, but got {dtype}")
    recorded = plan is None
    if plan is None:
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        plan = recorded_plan(model) if on_meta else Plan({})
    by_id: dict[int, Source] = {}
    entries: list[Entry] = []
    for name, parameter, _ in fitted(model, dict(plan), plan.aliases, given=recorded):
        values = known_values(plan[name])
        source = _source(name, parameter, dtype, plan[name] if values is None else values)
        as_stored = torch.empty(source.shape, dtype=source.dtype, device="meta")
        entries.append(Entry(name, as_stored, plan[name]))
        by_id[id(parameter)] = source
    check_entries(entries)
    buffers = recorded_buffers(model)
    sources: dict[str, Source] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is no tensor, so a checkpoint cannot hold it")
        shard.check_held(tensor, name)
        tensors.check_memory(tensor, name)
        if id(tensor) not in by_id:
            if tensor.is_meta and name not in buffers:
                raise ValueError(f"{name} is on meta, so it has no values to store")
            content = buffers[name] if tensor.is_meta else tensor.detach()
            by_id[id(tensor)] = _source(name, tensor, dtype, content)
        sources[name] = by_id[id(tensor)]
    stored = _as_saved(model, sources)
    for tensor in stored:
        _check_whole(tensor)
    return stored, plan.seed


def _source(
    name: str, tensor: Tensor, dtype: torch.dtype | None, content: Fill | Computed | Tensor
) -> Source:
    """A tensor of the model as it is stored: floating-point parameters as ``dtype``, if there is one."""
    if dtype is None or not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        dtype = tensor.dtype
    return Source(name, tuple(tensor.shape), dtype, content)


def _check_whole(stored: Stored) -> None:
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
