"""What a constructor does with tensors beside the dispatcher: asks for devices, reads, moves, assigns.

A tensor that is recorded says the device that it will have, since constructors branch on it. What torch
would make on meta because a recorded tensor is there is made where that will be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastinit.base.frames import is_ours
from fastinit.base.torch_internals import set_data, without_dispatch
from fastinit.record.memories import META, Memory, memory_of
from fastinit.record.recording import Recording
from fastinit.record.refused import HINT
from fastinit.record.values import look, values


class BesideDispatch(TorchFunctionMode):
    """The torch function mode.

    Args:
        recording: of the block.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT_SHAPES:
            return func(*args, **kwargs)
        memory = _memory_among(args) or (_memory_among(kwargs.values()) if kwargs else None)
        if memory is None:
            if kwargs and func in _OF_VALUES and _is_meta(kwargs.get("device")):
                return _known_on_meta(self.recording, func, args, kwargs)
            return func(*args, **kwargs)
        before = self.recording.place
        if memory.is_away:
            self.recording.place = memory.place
            kind = memory.place.type
            self.recording.is_autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        try:
            ours = _INSTEAD.get(func)
            # fastinit itself asks what a tensor is now.
            if ours is not None and not is_ours(sys._getframe(1).f_code.co_filename):
                answer = ours(self.recording, func, args, kwargs)
                if answer is not NotImplemented:
                    return answer
            return func(*args, **kwargs)
        finally:
            self.recording.place, self.recording.is_autocast = before, False


def _memory_among(arguments: Iterable[Any]) -> Memory | None:
    """The record of the first argument that has one, those that are away before others."""
    first = None
    for argument in arguments:
        kind = type(argument)
        for item in argument if kind is list or kind is tuple else (argument,):
            if isinstance(item, Tensor) and (memory := memory_of(item)) is not None:
                if memory.is_away:
                    return memory
                first = first or memory
    return first


_ABOUT_SHAPES = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "layout")),
        *(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")),
        *(Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.is_contiguous),
        *(Tensor.is_floating_point, Tensor.is_complex, Tensor.element_size, Tensor.__len__),
    ]
)
"""Functions that tell the same of a tensor on meta, and make none."""


_Instead = Callable[[Recording, Any, tuple[Any, ...], dict[str, Any]], Any]


def _place(tensor: Any) -> torch.device | None:
    """The device that a tensor will have, if it has no values."""
    memory = memory_of(tensor) if isinstance(tensor, Tensor) else None
    return memory.place if memory is not None and memory.is_away else None


