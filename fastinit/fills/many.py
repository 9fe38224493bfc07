"""Many: tensors that are all checked, and then written in one parallel region for each device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.backends.contract import BlockWrite, Write
from fastinit.base import torch_internals as internals
from fastinit.elements import partitioned, tensors
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided, whole
from fastinit.fills.blocks import Blocks, writes_of
from fastinit.fills.writable import check_writable, is_short_way
from fastinit.stream import keys, laws
from fastinit.stream.laws import Law

_is_compiling = torch.compiler.is_compiling
_increment_version = torch.autograd.graph.increment_version
_is_marked = partitioned.is_marked


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

    tensor: Tensor | Blocks
    law: Law
    seed: int
    stream: int = keys.ANONYMOUS
    window: Window | Strided | Part | None = None


class Batch:
    """Requests that can be written: what is added is checked, and :meth:`run` writes all.

    Raises:
        NotImplementedError: torch.jit.trace traces; the graph would hold none of the writes.
    """

    def __init__(self) -> None:
        self._writes: dict[tuple[torch.device, bool], list[Write]] = {}
        """By device, and whether they are exact."""
        self._sharded: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        self._blocks: dict[torch.device, list[BlockWrite]] = {}
        self._scales: list[tuple[Tensor, float]] = []
        self._at_once = not _is_compiling()
        if self._at_once and internals.is_jit_tracing():
            raise NotImplementedError(
                "torch.jit.trace would not see a write of several tensors, of a part, of Blocks or of a "
                "conjugated view: fill them before the function that it traces"
            )

    def add(self, request: Request, argument: str) -> None:
        """Checks one and keeps it. Meta tensors are left alone.

        Args:
            argument: what errors call the tensor.

        Raises:
            as :func:`fastinit.ops.fill_`.
        """
        tensor, law, seed, stream, window = request
        seed = keys.check_seed(seed)
        if isinstance(tensor, Blocks):
            self._add_blocks(tensor, law, seed, stream, window, argument)
            return
        if law.exact:
            laws.check_dtype(law, tensor.dtype, argument)
        if self._at_once and is_short_way(tensor):  # most are: nothing but what each needs
            which = whole(tensor.shape)
            if window == which or (window is None and not _is_marked(tensor)):
                if tensor.numel():
                    laws.kernel_params(law, tensor.dtype)  # which may refuse the law
                    self._writes.setdefault((tensor.device, bool(law.exact)), []).append(
                        Write(tensor, law, seed, stream, which.strides, 0)
                    )
                return
        here: Sequence[tuple[Tensor, Window | Strided | None]]
        if shard.is_dtensor(tensor) or isinstance(window, Part):
            here = _of_this_rank(tensor, window, argument)
            self._sharded.append(tensor)
        else:
            here = [(tensor, window)]
        for part, its_window in here:
            check_writable(part, argument)
            if its_window is None:
                shard.check_held(part, argument, constant=law.kind == laws.CONSTANT)
            which = elements(part, its_window)
            if part.is_meta or not part.numel() or tensors.is_fake(part):
                continue
            if not is_itself(part):
                view = tensors.local(part)
                part = torch.empty(part.shape, dtype=part.dtype, device=part.device)
                self._copied.append((view, part))
            some = self._writes.setdefault((part.device, bool(law.exact)), [])
            for write in writes(part, law, seed, stream, which):
                laws.kernel_params(write.law, write.tensor.dtype)
                some.append(write)

    def _add_blocks(
        self,
        blocks: Blocks,
        law: Law,
        seed: int,
        stream: int,
        window: Window | Strided | Part | None,
        argument: str,
    ) -> None:
        if window is not None and not isinstance(window, Part):
            raise TypeError(
                f"which elements {argument} holds must be a fastinit.Part, but got {window}"
            )
        made, whole = writes_of(blocks, law, seed, stream, window, argument)
        self._blocks.setdefault(blocks.device, []).extend(made)
        if blocks.tensor_scale is not None and whole is not None:
            self._scales.append((shard.local(blocks.tensor_scale), whole))
        self._sharded += [t for t in (blocks.data, blocks.scale) if shard.is_dtensor(t) or made]

    def run(self) -> None:
        """Writes them, once."""
        chosen = {key: backends.choose(*key) for key in self._writes}
        for_blocks = {
            device: backends.choose_blocks(device) for device, its in self._blocks.items() if its
        }
        with torch.no_grad():
            for key, some in self._writes.items():
                chosen[key].fill_many(some)
                _increment_version([write.tensor for write in some])
            for device, backend in for_blocks.items():
                backend.fill_blocks(self._blocks[device])
            for held, number in self._scales:
                held.detach().fill_(number)
            for view, plain in self._copied:
                view.copy_(plain)
        _increment_version(self._sharded)  # the local tensors have counters of their own


def fill_many_(requests: Sequence[Request]) -> None:
    """Writes many tensors, in one parallel region for each device.

    All requests are checked before the first tensor is written. Meta tensors are left alone.

    Raises:
        as :func:`fastinit.ops.fill_`, with the request's place in the list.
    """
    batch = Batch()
    for i, request in enumerate(requests):
        batch.add(request, f"requests[{i}].tensor")
    batch.run()


def _of_this_rank(
    tensor: Tensor, window: Window | Strided | Part | None, argument: str
) -> list[Piece]:
    """The blocks of its parameter that a tensor is."""
    if window is not None and not isinstance(window, Part):
        raise NotImplementedError(f"{argument} is a DTensor, which has a window of its own already")
    check_writable(shard.local(tensor), argument)  # also where this rank holds nothing
    return shard.pieces(tensor, argument, window)


def is_itself(tensor: Tensor) -> bool:
    """Whether its memory holds its very values: no conjugated or negated view, no result to come."""
    return not (tensor.is_neg() or tensor.is_conj()) and tensors.local(tensor) is tensor


def elements(tensor: Tensor, window: Window | Strided | None) -> Strided:
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


def writes(tensor: Tensor, law: Law, seed: int, stream: int, which: Strided) -> Iterator[Write]:
    """What a request means to a backend: complex tensors as pairs of reals."""
    tensor, (offset, _, strides) = tensor.detach(), which
    if tensor.dtype not in laws.COMPLEX:
        yield Write(tensor, law, seed, stream, strides, offset)
        return
    pairs = torch.view_as_real(tensor)
    strides, offset = tuple(2 * s for s in strides), 2 * offset
    if law.kind == laws.CONSTANT:  # a real number: the imaginary part is 0
        yield Write(pairs[..., 0], law, seed, stream, strides, offset)
        yield Write(pairs[..., 1], law._replace(p0=0.0), seed, stream, strides, offset + 1)
    else:
        yield Write(pairs, law.split_complex(), seed, stream, (*strides, 1), offset)
