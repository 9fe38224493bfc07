"""Makes the tables beside it: known answers of the number stream, version 1, from the reference.

The files are frozen: a change of any bit is a new version of the stream, with files of its own. So
this program is run by hand, once for each version, and no test runs it:

    python tests/vectors/make_vectors.py > tests/vectors/stream.csv
    python tests/vectors/make_vectors.py float8 > tests/vectors/float8.csv
    python tests/vectors/make_vectors.py float8_scaled > tests/vectors/float8_scaled.csv
    python tests/vectors/make_vectors.py blocks > tests/vectors/blocks.csv
    python tests/vectors/make_vectors.py exact > tests/vectors/exact.csv

One line a case: law, parameters, dtype, seed, stream, index of the first element, and the values of
16 elements from there on as the hexadecimal bits of the dtype. Parameters are hexadecimal floats, as is
the scale that values are divided by. Of block formats these are two blocks: the bytes of their packed
values and of their scales, and the scale of the tensor.
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import torch

from fastinit.stream import blocks, exact, laws, reference
from fastinit.stream.formats import FORMATS
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8, float32, rounded

COUNT = 16
LAWS = (
    laws.uniform(),
    laws.uniform(-0.1, 0.3),
    laws.normal(),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(),
    laws.truncated_normal(std=0.02),
    laws.truncated_normal(a=0.5, b=math.inf),
    laws.truncated_normal(a=-math.inf, b=1.5),
    laws.truncated_normal(a=3.0, b=9.0),
    laws.truncated_normal(0.25, 2.0, -0.5, 0.75),
)
SEEDS = (0, 1, 0x243F_6A88_85A3_08D3, 2**64 - 1)
STREAMS = (0, stream_id("weight"), 2**64 - 1)
# From the start, across 2^32 elements, and across 2^34, where the low word of the block carries.
STARTS = (0, 2**32 - 7, 2**34 - 9)
KEYS_OF_EVERY_DTYPE = ((0, 0), (0x243F_6A88_85A3_08D3, stream_id("weight")))
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cases() -> Iterator[tuple[Law, torch.dtype, int, int, int]]:
    for law in LAWS:
        for seed in SEEDS:
            for stream in STREAMS:
                for start in STARTS:
                    yield law, torch.float32, seed, stream, start
    yield from of_dtypes(laws.DTYPES[1:])


def of_dtypes(
    dtypes: Sequence[torch.dtype],
) -> Iterator[tuple[Law, torch.dtype, int, int, int]]:
    for dtype in dtypes:
        for law in LAWS:
            for seed, stream in KEYS_OF_EVERY_DTYPE:
                yield law, dtype, seed, stream, STARTS[-1]


def scaled() -> Iterator[tuple[Law, torch.dtype, int, int, int]]:
    """A scale for each key: any number, and a power of two."""
    for case, scale in zip(of_dtypes(FLOAT8), itertools.cycle((float32(0.3), 2.0**-5))):
        yield (laws.scaled(case[0], scale), *case[1:])


def of_blocks() -> Iterator[tuple[object, ...]]:
    seed, stream = KEYS_OF_EVERY_DTYPE[1]
    yield "law", "parameters", "format", "seed", "stream", "start", "data", "scale", "tensor_scale"
    for name in blocks.ELEMENTS:
        size, start = FORMATS[name].block, 2**34 - FORMATS[name].block
        for law in LAWS:
            whole = blocks.tensor_scale_of(law) if name == "nvfp4" else 1.0
            params = laws.kernel_params(law, torch.float32)
            index = torch.arange(start, start + 2 * size).view(2, size)
            values = reference.values(law.kind, params, seed, stream, index)
            data, scale = (t.numpy().tobytes().hex() for t in blocks.quantised(values, name, whole))
            parameters = " ".join(p.hex() for p in law.parameters.values())
            key = f"{seed:x}", f"{stream:x}", start
            yield (
                law.name,
                parameters,
                name,
                *key,
                data,
                scale,
                whole.hex() if name == "nvfp4" else "",
            )


def exact_ones() -> Iterator[tuple[Law, torch.dtype, int, int, int]]:
    for law in LAWS:
        for seed, stream in KEYS_OF_EVERY_DTYPE:
            for start in STARTS:
                yield laws.exactly(law, True), torch.float64, seed, stream, start


def main() -> None:
    lines = csv.writer(sys.stdout, lineterminator="\n")
    made = sys.argv[1:]
    if made == ["blocks"]:
        lines.writerows(of_blocks())
        return
    columns = ["law", "parameters", "dtype", "seed", "stream", "start", "bits"]
    lines.writerow(columns + ["scale"] * (made == ["float8_scaled"]))
    tables = {"float8": lambda: of_dtypes(FLOAT8), "float8_scaled": scaled, "exact": exact_ones}
    asked = tables[made[0]]() if made else cases()
    for law, dtype, seed, stream, start in asked:
        index = torch.arange(start, start + COUNT)
        params = laws.kernel_params(law, dtype)
        make = exact.values if law.exact else reference.values
        values = make(law.kind, params, seed, stream, index)
        digits, held = 2 * dtype.itemsize, rounded(values, dtype)
        words = [w & (1 << 4 * digits) - 1 for w in held.view(INTEGERS[dtype.itemsize]).tolist()]
        parameters = " ".join(p.hex() for p in law.parameters.values())
        bits = " ".join(f"{w:0{digits}x}" for w in words)
        name = str(dtype).removeprefix("torch.")
        line = [law.name, parameters, name, f"{seed:x}", f"{stream:x}", start, bits]
        lines.writerow(line + [law.scale.hex()] * (law.scale != 1.0))


if __name__ == "__main__":
    main()
