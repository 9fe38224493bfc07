"""A model that runs without being changed: whatever a forward writes is put back, to the byte.

Of small buffers there are copies; all else is copied when an operation is about to write it
(:mod:`fastinit.variance.lsuv.undo`). That a large buffer was written behind torch's back, by its
address or in another thread, is found out.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements.tensors import obstacle
from fastinit.plan.parameters import reshard_
from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.undo import Undo, plain_parts

KEPT, ALL_KEPT = 1 << 16, 1 << 19
"""Bytes: of buffers of up to so many there are copies, as long as these have no more in all."""

_OWN = frozenset(vars(nn.Module()))
"""A module's registries (of parameters, hooks, ...) and its mode."""
_ABSENT = object()


class ModelState:
    """What a model is before it runs: all that :meth:`put_back` needs to make it that again.

    Attributes:
        undo: the mode in which the model is to run; it copies what operations write.
        modules: the class, registries and attributes of every module.
        tensors: by id, where the values of parameters, buffers and tensors in attributes are, their
            gradients, and whether they need one.
        generators: by id, the modules' own random generators, with their states.
        originals: by id, a weight (which must not be freed while its id is a key) and a copy of it.
        sums: by storage, a large buffer's name, the buffer, and the sum of its memory as integers.
        hooks: those by which the tensors of lazy modules are taken up when they are made.
    """

    def __init__(
        self, model: nn.Module, before: Callable[[Any, Any, Any], None] | None = None
    ) -> None:
        self.undo = Undo(before)
        self.model = model
        self.modules: list[_Module] = []
        self.tensors: dict[int, _Tensor] = {}
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}
        self.originals: dict[int, tuple[Tensor, Tensor]] = {}
        self.sums: dict[int, tuple[str, Tensor, int]] = {}
        self.hooks: list[Uncopied] = []
        reshard_(model)
        buffers: list[tuple[str, Tensor]] = []
        norms: list[Tensor] = []
        for name, module in model.named_modules():
            self.modules.append(_Module(module))
            buffers += self._take_up(name, module)
            if module.training and getattr(module, "track_running_stats", False):
                # A norm: if it is compiled, what it writes is not seen.
                norms += [b for b in module._buffers.values() if b is not None and not is_lazy(b)]
        for buffer in norms:
            self.undo.copy_before_write(buffer)
        room = ALL_KEPT
        for name, buffer in sorted(buffers, key=lambda named: named[1].nbytes):
            if buffer.nbytes <= min(KEPT, room):
                room -= buffer.nbytes
                self.undo.copy_before_write(buffer)
            elif (key := internals.storage_id(buffer)) not in self.sums:
                self.sums[key] = name, buffer.detach(), _sum(buffer)
        for lazy in (module.module for module in self.modules if module.lazy):
            # They have memory from their first call on.
            self.hooks.append(Uncopied(lazy.register_forward_pre_hook(self._track_made)))

    def _take_up(self, prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Takes up a module's tensors and generators; yields those that are no parameters."""
        own = {**module._parameters, **module._buffers}
        others = {key: value for key, value in vars(module).items() if key not in _OWN}
        for key, value in (*own.items(), *others.items()):
            for leaf in _leaves(value):
                if isinstance(leaf, torch.Generator):
                    self.generators[id(leaf)] = leaf, leaf.get_state()
                elif isinstance(leaf, Tensor) and id(leaf) not in self.tensors:
                    self.tensors[id(leaf)] = _Tensor(leaf)
                    if is_lazy(leaf):
                        continue
                    grad = self.tensors[id(leaf)].grad
                    self.undo.track([leaf] if grad is None else [leaf, grad])
                    if not isinstance(leaf, nn.Parameter):
                        name = f"{prefix}.{key}" if prefix else key
                        yield from ((name, p) for p in plain_parts(leaf) if not p.is_meta)

    def _track_made(self, module: nn.Module, args: object) -> None:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not is_lazy(tensor):
                self.undo.track([tensor])

    def original(self, weight: Tensor) -> Tensor:
        """A copy of a weight that is about to change, as it was when this was first asked for."""
        if id(weight) not in self.originals:
            copy = self.undo.copy_before_write(weight)
            if copy is not None:
                copy = copy.view(weight.dtype)
            else:  # it consists of others, as a DTensor does
                for part in plain_parts(weight):
                    self.undo.copy_before_write(part)
                copy = weight.detach().clone()
            self.originals[id(weight)] = weight, copy
        return self.originals[id(weight)][1]

    def wrote(self, weight: Tensor) -> bool:
        """Whether a parameter has other values than before, as far as the model itself gave it some."""
        before = self.tensors.get(id(weight))
        return self.undo.wrote(weight) or (before is not None and before.has_other_values())

    def put_back(self, failed: bool) -> None:
        """All as it was; but lazy modules stay initialised unless the run failed."""
        for hook in self.hooks:
            hook.remove()
        reshard_(self.model, cut_short=failed)
        for module in self.modules:
            if failed or not module.lazy:
                module.put_back()
        for tensor in self.tensors.values():
            if failed or not tensor.lazy:
                tensor.put_back()
        self.undo.put_back()
        for generator, state in self.generators.values():
            generator.set_state(state)

    def changed_for_good(self) -> list[str]:
        """Large buffers whose bytes are not as they were."""
        return [name for name, buffer, before in self.sums.values() if _sum(buffer) != before]


@contextmanager
def unchanged(
    model: nn.Module, before: Callable[[Any, Any, Any], None] | None = None
) -> Iterator[ModelState]:
    """Within the block the model may run, without gradients; after it everything is as before.

    Parameters, buffers, tensors in attributes, gradients, modes, hooks, what is registered, and the
    random generators that modules have; others are for :func:`same_random_numbers`.

    Args:
        before: what is called with each operation of the model and its arguments, before it.

    Raises:
        LSUVError: a large buffer was written where torch cannot see it, and is not as before.
    """
    with torch.no_grad():
        state = ModelState(model, before)
        failed = True
        try:
            with state.undo:
                yield state
            failed = False
        finally:
            state.put_back(failed)
            if lost := state.changed_for_good():
                message = (
                    f"forward writes large buffers where torch cannot see it, by their address or in "
                    f"another thread, so that they cannot be put back: {', '.join(lost)}"
                )
                if not failed:
                    raise LSUVError(message)
                warnings.warn(message, RuntimeWarning, stacklevel=3)


@dataclass
class RandomState:
    """Where the random generators are that :class:`RandomNumbers` knows."""

    python: Any
    numpy: Any
    """None where NumPy is not in use."""
    devices: list[tuple[Callable[..., None], tuple[Any, ...]]]
    """What sets torch's, and to what."""

    def set(self) -> None:
        """Puts the generators there."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        for put_back, state in self.devices:
            put_back(*state)


class RandomNumbers:
    """The random generators that a model may draw from: torch's where it is, Python's, NumPy's."""

    def __init__(self, model: nn.Module) -> None:
        tensors = (*model.parameters(), *model.buffers())
        devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
        self.devices = sorted(devices, key=str)

    def now(self) -> RandomState:
        numpy = getattr(sys.modules.get("numpy"), "random", None)
        states: list[Any] = [(torch.set_rng_state, (torch.get_rng_state(),))]
        for device in self.devices:
            of = torch.get_device_module(device.type)
            states.append((of.set_rng_state, (of.get_rng_state(device), device)))
        return RandomState(random.getstate(), numpy and numpy.get_state(), states)


@contextmanager
def same_random_numbers(numbers: RandomNumbers) -> Iterator[None]:
    """After the block random generators are as before."""
    state = numbers.now()
    try:
        yield
    finally:
        state.set()


class _Module:
    """A module's class and attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, module.__class__
        own = (*module._parameters.values(), *module._buffers.values())
        self.lazy = any(tensor is not None and is_lazy(tensor) for tensor in own)
        self.values = dict(vars(module))
        self.contents = {
            name: copy
            for name, value in self.values.items()
            if (copy := _content(value)) is not None
        }

    def put_back(self) -> None:
        """A module's registries and attributes: those without tensors say what the others are."""
        if self.module.__class__ is not self.kind:
            self.module.__class__ = self.kind
        now = vars(self.module)
        for name in (*self.values, *(name for name in now if name not in self.values)):
            value, content = self.values.get(name, _ABSENT), self.contents.get(name)
            if now.get(name, _ABSENT) is value and (content is None or _holds(value, content)):
                continue
            if value is _ABSENT:
                del now[name]
            else:
                _refill(value, content)
                now[name] = value


class _Tensor:
    """What a tensor is, apart from its values: where they are, its gradient, whether it needs one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.kind, self.lazy = tensor, tensor.__class__, is_lazy(tensor)
        self.grad, self.requires_grad = _grad(tensor), tensor.requires_grad
        # What has no memory that we know of (a value inside torch.func, say) may have no data either.
        known = self.lazy or tensor.is_meta or bool(_where(tensor))
        self.data = tensor.data if known else None

    def has_other_values(self) -> bool:
        """Whether it has others in another memory, as an assignment to ``.data`` gives it."""
        now, data = self.tensor, self.data
        if data is None or self.lazy or data.is_meta or _where(now) == _where(data):
            return False
        if obstacle(now) is not None or obstacle(data) is not None:
            return False
        # Where shards are gathered, or a device is changed, that is no other value.
        alike = now.shape == data.shape and (now.dtype, now.device) == (data.dtype, data.device)
        return alike and not now.detach().equal(data)

    def put_back(self) -> None:
        tensor = self.tensor
        if self.data is not None and (self.lazy or _where(tensor) != _where(self.data)):
            tensor.data = self.data
            tensor.__class__ = self.kind
        if _grad(tensor) is not self.grad:
            tensor.grad = self.grad
        if tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)


def _grad(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.requires_grad and tensor.is_leaf else None


def _where(tensor: Tensor) -> list[tuple[Any, ...]]:
    """Where a tensor's values are."""
    return [
        (
            internals.storage_id(part),
            part.storage_offset(),
            part.shape,
            part.stride(),
            part.dtype,
        )
        for part in plain_parts(tensor)
    ]


def _leaves(value: Any, depth: int = 3) -> Iterator[Any]:
    """What containers hold, down to some depth."""
    if isinstance(value, (list, tuple, dict, set, deque)) and depth:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part, depth - 1)
    else:
        yield value


# Containers, and what a copy of their content is. Others are of classes that may do more than hold.
_CONTAINERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((dict, OrderedDict, defaultdict), dict),
    **dict.fromkeys((list, deque, set), list),
}


def _content(value: Any) -> Any:
    """A copy of what a container holds; None of other values."""
    copy = _CONTAINERS.get(type(value))
    return None if copy is None else copy(value)


def _holds(value: Any, content: Any) -> bool:
    """Whether a container holds the objects of a copy, in the same order."""
    if len(value) != len(content):
        return False
    if isinstance(content, dict):
        pairs = zip(value.items(), content.items())
        return all((a is b or a == b) and one is other for (a, one), (b, other) in pairs)
    return all(one is other for one, other in zip(value, content))


def _refill(value: Any, content: Any) -> None:
    if content is not None and not _holds(value, content):
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(content)


def _sum(tensor: Tensor) -> int:
    """Of a tensor's whole memory as integers, modulo 2^64: the same if nothing was written."""
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    whole = len(memory) - len(memory) % 8
    return int(memory[:whole].view(torch.int64).sum()) + int(memory[whole:].sum())
