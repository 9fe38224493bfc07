"""Higher moments against exact arithmetic: every law, dtype and backend; how they merge; what has none.

Their sums are of float64 distances from a chunk's mean. Each distance, power and sum is rounded to
2^-53, 512 of them to a lane: 1e-13 of the sum of absolute powers, and 1e-12 with what the mean and M2
bring. The mean of 16-bit values is off by up to 1e-6 of their std, which a merge of chunks sees.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from same_bits import ISAS, forced
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.statistics import across
from fastinit.statistics.across import Share
from fastinit.statistics.derived import DERIVED, HIGHER
from fastinit.statistics.tensor import ChannelMoments, Moments, moments, moments_many
from fastinit.stream import laws
from fastinit.stream.reference_moments import FIELDS, LEAST, M3, M4, SIZES, merged

EVERYWHERE = (*ISAS, "reference")
NIST = sorted((Path(__file__).parents[1] / "vectors" / "nist").glob("*.txt"))
TOLERANCE = {torch.float16: 1e-6, torch.bfloat16: 1e-6, torch.float32: 1e-12, torch.float64: 1e-12}


class Exact(NamedTuple):
    """Of finite values, in rational arithmetic; ``third`` is the sum of absolute cubes."""

    sizes: Fraction
    least: float
    m2: Fraction
    m3: Fraction
    third: Fraction
    m4: Fraction


def exact(x: Tensor) -> Exact:
    pairs = [v.as_integer_ratio() for v in x.double().flatten().tolist() if math.isfinite(v)]
    # All as whole numbers of one unit, and the distances from the mean of one n-th of it.
    n, unit = max(len(pairs), 1), max((below for _, below in pairs), default=1)
    values = [above * (unit // below) for above, below in pairs]
    total = sum(values)
    d = [n * v - total for v in values]
    squares = [v * v for v in d]
    cubes = [v * square for v, square in zip(d, squares)]
    return Exact(
        Fraction(sum(map(abs, values)), unit),
        min((abs(v) / unit for v in values if v), default=math.inf),
        Fraction(sum(squares), (n * unit) ** 2),
        Fraction(sum(cubes), (n * unit) ** 3),
        Fraction(sum(map(abs, cubes)), (n * unit) ** 3),
        Fraction(sum(square * square for square in squares), (n * unit) ** 4),
    )


def agrees(raw: Tensor, of: Exact, tolerance: float) -> None:
    assert abs(Fraction(raw[SIZES].item()) - of.sizes) <= tolerance * of.sizes
    assert raw[LEAST].item() == of.least
    assert abs(Fraction(raw[M3].item()) - of.m3) <= tolerance * of.third
    assert abs(Fraction(raw[M4].item()) - of.m4) <= tolerance * of.m4


def drawn(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_some(x: Tensor, *values: float) -> Tensor:
    x[torch.arange(len(values)) * 7] = torch.tensor(values, dtype=x.dtype)
    return x


N = 20_007  # two chunks, steps of all lanes in the last, and a rest
LAWS = {
    "normal": drawn(N),
    "after a ReLU": drawn(N).clamp(min=0),
    "log-normal": drawn(N).exp(),
    "two values": drawn(N).sign(),
    "far from zero": drawn(N) + 300,
    "further": drawn(N) / 64 + 1000,
    "one that stands out": with_some(drawn(N) / 100, 50.0),
    "one among zeros": with_some(torch.zeros(N, dtype=torch.float64), 0.0, 1.5),
    "of every size": drawn(N) * 2.0 ** -torch.arange(N).remainder(14).double(),
    "in order": torch.arange(N, dtype=torch.float64) / 1000,
    "not finite": with_some(drawn(N) + 2, math.inf, -math.inf, math.nan),
    "few": drawn(5),
    "one": drawn(1),
    "none": drawn(0),
    "only NaN": torch.full((9,), math.nan, dtype=torch.float64),
}


@cache
def cast(law: str, dtype: torch.dtype) -> tuple[Tensor, Exact]:
    x = LAWS[law].to(dtype)
    return x, exact(x)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("law", LAWS)
def test_of_every_law(law: str, dtype: torch.dtype, name: str) -> None:
    x, of = cast(law, dtype)
    with forced(name):
        m = moments(x, higher=True)
        assert m.raw[:FIELDS].equal(moments(x).raw)
    agrees(m.raw, of, TOLERANCE[dtype])


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("path", NIST, ids=lambda path: path.stem)
def test_nist_data_to_twelve_digits(path: Path, name: str) -> None:
    text = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    x = torch.tensor([float(line) for line in text], dtype=torch.float32)
    with forced(name):
        agrees(moments(x, higher=True).raw, exact(x), 1e-12)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_over_the_whole_range(dtype: torch.dtype, name: str) -> None:
    """From denormal numbers to the largest: what float64 holds, and NaN where it holds no shape."""
    info = torch.finfo(dtype)
    x = with_some(drawn(100), 3.0, 0.0).clamp(-3.9, 3.9)
    for power in range(-1074, 1022, 31):
        y = (x * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)).to(dtype)
        if y.isinf().any() or not y.any():
            continue
        of = exact(y)
        with forced(name):
            m = moments(y, higher=True)
        n = len(y)
        if 2.0**-1000 < of.m4 < 2.0**1000:
            agrees(m.raw, of, TOLERANCE[dtype])
            root = math.sqrt(of.m2 / n * 4 ** max(-power, 0)) * 2.0 ** min(power, 0)
            assert m.kurtosis == pytest.approx(
                float(n * of.m4 / of.m2**2), rel=TOLERANCE[dtype] * 4
            )
            assert m.rms >= root * (1 - 1e-6)
        elif of.m4 > 2**1030:
            assert m.raw[M4] == math.inf
            assert math.isnan(m.kurtosis + m.skewness)
        elif of.m4 < Fraction(1, 2**1030):
            assert math.isnan(m.kurtosis + m.skewness)
        assert m.smallest == of.least
        assert m.dynamic_range == pytest.approx(math.log2(m.absmax) - math.log2(of.least))
        assert not math.isnan(m.raw[M3])
        assert info.max >= m.absmax


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_derived_fields(dtype: torch.dtype, name: str) -> None:
    x = cast("log-normal", dtype)[0]
    with forced(name):
        m = moments(x, higher=True)
    d = x.double()
    far = d - d.mean()
    rel = TOLERANCE[dtype] * 10
    assert m.l1 == pytest.approx(d.abs().sum().item(), rel=rel)
    assert m.absmean == pytest.approx(d.abs().mean().item(), rel=rel)
    assert m.l2 == pytest.approx(d.norm().item(), rel=rel)
    assert m.rms == pytest.approx(d.square().mean().sqrt().item(), rel=rel)
    assert m.crest == pytest.approx((d.abs().amax() / d.square().mean().sqrt()).item(), rel=rel)
    assert m.smallest == d.abs().min().item()
    assert m.dynamic_range == pytest.approx(
        (d.abs().amax() / d.abs().amin()).log2().item(), rel=rel
    )
    var = far.square().mean()
    assert m.skewness == pytest.approx((far.pow(3).mean() / var**1.5).item(), rel=rel)
    assert m.kurtosis == pytest.approx((far.pow(4).mean() / var**2).item(), rel=rel)
    assert set(m.plain()) == {*DERIVED, *HIGHER}


@pytest.mark.parametrize("value", [0.0, 1e7, 0.1, -3e38, 1e-40])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_constant_has_no_shape(name: str, value: float) -> None:
    x = torch.full((50_001,), value)
    with forced(name):
        m = moments(x, higher=True)
    assert (m.raw[M3], m.raw[M4]) == (0, 0)
    assert math.isnan(m.skewness)
    assert math.isnan(m.kurtosis)
    size = abs(x[0].item())
    assert m.absmean == pytest.approx(size, rel=1e-12)
    if value:
        assert (m.smallest, m.dynamic_range) == (size, 0)
        assert m.crest == pytest.approx(1, rel=1e-12)
    else:
        assert (m.smallest, m.l1, m.l2, m.rms) == (math.inf, 0, 0, 0)
        assert math.isnan(m.dynamic_range)
        assert math.isnan(m.crest)


def test_of_no_values() -> None:
    m = moments(torch.empty(0), higher=True)
    assert (m.l1, m.l2, m.smallest) == (0, 0, math.inf)
    for field in ("rms", "absmean", "crest", "dynamic_range", "skewness", "kurtosis"):
        assert math.isnan(getattr(m, field)), field


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_channels_and_layouts(dtype: torch.dtype, dim: int, name: str) -> None:
    x = (drawn(3 * 70 * 6 * 5).view(3, 70, 6, 5) * 2 + 1).to(dtype)
    x[0, :, 1, 2], x[1, 1, 1, 1], x[2, 3] = 0, math.nan, math.inf
    for view in (x, x.transpose(0, 3), x[:, 1:, ::2, 1:], x[:, :1].expand(-1, 3, -1, -1)):
        with forced(name):
            m = moments(view, dim=dim, higher=True)
            whole = moments(view, higher=True)
            assert m.raw[:, :FIELDS].equal(moments(view, dim=dim).raw)
        agrees(whole.raw, exact(view), TOLERANCE[dtype])
        for raw, channel in zip(m.raw, view.unbind(dim)):
            agrees(raw, exact(channel), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_the_bits_are_those_of_one_thread_on_any_build(dtype: torch.dtype) -> None:
    x = torch.randn(700_007).add_(0.1).to(dtype)
    x[5] = math.inf
    columns = x[: 700_007 // 60 * 60].view(-1, 60)
    results = set()
    for name in ISAS:
        for threads in (1, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with forced(name):
                    raws = [
                        moments(x, higher=True).raw,
                        moments(columns, dim=1, higher=True).raw,
                        moments_many([x, columns], higher=True)[0].raw,
                    ]
            finally:
                torch.set_num_threads(before)
            results.add(b"".join(raw.numpy().tobytes() for raw in raws))
    assert len(results) == 1


# --- merging -------------------------------------------------------------------------------------


@pytest.mark.skipif(not ISAS, reason="there is no native module")
@pytest.mark.parametrize("law", ["normal", "far from zero", "log-normal", "not finite"])
def test_merging_is_the_kernels_to_the_bit(law: str) -> None:
    x = LAWS[law].float()[: 1 << 15]  # two chunks of one task
    parts = [moments(part, higher=True).raw for part in x.split(1 << 14)]
    assert merged(*parts).equal(moments(x, higher=True).raw)


@given(st.lists(st.floats(width=32), max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_parts_merge_to_the_whole(values: list[float], cut: int, other: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    a, b = sorted((cut, other))
    m = [moments(part, higher=True) for part in (x[:a], x[a:b], x[b:])]
    of = exact(x)
    # A merge's terms are of distances of means, which may be as long as the largest value.
    size = Fraction(max((abs(v) for v in x.double().tolist() if math.isfinite(v)), default=0.0))
    for whole in (m[0].merge(*m[1:]), m[2].merge(m[1], m[0]), moments(x, higher=True)):
        raw = whole.raw
        assert raw[LEAST] == of.least
        assert abs(Fraction(raw[SIZES].item()) - of.sizes) <= 1e-12 * of.sizes
        third, fourth = Fraction(raw[M3].item()) - of.m3, Fraction(raw[M4].item()) - of.m4
        assert abs(third) <= Fraction(1e-12) * of.third + Fraction(1e-14) * len(x) * size**3
        assert abs(fourth) <= Fraction(1e-12) * of.m4 + Fraction(1e-14) * len(x) * size**4


@pytest.mark.parametrize("far", [1e100, 1e200, 1.7e308])
def test_merging_what_is_too_large_is_infinite_and_never_nan(far: float) -> None:
    here = moments(torch.tensor([1.0, 2, 4], dtype=torch.float64), higher=True)
    there = moments(torch.tensor([far, far], dtype=torch.float64), higher=True)
    back = moments(torch.tensor([-far], dtype=torch.float64), higher=True)
    nothing = moments(torch.empty(0), higher=True)
    assert nothing.merge(there).raw.equal(there.raw)
    assert there.merge(nothing).raw.equal(there.raw)
    for m in (here.merge(there), there.merge(here), there.merge(back, here), back.merge(there)):
        assert m.raw[M4] == math.inf
        assert not m.raw.isnan().any()
        assert m.merge(here, nothing).raw[M4] == math.inf
        assert math.isnan(m.kurtosis)


def test_across_ranks_it_is_what_one_process_has() -> None:
    m = moments(LAWS["normal"], higher=True)
    assert m.all_merge().raw.equal(m.raw)
    channels = moments(LAWS["normal"][:20_000].view(-1, 8), dim=1, higher=True)
    assert channels.all_merge().raw.equal(channels.raw)


def test_what_ranks_tell_each_other_is_all_of_it() -> None:
    m = moments(LAWS["normal"][:20_000].view(-1, 8), dim=1, higher=True)
    share = Share.of(m.raw, 8, [(0, 8)])
    heard = across._share_in(across._numbers(share), 8, share.counted)
    assert heard.all().equal(m.raw)
    elsewhere = Share(8, torch.tensor([5]), m.raw[5:6])
    both = share.merge([elsewhere]).all()
    assert both[5].equal(merged(m.raw[5], m.raw[5]))
    assert both[:5].equal(m.raw[:5])
    assert across.nothing(2, 11)[:, LEAST].isposinf().all()


# --- what has none -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", HIGHER)
@pytest.mark.parametrize("dim", [None, 1])
def test_without_them_the_keyword_is_named(field: str, dim: int | None) -> None:
    m: Moments | ChannelMoments = moments(torch.ones(3, 1), dim=dim)  # type: ignore[call-overload]
    with pytest.raises(AttributeError, match=f"{field} .* higher=True"):
        getattr(m, field)
    assert m.raw.shape[-1] == FIELDS
    assert float(m.rms) == float(m.crest) == 1.0


def test_moments_with_and_without_do_not_merge() -> None:
    plain, higher = moments(torch.ones(3)), moments(torch.ones(3), higher=True)
    for one, other in ((plain, higher), (higher, plain)):
        with pytest.raises(ValueError, match="with higher=True do not merge"):
            one.merge(other)
    shares = [Share.of(m.raw, 1, [(0, 1)]) for m in (plain, higher)]
    with pytest.raises(ValueError, match="with higher=True do not merge"):
        shares[0].merge(shares[1:])


class Plain(backends.Backend):
    """Measures, but no higher moments."""

    name = "plain"

    def serves(self, device: torch.device) -> str | None:
        return None

    def fill_many(self, writes: object) -> None:
        raise AssertionError

    def serves_moments(self, device: torch.device) -> str | None:
        return None

    def moments_many(self, readings: object) -> None:
        raise AssertionError("the next backend is to be asked")


def test_a_backend_without_them_passes_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", [Plain(), *backends.BACKENDS])
    assert moments(torch.tensor([1.0, -3.0]), higher=True).l1 == 4
    said = backends.explain(torch.device("cpu"), higher=True)
    assert "not plain: it measures no higher moments" in said
    assert backends.explain(torch.device("cpu")) == "plain"
    with (
        backends.backend("plain"),
        pytest.raises(RuntimeError, match="it measures no higher moments"),
    ):
        moments(torch.ones(3), higher=True)
