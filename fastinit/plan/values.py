"""Values: a Fill, or a part of one, written into memory; and whether it can be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.elements import tensors
from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided
from fastinit.fills import operator as ops
from fastinit.plan import steps as its_steps
from fastinit.plan.distributions import FUSED, RAMP
from fastinit.plan.fill import Fill
from fastinit.plan.law_moments import support
from fastinit.plan.whole_tensors import STRUCTURES
from fastinit.stream import laws
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law
from fastinit.stream.rounding import float32, rounded, wide

CHUNK = 1 << 15
"""Elements whose steps are done at once: their float64 values, a few times, are in the cache."""


class Values(NamedTuple):
    """What is to be written: a Fill without its parts, into a tensor that has some of its elements."""

    tensor: Tensor
    fill: Fill
    stream: str
    """The name whose numbers it has."""
    which: Strided
    """The elements of the full tensor that these are; all of it for distributions of whole tensors."""
    shape: Sequence[int]
    """Of the full tensor."""


def write_values_(values: Sequence[Values], seed: int, batch: ops.Batch | None = None) -> None:
    """Writes all, and a batch; those of laws in one launch or parallel region for each device."""
    batch = batch or ops.Batch()
    for tensor, fill, stream, which, _ in values:
        if fill.has_law:
            request = ops.Request(
                tensor, law_in(fill, tensor.dtype), seed, stream_id(stream), which
            )
            batch.add(request, stream)
    batch.run()
    for some in values:
        if not some.fill.is_elementwise:
            write_whole_(some.tensor, some.fill, seed, some.stream)
        elif not some.fill.has_law:
            _write_by_elements_(some, seed)


def law_in(fill: Fill, dtype: torch.dtype) -> Law:
    """The law of a Fill as a dtype has it: a constant is the number itself, as far as that has it."""
    law = fill.law
    is_double = dtype in (torch.float64, torch.complex128)
    is_narrower = is_double and fill.distribution == "constant" and float32(law.p0) != law.p0
    return laws.exactly(law, True) if is_narrower else law


def write_whole_(tensor: Tensor, fill: Fill, seed: int, stream: str) -> None:
    """Writes a Fill of a whole tensor (parts apart), with the numbers of a name.

    Raises:
        ValueError: a shape that the function does not take. So does a meta tensor, for checking.
    """
    structure = STRUCTURES[fill.distribution]
    key = {"seed": seed, "name": stream} if structure.is_random else {}
    if fill.scale == 1.0 or tensor.is_meta:
        structure.write(tensor, *fill.parameters, **key)
        return
    with torch.no_grad():  # rounded when it is scaled, not before
        values = torch.empty_like(tensor, dtype=wide(tensor.dtype))
        structure.write(values, *fill.parameters, **key)
        tensor.copy_(rounded(values.mul_(fill.scale), tensor.dtype))


def check_shape(fill: Fill, shape: Sequence[int]) -> None:
    """Raises ValueError or RuntimeError for a shape that a Fill, parts included, cannot have."""
    numel = math.prod(shape)
    if fill.distribution == RAMP:
        dim = int(fill.parameters[2])
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"no dimension {dim} for arange in a shape of {tuple(shape)}")
        interval = support(fill.distribution, fill.parameters, max(shape[dim], 1))
        its_steps.image(*interval, fill.steps)
    elif fill.distribution in STRUCTURES:
        write_whole_(torch.empty(tuple(shape), device="meta"), fill, 0, "")
    for region, part, own in fill.parts:
        if region.numel and region.end > numel:
            raise ValueError(f"it has {numel} elements, but a part at {region}")
        check_shape(part, region.sizes if own else shape)
    if fill.distribution == FUSED and (said := sum(p.region.numel for p in fill.parts)) != numel:
        raise ValueError(f"it has {numel} elements, but parts of {said}")


def part_stream(fill: Fill, place: int, name: str) -> str:
    """The name whose numbers a part has.

    Args:
        fill: of the parameter.
        place: of the part in it.
        name: of the parameter.
    """
    _, part, own = fill.parts[place]
    return part.stream or (f"{name}[{place}]" if own else name)


def _write_by_elements_(values: Values, seed: int) -> None:
    """A law and its steps, or a ramp, in chunks."""
    tensor, fill, stream, which, shape = values
    if tensor.is_meta or tensors.is_fake(tensor):
        return
    for view, some in _chunks(Piece(tensor.detach(), which)):
        if fill.distribution == RAMP:
            drawn = _ramp(fill, some, shape, view.device)
        else:
            dtype = torch.float64 if fill.exact else torch.float32
            drawn = torch.empty(view.shape, dtype=dtype, device=view.device)
            ops.fill_(drawn, fill.drawn, seed=seed, stream=stream_id(stream), window=some)
        made = its_steps.run(drawn.double(), fill.steps) * fill.scale
        view.copy_(rounded(made if fill.exact else made.float(), view.dtype))


def _ramp(fill: Fill, which: Strided, shape: Sequence[int], device: torch.device) -> Tensor:
    """The values of a ramp before its steps, in float32, of elements of a tensor of a shape."""
    start, step, dim = fill.parameters
    full = Strided.contiguous(shape)
    place = (which.numbers(device) // full.strides[int(dim)]) % full.sizes[int(dim)]
    return (start + step * place.double()).float()


def _chunks(piece: Piece) -> Iterator[Piece]:
    """The piece, cut in halves until each has at most ``CHUNK`` elements; none of an empty one."""
    view, (offset, sizes, strides) = piece
    if view.numel() <= CHUNK:
        if view.numel():
            yield piece
        return
    dim = max(range(view.dim()), key=view.size)
    half = sizes[dim] // 2
    for start, size in ((0, half), (half, sizes[dim] - half)):
        some = Strided(
            offset + start * strides[dim], (*sizes[:dim], size, *sizes[dim + 1 :]), strides
        )
        yield from _chunks(Piece(view.narrow(dim, start, size), some))
