"""Ops: the fill of one tensor, also as a torch operator; and the rest of ``fastinit.ops``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.fills import agreement
from fastinit.fills.at_hand import fill_at_hand
from fastinit.fills.blocks import Blocks, Target
from fastinit.fills.many import Batch as Batch
from fastinit.fills.many import Request as Request
from fastinit.fills.many import Window as Window
from fastinit.fills.many import elements, is_itself, writes
from fastinit.fills.many import fill_many_ as fill_many_
from fastinit.fills.writable import check_target as check_target
from fastinit.fills.writable import check_writable as check_writable
from fastinit.stream import keys, laws
from fastinit.stream.laws import Law

# What every call needs, looked up once.
_draw_seed = keys.draw_seed
_CONSTANT = laws.CONSTANT
_is_compiling = torch.compiler.is_compiling
_traced = torch.compiler.is_dynamo_compiling
_dispatch_modes = internals.dispatch_modes
_jit_traced = internals.is_jit_tracing
_increment_version = internals.increment_version


def fill_(
    tensor: Target,
    law: Law,
    *,
    seed: int | None = None,
    stream: int = keys.ANONYMOUS,
    generator: torch.Generator | None = None,
    window: Window | Strided | Part | None = None,
) -> Target:
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
    if window is None and fill_at_hand(tensor, law, seed, stream, generator):
        return tensor
    if isinstance(tensor, Blocks):
        if _traced() or _dispatch_modes():
            raise NotImplementedError(
                "Blocks are no tensors: a compiled function, or a block that records or fakes "
                "operations, does not see them written"
            )
        internals.uncompiled(_fill_blocks)(tensor, law, seed, stream, generator, window)
        return tensor
    if isinstance(window, Part) and (_traced() or _dispatch_modes()):
        for view, its in shard.pieces(tensor, part=window):
            fill_(view, law, seed=draw_seed(tensor, seed, generator), stream=stream, window=its)
        return tensor
    if isinstance(window, Part) or (
        not _traced() and (shard.is_dtensor(tensor) or (window is not None and _jit_traced()))
    ):
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
    elif generator is not None:
        keys.check_generator(generator)
    which = elements(tensor, window) if window is not None else None
    if tensor.numel() == 0 or (tensor.device.type == "meta" and not _dispatch_modes()):
        return tensor  # a dispatch mode is shown what would be written on meta (fastinit.deferred)
    if not _is_compiling() and not is_itself(tensor):
        if seed is None:
            backends.choose(tensor.device, exact=bool(law.exact))  # which may refuse
            seed = _draw_seed(generator) if law.kind != _CONSTANT else 0
        fill_many_([Request(tensor, law, seed, stream, window)])
        return tensor
    with torch.no_grad():
        torch.ops.fastinit.fill_(
            tensor,
            law.kind,
            law[1:],
            keys.signed(seed) if seed is not None else None,
            keys.signed(stream),
            generator,
            list(which.strides) if which is not None else None,
            which.offset if which is not None else 0,
        )
    return tensor


def _fill_blocks(
    blocks: Blocks,
    law: Law,
    seed: int | None,
    stream: int,
    generator: torch.Generator | None,
    window: Window | Strided | Part | None,
) -> None:
    if seed is not None and generator is not None:
        raise ValueError("seed and generator exclude each other, but got both")
    request = Request(blocks, law, 0 if seed is None else seed, stream, window)
    batch = Batch()
    batch.add(request, "tensor")  # what can't be written draws no seed
    if seed is None and law.kind != _CONSTANT and blocks.numel() and not blocks.is_meta:
        if window is not None or shard.is_dtensor(blocks.data):
            seed = draw_seed(blocks.data, seed, generator)
        else:
            seed = _draw_seed(generator)
        batch = Batch()
        batch.add(request._replace(seed=seed), "tensor")
    batch.run()


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
    # What may refuse the law or the device comes before a seed is drawn.
    laws.kernel_params(law, laws.COMPLEX.get(tensor.dtype, tensor.dtype))
    backend = backends.choose(tensor.device, exact=bool(law.exact))
    if seed is None:
        seed = keys.draw_seed(generator) if kind != laws.CONSTANT else 0
    window = Window(tuple(strides), offset) if strides is not None else None
    mask = (1 << 64) - 1
    asked = writes(tensor, law, seed & mask, stream & mask, elements(tensor, window))
    backend.fill_many(list(asked))
    _increment_version((tensor,))


def _fill_fake(tensor: Tensor, *arguments: object) -> None:
    return None


_library.impl("fill_", _fill_real, "CompositeExplicitAutograd")
_library.impl("fill_", _fill_fake, "Meta")
