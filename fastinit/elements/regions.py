"""Regions: some of a parameter's elements, as a view of it addresses them."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Region(NamedTuple):
    """Elements ``offset + i * strides[0] + j * strides[1] + ...`` of a parameter in row-major order.

    ``sizes`` and ``strides`` have no more dimensions than needed, so that views of the same elements
    in the same order are equal.
    """

    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, view: Tensor) -> Region:
        """The elements of a view, in its storage; of a contiguous parameter's, or of the whole of it."""
        return cls.make(int(view.storage_offset()), tuple(view.shape), view.stride())

    @classmethod
    def make(cls, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Region:
        """A region with its dimensions merged where they step through memory as one would."""
        merged: list[tuple[int, int]] = []
        for size, stride in zip(sizes, strides):
            if size == 1:
                continue
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        return cls(offset, tuple(n for n, _ in merged), tuple(s for _, s in merged))

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.sizes)

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + sum((n - 1) * s for n, s in zip(self.sizes, self.strides)) + 1

    @property
    def is_run(self) -> bool:
        """Whether the elements are consecutive and in order."""
        return not self.sizes or self.strides == (1,)

    def is_whole(self, numel: int) -> bool:
        """Whether these are all elements of a parameter of ``numel``, in order."""
        return self.offset == 0 and self.numel == numel and self.is_run

    def view(self, parameter: Tensor) -> Tensor:
        """The region of a contiguous tensor."""
        return parameter.as_strided(
            self.sizes, self.strides, parameter.storage_offset() + self.offset
        )
