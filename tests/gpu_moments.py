"""The moments that GPUs give, to the bit: what csrc/cuda and backends/triton do, in numpy.

Of all chunks at once, a step of all lanes after another. A chunk is lanes of values that are summed one
after another; of a tensor its lanes come together, of columns each is a result. The CPU's are others,
equal to TOLERANCE.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from ptx_operations import fma
from torch import Tensor

from fastinit.backends.contract import Reading
from fastinit.stream import reference_moments
from fastinit.stream.reference_moments import (
    COUNT,
    FIELDS,
    LEAST,
    M2,
    M3,
    M4,
    MAX,
    MEAN,
    MIN,
    NONFINITE,
    SIZES,
    ZEROS,
)

LANES, SHORT, CHUNK = 32, 32, 1 << 14
ROWS = CHUNK // LANES
LOOKS = 3
TOLERANCE = 1e-13
"""Of the largest root mean square: pairs of float32 have 48 bits, and lose some in each of 512 sums."""

Array = Any


# --- pairs -----------------------------------------------------------------------------------------


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    y = total - a
    return total, (a - (total - y)) + (b - y)


class Sums(NamedTuple):
    """Of each lane: pairs of float32, or float64 sums whose low parts are 0."""

    total: Array
    total_low: Array
    squares: Array
    squares_low: Array

    @staticmethod
    def none(like: Array) -> Sums:
        return Sums(*(np.zeros_like(like) for _ in range(4)))

    def add(self, d: Array, low: Array | None) -> Sums:
        """A value, or its distance d + low from a pivot."""
        if d.dtype == np.float64:
            return self._replace(total=self.total + d, squares=self.squares + d * d)
        total, left_out = two_sum(self.total, d)
        square = d * d
        error = fma(d, d, -square)
        if low is not None:
            left_out, error = left_out + low, fma(d + d, low, error)
        squares, squares_left = two_sum(self.squares, square)
        return Sums(
            total,
            self.total_low + left_out,
            squares,
            self.squares_low + (squares_left + error),
        )

    def add_short(self, v: Array) -> Sums:
        """A 16-bit value."""
        return self._replace(total=self.total + v, squares=fma(v, v, self.squares))

    def merge(self, run: Sums) -> Sums:
        if self.total.dtype == np.float64:
            return self._replace(total=self.total + run.total, squares=self.squares + run.squares)
        total, left = two_sum(self.total, run.total)
        squares, squares_left = two_sum(self.squares, run.squares)
        return Sums(
            total,
            self.total_low + (left + run.total_low),
            squares,
            self.squares_low + (squares_left + run.squares_low),
        )


# --- looks -----------------------------------------------------------------------------------------


class Met(NamedTuple):
    """Of each chunk, or of each of its columns."""

    total: Array
    squares: Array
    low: Array
    high: Array
    count: Array
    zeros: Array
    nonfinite: Array
    pivot: Array
    exponent: Array


class Chunks(NamedTuple):
    """[chunks, steps, lanes] of widened values; the last step may be one of the first lanes only."""

    x: Array
    some: Array  # which of them are there
    steps: int  # of all lanes
    by_column: bool

    def met(self, short: bool, scale: Array | None = None, pivot: Array | None = None) -> Met:
        x, some = self.x, self.some
        finite = some if scale is None else some & np.isfinite(x)
        lanes = Sums.none(x[:, 0])
        ends = [*range(SHORT, self.steps, SHORT), self.steps, x.shape[1]]
        done = 0
        for end in ends:
            run = Sums.none(x[:, 0])
            for step in range(done, end):
                v = x[:, step]
                if scale is None:
                    new = run.add_short(v) if short else run.add(v, None)
                else:
                    assert pivot is not None
                    v = np.where(finite[:, step], v * scale, pivot)
                    d, low = (v - pivot, v) if v.dtype == np.float64 else two_sum(v, -pivot)
                    new = run.add(d, low)
                run = Sums(*(np.where(some[:, step], a, b) for a, b in zip(new, run)))
            lanes = lanes.merge(run) if done < end else lanes
            done = end
        wide = [lane.astype(np.float64) for lane in lanes]
        fields = [
            wide[0] + wide[1],
            wide[2] + wide[3],
            np.fmin.reduce(np.where(finite, x, np.inf), 1),
            np.fmax.reduce(np.where(finite, x, -np.inf), 1),
            finite.sum(1),
            (finite & (x == 0)).sum(1),
            (some & ~finite).sum(1),
        ]
        if not self.by_column:
            width = LANES // 2
            while width:
                for i, join in enumerate((np.add, np.add, np.fmin, np.fmax, *[np.add] * 3)):
                    fields[i] = join(fields[i][:, :width], fields[i][:, width:])
                width //= 2
        nothing = np.zeros(fields[0].shape)
        exponent = nothing.astype(np.int64)
        return Met(*fields, nothing, exponent)


def told(met: Met, least: float, most: float, left: float) -> Array:
    largest = np.maximum(met.high, -met.low)
    size = np.where(met.exponent != 0, 1, largest)
    within = (size >= least) & (size <= most)
    enough = met.total * met.total <= (1 - left) * (met.count * met.squares)
    right = np.isfinite(met.total) & np.isfinite(met.squares)
    known = (met.low == met.high) | (largest <= 0)
    return right & (known | (within & ((met.pivot != 0) | enough)))


def exponents(largest: Array) -> Array:
    limit = 126 if largest.dtype == np.float32 else 1000
    some = (largest > 0) & np.isfinite(largest)
    exponent = np.frexp(np.where(some, largest, 1))[1].astype(np.int64) - 1
    return np.where(some, np.clip(exponent, -limit, limit), 0)


FIRST = {
    torch.float32: (2.0**-40, np.inf, 2.0**-4),
    torch.float16: (2.0**-48, 2.0**58, 2.0**-2),
    torch.bfloat16: (2.0**-48, 2.0**58, 2.0**-7),
    torch.float64: (2.0**-400, 2.0**400, 2.0**-7),
}


def measured(chunks: Chunks, dtype: torch.dtype) -> Array:
    """Raw moments [chunks, 7], or [chunks, columns, 7]."""
    met = chunks.met(dtype.itemsize == 2)
    again = np.ones(met.total.shape, bool)
    for look in range(LOOKS):
        trust = FIRST[torch.float32 if look and dtype.itemsize < 8 else dtype]
        again = again & ~told(met, *trust)  # what has told is not looked at again
        if not again.any():
            break
        exponent = exponents(np.maximum(met.high, -met.low))
        mean = np.where(met.count > 0, met.total / np.maximum(met.count, 1) + met.pivot, 0)
        pivot = (mean * 2.0 ** (met.exponent - exponent)).astype(chunks.x.dtype)
        pivot = np.where(np.isfinite(pivot), pivot, 0)
        scale = (2.0**-exponent).astype(chunks.x.dtype)
        new = chunks.met(False, scale, pivot)
        new = new._replace(pivot=pivot.astype(np.float64), exponent=exponent)
        met = Met(*(np.where(again, a, b) for a, b in zip(new, met)))
    raw = np.zeros((*met.total.shape, FIELDS))
    back = 2.0**met.exponent
    mean = met.total / np.maximum(met.count, 1)
    m2 = met.squares - met.total * mean
    low, high = met.low.astype(np.float64) + 0.0, met.high.astype(np.float64) + 0.0
    constant, there = low == high, met.count > 0
    raw[..., COUNT], raw[..., ZEROS], raw[..., NONFINITE] = met.count, met.zeros, met.nonfinite
    raw[..., MEAN] = np.where(there, np.where(constant, low, (met.pivot + mean) * back), 0)
    raw[..., M2] = np.where(there & ~constant & (m2 > 0), m2 * back * back, 0)
    raw[..., MIN], raw[..., MAX] = np.where(there, low, np.inf), np.where(there, high, -np.inf)
    return raw if chunks.by_column else raw[:, 0]


# --- tensors ---------------------------------------------------------------------------------------


def tree(parts: Tensor) -> Tensor:
    """Merged pairwise, in their order."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        pairs = reference_moments.merged(parts[:even:2], parts[1:even:2])
        parts = torch.cat((pairs, parts[even:]))
    return parts[0]


