"""Parameters of a model: each tied one once, and memory for those on meta."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from fastinit.base import memory
from fastinit.base.distributed_internals import end_fsdp2_forward, fsdp2_modules
from fastinit.base.holders import exchange
from fastinit.base.text import listing
from fastinit.elements import shards as shard
from fastinit.plan.names import Model, Walk
from fastinit.plan.storage import Format, is_in, packed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

M = TypeVar("M", bound=nn.Module)


def distinct_parameters(
    model: Model,
) -> Iterator[tuple[list[str], nn.Module, nn.Parameter]]:
    """(all names, the module that owns the first, parameter) of each parameter, tied ones once.

    In the order of ``model.named_parameters()``. Names are those of :mod:`fastinit.plan.names`.
    """
    walk = model if isinstance(model, Walk) else Walk.of(model, others=False)
    return iter(walk.parameters)


def meshes_of(walk: Walk) -> set[DeviceMesh]:
    """The device meshes that its parameters are on."""
    return {
        parameter.device_mesh
        for _, _, parameter in walk.parameters
        if type(parameter) not in shard.PLAIN and shard.is_dtensor(parameter)
    }


def allocate_(
    model: M,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    huge_pages: bool = True,
) -> M:
    """Gives every meta parameter memory, unwritten, and returns the model; of DTensors this rank's part.

    Parameters that are not on meta and all buffers are left alone; ties, strides and
    ``requires_grad`` are kept.

    Args:
        device: where.
        dtype: of floating-point parameters; by default what they have on meta.
        huge_pages: asks for huge pages under large CPU parameters
            (:func:`fastinit.base.memory.advise_huge_pages`).

    Raises:
        ValueError: device is meta, or dtype is not a floating-point one.
    """
    adopt_(model, allocated(model, device, dtype, huge_pages=huge_pages))
    return model


def allocated(
    model: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    huge_pages: bool = True,
) -> dict[int, nn.Parameter]:
    """What :func:`allocate_` puts in place of each meta parameter, by the ``id`` of that."""
    device = torch.device(device)
    check_place(device, dtype)
    real: dict[int, nn.Parameter] = {}
    for _, _, parameter in distinct_parameters(model):
        if parameter.is_meta and not isinstance(parameter, UninitializedParameter):
            wanted = wanted_dtype(parameter, dtype)
            real[id(parameter)] = allocate(parameter, device, wanted, huge_pages=huge_pages)
    return real


def memory_for(
    named: Iterable[tuple[str, Tensor]],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    formats: Mapping[int, Format] = MappingProxyType({}),
) -> dict[int, nn.Parameter]:
    """What takes the place of those of some parameters that are on meta, by the ``id`` of each.

    Args:
        formats: of some, by their ``id``; ``dtype`` is of the others.

    Raises:
        ValueError: there are any, and no device; one that has memory, and in another dtype or format
            than asked; a meta tensor that is no parameter. And as ``storage.packed``.
    """
    check_place(device, dtype)
    meta, others, known = [], [], []
    for name, parameter in named:
        format = formats.get(id(parameter)) if formats else None
        if (dtype is None and format is None and not parameter.is_meta) or is_lazy(parameter):
            continue
        if parameter.is_meta:
            meta.append((name, parameter))
        elif format is not None:
            known.append((name, parameter))
        elif dtype is not None and parameter.dtype != wanted_dtype(parameter, dtype):
            others.append(f"{name} ({parameter.dtype})")
    if others:
        raise ValueError(
            f"dtype={dtype} is for parameters on meta, but there is memory of another dtype; say "
            f"model.to({dtype}) first: {listing('parameter', others)}"
        )
    check_stored(known, formats)
    if not meta:
        return {}
    if device is None:
        raise ValueError(
            f"meta tensors hold no values; say where they shall be, as in "
            f"plan.apply_(model, device='cpu'): {listing('parameter', [name for name, _ in meta])}"
        )
    found = {}
    for name, parameter in meta:
        if not isinstance(parameter, nn.Parameter):
            raise ValueError(
                f"{name} is on meta where it is kept, and can be given no memory there"
            )
        format, place = formats.get(id(parameter)), torch.device(device)
        if isinstance(format, str):
            inner = wanted_dtype(parameter, dtype)
            found[id(parameter)] = packed(name, parameter, format, place, inner)
        else:
            found[id(parameter)] = allocate(
                parameter, place, wanted_dtype(parameter, format or dtype)
            )
    return found


def check_stored(named: Iterable[tuple[str, Tensor]], formats: Mapping[int, Format]) -> None:
    """Raises ValueError for parameters that have memory, and are stored otherwise than asked."""
    otherwise = [
        f"{name} ({parameter.dtype}, asked in {formats[id(parameter)]})"
        for name, parameter in named
        if id(parameter) in formats and not is_in(parameter, formats[id(parameter)])
    ]
    if otherwise:
        raise ValueError(
            f"storage= is for parameters on meta, but there is memory that is stored otherwise, which "
            f"is not changed: {listing('parameter', otherwise)}"
        )


def wanted_dtype(parameter: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a parameter gets if ``dtype`` is asked for: that, if it is a floating-point one."""
    return dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype


