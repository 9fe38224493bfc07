"""One-pass statistics of tensors: count, mean, variance, extremes, zeros and non-finite values.

One read of the data, no temporary of its size, and no wait for the device until a number is looked at.
The order of all sums is fixed, so the same tensor gives the same bits on every run: on every CPU, for
every number of threads; and on every GPU, with CUDA or Triton, which sum in pairs of float32, as most
GPUs have next to no float64. That and the reference agree with the CPU to 1e-12 of the root mean square,
and exactly in what is counted or compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import overload

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.backends.contract import Counted, Reading
from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.statistics import across
from fastinit.statistics.counting import (
    are_counted_at_once,
    check_scales,
    counted,
    zero_counts,
)
from fastinit.statistics.fields import ChannelMoments as ChannelMoments
from fastinit.statistics.fields import Moments as Moments
from fastinit.statistics.formats import Counts
from fastinit.statistics.reading import checked, readings_of
from fastinit.stream import laws
from fastinit.stream.formats import NOTHING, Counting
from fastinit.stream.reference_moments import ALL_FIELDS, FIELDS, merged

_traced = torch.compiler.is_dynamo_compiling


@overload
def moments(
    x: Tensor,
    correction: float = 1,
    *,
    dim: None = None,
    part: Part | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> Moments: ...
@overload
def moments(
    x: Tensor,
    correction: float = 1,
    *,
    dim: int,
    part: Part | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> ChannelMoments: ...
def moments(
    x: Tensor,
    correction: float = 1,
    *,
    dim: int | None = None,
    part: Part | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> Moments | ChannelMoments:
    """The moments of a tensor.

    Sums are float64, or on GPUs pairs of float32 (of 16-bit values, float32 over 32 of them), around
    a pivot where the mean is large: 12 digits and more of what float32 data have, std to 1e-6 of 16-bit
    data. So over the whole range of the dtype, whatever torch.set_flush_denormal says (but float64's own
    denormal numbers are then zeros wherever a field is read); a variance that float64 cannot hold is
    infinite, or its least normal number. A constant has variance exactly 0, and nothing else has.

    Of a DTensor it is the full tensor's moments, on every rank the same bits: its ranks measure their
    parts and merge them, or compare those of replicas, by one small collective for each dimension of the
    mesh, for which this waits. An error on one is an error on all. A rank outside of the mesh has
    moments of nothing.
    ``moments(x.to_local())`` measures this rank's part, without communication.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64. An asynchronous result is waited
            for.
        correction: 1 gives the unbiased variance (torch.var's default), 0 that of the values.
        dim: the dimension of channels, each of which is measured for itself.
        part: which elements of a parameter x holds, for :meth:`Moments.all_merge`. ``dim`` is then one
            of the parameter's.
        higher: also gives ``l1``, ``absmean``, ``smallest``, ``dynamic_range``, ``skewness`` and
            ``kurtosis``, for a second look at each chunk of values while it is in the cache. All other
            fields have the same bits as without.
        formats: names of number formats (:data:`fastinit.stream.formats.FORMATS`), of which
            :attr:`Moments.formats` then has the shares of values that would become zero, the largest
            number or subnormal ones.
        histogram: also counts the values of each exponent (:attr:`Moments.histogram`), from which
            quantiles come.

    Raises:
        TypeError: x is not a tensor of these dtypes; dim or correction is no (whole) number; part is no
            Part; formats are no names; higher or histogram is no bool.
        ValueError: x is on meta or fake: it has no values; a correction that is not finite; a part of
            another shape, or with ``dim`` a flat range; replicas of a DTensor whose values differ; a
            format that is not known.
        NotImplementedError: x is of a kind without plain memory (``fastinit.elements.tensors.memory``),
            such as a DTensor with a Partial placement; a part that is given of a DTensor. Formats whose
            scales are not of a channel (``dim``), or not known from this rank's part.
        RuntimeError: the memory of x was freed; of a DTensor, another rank failed.
        IndexError: x has no such dimension.

    >>> moments(torch.tensor([1.0, 2.0, 3.0])).var
    1.0
    """
    is_short = dim is None and part is None and formats == () and histogram is False
    if is_short and (raw := _of_plain_memory(x, higher)) is not None:
        return Moments(raw, correction)
    parts = None if part is None else [part]
    if dim is None:
        return moments_many(
            [x], correction, parts=parts, higher=higher, formats=formats, histogram=histogram
        )[0]
    return moments_many(
        [x], correction, dim=dim, parts=parts, higher=higher, formats=formats, histogram=histogram
    )[0]


@overload
def moments_many(
    xs: Sequence[Tensor],
    correction: float = 1,
    *,
    dim: None = None,
    parts: Sequence[Part | None] | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> list[Moments]: ...
@overload
def moments_many(
    xs: Sequence[Tensor],
    correction: float = 1,
    *,
    dim: int,
    parts: Sequence[Part | None] | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> list[ChannelMoments]: ...
def moments_many(
    xs: Sequence[Tensor],
    correction: float = 1,
    *,
    dim: int | None = None,
    parts: Sequence[Part | None] | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
) -> list[Moments] | list[ChannelMoments]:
    """:func:`moments` of many tensors, in one launch or parallel region for each device.

    The triton backend launches three kernels for each tensor, of millions of values some more. Of
    DTensors there is one collective for each dimension of each mesh, whatever their number.

    Args:
        parts: of each tensor; by default none.
        higher: as of :func:`moments`, of all.
        formats, histogram: of all tensors. Of DTensors that is one more collective.
    """
    xs = list(xs)
    asked = across.lines(xs)
    with across.telling(asked):
        given = [None] * len(xs) if parts is None else list(parts)
        if len(given) != len(xs):
            raise ValueError(f"parts must be of {len(xs)} tensors, but got {len(given)}")
        correction = number.finite("correction", correction)
        dim = None if dim is None else number.integer("dim", dim)
        fields = ALL_FIELDS if number.flag("higher", higher) else FIELDS
        counting = Counting.of(formats, histogram)
        if counting.width:
            check_scales(counting, dim)
    known: list[Tensor | None] = [None] * len(xs)
    if asked:
        raws = across.over(asked, xs, dim, lambda: _measured(xs, dim, given, fields, NOTHING)[0])
    else:
        raws, known = _measured(xs, dim, given, fields, counting)
    counts: list[Counts] | list[None] = [None] * len(xs)
    if counting.width:
        count = partial(counted, xs, dim, given, raws, counting, known)
        numbers = across.over(asked, xs, dim, count, counting) if asked else count()
        counts = [Counts(counting, some) for some in numbers]
    whole = [Part(tuple(x.shape)) if shard.is_dtensor(x) else p for x, p in zip(xs, given)]
    if dim is None:
        return [Moments(r, correction, (part,), c) for r, part, c in zip(raws, whole, counts)]
    return [
        ChannelMoments(r, correction, (part,), dim, c) for r, part, c in zip(raws, whole, counts)
    ]


def row(x: Tensor, higher: bool, counting: Counting) -> Tensor:
    """:attr:`Moments.row`, for what is measured often."""
    if not counting.width and (raw := _of_plain_memory(x, higher)) is not None:
        return raw
    named, histogram = counting
    return moments(x, higher=higher, formats=named, histogram=histogram).row


def _of_plain_memory(x: Tensor, higher: bool) -> Tensor | None:
    """The short way, for a few values as for millions: raw moments of contiguous memory.

    None says nothing: the long way looks closer.
    """
    if _traced() or not ((address := tensors.plain_cpu_address(x)) or tensors.plain_address(x)):
        return None
    if (dtype := x.dtype) not in laws.DTYPES:
        return None
    if internals.dispatch_modes() or internals.is_transforming():
        return None  # what is made here would not be plain memory
    fields = ALL_FIELDS if number.flag("higher", higher) else FIELDS
    raw = torch.empty(fields, dtype=torch.float64, device=x.device)
    if address and backends.native_is_chosen():
        assert backends.native.module is not None  # it is chosen
        backends.native.module.moments_contiguous(
            laws.DTYPES.index(dtype),
            address,
            x.numel(),
            raw.data_ptr(),
            fields == ALL_FIELDS,
            torch.get_num_threads(),
        )
        return raw
    with torch.no_grad():
        reading = Reading(x.detach(), (x.numel(),), (1,), False, raw)
        backends.choose_measuring(x.device, reading.higher).moments_many([reading])
    return raw


def _measured(
    xs: Sequence[Tensor],
    dim: int | None,
    parts: Sequence[Part | None],
    fields: int,
    counting: Counting,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The raw moments of what this rank holds, and counts of what takes one read for both."""
    here = [checked(x, i, dim, part) for i, (x, part) in enumerate(zip(xs, parts))]
    raws: list[Tensor] = []
    readings: dict[torch.device, list[Reading]] = {}
    both: dict[torch.device, list[Counted]] = {}
    counts: list[Tensor | None] = [None] * len(xs)
    split: list[tuple[Tensor, Tensor]] = []
    with internals.without_modes(), torch.no_grad():
        for i, (x, whole) in enumerate(zip(here, xs)):
            if across.is_outside(whole):
                raw = across.nothing(1 if dim is None else whole.shape[dim], fields)
                raws.append(raw[0] if dim is None else raw)
                continue
            shape = (fields,) if dim is None else (x.shape[dim], fields)
            raws.append(torch.empty(shape, dtype=torch.float64, device=x.device))
            tensors.memory(raws[-1], "the moments")
            some = list(readings_of(x, dim, raws[-1], split))
            if len(some) == 1 and are_counted_at_once(x, dim, parts[i], counting):
                counts[i] = to = zero_counts((), counting, x.device)
                both.setdefault(x.device, []).append(Counted(some[0]._replace(raw=to), raws[-1]))
            else:
                readings.setdefault(x.device, []).extend(some)
        for device, pairs in both.items():
            chosen = backends.choose_measuring(device, fields == ALL_FIELDS)
            chosen.measure_and_count(pairs, counting)
        for device, some in readings.items():
            if some:  # a tensor without channels has nothing to read
                backends.choose_measuring(device, some[0].higher).moments_many(some)
        for all_of_it, results in reversed(split):
            total = results[0]
            for result in results[1:]:
                total = merged(total, result)
            all_of_it.copy_(total)
    return raws, counts