def _device(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    place = _place(args[0])
    if place is not None and sys._getframe(2).f_code.co_name == "_reduce_ex_internal":
        raise recording.refusals.refuse(f"pickling at {{line}} of what has no values yet: {HINT}")
    return NotImplemented if place is None else place


def _get_device(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    place = _place(args[0])
    if place is None:
        return NotImplemented
    return -1 if place.index is None else place.index


def _is_on(kind: str) -> _Instead:
    def answer(
        recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        place = _place(args[0])
        return NotImplemented if place is None else place.type == kind

    return answer


def _moved(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``to``, ``cpu``, ``type_as`` and so on, by the devices that tensors will have."""
    tensor, *rest = args
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    others = {k: v for k, v in kwargs.items() if k not in ("device", "dtype", "other")}
    flags = []
    for value in (*rest, *([kwargs["other"]] if "other" in kwargs else [])):
        if isinstance(value, Tensor):
            device, dtype = _place(value) or value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif isinstance(value, (str, int, torch.device)):
            device = value
    if func in (Tensor.cpu, Tensor.cuda):
        device = device if device is not None else func.__name__
    if func is Tensor.type_as:
        func = Tensor.to
    copy = kwargs.get("copy", len(flags) > 1 and flags[1])
    place = _place(tensor)
    if place is not None and not copy:
        same_place = device is None or _same(torch.device(device), place)
        if same_place and dtype in (None, tensor.dtype) and "memory_format" not in kwargs:
            return tensor
    wanted = {
        key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None
    }
    if place is not None and device is not None and _same(torch.device(device), place):
        del wanted["device"]
    others.pop("non_blocking", None)
    if copy and not wanted:
        return tensor.clone()
    return Tensor.to(tensor, **wanted, **others)


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def _read(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``tolist``, ``numpy`` and so on of values that are there, or known."""
    tensor = args[0]
    if _place(tensor) is None:
        look(recording, tensor)
        return NotImplemented
    if func is Tensor.data_ptr:
        raise recording.refusals.refuse(
            f"data_ptr() at {{line}} of a parameter without memory: {HINT}"
        )
    return func(values(recording, tensor), *args[1:], **kwargs)


def _text(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``format`` of a number."""
    return NotImplemented if args[0].dim() else format(args[0].item(), *args[1:])


def _type(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    place = _place(args[0])
    if place is None or len(args) > 1 or kwargs:
        return NotImplemented
    return torch.empty(0, dtype=args[0].dtype, device=place).type()


def _refused(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if all(_place(tensor) is None for tensor in _tensors(args)):
        for tensor in _tensors(args):
            look(recording, tensor)
        return NotImplemented
    name = getattr(func, "__name__", str(func))
    raise recording.refusals.refuse(f"{name}() at {{line}} of what has no values yet: {HINT}")


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    flat = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    return [item for item in flat if isinstance(item, Tensor)]


def _new_tensor(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    place = _place(args[0])
    if place is None:
        return NotImplemented
    kwargs = {"dtype": args[0].dtype, "device": place, **kwargs}
    if _is_meta(kwargs["device"]):
        return _known_on_meta(recording, torch.tensor, args[1:], kwargs)
    return torch.tensor(*args[1:], **kwargs)


def _indexed(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Indices that are lists, which torch would put on meta, as tensors."""
    if _place(args[0]) is None:
        return NotImplemented
    tensor, index, *value = args
    several = isinstance(index, tuple)
    made = tuple(_index(tensor, i, n) for n, i in enumerate(index if several else (index,)))
    return func(tensor, made if several else made[0], *value)


def _index(tensor: Tensor, index: Any, number: int) -> Any:
    if isinstance(index, (list, range)) and all(isinstance(i, (int, list)) for i in index):
        index = torch.tensor(list(index))
    return index


def _copied(recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``copy.deepcopy`` of random values, which copies bytes: as a clone, whose record says so."""
    tensor, memo = args
    if type(tensor) is not Tensor or not tensor.is_leaf or _place(tensor) is not None:
        return NotImplemented
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]


def _set_grad(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``tensor.grad = value``, where one is on meta and the other is not."""
    tensor, value = args
    if isinstance(value, Tensor) and tensor.is_meta and not value.is_meta:
        with without_dispatch():
            recording.to_meta(value)
    return NotImplemented


def _set_data(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``tensor.data = value``, where one is on meta and the other is not."""
    tensor, value = args
    if tensor.is_meta == value.is_meta:
        return NotImplemented
    with without_dispatch():
        recording.to_meta(value if tensor.is_meta else tensor)
    return NotImplemented


_OF_VALUES = frozenset((torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor))
"""Functions that make tensors of numbers that Python has."""


def _is_meta(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "meta"


def _known_on_meta(
    recording: Recording, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """What one of them makes on meta: the dispatcher is not told the numbers."""
    with without_dispatch():
        there = func(*args, **{**kwargs, "device": "cpu"})
        made: Tensor = there.detach().clone().requires_grad_(there.requires_grad)
        memory = recording.to_meta(made)
    memory.contents = replace(memory.contents, device=META)
    return made


_INSTEAD: dict[Any, _Instead] = {
    Tensor.device.__get__: _device,
    Tensor.get_device: _get_device,
    torch.get_device: _get_device,
    **{
        getattr(Tensor, name).__get__: _is_on(name.removeprefix("is_"))
        for name in ("is_meta", "is_cpu", "is_cuda", "is_xpu", "is_mps", "is_xla", "is_mtia")
        if hasattr(Tensor, name)
    },
    **dict.fromkeys((Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as), _moved),
    **dict.fromkeys(
        (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__), _read
    ),
    **dict.fromkeys(
        (
            *(Tensor.backward, torch.autograd.backward, torch.autograd.grad),
            *(Tensor.share_memory_, Tensor.pin_memory),
            *(Tensor.apply_, Tensor.map_, Tensor.map2_),
        ),
        _refused,
    ),
    Tensor.type: _type,
    Tensor.__format__: _text,
    Tensor.new_tensor: _new_tensor,
    Tensor.__getitem__: _indexed,
    Tensor.__setitem__: _indexed,
    Tensor.__deepcopy__: _copied,
    set_data: _set_data,
    Tensor.grad.__set__: _set_grad,  # type: ignore[union-attr]
}
"""What is done instead of some functions; NotImplemented where it is theirs after all."""
