"""Streaming: a recorded model runs without being in memory, its weights made as they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.base.text import listing
from fastinit.plan import parameters
from fastinit.plan.plan import Plan
from fastinit.plan.write import Entry, checked
from fastinit.record.block import writes_recorded
from fastinit.record.materialize import place_of, recorded_plan
from fastinit.record.memories import memory_of

ScaleOf = Callable[[nn.Parameter], float]


def weights_of(model: nn.Module, device: torch.device | str | None = None) -> InMemory | Recorded:
    """How a model's weights are run with and changed: as they are, or as ``deferred`` recorded them.

    Args:
        device: where those that are recorded are written; by default where the constructor put them.

    Raises:
        ValueError: parameters on meta of which nothing is recorded, as where recorded ones were sharded;
            a device for parameters that are there, or one that holds no values.
    """
    parameters.check_place(device, None)
    found = {name: p for name, p in model.named_parameters() if p.is_meta and not is_lazy(p)}
    unknown = [name for name, parameter in found.items() if memory_of(parameter) is None]
    if unknown:
        raise ValueError(
            f"not recorded by fastinit.deferred(), and without values: {listing('tensor', unknown)}. "
            f"Sharding makes other parameters, of which nothing is recorded: run the model before, with "
            f"group= of the ranks, each of which then makes the weights that it uses; shard it, and say "
            f"result.plan.apply_(model, device=...)"
        )
    if found:
        return Recorded(model, device)
    if device is not None:
        raise ValueError(
            f"device must be None where all parameters have values, which stay where they are, but got "
            f"{device}: move the model with its to()"
        )
    return InMemory()


class InMemory:
    """Weights that are there."""

    def unchanged_on_failure(self) -> AbstractContextManager[None]:
        """Within the block an exception puts the record, if there is one, back to what it was."""
        return nullcontext()

    def writable(self) -> AbstractContextManager[None]:
        """Within the block what is written to parameters reaches them, or their record."""
        return nullcontext()

    def present(self, scale_of: ScaleOf) -> AbstractContextManager[None]:
        """Within the block the model can run."""
        return nullcontext()

    def plan(self) -> Plan | None:
        """What the parameters are by their record."""
        return None


class Recorded(InMemory):
    """Weights on meta, written while their module runs.

    So a model of any size runs within the memory of its largest module. Parameters are the same objects
    throughout.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None) -> None:
        self.model, self.device = model, device
        self.seed = recorded_plan(model).seed

    @contextmanager
    def unchanged_on_failure(self) -> Iterator[None]:
        found = [memory_of(parameter) for parameter in self.model.parameters()]
        kept = [(memory, memory.contents) for memory in found if memory is not None]
        try:
            yield
        except BaseException:
            for memory, contents in kept:
                memory.contents = contents
            raise

    def writable(self) -> AbstractContextManager[None]:
        return writes_recorded(self.seed)

    @contextmanager
    def present(self, scale_of: ScaleOf) -> Iterator[None]:
        """Within the block a parameter is written when it is used, and on meta again after the module
        that used it.

        Args:
            scale_of: what a parameter's values are multiplied with; asked at each writing.
        """
        stream = _Stream(recorded_plan(self.model), self, scale_of)
        with ExitStack() as stack:
            stack.callback(stream.leave_all)
            for module in self.model.modules():
                # First before the module runs, and last after it: other hooks are inside.
                enter = Uncopied(module.register_forward_pre_hook(stream.enter, prepend=True))
                leave = Uncopied(module.register_forward_hook(stream.leave, always_call=True))
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            with stream:
                yield

    def plan(self) -> Plan:
        return recorded_plan(self.model)


class _Stream(TorchFunctionMode):
    """The parameters that are written at the moment, by the module that was running when used."""

    def __init__(self, plan: Plan, recorded: Recorded, scale_of: ScaleOf) -> None:
        super().__init__()
        self.plan, self.device, self.scale_of = plan, recorded.device, scale_of
        self.names = {
            id(parameter): names[0]
            for names, _, parameter in parameters.distinct_parameters(recorded.model)
            if parameter.is_meta
        }
        self.running = [_Frame()]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not _asks_about(func):
            for leaf in internals.tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter) and leaf.is_meta and id(leaf) in self.names:
                    self.write(leaf)
        return func(*args, **kwargs)

    def enter(self, module: nn.Module, args: object) -> None:
        frame = _Frame()
        self.running.append(frame)
        if isinstance(module, nn.MultiheadAttention):
            # It takes another path, with other roundings, if it sees that a mode is in force.
            frame.unseen = internals.without_functions()
            frame.unseen.__enter__()
            for parameter in module.parameters():
                if parameter.is_meta and id(parameter) in self.names:
                    self.write(parameter)

    def leave(self, *_: object) -> None:
        frame = self.running.pop()
        if frame.unseen is not None:
            frame.unseen.__exit__(None, None, None)
        for parameter, meta in frame.written:
            internals.swap(parameter, meta)

    def leave_all(self) -> None:
        while self.running:
            self.leave()

    def write(self, parameter: nn.Parameter) -> None:
        name, memory = self.names[id(parameter)], memory_of(parameter)
        assert memory is not None
        real = parameters.allocate(parameter, place_of(memory, self.device), parameter.dtype)
        checked([Entry(name, real, self.plan[name])], self.plan.seed).write()
        factor = self.scale_of(parameter)
        if factor != 1.0:
            with torch.no_grad():
                real.mul_(factor)
        internals.swap(parameter, real)
        self.running[-1].written.append((parameter, real))


class _Frame:
    """A module that runs: the parameters written for it, with those on meta whose place they take."""

    def __init__(self) -> None:
        self.written: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.unseen: Any = None  # the context in which the mode is not in force


_VALUES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))


def _asks_about(func: Any) -> bool:
    """Whether a function is an attribute that needs no values: a shape, a dtype, a device."""
    if getattr(func, "__name__", "") != "__get__":
        return False
    return getattr(func.__self__, "__name__", "") not in _VALUES
