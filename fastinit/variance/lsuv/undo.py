"""Undo: what operations write to memory is copied just before, and put back.

A dispatch mode sees every operation of its thread, on whatever view of the memory, and the operation's
schema says what it writes. Batch norms write running statistics without saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements.strided import Strided
from fastinit.elements.tensors import obstacle

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_RENORM = torch.ops.aten.embedding_renorm_.default


class Undo(internals.TorchDispatchMode):
    """While in force, memory that was given to :meth:`track` is copied before it is first written.

    Only what is written is copied: the view that an operation was given, or rows of it.
    """

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled runs as it does without this mode; flex_attention runs in no other way."""
        return True

    def __init__(self, before: Callable[[Any, Any, Any], None] | None = None) -> None:
        """
        Args:
            before: what is called with each operation and its arguments, before it.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self._tracked: dict[int, torch.UntypedStorage] = {}
        self._log: list[tuple[Tensor, Tensor | None, Tensor]] = []
        """What was copied, in this order: a view, as integers; indices of its rows, or all; the copy."""
        self._copies: dict[Any, Tensor] = {}
        """The copies of whole views, by where these lie."""
        self._written: dict[int, set[tuple[int, int]]] = {}
        """By storage, from and to which byte operations wrote."""
        self._rows: dict[Any, list[Tensor]] = {}
        """The indices of the rows that were copied, int64 [rows] each, by where the view lies."""

    def track(self, tensors: Iterable[Tensor]) -> None:
        """From now on the memory of these tensors is copied before it is written."""
        for tensor in tensors:
            for part in plain_parts(tensor):
                if not part.is_meta:
                    storage = part.untyped_storage()
                    self._tracked[internals.storage_id(part)] = storage

    def copy_before_write(self, tensor: Tensor) -> Tensor | None:
        """A copy of what a tensor held before it was first written, which puts it back at the end.

        Returns:
            Its bits, as integers of its dtype's size and in its shape; None if it isn't tracked.
        """
        if not self._tracks(tensor):
            return None
        with torch.inference_mode(False):
            view = raw(tensor)
            place = _place(view)
            if place not in self._copies:
                self._copies[place] = view.clone()
                self._log.append((view, None, self._copies[place]))
            return self._copies[place]

    def put_back(self) -> None:
        """Undoes all that was written, the last first, so that views may overlap."""
        while self._log:
            view, rows, copy = self._log[-1]
            view[... if rows is None else rows] = copy
            self._log.pop()
        self._copies.clear()
        self._rows.clear()
        self._written.clear()

    def paused(self) -> AbstractContextManager[object]:
        """Within the block operations are not seen, and cost what they cost without this mode."""
        return internals.paused(self)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(map(internals.is_fake_class, types)):
            return func(
                *args, **kwargs
            )  # as where a DTensor's shapes are worked out: nothing is written
        if any(kind.__torch_dispatch__ is not internals.plain_dispatch for kind in types):
            return NotImplemented  # the subclass does it by operations on plain tensors
        if self._before is not None:
            self._before(func, args, kwargs)
        if func is _RENORM:
            self._copy_rows(*args[:2])
            self._note_written(args[0])
        else:
            for place, name in _writes(func):
                value = args[place] if place < len(args) else kwargs.get(name)
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor):
                        self.copy_before_write(tensor)
                        self._note_written(tensor)
        return func(*args, **kwargs)

    def wrote(self, tensor: Tensor) -> bool:
        """Whether operations wrote to a tensor's memory."""
        for part in plain_parts(tensor):
            start, end = _bytes(part)
            ranges = () if part.is_meta else self._written.get(internals.storage_id(part), ())
            if any(start < stop and begin < end for begin, stop in ranges):
                return True
        return False

    def _note_written(self, tensor: Tensor) -> None:
        if self._tracks(tensor):
            self._written.setdefault(internals.storage_id(tensor), set()).add(_bytes(tensor))

    def _tracks(self, tensor: Tensor) -> bool:
        try:
            tracked = internals.storage_id(tensor) in self._tracked
        except RuntimeError:  # no storage to ask
            return False
        return tracked and obstacle(tensor) is None

    def _copy_rows(self, table: Tensor, indices: Tensor) -> None:
        """A renormalised embedding may be large, and one call writes few of its rows."""
        if not self._tracks(table):
            return
        with torch.inference_mode(False):
            view, rows = raw(table), indices.unique()
            earlier = self._rows.setdefault(_place(view), [])
            if earlier:
                rows = rows[~torch.isin(rows, torch.cat(earlier))]
            earlier.append(rows)
            self._log.append((view, rows, view[rows]))


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with memory of their own that a tensor consists of."""
    if internals.is_traceable_wrapper_subclass(tensor):
        for inner in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
            if isinstance(inner, Tensor):
                yield from plain_parts(inner)
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif obstacle(tensor) is None:
        yield tensor


def raw(tensor: Tensor) -> Tensor:
    """The same memory as integers, so that a copy is one of bits, whatever they mean."""
    dtype = _INTEGERS.get(tensor.element_size(), tensor.dtype)
    memory = torch.empty(0, dtype=dtype, device=tensor.device)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return memory.set_(tensor.untyped_storage(), *place)


def _bytes(tensor: Tensor) -> tuple[int, int]:
    """From and to which byte of its storage a tensor may have elements."""
    size, place = tensor.element_size(), Strided.of(tensor)
    return place.offset * size, place.end * size


def _place(view: Tensor) -> tuple[Any, ...]:
    return view.data_ptr(), view.shape, view.stride(), view.dtype


@cache
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    """(position, name) of the arguments that an operation writes, or may write."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(internals.schema_arguments(func))
        if argument.name.startswith("running_") or internals.is_written(argument)
    )