def raw_moments(values: Tensor, by_column: bool) -> Tensor:
    """Of a tensor's values in the order in which they are read, or of its last dimension's columns."""
    x = values.reshape(-1, values.shape[-1]) if by_column else values.reshape(-1)
    columns = x.shape[-1] if by_column else 1
    wide = reference_moments.widened(x)
    wide = wide if x.dtype == torch.float64 else wide.float()
    unit = ROWS if by_column else CHUNK
    parts = []
    full = len(x) // unit * unit
    with np.errstate(all="ignore"):
        if full:
            shape = (-1, ROWS, columns if by_column else LANES)
            of = wide[:full].numpy().reshape(shape)
            parts.append(measured(Chunks(of, np.ones_like(of, bool), ROWS, by_column), x.dtype))
        if full < len(x):
            rest = wide[full:].numpy()
            steps = len(rest) // (1 if by_column else LANES)
            if by_column:
                of, some = rest[None], np.ones_like(rest[None], bool)
            else:
                padded = np.zeros(-(-len(rest) // LANES) * LANES, rest.dtype)
                padded[: len(rest)] = rest
                of = padded.reshape(1, -1, LANES)
                some = (np.arange(len(padded)) < len(rest)).reshape(of.shape)
            parts.append(measured(Chunks(of, some, steps, by_column), x.dtype))
    if parts:
        return tree(torch.from_numpy(np.concatenate(parts)))
    nothing = torch.tensor([0.0, 0, 0, np.inf, -np.inf, 0, 0], dtype=torch.float64)
    return nothing.expand(columns, -1) if by_column else nothing


def of_reading(reading: Reading) -> Tensor:
    """What the GPU writes to ``reading.raw``."""
    tensor = reading.tensor.as_strided(reading.shape, reading.strides)
    return raw_moments(tensor, reading.by_column)


def near(got: Tensor, expected: Tensor) -> bool:
    """Whether raw moments are equal to TOLERANCE, and what is counted or compared exactly."""
    exact = [COUNT, MIN, MAX, ZEROS, NONFINITE]
    n = expected[..., COUNT].clamp(min=1)
    root = (expected[..., M2] / n).sqrt()
    rms = torch.hypot(root, expected[..., MEAN])
    denormal = 2.0**-1072  # of which a few are as near as there is
    mean = (got[..., MEAN] - expected[..., MEAN]).abs() <= TOLERANCE * rms + denormal
    m2 = (got[..., M2] - expected[..., M2]).abs() <= TOLERANCE * rms * rms * n + denormal
    same = got.eq(expected)  # also of what overflows
    near_ = (mean | same[..., MEAN]) & (m2 | same[..., M2])
    return bool(got[..., exact].equal(expected[..., exact]) and near_.all())


def higher_near(got: Tensor, expected: Tensor) -> bool:
    """Whether [..., 11] are equal to 1e-12 of the sums of absolute powers, and LEAST exactly.

    Pairs of float32 have 48 bits, of which up to 1024 sums, the mean and M2 lose some. The sum of
    absolute cubes is at most the root of M2 times M4.
    """
    cubes = (expected[..., M2] * expected[..., M4]).sqrt()
    sizes = {SIZES: expected[..., SIZES], M3: cubes, M4: expected[..., M4]}
    close = [
        ((got[..., field] - expected[..., field]).abs() <= 1e-12 * size)
        | got[..., field].eq(expected[..., field])  # also of what overflows
        for field, size in sizes.items()
    ]
    return all(bool(c.all()) for c in close) and got[..., LEAST].equal(expected[..., LEAST])
