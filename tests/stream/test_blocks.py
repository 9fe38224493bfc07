"""Block formats: packed values and scales are the float32 values, quantised as specified."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from blocks_specified import BLOCK, BUILDS, ELEMENTS, EVERY, FORMATS, assert_holds, filled
from same_bits import TRITON, forced

from fastinit import Blocks, Part, init
from fastinit.backends import choose as backends
from fastinit.fills.operator import Request, fill_, fill_many_
from fastinit.stream import blocks, laws

VECTORS = Path(__file__).parents[1] / "vectors" / "blocks.csv"


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
