"""Planning: which files a checkpoint will be, to the byte, and what of them is there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from fastinit.base import text
from fastinit.base.ranks import Group
from fastinit.base.text import listing
from fastinit.checkpoint.entries import stored_tensors
from fastinit.checkpoint.fingerprint import fingerprint
from fastinit.checkpoint.layers import Layers
from fastinit.checkpoint.many import Ranks, agreed
from fastinit.checkpoint.quantised import Asked, Dtype, quantised
from fastinit.checkpoint.ranges import Ranges
from fastinit.checkpoint.safetensors import IS_SHARD, Shard, index, shards
from fastinit.checkpoint.shard_bytes import Done, first_wrong
from fastinit.checkpoint.sources import sources
from fastinit.plan.fit import Parts
from fastinit.plan.names import unwrapped
from fastinit.plan.plan import Plan
from fastinit.stream.keys import STREAM_VERSION

SHARD_SIZE = "5GB"

# What a shard says of how it was made.
_SEED, _DTYPES, _STREAM = "fastinit.seed", "fastinit.dtypes", "fastinit.stream_version"
_PLAN = "fastinit.plan"


@dataclass(frozen=True)
class Layout:
    """What a checkpoint will be: its files, to the byte.

    Args:
        shards: in order.
        seed: of the numbers.
        quantization: what ``config.json`` says of weights in 8 bits or fewer, if there are any.
    """

    shards: tuple[Shard, ...]
    seed: int
    quantization: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return (
            f"Layout({text.counted('shard', len(self.shards))}, {self.elements:,} elements, "
            f"{self.size:,} bytes, seed={self.seed})"
        )

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.values for shard in self.shards for tensor in shard.tensors)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def index(self) -> str | None:
        """The index, if there are several shards."""
        return index(self.shards) if len(self.shards) > 1 else None


def layout(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    shard_size: int | str = SHARD_SIZE,
    dtype: Dtype | None = None,
    parts: Parts | None = None,
    group: Group = None,
    no_dist: bool = False,
) -> Layout:
    """The files that :func:`write` would write, which see for arguments and exceptions."""
    those = Ranks.of(group, no_dist)
    with those.together("checkpoint.layout"):
        return planned_by(those, model, plan, shard_size, dtype, parts)


def planned_by(
    those: Ranks,
    model: nn.Module,
    plan: Plan | None,
    shard_size: int | str,
    dtype: Dtype | None,
    parts: Parts | None,
) -> Layout:
    """:func:`layout` of some ranks, which are together."""
    model, asked = unwrapped(model), Asked.of(dtype)
    own, seed = sources(model, plan, asked.dtype, parts)
    all_sources, digests = agreed(own, seed, those)
    held = {source.name for source in all_sources.values()}
    if nowhere := [name for name in plan or () if name not in held]:
        raise ValueError(f"the plan does not fit: no rank has {listing('parameter', nowhere)}")
    stored = stored_tensors(model, all_sources)
    own_layers = Layers.of(model, parts) if asked.is_quantised else Layers([], [], [], [])
    layers = Layers.together(those.told(own_layers, "a checkpoint: its layers"))
    tensors, config = quantised(layers, all_sources, stored, asked)
    metadata = {
        "format": "pt",
        _STREAM: str(STREAM_VERSION),
        _SEED: str(seed),
        _DTYPES: " ".join(sorted({str(t.source.dtype).removeprefix("torch.") for t in tensors})),
        _PLAN: fingerprint(stored, tensors, seed, digests),
    }
    found = Layout(tuple(shards(tensors, shard_size, metadata)), seed, config)
    headers = blake2b(b"".join(shard.header for shard in found.shards), digest_size=16)
    if len({*those.told(headers.hexdigest(), "a checkpoint: its files")}) > 1:
        raise ValueError(
            "ranks differ in the files of the checkpoint: shard_size= or the model's class"
        )
    return found


def existing(folder: Path, planned: Layout) -> tuple[list[str], dict[str, str]]:
    """(names of shards that are whole, those of others and what is wrong with them)."""
    expected = {shard.file: shard for shard in planned.shards}
    kept: list[str] = []
    others: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if not IS_SHARD.fullmatch(path.name):
            continue
        shard = expected.get(path.name)
        if shard is not None and is_whole(path, shard):
            kept.append(path.name)
        else:
            others[path.name] = f"{path} {_difference(path, planned)}"
    return kept, others


def damaged(folder: Path, shards: Sequence[Shard], seed: int, done: Done) -> dict[str, str]:
    """Files that are not what would be written, with the tensor of the first byte that is wrong."""
    ranges = Ranges(seed)
    found = {}
    for shard in shards:
        path = folder / shard.file
        wrong = first_wrong(path, shard, ranges, done)
        if wrong is not None:
            within = next((t.name for t, *_ in shard.within(wrong, wrong + 1)), "its header")
            found[shard.file] = f"{path} is damaged in {within}, at byte {wrong:,}"
    return found


def is_whole(path: Path, shard: Shard) -> bool:
    with open(path, "rb") as file:
        return path.stat().st_size == shard.size and file.read(len(shard.header)) == shard.header


def _difference(path: Path, planned: Layout) -> str:
    """What another shard was written with."""
    found = _metadata(path)
    wanted = json.loads(planned.shards[0].header[8:])["__metadata__"]
    if _SEED not in found:
        return "was not written by fastinit"
    for key in (_SEED, _DTYPES, _STREAM):
        if found.get(key) != wanted[key]:
            what = key.removeprefix("fastinit.").replace("_", " ")
            return f"was written with {what} {found.get(key)}, not {wanted[key]}"
    if found.get(_PLAN) != wanted[_PLAN]:
        return "was written with another plan or of another model"
    return "was written with another shard size, or is damaged"


def _metadata(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length < 100_000_000:  # the format's own limit
            return dict(json.loads(file.read(length))["__metadata__"])
    return {}
