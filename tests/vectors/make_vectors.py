"""Makes stream.csv: known answers of the number stream, version 1, from the reference.

The file is frozen: a change of any bit is a new version of the stream, with a file of its own. So
this program is run by hand, once for each version, and no test runs it:

    python tests/vectors/make_vectors.py > tests/vectors/stream.csv

One line a case: law, parameters, dtype, seed, stream, index of the first element, and the values of
16 elements from there on as the hexadecimal bits of the dtype. Parameters are hexadecimal floats.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator

import torch

from fastinit.stream import laws, reference
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law

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
HEX_DIGITS = {torch.float32: 8, torch.float16: 4, torch.bfloat16: 4, torch.float64: 16}
INTEGERS = {4: torch.int16, 8: torch.int32, 16: torch.int64}


def cases() -> Iterator[tuple[Law, torch.dtype, int, int, int]]:
    for law in LAWS:
        for seed in SEEDS:
            for stream in STREAMS:
                for start in STARTS:
                    yield law, torch.float32, seed, stream, start
    for dtype in laws.DTYPES[1:]:
        for law in LAWS:
            for seed, stream in KEYS_OF_EVERY_DTYPE:
                yield law, dtype, seed, stream, STARTS[-1]


def main() -> None:
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("law", "parameters", "dtype", "seed", "stream", "start", "bits"))
    for law, dtype, seed, stream, start in cases():
        index = torch.arange(start, start + COUNT)
        params = laws.kernel_params(law, dtype)
        values = reference.values(law.kind, params, seed, stream, index).to(dtype)
        digits = HEX_DIGITS[dtype]
        words = [w & (1 << 4 * digits) - 1 for w in values.view(INTEGERS[digits]).tolist()]
        parameters = " ".join(p.hex() for p in law.parameters.values())
        bits = " ".join(f"{w:0{digits}x}" for w in words)
        name = str(dtype).removeprefix("torch.")
        lines.writerow((law.name, parameters, name, f"{seed:x}", f"{stream:x}", start, bits))


if __name__ == "__main__":
    main()
