"""The contract: what a backend is, and what it is given, checked and real."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastinit.stream.formats import Counting
from fastinit.stream.reference_moments import ALL_FIELDS

if TYPE_CHECKING:
    from fastinit.stream.laws import Law


class Write(NamedTuple):
    """One window to fill, checked and real: what a backend sees.

    Element (i, j, ...) of ``tensor`` is element ``offset + i * strides[0] + j * strides[1] + ...`` of
    the stream (``seed``, ``stream``), drawn by ``law``.
    """

    tensor: Tensor
    """With memory, of one of ``laws.WRITTEN``, without two elements in one place; it has elements."""
    law: Law
    seed: int
    """In [0, 2^64), as ``stream``."""
    stream: int
    strides: tuple[int, ...]
    """One for each dimension, not negative."""
    offset: int


class BlockWrite(NamedTuple):
    """One window of blocks to fill (``fastinit.stream.blocks``), checked and real."""

    data: Tensor
    """uint8 [..., bytes of a block], which are neighbours in memory."""
    scale: Tensor
    """uint8 [...]: of each block. It has elements."""
    law: Law
    seed: int
    stream: int
    strides: tuple[int, ...]
    """One for each dimension of the scales: that of the first values of blocks in the stream."""
    offset: int
    """Of the first value; a multiple of a block's size, as the strides."""
    format: str
    """One of ``fastinit.stream.blocks.ELEMENTS``."""
    tensor_scale: float
    """Of "nvfp4", a float32 number; else 1."""

    def windows(self, most: int) -> Iterator[tuple[Any, ...]]:
        """The same as windows of one to ``most`` dimensions, neighbours merged where they are one.

        Of each the places of the first block's data and scale, its first value's offset, and by
        dimension the sizes and the strides of data, scales and values.
        """
        dims: list[tuple[int, ...]] = []
        for size, *steps in zip(
            self.scale.shape, self.data.stride(), self.scale.stride(), self.strides
        ):
            if dims and all(up == size * step for up, step in zip(dims[-1][1:], steps)):
                dims[-1] = (dims[-1][0] * size, *steps)
            elif size > 1:
                dims.append((size, *steps))
        outer, inner = dims[:-most], dims[-most:] or [(1, 0, 0, 0)]
        for index in itertools.product(*(range(size) for size, *_ in outer)):
            to, at, on = (sum(i * dim[k] for i, dim in zip(index, outer)) for k in (1, 2, 3))
            yield (to, at, self.offset + on, *zip(*inner))


class Reading(NamedTuple):
    """One tensor to measure: what a backend sees."""

    tensor: Tensor
    shape: Sequence[int]
    """In the order of memory; or of channels, which are last, of stride 1, and measured each for itself.
    At least one size, and at most ``fastinit.statistics.reading.MAX_DIMS``; one may be 0."""
    strides: Sequence[int]
    by_column: bool
    """Whether there are channels."""
    raw: Tensor
    """Where the raw moments go (``fastinit.stream.reference_moments``): float64 [7], or [channels, 7],
    contiguous, on the tensor's device. [11] and [channels, 11] ask for the higher ones too."""

    @property
    def higher(self) -> bool:
        """Whether the higher moments are asked for."""
        return self.raw.shape[-1] == ALL_FIELDS


class Counted(NamedTuple):
    """One tensor of which values are counted: what a backend sees."""

    reading: Reading
    """Whose ``raw`` takes the counts: int64 [width], or [channels, width], all 0. Where what is counted
    is ``in_blocks``, the last dimension is the tensor's own, and there are no channels."""
    moments: Tensor
    """The raw moments of all the tensor, of which this may be a part: for its largest magnitude."""


class Backend(ABC):
    """Who fills tensors on some devices, and may measure them there.

    A subclass has a name and the two abstract methods; what else it can do, it says by overriding
    more. What can be done is asked before each call, so these answers must be quick. All tensors of a
    call are on one device, which need not be the current one.
    """

    name: str
    """As in ``fastinit.backend(name)``."""

    @abstractmethod
    def serves(self, device: torch.device) -> str | None:
        """None, or the reason why it cannot fill tensors on ``device``."""

    @abstractmethod
    def fill_many(self, writes: Sequence[Write]) -> None:
        """Fills each with the bits that the reference writes (``fastinit.stream.reference``)."""

    def serves_blocks(self, device: torch.device) -> str | None:
        """None, or the reason why it cannot fill block formats on ``device``, where it fills tensors."""
        return "it has no kernel for block formats"

    def fill_blocks(self, writes: Sequence[BlockWrite]) -> None:
        """Fills each with the bits that the reference writes (``fastinit.stream.blocks``)."""
        raise NotImplementedError

    def serves_exact(self, device: torch.device) -> str | None:
        """None, or the reason why :meth:`fill_many` takes no laws that are drawn in float64 there."""
        return "it draws in float32"

    def serves_moments(self, device: torch.device) -> str | None:
        """None, or the reason why it cannot measure tensors on ``device``."""
        return "it measures none"

    def moments_many(self, readings: Sequence[Reading]) -> None:
        """Writes the raw moments of each to its ``raw``: to 12 digits, the same bits on every run.

        Counts and extremes are exact; CPU and GPU agree to 1e-12 otherwise. All readings of a call ask
        for the higher moments, or none does.
        """
        raise NotImplementedError

    def serves_higher(self, device: torch.device) -> str | None:
        """None, or the reason why :meth:`moments_many` gives no higher ones of tensors on ``device``."""
        return "it measures no higher moments"

    def count_many(self, counted: Sequence[Counted], counting: Counting) -> None:
        """Counts in each what conversions would lose, and exponents; of what it measures moments.

        By default as the reference does. These are integers, and all backends give the same.
        """
        from fastinit.stream import reference_counts

        for (tensor, shape, strides, by_column, to), moments in counted:
            view = tensor.as_strided(shape, strides)
            to.copy_(reference_counts.counts(view, by_column, counting, moments))

    def measure_and_count(self, counted: Sequence[Counted], counting: Counting) -> None:
        """:meth:`moments_many` to where the moments of each are, and :meth:`count_many`.

        By default one after the other. A backend may do both in one read: the moments scale no format,
        nothing is by column, and blocks lie along all values.
        """
        self.moments_many([reading._replace(raw=moments) for reading, moments in counted])
        self.count_many(counted, counting)

    def serves_products(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why :meth:`product_moments` takes no tensors of this device and dtype."""
        return "it multiplies none"

    def product_moments(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Raw moments of ``x @ weight.T + bias``, which is not made.

        Args:
            x: [rows, in]; weight: [out, in]; bias: [out], or None; of one dtype, any strides.

        Returns:
            float64 [7].
        """
        raise NotImplementedError
