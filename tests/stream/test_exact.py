"""Laws in float64: known answers, accuracy, distribution, and the same values in every part."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from scipy import special, stats
from torch import Tensor

import fastinit
from fastinit import Part, init
from fastinit.fills.operator import Request, Window, fill_, fill_many_
from fastinit.stream import exact, functions, laws, reference
from fastinit.stream.laws import Law

VECTORS = Path(__file__).parents[1] / "vectors"
LEVEL = 1e-4
"""Of each p-value below, of which there are 24: together they fail for 0.24 % of right streams."""

N = 100_000
LAWS = {
    "uniform": laws.uniform(),
    "normal": laws.normal(),
    "both tails": laws.truncated_normal(),
    "one side": laws.truncated_normal(a=0.5, b=math.inf),
    "tail": laws.truncated_normal(a=3.0, b=9.0),
    "far tail": laws.truncated_normal(a=-9.0, b=-8.0),
}
FUNCTIONS: dict[str, Any] = {
    "uniform_": lambda t, **k: init.uniform_(t, -1.0, 3.0, **k),
    "normal_": lambda t, **k: init.normal_(t, 0.5, 2.0, **k),
    "trunc_normal_": lambda t, **k: init.trunc_normal_(t, 0.1, 1.5, **k),
    "xavier_uniform_": init.xavier_uniform_,
    "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": init.kaiming_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "lecun_uniform_": init.lecun_uniform_,
    "lecun_normal_": init.lecun_normal_,
    "variance_scaling_": init.variance_scaling_,
}


def drawn(law: Law, n: int, seed: int = 11) -> Tensor:
    return fill_(torch.empty(n, dtype=torch.float64), laws.exactly(law, True), seed=seed, stream=5)


def words(n: int, seed: int) -> list[int]:
    """The numbers of 64 bits that elements take, in their order."""
    blocks = reference.philox_words(seed, 5, torch.arange((n + 1) // 2)).tolist()
    return [w[i] << 32 | w[i + 1] for w in blocks for i in (0, 2)]


def test_known_answers() -> None:
    with (VECTORS / "exact.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 60
    for line in lines:
        parameters = [float.fromhex(p) for p in line["parameters"].split()]
        law = laws.exactly(Law(laws.CODES[line["law"]], *parameters), True)
        bits = line["bits"].split()
        tensor = torch.empty(len(bits), dtype=torch.float64)
        seed, stream = int(line["seed"], 16), int(line["stream"], 16)
        fill_(tensor, law, seed=seed, stream=stream, window=Window((1,), int(line["start"])))
        mask = (1 << 64) - 1
        assert [f"{w & mask:016x}" for w in tensor.view(torch.int64).tolist()] == bits, line


def test_values_are_those_of_the_definition_to_a_few_units_in_the_last_place() -> None:
    """Against the same formulas at 60 digits. The bound is three times what these values have."""
    n = 400
    mpmath.mp.dps = 60
    ks = [w >> 11 for w in words(n, 11)]
    assert drawn(LAWS["uniform"], n).tolist() == [math.ldexp(k, -53) for k in ks]
    for i, z in enumerate(drawn(LAWS["normal"], n).tolist()):
        radius, angle = ks[i & ~1], ks[i | 1]
        r = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(radius + 1) / 2**53))
        of = mpmath.sin if i & 1 else mpmath.cos
        wanted = r * of(2 * mpmath.pi * angle / 2**53)
        assert abs(z - wanted) <= 1.5e-15 * max(1, abs(wanted)), i
    for name in ("both tails", "one side", "tail", "far tail"):
        _, _, a, b = LAWS[name].arguments
        low, high = mpmath.ncdf(a), mpmath.ncdf(b)
        if a > 0:  # by the other tail, where there is something left of the digits
            low, high = mpmath.ncdf(-b), mpmath.ncdf(-a)
        for k, z in zip(ks, drawn(LAWS[name], n).tolist()):
            k, z = (2**53 - 1 - k, -z) if a > 0 else (k, z)
            p = low + (high - low) * (mpmath.mpf(k) + 0.5) / 2**53
            assert a <= (-z if a > 0 else z) <= b
            # Of the probability that a value stands for, by the density there.
            error = abs(mpmath.ncdf(z) - p) / mpmath.npdf(z)
            assert error <= 1.5e-15 * max(1, abs(z)), (name, z)


@pytest.mark.parametrize("name", LAWS)
def test_the_distribution(name: str) -> None:
    law = LAWS[name]
    x = drawn(law, N)
    a, b = (law.arguments[-2:]) if law.kind == laws.TRUNCATED_NORMAL else (-math.inf, math.inf)
    if law.kind == laws.UNIFORM:
        p = x.numpy()
    else:
        sign = -1.0 if a > 0 else 1.0  # the tail that is small
        low, high = sorted((special.ndtr(sign * a), special.ndtr(sign * b)))
        p = (special.ndtr(sign * x.numpy()) - low) / (high - low)
    found = [
        stats.kstest(p, "uniform").pvalue,
        stats.pearsonr(p[:-1], p[1:]).pvalue,  # of neighbours, which share a block in turn
        stats.pearsonr((p[::2] - 0.5) ** 2, (p[1::2] - 0.5) ** 2).pvalue,
    ]
    # The last bits are as random as the first: of 53 for uniforms, of the mantissa for others.
    last = (x * 2.0**53 if law.kind == laws.UNIFORM else x.view(torch.int64)).long() & 63
    found.append(stats.chisquare(last.bincount(minlength=64).numpy()).pvalue)
    assert min(found) >= LEVEL, found
    assert a <= float(x.min())
    assert float(x.max()) <= b
    assert len(x.unique()) == N  # of 24 bits some would be twice


@pytest.mark.parametrize("radius", [0, 1, (1 << 53) - 1])
def test_extremes_are_finite(radius: int) -> None:
    k, p = (
        torch.tensor([radius]),
        laws.kernel_params(laws.exactly(laws.uniform(), True), torch.float64),
    )
    for angle in (0, 1, 1 << 50, 1 << 51, 1 << 52, (1 << 53) - 1):
        for z in exact.normal_pair(k, torch.tensor([angle])):
            assert z.abs() <= 8.5717
    assert 0.0 <= float(exact.uniform(k, p)) < 1.0
    for law in LAWS.values():
        if law.kind == laws.TRUNCATED_NORMAL:
            p = laws.kernel_params(laws.exactly(law, True), torch.float64)
            assert law.p2 <= float(exact.truncated_normal(k, p)) <= law.p3


@pytest.mark.parametrize(
    "law",
    [
        laws.uniform(0.3, 0.3),
        laws.uniform(0.1, math.nextafter(0.1, 1.0)),
        laws.uniform(-1.0, 0.0),
        laws.truncated_normal(0.0, 0.0, -1.0, 1.0),
        laws.truncated_normal(0.1, 0.2, 0.3, 0.3),
        laws.truncated_normal(a=0.1, b=math.nextafter(0.1, 1.0)),
        laws.truncated_normal(a=-math.inf, b=math.inf),
    ],
    ids=str,
)
def test_windows_of_one_value_and_open_ones(law: Law) -> None:
    x = drawn(law, 1000)
    assert bool(x.isfinite().all())
    if law.kind == laws.UNIFORM:
        assert law.p0 <= float(x.min())
        assert float(x.max()) < law.p1 or law.p0 == law.p1
    else:
        assert law.p2 <= float(x.min()) <= float(x.max()) <= law.p3


def test_a_square_root_is_rounded_once_whatever_torch_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = drawn(laws.uniform(1.0, 4.0), 20_000) * torch.tensor(
        [2.0**-200, 1.0, 2.0**301, 2.0**-53]
    ).double().repeat(5000)
    x = torch.cat([x, torch.tensor([0.0, 1.0, 4.0, math.nextafter(4.0, 0.0), math.inf]).double()])
    wanted = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64)
    assert torch.equal(functions.sqrt(x), wanted)
    for towards in (math.inf, 0.0):
        off = torch.nextafter(wanted, torch.full_like(wanted, towards))
        off = torch.where((x > 0) & (x < math.inf), off, wanted)
        monkeypatch.setattr(torch, "sqrt", lambda _, off=off: off)
        assert torch.equal(functions.sqrt(x), wanted)
    monkeypatch.undo()
    assert bool(functions.sqrt(torch.tensor([-1.0]).double()).isnan())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_draws_it_and_by_default_widens(name: str) -> None:
    function = FUNCTIONS[name]
    whole = function(torch.empty(6, 10, dtype=torch.float64), seed=2, name="w", exact=True)
    default = function(torch.empty(6, 10, dtype=torch.float64), seed=2, name="w")
    float32 = function(torch.empty(6, 10), seed=2, name="w")
    assert torch.equal(default, float32.double())
    assert not torch.equal(whole, whole.float().double())
    # The same law: a value at p of float32's is at the same p; here only its scale.
    assert 0.5 < float(whole.std() / default.std()) < 2.0
    part = Part((6, 10)).chunk(1, 2, 1)
    shard = function(
        torch.empty(6, 5, dtype=torch.float64), seed=2, name="w", exact=True, part=part
    )
    assert torch.equal(shard, whole[:, 5:])
    flat = function(
        torch.empty(17, dtype=torch.float64),
        seed=2,
        name="w",
        exact=True,
        part=Part((6, 10), flat=(13, 17)),
    )
    assert torch.equal(flat, whole.flatten()[13:30])
    transposed = torch.empty(10, 6, dtype=torch.float64).t()
    assert torch.equal(function(transposed, seed=2, name="w", exact=True), whole)


def test_windows_and_chunks() -> None:
    """Beyond the reference's chunk, and a window far out that begins in the middle of a block."""
    n = reference.CHUNK + 1001
    whole = drawn(laws.normal(), n)
    rest = fill_(
        torch.empty(1000, dtype=torch.float64),
        laws.exactly(laws.normal(), True),
        seed=11,
        stream=5,
        window=Window((3,), n - 3001),
    )
    assert torch.equal(rest, whole[n - 3001 :: 3][:1000])