@contextmanager
def held(model: nn.Module, device: torch.device | str) -> Iterator[None]:
    """While in force, meta parameters have memory, as of :func:`allocate_`; afterwards not any more."""
    real = allocated(model, device)
    adopt_(model, real)
    try:
        yield
    finally:
        adopt_(model, real)


def check_place(device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Raises for a device or a dtype that parameters cannot be given.

    Raises:
        ValueError: the meta device, or a dtype that is not floating-point. TypeError: no dtype.
    """
    if device is not None and torch.device(device).type == "meta":
        raise ValueError(f"device must be one that holds values, but got {device}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        hint = " (formats are for storage=)" if isinstance(dtype, (str, Mapping)) else ""
        raise TypeError(f"dtype must be a torch.dtype, but got {dtype!r}{hint}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, but got {dtype}")


def allocate(
    parameter: nn.Parameter,
    device: torch.device,
    dtype: torch.dtype,
    *,
    huge_pages: bool = True,
) -> nn.Parameter:
    """Memory for one parameter, as :func:`allocate_` gives it."""
    real = like(parameter, device, dtype)
    if huge_pages:
        memory.advise_huge_pages(shard.local(real))
    return real


def adopt_(model: nn.Module, real: dict[int, nn.Parameter]) -> None:
    """Makes each parameter what that of ``real`` is whose key is its ``id``, which becomes what it was.

    Whoever holds a parameter, such as an optimizer or a module that is tied, holds the new one.
    """
    for _, _, parameter in distinct_parameters(model) if real else ():
        if id(parameter) in real:
            exchange(parameter, real[id(parameter)])


def offloaded(model: nn.Module) -> set[int]:
    """The ``id`` of each tensor on meta whose values are elsewhere, and put in place for each forward.

    So accelerate's hooks do (``dispatch_model``, ``cpu_offload``, and transformers' ``device_map``) with
    what is in their ``weights_map``.
    """
    found: set[int] = set()
    for module in model.modules() if "accelerate" in sys.modules else ():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            if getattr(each, "offload", False):
                deep = bool(getattr(each, "place_submodules", False))
                own = (*module.parameters(recurse=deep), *module.buffers(recurse=deep))
                found |= {id(tensor) for tensor in own if tensor.is_meta}
    return found


def check_here(model: nn.Module, named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises NotImplementedError for tensors that are offloaded: what is written would be dropped."""
    if not (away := offloaded(model)):
        return
    if gone := [name for name, tensor in named if id(tensor) in away]:
        raise NotImplementedError(
            f"accelerate has offloaded these, and would drop what is written; write them before the "
            f"model is dispatched: {listing('parameter', gone)}"
        )


def reshard_(model: nn.Module, *, cut_short: bool = False) -> None:
    """Frees what FSDP2 gathered for computing, so that a module's parameters are the shards again.

    Between forward and backward they can be whole, of memory that is dropped afterwards; those of a part
    of a model may have been gathered with the rest of it.

    Args:
        cut_short: a forward did not end, so that FSDP2 takes it for one that still runs.
    """
    if not (sharded := fsdp2_modules()):
        return
    own = set(model.modules())
    for module in sharded:
        if not own.isdisjoint(module.modules()):
            if cut_short:
                end_fsdp2_forward(module)
            module.reshard()  # type: ignore[operator]


def like(
    parameter: nn.Parameter,
    device: torch.device,
    dtype: torch.dtype,
    data: Tensor | None = None,
) -> nn.Parameter:
    """A parameter of the same class, shape, strides and attributes: of these values, or unwritten."""
    if data is None:
        with torch.no_grad():
            data = memory.like(parameter, device, dtype)
    new = nn.Parameter(data, requires_grad=parameter.requires_grad)
    if type(parameter) is not nn.Parameter:
        new.__class__ = type(parameter)
    new.__dict__ = {**parameter.__dict__, **new.__dict__}  # a wrapper has what is under it there
    return new
