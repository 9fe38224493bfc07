"""What programs around the kernels are given, and what is right: windows to fill, tensors to measure.

tests/cpp/cuda_kernels.cpp and tests/cpp/cpu_kernels.cpp read them: without Python, a kernel runs under
sanitizers and on emulated machines.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from same_bits import bits, drawn, sentinel
from same_bits import reference as by_reference
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.backends.contract import Reading
from fastinit.fills.operator import Window
from fastinit.statistics.reading import readings_of
from fastinit.stream import laws, reference
from fastinit.stream.laws import Law
from fastinit.stream.reference_moments import FIELDS

VECTORS = Path(__file__).parent / "vectors"
TILE = 4096
KINDS: dict[str, tuple[int, Callable[[Tensor], Tensor], Window | None]] = {
    "whole tiles": (2 * TILE, lambda t: t, None),
    "a carry between tiles": (2 * TILE, lambda t: t, Window((1,), (1 << 34) - TILE)),
    "tiles with both ends": (TILE + 26, lambda t: t[5:], Window((1,), (1 << 32) + 9)),
    "odd start and length": (1490, lambda t: t[3:], None),
    "across a carry": (333, lambda t: t[1:], Window((1,), (1 << 34) - 150)),
    "far": (303, lambda t: t, Window((1,), (1 << 62) - 1001)),
    "every third element": (600, lambda t: t[1::3], None),
    "transposed": (31 * 23, lambda t: t.view(31, 23).t(), None),
    "columns of a shard": (12 * 84, lambda t: t.view(12, 84), Window((133, 1), 17)),
    "misaligned rows": (9 * 61, lambda t: t.view(9, 61)[:, 3:58], None),
    "aligned rows": (8 * 64, lambda t: t.view(8, 64)[:, 8:56], Window((64, 1), 8)),
    "a block of three dimensions": (7 * 9 * 11, lambda t: t.view(7, 9, 11)[1:6, 2:8, 3:9], None),
    "rows 2^33 apart": (5 * 40, lambda t: t.view(5, 40), Window((1 << 33, 1), 1 << 39)),
    "no neighbours": (6 * 50, lambda t: t.view(6, 50), Window((7, 1 << 34), 5)),
    "one element": (3, lambda t: t[1], None),
}
LAWS = (
    laws.uniform(-0.1, 0.3),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(0.1, 1.0, -math.inf, 9.0),
    laws.constant(0.1),
    laws.constant(math.nan),
)
SEED, STREAM = 0x9E37_79B9_7F4A_7C15, 0xF00D_0123_4567_89AB

# Request and Window as C++ lays them out.
REQUEST = np.dtype(
    [
        ("bytes", "u8"),
        ("data", "u8"),
        ("law", "i4"),
        ("dtype", "i4"),
        ("params", "f4", 10),
        *((name, "u8") for name in ("seed", "stream", "offset")),
        ("dims", "i4"),
        *((name, "i8", 8) for name in ("size", "local", "global")),
    ],
    align=True,
)


class Work(NamedTuple):
    """What a program is given, and what it has to give back."""

    given: bytes
    expected: bytes
    data: bytes = b""
    higher: Tensor = torch.empty(0)  # of moments, all fields as the reference has them


def fill_request(
    base: Tensor, tensor: Tensor, law: Law, seed: int, stream: int, window: Window | None = None
) -> bytes:
    """``tensor`` is a view of ``base``, which is all of the buffer."""
    strides, offset = window or Window(torch.empty(tensor.shape).stride())
    request = np.zeros((), REQUEST)
    request["bytes"] = base.nbytes
    request["data"] = tensor.storage_offset() * tensor.itemsize
    request["law"], request["dtype"] = law.kind, laws.WRITTEN.index(tensor.dtype)
    request["params"] = laws.kernel_params(law, tensor.dtype)
    request["seed"], request["stream"], request["offset"] = seed, stream, offset
    request["dims"] = tensor.dim()
    for name, values in ("size", tensor.shape), ("local", tensor.stride()), ("global", strides):
        request[name][: tensor.dim()] = values
    return request.tobytes()


def fills(kinds: tuple[str, ...], some: tuple[Law, ...], dtypes: tuple[torch.dtype, ...]) -> Work:
    """Windows of each kind, by the reference."""
    requests, expected = b"", b""
    for law, dtype, kind in ((w, d, k) for w in some for d in dtypes for k in kinds):
        numel, view, window = KINDS[kind]
        base = sentinel(numel, dtype)
        tensor = view(base)
        requests += fill_request(base, tensor, law, SEED, STREAM, window)
        strides, offset = window or Window(torch.empty(tensor.shape).stride())
        params = laws.kernel_params(law, dtype)
        with by_reference():
            reference.fill(tensor, law.kind, params, SEED, STREAM, strides, offset)
        expected += bits(base).numpy().tobytes()
    return Work(requests, expected)


READ = np.dtype(
    [
        *((name, "u8") for name in ("bytes", "data")),
        ("dtype", "i4"),
        ("by_column", "?"),
        ("dims", "i4"),
        *((name, "i8", 8) for name in ("size", "stride")),
    ],
    align=True,
)


def tensors(dtype: torch.dtype) -> Iterator[tuple[Tensor, int | None]]:
    """What is measured, and the dimension of its channels."""
    x = drawn(9_000, 2, seed=0, reach=12).add_(0.5).to(dtype)
    broken = x[:3000].clone()
    broken[17, 1] = math.nan
    columns = drawn(600, 35, seed=1).to(dtype)
    columns[3, 4], columns[:, 5] = math.inf, 1e4
    yield from ((x, None), (x[:0], None), (torch.zeros(77, dtype=dtype), None), (broken, None))
    yield from ((x[::3, :1], None), ((x[:2000] + 3000).contiguous(), None))
    yield from ((columns, 1), (columns[:7, 1:4], 1), (x[:50].t(), 0))


def asked(readings: Sequence[Reading]) -> tuple[bytes, bytes]:
    """Requests, and what they read."""
    requests, data = b"", b""
    for reading in readings:
        tensor, request = reading.tensor, np.zeros((), READ)
        storage = tensor.untyped_storage()
        request["bytes"] = storage.nbytes()
        request["data"] = tensor.storage_offset() * tensor.itemsize
        request["dtype"] = laws.WRITTEN.index(tensor.dtype)
        request["by_column"], request["dims"] = reading.by_column, len(reading.shape)
        for name, values in ("size", reading.shape), ("stride", reading.strides):
            request[name][: len(values)] = values
        requests += request.tobytes()
        data += torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
    return requests, data


def readings(
    dtypes: tuple[torch.dtype, ...], large: bool = False, few: bool = False
) -> tuple[Work, list[Reading]]:
    """Tensors, whole and by column; large ones are several tasks. What is right is another's to say."""
    all_: list[Reading] = []
    for dtype in dtypes:
        cases = list(tensors(dtype))
        if few:
            cases = [cases[0], cases[7]]
        if large:
            cases += [(drawn(270_000, seed=2).to(dtype), None)]
            cases += [(drawn(8_300, 3, seed=3).to(dtype), 1)]
        for tensor, dim in cases:
            channels = () if dim is None else (tensor.shape[dim],)
            raw = torch.empty(*channels, FIELDS, dtype=torch.float64)
            all_.extend(readings_of(tensor, dim, raw, []))
    requests, data = asked(all_)
    return Work(requests, b"", data), all_


def known_answers() -> Iterator[tuple[bytes, bytes]]:
    """Requests, and the bytes that tests/vectors has."""
    for name in ("stream.csv", "float8.csv"):
        with (VECTORS / name).open(newline="") as file:
            for line in csv.DictReader(file):
                law = Law(laws.CODES[line["law"]], *map(float.fromhex, line["parameters"].split()))
                words = line["bits"].split()
                tensor = torch.empty(len(words), dtype=getattr(torch, line["dtype"]))
                seed, stream = int(line["seed"], 16), int(line["stream"], 16)
                window = Window((1,), int(line["start"]))
                answer = b"".join(bytes.fromhex(word)[::-1] for word in words)
                yield fill_request(tensor, tensor, law, seed, stream, window), answer


def measured(asked: Sequence[Reading], fields: int) -> bytes:
    """This machine's answers to readings, of the first FIELDS or of all."""
    answer = b""
    for reading in asked:
        raw = torch.empty(*reading.raw.shape[:-1], fields, dtype=torch.float64)
        backends.native.moments_many([reading._replace(raw=raw)])
        answer += raw.numpy().tobytes()
    return answer
