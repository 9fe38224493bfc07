"""Recorder: watches the operations of a constructor at the dispatcher, and keeps what its memory holds.

Parameters are on meta and nothing of theirs is computed: writes change their :class:`Contents`, and what
is computed from them is on meta too. Other tensors are real and computed as always; of those that hold
random numbers the contents are kept as well, since they may become parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.base.frames import is_inside
from fastinit.elements.strided import Strided
from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Made, Origin, Own, Snapshot
from fastinit.record import torch_operations as operations
from fastinit.record.memories import (
    META,
    Memory,
    has_memory,
    is_known,
    is_random,
    known_contents,
    memories,
    storage_numel,
)

aten = torch.ops.aten
SMALL = 1 << 20
"""Elements: of smaller tensors that are read a copy is kept; larger ones must stay as they are."""


_HINT = "do that after fastinit.materialize_(), or build the model without fastinit.deferred()"


class DeferredError(RuntimeError):
    """A constructor that cannot be recorded, with the line that did what can't be."""


class Recorder(internals.TorchDispatchMode):
    """The dispatch mode. Its memory outlives it, since parameters are written later."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        flat, _ = internals.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        recorded = [t for t in tensors if memories.get(t) is not None]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        on_meta = any(t.is_meta for t in recorded)
        if operations.makes_new(func):
            return self._made_new(func, args, kwargs)
        if kwargs.get("device") == META and not _default_is_meta():
            # From "device=self.weight.device", or "to(self.weight)": the weight will be elsewhere.
            kwargs = {**kwargs, "device": torch.get_default_device() if not on_meta else None}
        if not recorded and not seeded:
            return func(*args, **kwargs)
        written = operations.written(func, args, kwargs)
        if func is aten._to_copy.default and on_meta:
            return self._elsewhere(args[0], kwargs)
        if written:
            return self._write(func, args, kwargs, written)
        if operations.is_view(func):
            return func(*args, **kwargs)
        return self._compute(func, args, kwargs, tensors, on_meta)

    # --- new tensors, from nothing ---------------------------------------------------------------

    def _made_new(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor whose values do not come from others; of a parameter's shape, it is a real one."""
        out_on_meta = kwargs.get("device") == META or (
            kwargs.get("device") is None
            and args
            and isinstance(args[0], Tensor)
            and args[0].is_meta
        )
        if out_on_meta and not _default_is_meta():
            kwargs = {**kwargs, "device": torch.get_default_device()}
        out = func(*args, **kwargs)
        name = internals.operator_name(func)
        if not isinstance(out, Tensor) or not has_memory(out):
            return out
        contents = Contents(storage_numel(out), out.dtype, out.device)
        if "empty" in name:
            memories.set(out, Memory(contents, self.seed))
        elif (fill := operations.fill_of_new(name, args, out)) is not None:
            memory = Memory(contents, self.seed)
            memory.contents = contents.filled(contents.whole, fill, memory.next_origin())
            memories.set(out, memory)
        elif torch.Tag.nondeterministic_seeded in func.tags:
            call = Call(func, args, {**kwargs, "device": out.device}, line(), Origin())
            memories.set(out, Memory(_with_base(contents, Made(call, 0)), self.seed))
        return out

    # --- writes ----------------------------------------------------------------------------------

    def _write(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]
    ) -> Any:
        target = written[0]
        if any(memories.get(other) is not None for other in written[1:]):
            raise DeferredError(f"{func} at {line()} writes several recorded tensors at once")
        memory = memories.get(target)
        sources = [
            leaf
            for leaf in internals.tree_flatten((args, kwargs))[0]
            if isinstance(leaf, Tensor) and leaf is not target and memories.get(leaf) is not None
        ]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if memory is None and (seeded or any(is_random(source) for source in sources)):
            memory = Memory(known_contents(target), self.seed) if has_memory(target) else None
        out = self._execute(func, args, kwargs, written)
        if memory is None:
            return out
        memories.set(target, memory)
        if not target.is_meta and not seeded and not sources:
            overwritten = internals.operator_name(func) in ("zero_", "fill_", "copy_")
            whole = Strided.of(target).merged() == memory.contents.whole
            if memory.contents.is_unwritten or (overwritten and whole):
                # Values that no chance had a part in are there to be looked at.
                memories.forget(target)
                return out
        memory.contents = self._after(memory, func, args, kwargs, target)
        return out

    def _execute(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: Sequence[Tensor]
    ) -> Any:
        """Runs an operation: on meta, with all its tensors there, if what it writes is."""
        if any(t.is_meta for t in written):
            fills = operations.fill_of(func, args, kwargs, is_known) is not None
            if fills or func is aten.copy_.default:  # nothing to learn from running it
                return args[0] if internals.schema_returns(func) else None
            args, kwargs = internals.tree_map_only(Tensor, lambda t: t.to(META), (args, kwargs))
            return func(*args, **kwargs)
        flat = internals.tree_flatten((args, kwargs))[0]
        if any(isinstance(t, Tensor) and t.is_meta for t in flat):
            raise DeferredError(
                f"{func} at {line()} reads a parameter that has no values yet, to write a tensor that "
                f"is no parameter: {_HINT}"
            )
        return func(*args, **kwargs)

    def _after(
        self,
        memory: Memory,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Tensor,
    ) -> Contents:
        """The contents after a write."""
        contents, region = memory.contents, Strided.of(target).merged()
        if target.dtype == contents.dtype and target is args[0]:
            if (fill := operations.fill_of(func, args, kwargs, is_known)) is not None:
                return contents.filled(region, fill, memory.next_origin())
            factors = operations.affine_of(func, args, kwargs, is_known)
            moved = contents.affine(region, *factors) if factors is not None else None
            if moved is not None:
                return moved
            if func is aten.copy_.default and (copied := _copied(contents, region, args[1])):
                return copied
        origin = memory.next_origin() if torch.Tag.nondeterministic_seeded in func.tags else None
        return contents.called(self._call(func, args, kwargs, target, origin))

    # --- what is computed ------------------------------------------------------------------------

    def _compute(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        on_meta: bool,
    ) -> Any:
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if on_meta:
            if any(
                not str(r.type).startswith(("Tensor", "List[Tensor"))
                for r in internals.schema_returns(func)
            ):
                raise DeferredError(
                    f"{func} at {line()} reads the values of a parameter, which has none yet: {_HINT}"
                )
            meta = internals.tree_map_only(Tensor, lambda t: t.to(META), (args, kwargs))
            out = func(*meta[0], **meta[1])
        else:
            out = func(*args, **kwargs)
            if not seeded and not any(is_random(tensor) for tensor in tensors):
                return out
        place = next(
            (m.contents.device for t in tensors if (m := memories.get(t)) and t.is_meta), None
        )
        call: Call | None = None
        results = out if isinstance(out, (list, tuple)) else [out]
        for index, result in enumerate(results):
            if not isinstance(result, Tensor) or not has_memory(result):
                continue
            known = memories.get(result)
            if known is not None:
                continue  # a view after all
            contents = Contents(storage_numel(result), result.dtype, place or result.device)
            memory = Memory(contents, self.seed)
            folded = self._folded(func, args, kwargs, result, contents)
            if folded is None:
                call = call or self._call(func, args, kwargs, None, Origin() if seeded else None)
                folded = _with_base(contents, Made(call, index))
            memory.contents = folded
            memories.set(result, memory)
        return out

    def _folded(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor, into: Contents
    ) -> Contents | None:
        """A result that is Fills: a copy of what is, or a multiple of it."""
        if not args or not isinstance(args[0], Tensor) or not out.is_floating_point():
            return None
        source = memories.get(args[0])
        if source is None or args[0].shape != out.shape or args[0].stride() != out.stride():
            return None
        # Of these, padding is a copy where it adds nothing.
        is_copy = func in (aten.clone.default, aten._to_copy.default, aten.constant_pad_nd.default)
        factors = (1.0, 0.0) if is_copy else operations.affine_of(func, args, kwargs, is_known)
        if factors is None:
            return None
        copied = _copied(into, into.whole, args[0])
        return copied.affine(into.whole, *factors) if copied is not None else None

    def _elsewhere(self, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A parameter's copy of another dtype, or for another device: still on meta."""
        device = kwargs.get("device")
        out: Tensor = self._compute(
            aten._to_copy.default, (source,), {**kwargs, "device": None}, [source], True
        )
        if device is not None and torch.device(device) != META:
            memory = memories.get(out)
            assert memory is not None
            object.__setattr__(memory.contents, "device", torch.device(device))
        return out

    def call_on(
        self,
        tensor: Tensor,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: Memory,
    ) -> Call:
        """The call of a function that writes a recorded tensor with numbers that it draws."""
        return self._call(function, args, kwargs, tensor, memory.next_origin())

    def _call(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Tensor | None,
        origin: Origin | None,
    ) -> Call:
        """The call, with its tensors as they are now."""
        own = internals.storage_id(target) if target is not None else None

        def kept(tensor: Tensor) -> Any:
            if own is not None and has_memory(tensor) and internals.storage_id(tensor) == own:
                return Own(Strided.of(tensor))
            memory = memories.get(tensor)
            if memory is not None:
                if tensor.dtype != memory.contents.dtype:
                    raise DeferredError(f"{func} at {line()} reads a parameter as another dtype")
                return Snapshot(memory.read(), Strided.of(tensor))
            if tensor.is_meta:
                raise DeferredError(
                    f"{func} at {line()} reads a tensor on meta that was never written"
                )
            return tensor.detach().clone() if tensor.numel() < SMALL else tensor.detach()

        args, kwargs = internals.tree_map_only(Tensor, kept, (args, kwargs))
        return Call(func, args, kwargs, line(), origin)


def line() -> str:
    """The user's line that is running: the innermost file and line outside torch and fastinit."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_inside(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _copied(into: Contents, region: Strided, source: Tensor) -> Contents | None:
    """Contents after a copy over a region, if its source is Fills of as many elements, or one number."""
    memory = memories.get(source)
    if memory is None:
        if source.is_meta or not source.is_floating_point():
            return None
        if region == into.whole and source.is_contiguous() and source.numel() == into.numel:
            known = Contents.of_data(source.detach().clone().to(into.dtype))
            return Contents(into.numel, into.dtype, into.device, known.base, known.writes)
        if source.numel() == 1:
            return into.filled(region, Fill.constant(source.item()), Origin())
        return None
    fills, all_there = memory.contents.fills, Strided.of(source).merged() == memory.contents.whole
    if not fills or not all_there or not region == into.whole == memory.contents.whole:
        return None
    memory.read()
    return Contents(into.numel, into.dtype, into.device, None, fills)


def _with_base(contents: Contents, base: Made) -> Contents:
    return Contents(contents.numel, contents.dtype, contents.device, base)


def _default_is_meta() -> bool:
    return torch.get_default_device() == META
