"""Block formats: packed values and scales are the float32 values, quantised as specified."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed as dist
from dtensors import distributed
from same_bits import ISAS, TRITON, bits, forced
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import fastinit
from fastinit import Blocks, Part, init
from fastinit.backends import choose as backends
from fastinit.fills.operator import Request, Window, fill_, fill_many_
from fastinit.stream import blocks, laws
from fastinit.stream.laws import Law

FORMATS = tuple(blocks.ELEMENTS)
BLOCK = {"mxfp8": 32, "mxfp8_e5m2": 32, "mxfp4": 32, "nvfp4": 16}
BUILDS = ("reference", *ISAS)
# Triton's interpreter takes a tenth of a second for a call: it is asked for some of what others are.
EVERY = (*BUILDS, *TRITON)
VECTORS = Path(__file__).parents[1] / "vectors" / "blocks.csv"

# --- the specifications, in NumPy -----------------------------------------------------------------

ELEMENTS: dict[str, tuple[Any, int, float]] = {
    "mxfp8": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "nvfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
}
"""Type, exponent of the largest number, and that number (OCP MX v1.0, table 1)."""


def as_specified(wide: Tensor, format: str, tensor_scale: float) -> tuple[Tensor, Tensor]:
    """Bytes of data [..., bytes] and of scales [..., blocks] of float32 values."""
    kind, exponent, largest = ELEMENTS[format]
    x = wide.unflatten(-1, (-1, BLOCK[format])).numpy()
    most = np.abs(x).max(-1, keepdims=True)
    if format == "nvfp4":
        whole = np.float32(tensor_scale)
        ratio = np.clip(most / np.float32(6) / whole, np.float32(2.0**-6), np.float32(448))
        scale = ratio.astype(ml_dtypes.float8_e4m3fn)
        y = x * (np.float32(1) / whole / scale.astype(np.float32))
    else:  # section 6.3, in float64: the division is exact
        floor = np.where(most > 0, np.frexp(most.astype(np.float64))[1] - 1, -1000)
        power = np.ldexp(1.0, np.clip(floor - exponent, -127, 127))
        scale = power.astype(ml_dtypes.float8_e8m0fnu)
        y = x.astype(np.float64) / power
    held = np.clip(y, -largest, largest).astype(np.float32).astype(kind)
    codes = held.view(np.uint8)
    if ELEMENTS[format][0] is ml_dtypes.float4_e2m1fn:
        codes = (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)
    data = torch.from_numpy(np.ascontiguousarray(codes)).flatten(-2)
    return data, torch.from_numpy(scale.view(np.uint8)).squeeze(-1)


def assert_holds(got: Blocks, wide: Tensor, what: object = "") -> None:
    """It is what the specification makes of float32 values, to the bit."""
    whole = 1.0 if got.tensor_scale is None else float(got.tensor_scale)
    data, scale = as_specified(wide, got.format, whole)
    assert bits(got.scale).equal(scale.flatten()), what
    assert bits(got.data).equal(data.flatten()), what


def filled(shape: tuple[int, ...], format: str, law: Law, **key: Any) -> Blocks:
    return fill_(Blocks.empty(shape, format), law, **{"seed": 5, **key})


LAWS = (
    laws.normal(0.1, 2.0),
    laws.normal(0.0, 1e-30),
    laws.normal(0.0, 1e-38),  # blocks with the least scale, and denormal values
    laws.normal(0.0, 5e37),
    laws.uniform(-0.1, 0.3),
    laws.truncated_normal(0.0, 0.02, -2.0, 2.0),
    laws.truncated_normal(0.5, 1.0, 3.0, math.inf),
    laws.constant(0.1),
    laws.constant(-6.0),
    laws.constant(0.0),
)


@pytest.mark.parametrize("build", EVERY)
@pytest.mark.parametrize("format", FORMATS)
def test_every_law_is_quantised_as_specified(format: str, build: str) -> None:
    shape = (6, 480)
    some = LAWS[2:8:3] if build in TRITON else LAWS
    with forced(build):
        for law in some:
            if format == "nvfp4" and law.std == 1e-38:
                with pytest.raises(ValueError, match="tensor_scale must be from"):
                    filled(shape, format, law)
                continue
            wide = fill_(torch.empty(shape), law, seed=5)
            assert_holds(filled(shape, format, law), wide, law)


@pytest.mark.parametrize("build", EVERY)
def test_known_answers(build: str) -> None:
    with forced(build), VECTORS.open(newline="") as file:
        lines = list(csv.DictReader(file))
        assert len(lines) == 40
        for line in lines[:: 13 if build in TRITON else 1]:
            numbers = (float.fromhex(p) for p in line["parameters"].split())
            law, size = laws.make(line["law"], *numbers), BLOCK[line["format"]]
            got = Blocks.empty((2 * size,), line["format"])
            part = Part((1 << 40,), (((int(line["start"]), 2 * size),),))
            seed, stream = int(line["seed"], 16), int(line["stream"], 16)
            fill_(got, law, seed=seed, stream=stream, window=part)
            assert got.data.view(torch.uint8).numpy().tobytes().hex() == line["data"], line
            assert got.scale.view(torch.uint8).numpy().tobytes().hex() == line["scale"], line
            if line["tensor_scale"]:
                assert float(got.tensor_scale).hex() == line["tensor_scale"]  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_values_are_what_is_stored_times_its_scales(format: str) -> None:
    wide = fill_(torch.empty(40, 320), laws.normal(0.0, 0.02), seed=5)
    got = filled((40, 320), format, laws.normal(0.0, 0.02))
    kind = ELEMENTS[format][0]
    codes = got.data.view(torch.uint8).numpy()
    if kind is ml_dtypes.float4_e2m1fn:
        codes = np.stack((codes & 15, codes >> 4), -1).reshape(40, 320)
    scale_kind = ml_dtypes.float8_e4m3fn if format == "nvfp4" else ml_dtypes.float8_e8m0fnu
    scale = got.scale.view(torch.uint8).numpy().view(scale_kind).astype(np.float32)
    scale = scale * np.float32(1.0 if got.tensor_scale is None else got.tensor_scale)
    values = codes.view(kind).astype(np.float32).reshape(40, -1, BLOCK[format]) * scale[..., None]
    assert got.values().equal(torch.from_numpy(values).view(40, 320))
    # Half a step of the largest numbers, or what saturation takes: of E2M1 from 8 to 6.
    step = {"mxfp8": 1 / 8, "mxfp8_e5m2": 1 / 8, "mxfp4": 1 / 4, "nvfp4": 1 / 6 + 1 / 16}[format]
    most = wide.unflatten(-1, (-1, BLOCK[format])).abs().amax(-1, keepdim=True)
    assert ((got.values() - wide).unflatten(-1, (-1, BLOCK[format])).abs() <= step * most).all()


# --- functions ------------------------------------------------------------------------------------

FUNCTIONS: dict[str, dict[str, Any]] = {
    "normal_": {"std": 0.3},
    "uniform_": {"a": -1.0},
    "trunc_normal_": {"std": 0.5},
    "xavier_uniform_": {},
    "xavier_normal_": {"gain": 2.0},
    "kaiming_uniform_": {"nonlinearity": "relu"},
    "kaiming_normal_": {"mode": "fan_out"},
    "variance_scaling_": {"scale": 2.0},
    "lecun_normal_": {},
    "lecun_uniform_": {},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_random_function_takes_them(name: str) -> None:
    function, key = getattr(init, name), {"seed": 3, "name": "fc.weight", **FUNCTIONS[name]}
    wide = function(torch.empty(32, 96), **key)
    for format in FORMATS:
        got = Blocks.empty((32, 96), format)
        assert function(got, **key) is got  # fans are those of 32 x 96
        assert_holds(got, wide, format)
    torch.manual_seed(0)
    one = function(Blocks.empty((32, 96), "mxfp4"), **FUNCTIONS[name])
    torch.manual_seed(0)
    wide = function(torch.empty(32, 96), **FUNCTIONS[name])
    assert_holds(one, wide)
    meta = Blocks.empty((32, 96), "nvfp4", device="meta")
    state = torch.get_rng_state()
    function(meta, **FUNCTIONS[name])
    assert torch.get_rng_state().equal(state)


def test_constants() -> None:
    for format in FORMATS:
        for write, value in ((init.ones_, 1.0), (init.zeros_, 0.0)):
            got = write(Blocks.empty((4, 64), format))
            assert got.values().sub(value).abs().max() <= 1e-2 * value
        assert init.constant_(Blocks.empty((4, 64), format), -3.0).values().add(3).abs().max() < 0.1


@pytest.mark.parametrize("name", ["orthogonal_", "sparse_", "eye_", "dirac_"])
def test_structures_are_refused(name: str) -> None:
    given = {"sparsity": 0.5} if name == "sparse_" else {}
    target = Blocks.empty((32, 32, 32) if name == "dirac_" else (32, 32), "mxfp4")
    init.zeros_(target)
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, but got Blocks"):
        getattr(init, name)(target, **given)
    assert not target.values().any()


def test_they_are_written_with_tensors_in_one_call_or_not_at_all() -> None:
    some = [torch.zeros(300), Blocks.empty((3, 64), "nvfp4"), torch.zeros(5).bfloat16()]
    some[1].data.zero_()
    bad = Request(torch.zeros(3, dtype=torch.int32), laws.normal(), 1)
    requests = [Request(t, laws.normal(), 1, i) for i, t in enumerate(some)]
    with pytest.raises(NotImplementedError, match=r"requests\[3\]"):
        fill_many_([*requests, bad])
    assert not some[0].any()
    assert not some[1].data.any()
    fill_many_(requests)
    assert_holds(some[1], fill_(torch.empty(3, 64), laws.normal(), seed=1, stream=1))
    assert some[0].equal(fill_(torch.empty(300), laws.normal(), seed=1, stream=0))
    assert some[1].data._version > 1
    assert some[1].scale._version > 0


# --- the scale of a whole NVFP4 tensor ------------------------------------------------------------


def test_the_scale_of_a_tensor_is_its_law_s() -> None:
    for law, most in (
        (laws.normal(0.5, 2.0), 0.5 + 2.0 * math.sqrt(66 * math.log(2.0))),
        (laws.uniform(-3.0, 1.0), 3.0),
        (laws.truncated_normal(0.0, 1.0, -2.0, 2.0), 2.0),
        (laws.truncated_normal(0.0, 0.02, -2.0, 2.0), 0.02 * 6.4),
        (laws.constant(-7.0), 7.0),
    ):
        got = filled((2, 64), "nvfp4", law)
        assert float(got.tensor_scale) == pytest.approx(most / 2688, rel=0.01)  # type: ignore[arg-type]
        wide = fill_(torch.empty(400_000), law, seed=1)
        assert wide.abs().max() <= blocks.largest_magnitude(law) * (1 + 1e-5)
    assert float(filled((2, 64), "nvfp4", laws.constant(0.0)).tensor_scale) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [1.0, 1e-4, 3e-5, 2.0**-120, 2.0**117])
def test_the_scale_of_a_tensor_may_be_given(given: float) -> None:
    for build in BUILDS:
        with forced(build):
            got = Blocks.empty((8, 64), "nvfp4", fixed_scale=given)
            init.normal_(got, std=0.1, seed=1)
        assert_holds(got, init.normal_(torch.empty(8, 64), std=0.1, seed=1))


# --- layouts and shards -----------------------------------------------------------------------------

SHAPE = (4, 6, 192)
LAW = laws.normal(0.0, 0.5)
PARTS: dict[str, Callable[[], Part]] = {
    "all": lambda: Part(SHAPE),
    "rows": lambda: Part(SHAPE).chunk(1, 4, 1),
    "rows in turns": lambda: Part(SHAPE).split(1, 3, 1, stride=2),
    "columns": lambda: Part(SHAPE).chunk(2, 3, 2),
    "columns in turns": lambda: Part(SHAPE).split(2, 2, 1, stride=3),
    "an expert": lambda: Part(SHAPE).select(0, 2),
    "nothing": lambda: Part(SHAPE).chunk(1, 5, 4).chunk(1, 4, 3),
    "a flat range": lambda: Part(SHAPE, flat=(96 * 5, 32 * 31)),
}


def blocks_of(whole: Tensor, part: Part, per: int) -> Tensor:
    """The part of a tensor whose last dimension has one element for so many values."""
    shape = (*part.shape[:-1], part.shape[-1] // per)
    if part.flat:
        start, length = (n // per for n in part.flat)
        return whole.reshape(-1)[start : start + length]
    its = Part(shape, (*part.runs[:-1], tuple((s // per, n // per) for s, n in part.runs[-1])))
    pieces = [
        whole[tuple(slice(s, s + n) for s, n in runs)] for runs in itertools.product(*its.runs)
    ]
    if not pieces:
        return whole.new_empty(its.local_shape)
    for dim in reversed(range(len(shape))):
        n = max(len(its.runs[dim]), 1)
        pieces = [torch.cat(pieces[i : i + n], dim) for i in range(0, len(pieces), n)]
    return pieces[0]


@pytest.mark.parametrize("format", ["mxfp8", "nvfp4"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_that_of_the_whole(name: str, format: str) -> None:
    part = PARTS[name]()
    whole = filled(SHAPE, format, LAW, stream=7)
    data = whole.data.view(torch.uint8)
    wanted = (
        blocks_of(data, part, SHAPE[-1] // data.shape[-1]),
        blocks_of(whole.scale.view(torch.uint8), part, BLOCK[format]),
    )
    for build in EVERY if name in ("columns in turns", "an expert") else BUILDS:
        shape = tuple(part.local_shape)[1:] if name == "an expert" else part.local_shape
        got = Blocks.empty(shape, format)
        with forced(build):
            fill_(got, LAW, seed=5, stream=7, window=part)
        for here, its in zip((got.data, got.scale), wanted):
            assert bits(here).equal(its.flatten()), build
        if format == "nvfp4" and got.numel():
            assert torch.equal(got.tensor_scale, whole.tensor_scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_any_strides_but_within_a_block(format: str) -> None:
    shape = (3, 5, 128)
    wide = fill_(torch.empty(shape), LAW, seed=5)
    like = filled(shape, format, LAW)
    size, count = like.data.shape[-1], like.scale.shape[-1]
    for build in EVERY if format == "nvfp4" else BUILDS:
        data = torch.full((5, 3, size + 9), 0xA5, dtype=torch.uint8)
        scale = torch.full((count, 5, 2, 3), 0xA5, dtype=torch.uint8)
        views = data[:, :, 4:-5].transpose(0, 1), scale[:, :, 1].permute(2, 1, 0)
        got = Blocks(*views, format, like.tensor_scale)
        with forced(build):
            fill_(got, LAW, seed=5)
        assert_holds(got, wide, build)
        for around in (data[:, :, :4], data[:, :, -5:], scale[:, :, 0]):
            assert (around == 0xA5).all()
        # More dimensions than kernels take, none of which is one with the next.
        many = torch.zeros(*[2] * 10, 3, size, dtype=torch.uint8)[..., 1, :].permute(
            *range(9, -1, -1), 10
        )
        held = torch.zeros(*[2] * 10, count, dtype=torch.uint8)
        wide_one = fill_(torch.empty(*[2] * 10, 128), LAW, seed=5)
        with forced(build):
            assert_holds(
                fill_(Blocks(many, held, format, like.tensor_scale), LAW, seed=5), wide_one
            )


@pytest.mark.parametrize("format", FORMATS)
def test_threads_and_tasks(format: str) -> None:
    wide = fill_(torch.empty(3, 200_000 - 64), LAW, seed=5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_holds(filled(tuple(wide.shape), format, LAW), wide)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format", FORMATS)
def test_behind_the_carry_of_the_counter(format: str) -> None:
    start, n = 2**34 - 320, 640
    wide = fill_(torch.empty(n), LAW, seed=5, window=Window((1,), start))
    for build in BUILDS:
        with forced(build):
            part = Part((2**40,), (((start, n),),))
            assert_holds(filled((n,), format, LAW, window=part), wide, build)


@pytest.mark.parametrize("format", ["mxfp8", "mxfp4"])
def test_dtensors_of_whole_blocks(format: str) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = filled((6, 256), format, LAW)
    for rank in (0, 3):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        try:
            mesh = init_device_mesh("cpu", (4,), mesh_dim_names=(f"blocks{rank}",))
            for placement in (Shard(0), Shard(1), Replicate()):
                data, scale = (
                    distributed(t.view(torch.uint8), mesh, [placement])
                    for t in (torch.zeros_like(whole.data), torch.zeros_like(whole.scale))
                )
                got = Blocks(data, scale, format)
                assert got.shape == (6, 256)
                fill_(got, LAW, seed=5)
                for held, full in ((data, whole.data), (scale, whole.scale)):
                    its = distributed(full.view(torch.uint8), mesh, [placement])
                    assert held.to_local().equal(its.to_local())  # type: ignore[no-untyped-call]
            # Half a block on each rank; and data cut otherwise than scales.
            narrow = Blocks.empty((4, 64), format)
            cut, rows = (
                distributed(narrow.data.view(torch.uint8), mesh, [p]) for p in (Shard(1), Shard(0))
            )
            scales = distributed(narrow.scale.view(torch.uint8), mesh, [Shard(1)])
            for one in (cut, rows):
                with pytest.raises(ValueError, match="whole blocks"):
                    fill_(Blocks(one, scales, format), LAW, seed=5)
            with pytest.raises(ValueError, match="both be DTensors, or neither"):
                fill_(Blocks(rows, narrow.scale, format), LAW, seed=5)
            assert isinstance(rows, DTensor)
        finally:
            dist.destroy_process_group()


# --- refused ----------------------------------------------------------------------------------------


def u8(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


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


def test_rows_may_have_their_scales_behind_them() -> None:
    rows = u8(40, 17)
    got = init.normal_(Blocks(rows[:, :16], rows[:, 16:], "mxfp4"), seed=1)
    assert_holds(got, init.normal_(torch.empty(40, 32), seed=1))


def test_a_compiled_function_breaks_its_graph_for_them() -> None:
    def write(blocks: Blocks) -> Blocks:
        return init.normal_(blocks, seed=1)

    try:
        got = torch.compile(write, backend="eager")(Blocks.empty((4, 32), "mxfp4"))
        assert_holds(got, init.normal_(torch.empty(4, 32), seed=1))
        torch.compiler.reset()
        whole = torch.compile(write, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="Blocks are no tensors"):
            whole(Blocks.empty((4, 32), "mxfp4"))
    finally:
        torch.compiler.reset()


def test_who_fills_blocks_is_said_and_forced() -> None:
    cpu = torch.device("cpu")
    assert backends.explain(cpu, blocks=True) == backends.choose_blocks(cpu).name
    assert "only" in str(backends.native.serves_blocks(torch.device("cuda")))
