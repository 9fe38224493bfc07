"""Blocks: a parameter stored in a block format, as its packed values and their scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from fastinit.backends.contract import BlockWrite
from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part, Runs
from fastinit.elements.strided import Strided
from fastinit.fills.writable import check_place
from fastinit.stream import blocks as formats
from fastinit.stream.formats import BY_POWER, FORMATS
from fastinit.stream.laws import Law
from fastinit.stream.rounding import float32

_PACKED = (torch.uint8, torch.float4_e2m1fn_x2)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A parameter stored in a block format: what random functions take in place of a tensor.

    Its memory is that of the tensors given, in torchao's layout: ``MXTensor``'s and ``NVFP4Tensor``'s
    ``qdata`` and ``scale`` with ``is_swizzled_scales=False``.

    Args:
        data: the packed values. "mxfp8" and "mxfp8_e5m2": [..., n], float8_e4m3fn or float8_e5m2, or
            their bytes as uint8. "mxfp4" and "nvfp4": [..., n / 2], uint8 or float4_e2m1fn_x2, of two
            values the first one in the low bits. The last dimension has stride 1.
        scale: of each block of 32 values ("nvfp4": 16) along the last dimension, [..., n / 32], any
            strides: float8_e8m0fnu ("nvfp4": float8_e4m3fn), or their bytes as uint8.
        format: "mxfp8" (E4M3 elements), "mxfp8_e5m2", "mxfp4" or "nvfp4".
        tensor_scale: of "nvfp4", and only of it: float32 of one element, which is written too: what all
            values are divided by before blocks have their scales (its ``per_tensor_scale``).
        fixed_scale: what ``tensor_scale`` shall be, from 2^-120 to 2^117; 1 leaves all to the blocks. By
            default the law says it, which is the same for all shards and needs no pass over the values:
            the largest magnitude that the law has, over 6 * 448.

    Data and scales of a sharded parameter are DTensors with the same placements, or plain tensors
    written with ``part=``, whose shape and indices count values. Each rank has whole blocks.

    Raises:
        TypeError: what is no tensor; a format that is no text.
        ValueError: an unknown format; dtypes, shapes or devices that do not belong together; a last
            dimension that is not made of whole blocks.
        NumberTypeError, NumberRangeError: ``fixed_scale`` is no number that it can be.

    >>> from fastinit import init
    >>> weight = init.normal_(Blocks.empty((64, 128), "mxfp4"), std=0.02, seed=0, name="fc.weight")
    >>> weight.data.shape, weight.scale.shape
    (torch.Size([64, 64]), torch.Size([64, 4]))
    """

    data: Tensor
    scale: Tensor
    format: str
    tensor_scale: Tensor | None = None
    fixed_scale: float | None = None

    def __post_init__(self) -> None:
        _check_format(self.format)
        for name in ("data", "scale"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be a torch.Tensor, but got {kind}")
        element = formats.ELEMENTS[self.format]
        _check_dtype("data", self.data, _PACKED if element is None else (element, torch.uint8))
        _check_dtype("scale", self.scale, (_scale_dtype(self.format), torch.uint8))
        rows, columns = self.data.shape[:-1], self.data.shape[-1:]
        block = self._block_bytes
        if not columns or columns[0] % block or self.scale.shape != (*rows, columns[0] // block):
            raise ValueError(
                f"data and scale must be [..., {block} n] and [..., n] for {self.format}, but got "
                f"shapes {tuple(self.data.shape)} and {tuple(self.scale.shape)}"
            )
        if self.data.device != self.scale.device:
            raise ValueError(
                f"data and scale must be on one device, but got {self.data.device}, {self.scale.device}"
            )
        self._check_tensor_scale()

    def _check_tensor_scale(self) -> None:
        held, fixed = self.tensor_scale, self.fixed_scale
        if self.format != "nvfp4":
            if held is not None or fixed is not None:
                name = "fixed_scale" if held is None else "tensor_scale"
                raise ValueError(f"{name} is for nvfp4, but got it for {self.format}")
            return
        if not isinstance(held, Tensor):
            raise TypeError(f"tensor_scale must be a torch.Tensor, but got {type(held).__name__}")
        if held.dtype != torch.float32 or held.numel() != 1:
            raise ValueError(
                f"tensor_scale must be float32 of one element, but got {held.dtype} of shape "
                f"{tuple(held.shape)}"
            )
        if fixed is not None:
            fixed = float32(number.positive("fixed_scale", fixed))
            least, most = formats.TENSOR_SCALES
            if not least <= fixed <= most:
                number.out_of_range("fixed_scale", f"from {least:.3g} to {most:.3g}", fixed)
            object.__setattr__(self, "fixed_scale", fixed)

    @classmethod
    def empty(
        cls,
        shape: Sequence[int],
        format: str,
        *,
        fixed_scale: float | None = None,
        device: torch.device | str | None = None,
    ) -> Blocks:
        """Memory for a parameter of a shape, whose last size is of whole blocks.

        Args:
            fixed_scale: as of :class:`Blocks`.

        Raises:
            as :class:`Blocks`.
        """
        row, element = FORMATS[_check_format(format)], formats.ELEMENTS[format]
        sizes = Part(shape).shape  # type: ignore[arg-type]  # checked
        if not sizes or sizes[-1] % row.block:
            raise ValueError(
                f"the last size must be of whole blocks of {row.block} for {format}, but got {sizes}"
            )
        last = sizes[-1] if element else sizes[-1] // 2
        data = torch.empty(*sizes[:-1], last, dtype=element or torch.uint8, device=device)
        held = _scale_dtype(format) or torch.uint8
        scale = torch.empty(*sizes[:-1], sizes[-1] // row.block, dtype=held, device=device)
        whole = torch.empty((), dtype=torch.float32, device=device) if format == "nvfp4" else None
        return cls(data, scale, format, whole, fixed_scale)

    @property
    def shape(self) -> torch.Size:
        """Of the parameter: its last size counts values."""
        return torch.Size((*self.data.shape[:-1], self.data.shape[-1] * self._per_byte))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def is_meta(self) -> bool:
        return self.data.is_meta

    def numel(self) -> int:
        """How many values the parameter has."""
        return self.data.numel() * self._per_byte

    def values(self) -> Tensor:
        """float32, of this shape, or of this rank's part of it: what is stored, times its scales."""
        data, scale = self._bytes()
        whole = 1.0 if self.tensor_scale is None else shard.local(self.tensor_scale).item()
        return formats.values(data, scale, self.format, whole).flatten(-2)

    @property
    def _per_byte(self) -> int:
        return 2 if formats.ELEMENTS[self.format] is None else 1

    @property
    def _block_bytes(self) -> int:
        return FORMATS[self.format].block // self._per_byte

    def _bytes(self) -> tuple[Tensor, Tensor]:
        """This rank's, uint8 [..., blocks, bytes of a block] and [..., blocks]."""
        data, scale = (tensors.local(t).detach().view(torch.uint8) for t in (self.data, self.scale))
        return data.unflatten(-1, (data.shape[-1] // self._block_bytes, self._block_bytes)), scale

    def _part(self, given: Part | None) -> Part:
        """Which blocks of the parameter are here: a part of the scales."""
        block = FORMATS[self.format].block
        if given is None:
            part = shard.part_of(self.data, "data")
            its = shard.part_of(self.scale, "scale")
            units = block // self._per_byte
            if (part is None) != (its is None):
                raise ValueError("data and scale must both be DTensors, or neither")
            if part is None or its is None:
                return Part(tuple(self.scale.shape))
            here = _over(part, units, tuple(self.scale.shape), self.format)
            if here != replace(its, name=None):
                raise ValueError(
                    f"data and scale must be sharded alike, in whole blocks, but got placements "
                    f"{self.data.placements} and {self.scale.placements}, "  # type: ignore[attr-defined]
                    f"which are {here} and {its} of the blocks"
                )
            return here
        if shard.is_dtensor(self.data) or shard.is_dtensor(self.scale):
            raise NotImplementedError("data is a DTensor, which has a part of its own already")
        shape = given.shape
        if not shape or shape[-1] % block:
            raise ValueError(f"part must be of whole blocks of {block}, but got shape {shape}")
        return _over(given, block, (*shape[:-1], shape[-1] // block), self.format)


Target = TypeVar("Target", Tensor, Blocks)
"""What random functions write."""


def writes_of(
    blocks: Blocks, law: Law, seed: int, stream: int, part: Part | None, argument: str = "tensor"
) -> tuple[list[BlockWrite], float | None]:
    """What a fill means to a backend, checked; and what the scale of the tensor is, if it has one.

    Raises:
        NumberRangeError: a law of which values are not finite, or whose tensor_scale is out of range.
        ValueError: a part that is not of whole blocks, or has another shape; a law that is scaled;
            data whose last dimension has another stride than 1.
        RuntimeError: data and scales that share memory.
        NotImplementedError, RuntimeError: as :func:`fastinit.ops.fill_`.
    """
    formats.check_law(law, blocks.format)
    whole = blocks.fixed_scale
    if blocks.tensor_scale is not None and whole is None:
        whole = formats.tensor_scale_of(law)
    for name in ("data", "scale", "tensor_scale"):
        if (held := getattr(blocks, name)) is not None:
            check_place(shard.local(held), f"{argument}.{name}")
    part = blocks._part(part)
    _check_apart(blocks, argument)
    data, scale = blocks._bytes()
    if data.numel() and data.stride(-1) != 1:
        raise ValueError(
            f"{argument}.data must have a last dimension of stride 1, but has strides "
            f"{blocks.data.stride()}"
        )
    if scale.is_meta or tensors.is_fake(scale) or not scale.numel():
        part.pieces(scale, f"{argument}.scale")  # whose shape may be wrong
        return [], whole
    block, made = FORMATS[blocks.format].block, []
    for to, (at, (offset, _, strides)) in zip(
        _data_pieces(data, scale, part), part.pieces(scale, f"{argument}.scale")
    ):
        its = tuple(block * s for s in strides)
        key = law, seed, stream, its, block * offset, blocks.format, whole or 1.0
        made.append(BlockWrite(to, at, *key))
    return made, whole


def _check_apart(blocks: Blocks, argument: str) -> None:
    """Raises RuntimeError where what is written one way is written another way too."""
    names = ("data", "scale", "tensor_scale")
    held = [(name, shard.local(t)) for name in names if (t := getattr(blocks, name)) is not None]
    if any(t.is_meta or tensors.is_fake(t) for _, t in held):
        return
    bytes_ = [(name, _bytes_of(tensors.local(t).detach())) for name, t in held]
    for (one, its), (two, others) in combinations(bytes_, 2):
        if its.meets(others):
            raise RuntimeError(f"{argument}.{one} and {argument}.{two} share memory")


def _bytes_of(tensor: Tensor) -> Strided:
    """At which addresses a tensor's bytes are."""
    size = tensor.element_size()
    steps = tuple(size * step for step in tensor.stride())
    return Strided(tensor.data_ptr(), (*tensor.shape, size), (*steps, 1)).merged()


def _data_pieces(data: Tensor, scale: Tensor, held: Part) -> Iterator[Tensor]:
    """The packed values of each piece of the scales: each block's bytes as one element more."""
    size = data.shape[-1]
    if held.flat is not None:
        rows = data.reshape(-1, size) if data.is_contiguous() else data
        start = 0
        for piece in held.pieces(scale):
            yield rows[start : start + piece.which.numel].view(*piece.which.sizes, size)
            start += piece.which.numel
        return
    # As scales lie: a byte that is one of a dimension all of which is held.
    full = Part((*held.shape, size), (*held.runs, ((0, size),)))
    for piece in full.pieces(data):
        yield piece.tensor


def _over(part: Part, units: int, shape: tuple[int, ...], format: str) -> Part:
    """The part in blocks, of which so many units of its last dimension are one.

    Raises:
        ValueError: it is not made of whole blocks.
    """
    runs = part.runs[-1:] if part.flat is None else ((part.flat,),)
    for start, length in runs[0] if runs else ():
        if start % units or length % units:
            raise ValueError(
                f"a part must be of whole blocks of {FORMATS[format].block} values for {format}, "
                f"but got {part}"
            )
    if part.flat is not None:
        return Part(shape, flat=(part.flat[0] // units, part.flat[1] // units))
    last: Runs = tuple((start // units, length // units) for start, length in part.runs[-1])
    return Part(shape, (*part.runs[:-1], last))


def _check_format(format: str) -> str:
    if not isinstance(format, str):
        raise TypeError(f"format must be a str, but got {format!r}")
    if format not in formats.ELEMENTS:
        known = ", ".join(formats.ELEMENTS)
        raise ValueError(f"format must be one of {known}, but got {format!r}")
    return format


def _check_dtype(name: str, tensor: Tensor, wanted: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in wanted:
        known = " or ".join(map(str, wanted))
        raise ValueError(f"{name} must be {known}, but got {tensor.dtype}")


def _scale_dtype(format: str) -> torch.dtype:
    return torch.float8_e8m0fnu if FORMATS[format].scaling == BY_POWER else torch.float8_e4m3fn
