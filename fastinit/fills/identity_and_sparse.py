"""Structured weights: identity, Dirac and sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.fills import operator as ops
from fastinit.fills.at_hand import native_address
from fastinit.fills.seeded import (
    check_tensor,
    draw_,
    full_shape,
    name_of,
    warn_if_lost,
    write_,
    writes_whole,
)
from fastinit.stream import laws
from fastinit.stream.keys import ANONYMOUS, stream_id, substream

_zero_smallest: Any = getattr(backends.native.module, "zero_smallest", None)


def eye_(tensor: Tensor, *, part: Part | None = None) -> Tensor:
    """Ones on the diagonal, zeros elsewhere: a Linear layer that hands on what it can.

    Args:
        tensor: [rows, columns], any dtype and strides.
        part: which elements of the full parameter these are; by default all.

    Raises:
        ValueError: not 2-D.
        RuntimeError: elements that overlap.
    """
    shape = full_shape(tensor, part)
    if len(shape) != 2:
        raise ValueError(f"Only tensors with 2 dimensions are supported{_but_got(shape)}")

    def write(full: Tensor) -> None:
        try:
            torch.eye(*shape, out=full, requires_grad=full.requires_grad)
        except NotImplementedError:  # as of uint16 and complex32
            full.zero_().fill_diagonal_(1)

    return write_(tensor, write, lambda t: _check(t, part), part, whole=True)


def dirac_(tensor: Tensor, groups: int = 1, *, part: Part | None = None) -> Tensor:
    """A one at the kernel's centre from channel i to channel i of each group: the identity.

    Args:
        tensor: [out, in / groups, 1 to 3 kernel sizes], any dtype and strides; the centre of an
            even size k is k // 2.
        groups: of the convolution.
        part: which elements of the full parameter these are; by default all.

    Raises:
        ValueError: not 3-, 4- or 5-D; groups is not a positive divisor of the first size.
        TypeError: groups is no whole number.
        RuntimeError: elements that overlap.
    """
    shape = full_shape(tensor, part)
    if len(shape) not in (3, 4, 5):
        raise ValueError(f"Only tensors with 3, 4, or 5 dimensions are supported{_but_got(shape)}")
    groups = number.integer("groups", groups)
    if groups < 1 or shape[0] % groups != 0:
        raise number.NumberRangeError(
            f"dim 0 must be divisible by groups, but got shape {tuple(shape)} and "
            f"groups={number.said(groups)}"
        )

    def write(full: Tensor) -> None:
        if full.numel() > 0:
            by_group = centre(full.zero_()).unflatten(0, (groups, shape[0] // groups))
            by_group.diagonal(dim1=1, dim2=2).fill_(1)

    return write_(tensor, write, lambda t: _check(t, part), part, whole=True)


def sparse_(
    tensor: Tensor,
    sparsity: float,
    std: float = 0.01,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
) -> Tensor:
    """N(0, std^2), with ceil(sparsity * rows) zeros at random places of each column (Martens 2010).

    Which places is drawn from a substream of its own: the values elsewhere are those of
    ``normal_(tensor, 0, std)``.

    Args:
        tensor: [rows, columns], any floating or complex dtype and strides.
        sparsity: the fraction of zeros in a column, in [0, 1].
        std: of the values that are not zero.
        generator, seed, name, part: as for :func:`fastinit.init.normal_`. Without a seed, the values and
            the places are two draws from the generator.

    Raises:
        ValueError: not 2-D; sparsity outside [0, 1]; both a seed and a generator.
        RuntimeError, NotImplementedError: as :func:`fastinit.init.normal_`.
    """
    check_tensor(tensor)  # and no Blocks, which draw_ takes
    shape = full_shape(tensor, part)
    if len(shape) != 2:
        raise ValueError(f"Only tensors with 2 dimensions are supported{_but_got(shape)}")
    sparsity = number.share("sparsity", sparsity)
    law = laws.normal(0.0, std)
    name = name_of(name, part)
    rows, columns = shape
    zeros = math.ceil(sparsity * rows)
    some = zeros > 0 and columns > 0
    stream = ANONYMOUS if name is None else stream_id(name)
    if writes_whole(tensor, part):
        ops.check_target(tensor, part=part)
        if tensors.is_left_alone(tensor):
            return tensor
        values = ops.draw_seed(tensor, seed, generator)
        places = ops.draw_seed(tensor, seed, generator) if some else values
        warn_if_lost(tensor)

        def write(full: Tensor) -> None:
            ops.fill_(full, law, seed=values, stream=stream)
            if some:
                _zero(full, zeros, stream, places, None)

        return shard.write_whole_(tensor, write, part)
    draw_(tensor, law, generator, seed, name)
    if some and not tensor.is_meta and not tensors.is_left_alone(tensor):
        _zero(tensor, zeros, stream, seed, generator)
    return tensor


def _zero(
    tensor: Tensor, zeros: int, stream: int, seed: int | None, generator: torch.Generator | None
) -> None:
    """Zeros at random places of each column: those of its smallest keys.

    Of equal keys (24 random bits each) it is the first, on every device.
    """
    rows, columns = tensor.shape
    drawn = ops.fill_(
        torch.empty(columns, rows, dtype=torch.float32, device=tensor.device),
        laws.uniform(),
        seed=seed,
        stream=substream(stream, "zeros"),
        generator=generator,
    )
    if (
        (its := native_address(tensor))
        and (address := native_address(drawn))
        and not tensor.is_conj()  # where a zero is 0 - 0i
        and rows < 1 << 32
    ):
        threads = torch.get_num_threads()
        _zero_smallest(address, rows, columns, zeros, its, tensor.itemsize, threads)
        return
    places = drawn.argsort(dim=1, stable=True)[:, :zeros]
    column = torch.arange(columns, device=tensor.device).unsqueeze(1)
    zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    tensor.detach().index_put_((places, column), zero)  # scatter_ does not know all dtypes


def centre(tensor: Tensor) -> Tensor:
    """The [out, in] view of a convolution's weight at the centre of its kernel."""
    for size in tensor.shape[2:]:
        tensor = tensor.select(2, size // 2)
    return tensor


def _check(tensor: Tensor, part: Part | None) -> None:
    # Integers and booleans are fine here, and torch itself refuses what it cannot write.
    if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.is_complex():
        ops.check_target(tensor, part=part)
    tensors.check_memory(tensor)


def _but_got(shape: Sequence[int]) -> str:
    return f", but got shape {tuple(shape)}"
