"""Block formats: what are no blocks, and what is refused before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks_specified import LAW, u8

import fastinit
from fastinit import Blocks, Part, init
from fastinit.fills.operator import Window, fill_

NOT_BLOCKS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "format": (lambda: Blocks.empty((2, 32), "fp4"), ValueError, "format must be one of mxfp8"),
    "counted only": (lambda: Blocks.empty((2, 32), "mxfp6_e2m3"), ValueError, "format must be"),
    "no shape": (lambda: Blocks.empty(32, "mxfp4"), TypeError, "shape must be"),  # type: ignore[arg-type]
    "no text": (lambda: Blocks.empty((2, 32), 4), TypeError, "format must be a str"),  # type: ignore[arg-type]
    "no tensor": (lambda: Blocks(None, u8(2, 1), "mxfp4"), TypeError, "data must be a torch"),  # type: ignore[arg-type]
    "not divisible": (lambda: Blocks.empty((2, 48), "mxfp4"), ValueError, "whole blocks of 32"),
    "0-d": (lambda: Blocks.empty((), "nvfp4"), ValueError, "whole blocks of 16"),
    "shapes": (lambda: Blocks(u8(2, 32), u8(2, 1), "mxfp4"), ValueError, r"\[\.\.\., 16 n\]"),
    "ragged": (lambda: Blocks(u8(2, 40), u8(2, 1), "mxfp8"), ValueError, r"\[\.\.\., 32 n\]"),
    "complex": (
        lambda: Blocks(torch.zeros(2, 16, dtype=torch.complex64), u8(2, 1), "mxfp4"),
        ValueError,
        "data must be torch.uint8 or .*complex64",
    ),
    "elements": (
        lambda: Blocks(u8(2, 32).view(torch.float8_e5m2), u8(2, 1), "mxfp8"),
        ValueError,
        "data must be torch.float8_e4m3fn or torch.uint8, but got",
    ),
    "scales": (
        lambda: Blocks(u8(2, 16), torch.zeros(2, 1), "mxfp4"),
        ValueError,
        "scale must be torch.float8_e8m0fnu or torch.uint8, but got torch.float32",
    ),
    "devices": (
        lambda: Blocks(u8(2, 16), u8(2, 1).to("meta"), "mxfp4"),
        ValueError,
        "on one device",
    ),
    "no tensor_scale": (
        lambda: Blocks(u8(2, 8), u8(2, 1), "nvfp4"),
        TypeError,
        "tensor_scale must",
    ),
    "its tensor_scale": (
        lambda: Blocks(u8(2, 16), u8(2, 1), "mxfp4", torch.ones(())),
        ValueError,
        "tensor_scale is for nvfp4",
    ),
    "its fixed_scale": (
        lambda: Blocks.empty((2, 32), "mxfp8", fixed_scale=1.0),
        ValueError,
        "fixed_scale is for nvfp4",
    ),
    "tensor_scale in bfloat16": (
        lambda: Blocks(u8(2, 8), u8(2, 1), "nvfp4", torch.ones((), dtype=torch.bfloat16)),
        ValueError,
        "tensor_scale must be float32 of one",
    ),
}


@pytest.mark.parametrize("name", NOT_BLOCKS)
def test_what_are_no_blocks(name: str) -> None:
    make, error, message = NOT_BLOCKS[name]
    with pytest.raises(error, match=message):
        make()


def strided(step: int) -> Blocks:
    return Blocks(u8(4, 32 * step)[:, ::step], u8(4, 1), "mxfp8")


NOT_WRITTEN: dict[str, tuple[Callable[[], Blocks], dict[str, Any], type[Exception], str]] = {
    "within a block": (lambda: strided(2), {}, ValueError, "last dimension of stride 1"),
    "overlapping": (
        lambda: Blocks(u8(1, 32).expand(4, 32), u8(4, 1), "mxfp8"),
        {},
        RuntimeError,
        r"tensor\.data has elements that share memory",
    ),
    "overlapping scales": (
        lambda: Blocks(u8(4, 32), u8(1, 1).expand(4, 1), "mxfp8"),
        {},
        RuntimeError,
        r"tensor\.scale has elements that share memory",
    ),
    "part of half a block": (
        lambda: Blocks.empty((4, 32), "mxfp8"),
        {"part": Part((4, 64), (((0, 4),), ((16, 32),)))},
        ValueError,
        "whole blocks of 32",
    ),
    "part of another shape": (
        lambda: Blocks.empty((4, 32), "mxfp8"),
        {"part": Part((8, 64))},
        ValueError,
        "its part of",
    ),
    "part of a parameter without blocks": (
        lambda: Blocks.empty((4, 32), "mxfp8"),
        {"part": Part((4, 40), (((0, 4),), ((0, 32),)))},
        ValueError,
        "whole blocks of 32",
    ),
    "float8's scale": (lambda: strided(1), {"scale": 2.0}, ValueError, "scale is for"),
    "a bad std": (lambda: strided(1), {"std": math.nan}, ValueError, "std"),
    "two keys": (
        lambda: strided(1),
        {"generator": torch.Generator()},
        ValueError,
        "exclude each other",
    ),
    "a bad seed": (lambda: strided(1), {"seed": -1}, ValueError, "seed"),
    "of one memory": (
        lambda: Blocks((held := u8(4, 32)), held[:, 31:], "mxfp8"),
        {},
        RuntimeError,
        r"tensor\.data and tensor\.scale share memory",
    ),
    "exact": (lambda: strided(1), {"exact": True}, ValueError, "but tensor is mxfp8"),
    "beyond float32": (lambda: strided(1), {"std": 3e38}, ValueError, "finite values to be stored"),
    "out of the scale's range": (
        lambda: Blocks.empty((4, 32), "nvfp4"),
        {"std": 1e-36},
        ValueError,
        "tensor_scale must be from",
    ),
}


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_what_is_refused_before_a_byte_is_written(name: str) -> None:
    make, given, error, message = NOT_WRITTEN[name]
    blocks = make()
    before = [t.view(torch.uint8).clone() for t in (blocks.data, blocks.scale)]
    state = torch.get_rng_state()
    for key in {"seed": 3, "name": "w"}, {}:
        if name in ("two keys", "part of half a block") and not key:
            continue
        with pytest.raises(error, match=message):
            init.normal_(blocks, **{**key, **given})
    for t, was in zip((blocks.data, blocks.scale), before):
        assert t.view(torch.uint8).equal(was)
    assert torch.get_rng_state().equal(state)


def test_constants_that_are_not_finite() -> None:
    for value in (math.nan, math.inf, 1e39):
        with pytest.raises(ValueError, match="finite values to be stored in mxfp8"):
            init.constant_(strided(1), value)


def test_windows_and_traces_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a fastinit\.Part"):
        fill_(strided(1), LAW, seed=0, window=Window((32, 1)))
    refused = pytest.raises(NotImplementedError, match="does not see them written")
    with refused, fastinit.deferred(seed=0):
        init.normal_(strided(1))
