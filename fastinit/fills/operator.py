"""Ops: the checks before a fill, and the fill as a torch operator.

``fill_`` writes one tensor and ``fill_many_`` any number of them in one parallel region. Both see that
every tensor can be written before the first is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fastinit.backends import choose as backends
from fastinit.backends.contract import Write
from fastinit.base import torch_internals as internals
from fastinit.elements import partitioned, tensors
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.strided import Piece, Strided, whole
from fastinit.fills import agreement
from fastinit.stream import keys, laws
from fastinit.stream.laws import Law

# What every call needs, looked up once.
_native = backends.native.module
_prepared = backends.native.prepared
_native_is_chosen = backends.native_is_chosen
_draw_seed = keys.draw_seed
_CONSTANT = laws.CONSTANT
_threads = torch.get_num_threads
_is_compiling = torch.compiler.is_compiling
_traced = torch.compiler.is_dynamo_compiling
_dispatch_modes = internals.dispatch_modes
_increment_version = torch.autograd.graph.increment_version

_is_marked = partitioned.is_marked
_plain_cpu_address = tensors.plain_cpu_address
_SHORT_WAY = frozenset(laws.WRITTEN)
_WRITABLE = _SHORT_WAY | frozenset(laws.COMPLEX)


class Window(NamedTuple):
    """Which elements of the full logical tensor a tensor holds, said by who has the tensor's sizes.

    Element (i, j, ...) of the tensor is element ``offset + i * strides[0] + j * strides[1] + ...`` of
    the full one, counted in row-major order.
    """

    strides: tuple[int, ...]
    offset: int = 0


class Request(NamedTuple):
    """One tensor of :func:`fill_many_`: its law, its key, and which elements these are.

    By default they are 0, 1, 2, ... in row-major order.
    """

    tensor: Tensor
    law: Law
    seed: int
    stream: int = keys.ANONYMOUS
    window: Window | Strided | Part | None = None


def fill_(
    tensor: Tensor,
    law: Law,
    *,
    seed: int | None = None,
    stream: int = keys.ANONYMOUS,
    generator: torch.Generator | None = None,
    window: Window | Strided | Part | None = None,
) -> Tensor:
    """Writes ``law`` into ``tensor`` and returns it.

    Args:
        tensor: any shape and strides; float8, float16, bfloat16, float32, float64, complex32, complex64
            or complex128. A meta or fake tensor is left alone, and no seed is drawn for it. Of a DTensor
            each rank writes its shard, without communication but for the check that they drew the same
            seed.
        seed: in [0, 2^64); by default one draw from ``generator``.
        stream: the 64-bit stream id, 0 for an anonymous call.
        generator: where the seed is drawn; by default torch's CPU generator.
        window: which elements these are, as a Window or a Strided of the tensor's shape, or as a
            :class:`fastinit.Part`; by default 0, 1, 2, ... in row-major order.

    Raises:
        ValueError: both a seed and a generator, a seed out of range, an uninitialised parameter, a
            window that does not fit the tensor or the stream, a Part without a seed.
        NotImplementedError: an integer or bool tensor; a kind without plain memory
            (``fastinit.elements.tensors.memory``); a DTensor with a window; a tensor of which nobody
            knows the elements (``fastinit.elements.shards.check_held``).
        RuntimeError: a tensor whose elements overlap, one whose memory was freed, one that an
            optimizer will overwrite (``fastinit.elements.partitioned.check_stays``), or an inference
            tensor outside inference mode; a DTensor for which ranks drew different seeds
            (``fastinit.agreement``).
    """
    # The short way, for a few elements as for billions: nothing here but what each call needs.
    if (
        window is None
        and not _traced()
        and not _dispatch_modes()
        and (address := _plain_cpu_address(tensor))
        and (dtype := tensor.dtype) in _SHORT_WAY
        and _native_is_chosen()
        and not _is_marked(tensor)
    ):
        assert _native is not None  # it is chosen
        prepared = _prepared(law, dtype)  # which may refuse the law, before a seed is drawn
        if seed is None:
            seed = _draw_seed(generator) if law[0] != _CONSTANT else 0
        elif generator is not None:
            raise ValueError("seed and generator exclude each other, but got both")
        else:
            seed = keys.check_seed(seed)
        _native.fill_contiguous(prepared, address, tensor.numel(), seed, stream, _threads())
        _increment_version(tensor)
        return tensor

    if isinstance(window, Part) and (_traced() or _dispatch_modes()):
        for view, its in shard.pieces(tensor, part=window):
            fill_(view, law, seed=draw_seed(tensor, seed, generator), stream=stream, window=its)
        return tensor
    if isinstance(window, Part) or (not _traced() and shard.is_dtensor(tensor)):
        seed = draw_seed(tensor, seed, generator) if law.kind != _CONSTANT else seed or 0
        fill_many_([Request(tensor, law, seed, stream, window)])
        return tensor
    check_writable(tensor)
    if window is None and not _is_compiling():
        shard.check_held(tensor, constant=law.kind == _CONSTANT)
    if seed is not None:
        if generator is not None:
            raise ValueError("seed and generator exclude each other, but got both")
        seed = keys.check_seed(seed)
    which = _elements(tensor, window) if window is not None else None
    if tensor.numel() == 0 or (tensor.device.type == "meta" and not _dispatch_modes()):
        return tensor  # a dispatch mode is shown what would be written on meta (fastinit.deferred)
    if not _is_compiling() and not _is_itself(tensor):
        if seed is None:
            seed = _draw_seed(generator) if law.kind != _CONSTANT else 0
        fill_many_([Request(tensor, law, seed, stream, window)])
        return tensor
    with torch.no_grad():
        torch.ops.fastinit.fill_(
            tensor,
            law.kind,
            [law.p0, law.p1, law.p2, law.p3],  # torch 2.6 traces no slice of a named tuple
            keys.signed(seed) if seed is not None else None,
            keys.signed(stream),
            generator,
            list(which.strides) if which is not None else None,
            which.offset if which is not None else 0,
        )
    return tensor


def fill_many_(requests: Sequence[Request]) -> None:
    """Writes many tensors, in one parallel region for each device.

    All requests are checked before the first tensor is written. Meta tensors are left alone.

    Raises:
        as :func:`fill_`, with the request's place in the list.
    """
    writes: dict[torch.device, list[Write]] = {}
    sharded: list[Tensor] = []
    copied: list[tuple[Tensor, Tensor]] = []
    at_once = not _is_compiling()
    for i, (tensor, law, seed, stream, window) in enumerate(requests):
        seed = keys.check_seed(seed)
        if at_once and _is_short_way(tensor):  # most are: nothing but what each needs
            which = whole(tensor.shape)
            if window == which or (window is None and not _is_marked(tensor)):
                if tensor.numel():
                    writes.setdefault(tensor.device, []).append(
                        Write(tensor.detach(), law, seed, stream, which.strides, 0)
                    )
                continue
        argument = f"requests[{i}].tensor"
        here: Sequence[tuple[Tensor, Window | Strided | None]]
        if shard.is_dtensor(tensor) or isinstance(window, Part):
            here = _of_this_rank(tensor, window, argument)
            sharded.append(tensor)
        else:
            here = [(tensor, window)]
        for part, its_window in here:
            check_writable(part, argument)
            if its_window is None:
                shard.check_held(part, argument, constant=law.kind == _CONSTANT)
            which = _elements(part, its_window)
            if part.is_meta or not part.numel() or tensors.is_fake(part):
                continue
            if not _is_itself(part):
                view = tensors.local(part)
                part = torch.empty(part.shape, dtype=part.dtype, device=part.device)
                copied.append((view, part))
            some = writes.setdefault(part.device, [])
            some.extend(_writes(part, law, seed, stream, which))
    for write in (write for some in writes.values() for write in some):
        laws.kernel_params(write.law, write.tensor.dtype)  # which may refuse the law
    chosen = {device: backends.choose(device) for device in writes}
    with torch.no_grad():
        for device, some in writes.items():
            chosen[device].fill_many(some)
            _increment_version([write.tensor for write in some])
        for view, plain in copied:
            view.copy_(plain)
    _increment_version(sharded)  # the local tensors have counters of their own


def draw_seed(tensor: Tensor, seed: int | None, generator: torch.Generator | None) -> int:
    """The seed of one draw for a part of a parameter: as given, or drawn alike on all ranks of its mesh.

    Every rank draws, also one that holds no element or is not in the mesh, so that their generators stay
    alike; none does for a meta tensor or one without elements.

    Raises:
        ValueError: both a seed and a generator; a seed out of range; no seed for a plain tensor, as
            nothing tells which ranks would have to draw the same.
        RuntimeError: ranks that drew differently (:mod:`fastinit.fills.agreement`).
        NotImplementedError: a DTensor of which nobody knows the elements, before anything is drawn.
    """
    if seed is not None:
        if generator is not None:
            raise ValueError("seed and generator exclude each other, but got both")
        return keys.check_seed(seed)
    if not shard.is_dtensor(tensor):
        raise ValueError(
            "a part needs seed=, as the ranks that hold the others have to draw the same, but got None"
        )
    shard.check_held(tensor)
    if tensor.is_meta or not tensor.numel() or tensors.is_left_alone(tensor):
        return 0
    return agreement.draw_seed(tensor.device_mesh, generator)


def _of_this_rank(
    tensor: Tensor, window: Window | Strided | Part | None, argument: str
) -> list[Piece]:
    """The blocks of its parameter that a tensor is."""
    if window is not None and not isinstance(window, Part):
        raise NotImplementedError(f"{argument} is a DTensor, which has a window of its own already")
    check_writable(shard.local(tensor), argument)  # also where this rank holds nothing
    return shard.pieces(tensor, argument, window)


def check_target(tensor: Tensor, argument: str = "tensor", part: Part | None = None) -> None:
    """Raises unless a function of whole tensors can write ``tensor``, or the part that it is.

    Raises:
        as :func:`check_writable`, and as ``fastinit.elements.shards.part_of``.
    """
    if _is_compiling():
        check_writable(tensor, argument)
        return
    if part is None and _is_short_way(tensor) and not _is_marked(tensor):
        return
    check_writable(shard.local(tensor), argument)
    shard.part_of(tensor, argument, part)


def check_writable(tensor: Tensor, argument: str = "tensor") -> None:
    """Raises unless :func:`fill_` can write ``tensor``; see there for the exceptions."""
    if not _is_compiling() and _is_short_way(tensor) and not _is_marked(tensor):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor, but got {type(tensor).__name__}")
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise ValueError(
            f"{argument} is an {type(tensor).__name__}: it has no shape yet; run the module once, or "
            f"call its materialize() method, before it is initialised"
        )
    if tensor.dtype not in _WRITABLE:
        raise NotImplementedError(
            f"{argument} must have a float8, float16, bfloat16, float32, float64 or complex dtype, but "
            f"got {tensor.dtype}"
        )
    if _is_compiling() or tensors.is_traced(tensor):
        return  # what follows looks at the tensor's memory, which a traced tensor has none of
    partitioned.check_stays(tensor, argument)
    if shard.is_dtensor(tensor):
        raise NotImplementedError(
            f"{argument} is a DTensor, of which this rank holds a shard: Plan.apply_ can write it"
        )
    tensor = tensors.memory(tensor, argument)
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{argument} is an inference tensor: it can only be written inside torch.inference_mode()"
        )
    if tensor.numel() > 1 and not tensor.is_contiguous() and Strided.of(tensor).overlaps:
        raise RuntimeError(
            f"{argument} has elements that share memory (shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}), so they cannot all be written; clone() it first"
        )


def _is_short_way(tensor: Tensor) -> bool:
    """Whether it is certainly memory that can be written as it lies, and all that there is to ask."""
    return bool(_plain_cpu_address(tensor)) and tensor.dtype in _SHORT_WAY


def _is_itself(tensor: Tensor) -> bool:
    """Whether its memory holds its very values: no conjugated or negated view, no result to come."""
    return not (tensor.is_neg() or tensor.is_conj()) and tensors.local(tensor) is tensor


def _elements(tensor: Tensor, window: Window | Strided | None) -> Strided:
    """Which elements a tensor holds; raises ValueError for a window that it cannot have."""
    if window is None:
        return Strided.contiguous(tensor.shape)
    if len(window.strides) != tensor.dim():
        raise ValueError(
            f"window.strides must have one entry for each of the tensor's {tensor.dim()} dimensions, "
            f"but got {window.strides}"
        )
    which = Strided(window.offset, tuple(tensor.shape), window.strides)
    if isinstance(window, Strided) and window.sizes != which.sizes:
        raise ValueError(f"window must have the tensor's shape {which.sizes}, but got {window}")
    bits = 62 if tensor.dtype in laws.COMPLEX else 63  # a complex element is two of the stream's
    if which.offset < 0 or any(s < 0 for s in which.strides) or which.end > 1 << bits:
        raise ValueError(f"window must address elements in [0, 2**{bits}), but got {window}")
    return which


def _writes(tensor: Tensor, law: Law, seed: int, stream: int, which: Strided) -> Iterator[Write]:
    """What a request means to a backend: complex tensors as pairs of reals."""
    tensor, (offset, _, strides) = tensor.detach(), which
    if tensor.dtype not in laws.COMPLEX:
        yield Write(tensor, law, seed, stream, strides, offset)
        return
    pairs = torch.view_as_real(tensor)
    strides, offset = tuple(2 * s for s in strides), 2 * offset
    if law.kind == laws.CONSTANT:  # a real number: the imaginary part is 0
        yield Write(pairs[..., 0], law, seed, stream, strides, offset)
        yield Write(pairs[..., 1], laws.constant(0.0), seed, stream, strides, offset + 1)
    else:
        yield Write(pairs, law.split_complex(), seed, stream, (*strides, 1), offset)


# --- the operator --------------------------------------------------------------------------------

_library = torch.library.Library("fastinit", "DEF")
_library.define(
    "fill_(Tensor(a!) tensor, int kind, float[] parameters, int? seed, int stream, "
    "Generator? generator, SymInt[]? strides, SymInt offset) -> ()",
    tags=(torch.Tag.nondeterministic_seeded,),
)


def _fill_real(
    tensor: Tensor,
    kind: int,
    parameters: Sequence[float],
    seed: int | None,
    stream: int,
    generator: torch.Generator | None,
    strides: Sequence[int] | None,
    offset: int,
) -> None:
    if tensor.numel() == 0:
        return
    tensor = tensors.memory(tensor)
    law = Law(kind, *parameters)
    # Before a seed is drawn, as it may refuse the law.
    laws.kernel_params(law, laws.COMPLEX.get(tensor.dtype, tensor.dtype))
    if seed is None:
        seed = keys.draw_seed(generator) if kind != laws.CONSTANT else 0
    window = Window(tuple(strides), offset) if strides is not None else None
    mask = (1 << 64) - 1
    writes = _writes(tensor, law, seed & mask, stream & mask, _elements(tensor, window))
    backends.choose(tensor.device).fill_many(list(writes))
    _increment_version(tensor)


def _fill_fake(tensor: Tensor, *arguments: object) -> None:
    return None


_library.impl("fill_", _fill_real, "CompositeExplicitAutograd")
_library.impl("fill_", _fill_fake, "Meta")
