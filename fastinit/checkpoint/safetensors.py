"""Checkpoint files: those of a safetensors checkpoint, known to the byte before any is written.

A file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces), and
the tensors' bytes without gaps (github.com/huggingface/safetensors). Several files have an index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from fastinit.base import text
from fastinit.base.text import listing
from fastinit.base.text import parse_size as parse_size
from fastinit.checkpoint.entries import Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
IS_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
FILES = re.compile(rf"{IS_SHARD.pattern}|{re.escape(INDEX)}|(generation_)?config\.json")
"""What is written into a directory, or removed from it."""

_ABOUT = "__metadata__"  # in the header, beside the tensors

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Shard(NamedTuple):
    """One file: its header, then tensors one after the other."""

    file: str
    header: bytes
    tensors: tuple[Stored, ...]

    def __repr__(self) -> str:
        tensors = text.counted("tensor", len(self.tensors))
        return f"Shard({self.file!r}, {tensors}, {self.size:,} bytes)"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_apart(self) -> bool:
        """Whether it takes several ranks to write it."""
        return any(tensor.source.is_apart for tensor in self.tensors)

    def within(self, start: int, stop: int) -> Iterator[tuple[Stored, int, int, int]]:
        """(tensor, first element, one past the last, where that byte is) of a range of its bytes."""
        begin = len(self.header)
        for tensor in self.tensors:
            low, high = max(start, begin), min(stop, begin + tensor.nbytes)
            if low < high:
                each = tensor.source.dtype.itemsize
                yield tensor, (low - begin) // each, (high - begin) // each, low
            begin += tensor.nbytes


def shards(
    tensors: Sequence[Stored], shard_size: int | str, metadata: Mapping[str, str]
) -> list[Shard]:
    """The files that hold the tensors, in their order, as ``save_pretrained`` cuts them.

    Args:
        shard_size: the most bytes of tensors in a file, unless one alone has more.
        metadata: of every file.

    Raises:
        NumberTypeError, NumberRangeError: a size that is none, or less than a byte.
        ValueError: a dtype that the format has no name for, or a name that it has for itself.
    """
    strange = [tensor.name for tensor in tensors if tensor.source.dtype not in _DTYPES]
    if strange:
        raise ValueError(f"safetensors has no dtype for {listing('tensor', strange)}")
    if any(tensor.name == _ABOUT for tensor in tensors):
        raise ValueError(f"safetensors has no tensors of the name {_ABOUT}")
    limit = parse_size(shard_size)
    files: list[list[Stored]] = [[]]
    held = 0
    for tensor in tensors:
        if files[-1] and held + tensor.nbytes > limit:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += tensor.nbytes
    if len(files) == 1:
        return [_shard(SINGLE, files[0], metadata)]
    return [
        _shard(f"model-{i:05}-of-{len(files):05}.safetensors", some, metadata)
        for i, some in enumerate(files, 1)
    ]


def index(files: Sequence[Shard]) -> str:
    """The index of several files."""
    tensors = [(tensor, shard.file) for shard in files for tensor in shard.tensors]
    document = {
        "metadata": {
            "total_parameters": sum(tensor.values for tensor, _ in tensors),
            "total_size": sum(tensor.nbytes for tensor, _ in tensors),
        },
        "weight_map": {tensor.name: file for tensor, file in tensors},
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _shard(file: str, tensors: Sequence[Stored], metadata: Mapping[str, str]) -> Shard:
    # Larger elements first, so that all lie at multiples of their size.
    ordered = sorted(tensors, key=lambda tensor: -tensor.source.dtype.itemsize)
    fields: dict[str, object] = {_ABOUT: dict(metadata)}
    begin = 0
    for tensor in ordered:
        fields[tensor.name] = {
            "dtype": _DTYPES[tensor.source.dtype],
            "shape": tensor.which.sizes,
            "data_offsets": (begin, begin + tensor.nbytes),
        }
        begin += tensor.nbytes
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return Shard(file, len(header).to_bytes(8, "little") + header, tuple(ordered))