def test_complex_values_are_pairs_of_half_the_variance() -> None:
    z = init.normal_(torch.empty(50, dtype=torch.complex128), 1.0, 2.0, seed=3, exact=True)
    law = laws.exactly(laws.normal(1.0, 2.0), True)
    parts = fill_(torch.empty(100, dtype=torch.float64), law.split_complex(), seed=3)
    assert torch.equal(torch.view_as_real(z).flatten(), parts)
    constant = laws.exactly(laws.constant(0.1), True)
    assert fill_(z, constant)[7].item() == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_dtypes_are_refused_before_anything_is_drawn(dtype: torch.dtype, device: str) -> None:
    tensor = torch.full((4, 4), 7.0, device=device).to(dtype)
    state = torch.get_rng_state()
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="exact=True is for float64 and complex128"):
            function(tensor, exact=True)
    assert torch.equal(torch.get_rng_state(), state)
    if device == "cpu":
        assert bool((tensor.float() == 7.0).all())
        wide = torch.full((4,), 7.0, dtype=torch.float64)
        law = laws.exactly(laws.normal(), True)
        with pytest.raises(ValueError, match=r"requests\[1\].tensor is torch"):
            fill_many_([Request(wide, law, 0), Request(tensor, law, 0)])
        assert wide.tolist() == [7.0] * 4


def test_it_is_a_bool() -> None:
    tensor = torch.empty(4, dtype=torch.float64)
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="exact must be a bool"):
            init.normal_(tensor, exact=wrong)  # type: ignore[arg-type]


def test_backends_that_draw_in_float32_do_not_serve_it() -> None:
    tensor = torch.full((4,), 7.0, dtype=torch.float64)
    law = laws.exactly(laws.normal(), True)
    for name in ("native", "triton"):
        with fastinit.backend(name), pytest.raises(RuntimeError, match="cannot fill"):
            fill_(tensor, law, seed=0)
    assert tensor.tolist() == [7.0] * 4
    with fastinit.backend("reference"):
        forced = fill_(tensor.clone(), law, seed=0)
    assert torch.equal(forced, fill_(tensor, law, seed=0))
