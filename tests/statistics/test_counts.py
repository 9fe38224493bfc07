"""What conversions would lose: against each format's own numbers, on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from same_bits import ISAS, drawn, forced
from torch import Tensor

from fastinit import Part
from fastinit.statistics.tensor import Moments, moments, moments_many
from fastinit.stream import laws
from fastinit.stream.formats import BY_E4M3, BY_POWER, BY_TENSOR, FORMATS, UNSCALED

EVERYWHERE = (*ISAS, "reference")
ALL = tuple(FORMATS)
TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
# (bits of the exponent, of the mantissa, bias, largest): OFP8 table 1, OCP MX tables 3 to 5, IEEE 754.
ELEMENTS = {
    "float16": (5, 10, 15, 65504.0),
    "bfloat16": (8, 7, 127, 2.0**127 * (2 - 2.0**-7)),
    "e4m3": (4, 3, 7, 448.0),
    "e5m2": (5, 2, 15, 57344.0),
    "e2m3": (2, 3, 1, 7.5),
    "e3m2": (3, 2, 3, 28.0),
    "e2m1": (2, 1, 1, 6.0),
}
ELEMENT = {
    **{name: name for name in TORCH},
    **{"e4m3_tensor": "e4m3", "e5m2_tensor": "e5m2", "mxfp8": "e4m3", "mxfp8_e5m2": "e5m2"},
    **{"mxfp6_e2m3": "e2m3", "mxfp6_e3m2": "e3m2", "mxfp4": "e2m1", "nvfp4": "e2m1"},
}


@cache
def numbers_of(element: str) -> Tensor:
    """Its magnitudes, float64 in their order, and behind the largest the one that would be next."""
    exponent, mantissa, bias, largest = ELEMENTS[element]
    steps = 2**mantissa
    found = [i / steps * 2.0 ** (1 - bias) for i in range(steps)]
    for e in range(1, 2**exponent + 1):
        found += [(1 + i / steps) * 2.0 ** (e - bias) for i in range(steps)]
    return torch.tensor(found[: found.index(largest) + 2], dtype=torch.float64)


def rounded(size: Tensor, element: str) -> Tensor:
    """Which of the numbers is nearest, of ties the one whose mantissa is even: every second one."""
    numbers = numbers_of(element)
    above = torch.searchsorted(numbers, size.contiguous()).clamp(1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    up = (high - size < size - low) | (high - size == size - low) & (above % 2 == 0)
    return torch.where(up, above, above - 1)


def lost(size: Tensor, element: str) -> tuple[int, int, int]:
    """How many of finite magnitudes are flushed, saturated, subnormal."""
    _, mantissa, *_ = ELEMENTS[element]
    which = rounded(size, element)
    last = len(numbers_of(element)) - 1
    subnormal = (which > 0) & (which < 2**mantissa)
    return (
        int(((which == 0) & (size > 0)).sum()),
        int((which == last).sum()),
        int(subnormal.sum()),
    )


def scaled(x: Tensor, name: str) -> Tensor:
    """Finite magnitudes over their scales, in float64, line for line from OCP MX v1.0, section 6.3."""
    element, block = ELEMENT[name], FORMATS[name].block
    largest = ELEMENTS[element][-1]
    size = x.double().abs()
    size = torch.where(size.isfinite(), size, 0.0)
    top = size.max() if size.numel() else torch.tensor(0.0)
    if name in TORCH:
        return size
    if name.endswith("_tensor"):
        return size / (top.float() / largest).double()
    rows = size.reshape(-1, size.shape[-1] if size.dim() else 1)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % block)).reshape(-1, block)
    most = rows.amax(1)
    if name == "nvfp4":
        s = top.float() / torch.tensor(6.0 * 448.0)
        nearest = rounded(((most.float() / 6) / s).double().clamp(max=448), "e4m3")
        scale = numbers_of("e4m3")[nearest] * s.double()
    else:
        emax = math.floor(math.log2(largest))
        shared = most.clamp(min=2.0**-140).log2().floor() - emax
        scale = torch.exp2(shared.clamp(-127, 127))
    flushed = torch.full_like(rows, 1e-300) * (rows > 0)  # by a scale of 0
    return torch.where(scale[:, None] > 0, rows / scale[:, None], flushed)


def assert_counts(x: Tensor, m: Moments) -> None:
    """Of a tensor with values that float32 holds."""
    assert m.count > 0
    for name, share in m.formats.items():
        size = scaled(x, name)
        got = [share.flushed, share.saturated, share.subnormal]
        assert got == [n / m.count for n in lost(size, ELEMENT[name])], name


def edges(name: str) -> list[float]:
    """Values around each bound of a format."""
    numbers = numbers_of(ELEMENT[name])
    at = torch.tensor([*numbers[:3], *numbers[-3:]]).float().double()
    ties = (numbers[:-1] + numbers[1:])[[0, 1, 2, -1, -2]] / 2
    some = torch.cat((at, ties, numbers[2 ** FORMATS[name].mantissa][None])).float()
    up, down = (torch.nextafter(some, torch.tensor(end)) for end in (math.inf, -math.inf))
    return torch.cat((some, up, down)).tolist()


def spread(*shape: int, reach: int = 30) -> Tensor:
    """Normals times powers of two, with zeros, and what is not finite."""
    generator = torch.Generator().manual_seed(3)
    powers = torch.randint(-reach, reach + 1, shape, generator=generator)
    x = torch.ldexp(torch.randn(shape, generator=generator), powers)
    x.view(-1)[::97] = 0
    x.view(-1)[5::1009] = torch.tensor([math.inf, -math.inf, math.nan]).repeat(x.numel())[
        : len(x.view(-1)[5::1009])
    ]
    return x


def sixteen_bits(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


VALUES: dict[str, Callable[[], Tensor]] = {
    "all of float16": lambda: sixteen_bits(torch.float16),
    "all of bfloat16": lambda: sixteen_bits(torch.bfloat16),
    "float32": lambda: spread(40, 32 * 11),
    "float64": lambda: spread(9, 90).double(),
    "bits of float32": lambda: (
        torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(1))
        .to(torch.int32)
        .view(torch.float32)
    ),
    "edges": lambda: torch.tensor([v for name in ALL for v in edges(name)]),
    "a short row": lambda: spread(7),
    "one value": lambda: torch.tensor(0.3),
    "denormal": lambda: torch.tensor([1e-45, 3e-40, -1e-38, 0.0]).repeat(9),
    "a far block": lambda: torch.cat((torch.full((16,), 1e-8), torch.full((16,), 1e4))),
    "zeros": lambda: torch.zeros(40),
}


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("values", VALUES)
def test_counts_are_those_of_the_formats_own_numbers(values: str, backend: str) -> None:
    x = VALUES[values]()
    with forced(backend):
        assert_counts(x, moments(x, formats=ALL))


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_are_torchs_conversions(dtype: torch.dtype, name: str) -> None:
    x = sixteen_bits(dtype)
    m = moments(x, formats=[name])
    finite = x[x.isfinite()].float()
    there = finite.to(TORCH[name]).float().abs()
    least = 2.0 ** FORMATS[name].least
    share = m.formats[name]
    assert share.flushed == ((there == 0) & (finite != 0)).sum().item() / m.count
    assert share.subnormal == ((there > 0) & (there < least)).sum().item() / m.count
    if name != "e4m3":  # of which some versions of torch make NaN, others the largest
        assert share.saturated == (~there.isfinite()).sum().item() / m.count


def views(x: Tensor) -> dict[str, Tensor]:
    """x is [6, 5, 4, 40]."""
    return {
        "transposed": x.transpose(1, 3),
        "turned": x.permute(3, 2, 1, 0),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": x[:, 1:, ::2, 3:39],
        "every second": x[..., ::2],
        "expanded": x[:, :1].expand(-1, 3, -1, -1),
        "expanded last": x[..., :1].expand(-1, -1, -1, 37),
        "a row": x[1, 2, 3],
        "nine dimensions": x[..., :32].reshape(6, 5, 4, 2, 2, 2, 2, 2).unsqueeze(3)
        .expand(-1, -1, -1, 2, -1, -1, -1, -1, -1)
        .permute(8, 3, 1, 2, 5, 4, 7, 6, 0),
    }  # fmt: skip


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("view", views(torch.empty(6, 5, 4, 40)))
def test_blocks_lie_along_the_last_dimension(view: str, backend: str) -> None:
    x = views(spread(6, 5, 4, 40, reach=6))[view]
    with forced(backend):
        m = moments(x, formats=ALL, histogram=True)
    assert_counts(x, m)
    again = moments(x.contiguous(), formats=ALL, histogram=True)
    assert m.counts is not None
    assert again.counts is not None
    assert m.counts.numbers.equal(again.counts.numbers)


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_long_tensors_and_threads(dtype: torch.dtype, backend: str) -> None:
    x = spread(3, 100_003, reach=4).to(dtype)
    parts = [moments(row, formats=["mxfp8", "e4m3"], histogram=True) for row in x]
    with forced(backend):
        m = moments(x, formats=["mxfp8", "e4m3"], histogram=True)
    merged = parts[0].merge(*parts[1:])
    assert merged.formats == m.formats
    assert m.counts is not None
    assert merged.counts is not None
    assert merged.counts.numbers.equal(m.counts.numbers)
    assert_counts(x, m)


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_channels_are_counted_as_if_alone(dtype: torch.dtype, dim: int, backend: str) -> None:
    x = spread(3, 12, 37, reach=12).to(dtype)
    for view in (x, x.transpose(0, 2), x[:, ::2]):
        with forced(backend):
            m = moments(view, dim=dim, formats=["e4m3", "float16"], histogram=True)
        alone = moments_many(list(view.unbind(dim)), formats=["e4m3", "float16"], histogram=True)
        assert m.counts is not None
        assert m.counts.numbers.equal(torch.stack([one.counts.numbers for one in alone]))  # type: ignore[union-attr]
        assert m.histogram is not None
        assert alone[1].histogram is not None
        # torch's powers have other last digits one by one.
        quantile = m.histogram.quantile(0.7)[1].item()
        assert quantile == pytest.approx(alone[1].histogram.quantile(0.7), rel=1e-12)
        saturated = [one.formats["e4m3"].saturated for one in alone]
        assert m.formats["e4m3"].saturated.tolist() == saturated


def test_what_is_not_asked_for_is_not_there() -> None:
    m = moments(torch.ones(3))
    assert (m.formats, m.histogram, m.counts) == ({}, None, None)
    assert "formats" not in m.plain()
    asked = moments(torch.ones(3), formats=["e4m3"], histogram=True).plain()
    assert asked["formats"] == {"e4m3": {"flushed": 0, "saturated": 0, "subnormal": 0}}
    assert asked["histogram"] == {"0": 3}


def test_moments_of_a_call_with_counts_are_the_same_bits() -> None:
    x = spread(999)
    assert moments(x).raw.equal(moments(x, formats=ALL, histogram=True).raw)


def test_merging_is_that_of_all_values() -> None:
    x = spread(64, 64, reach=3)
    whole = moments(x, formats=["e4m3", "mxfp4"], histogram=True)
    parts = [moments(p, formats=["e4m3", "mxfp4"], histogram=True) for p in x.chunk(5)]
    both = parts[0].merge(*parts[1:])
    assert both.formats == whole.formats
    assert both.histogram is not None
    assert whole.histogram is not None
    assert both.histogram.counts.equal(whole.histogram.counts)
    alone = whole.all_merge()
    assert alone.formats == whole.formats
    channels = moments(x, dim=1, histogram=True)
    assert channels.counts is not None
    twice = channels.merge(channels).all_merge()
    assert twice.counts is not None
    assert twice.counts.numbers.equal(2 * channels.counts.numbers)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: moments(x, formats="e4m3"), TypeError, "sequence of names"),
        (lambda x: moments(x, formats=None), TypeError, "sequence of names"),
        (lambda x: moments(x, formats=3), TypeError, "sequence of names"),
        (lambda x: moments(x, formats=[["e4m3"]]), ValueError, "e4m3, e5m2"),
        (
            lambda x: moments(x, formats=["e4m3"], histogram=1),
            TypeError,
            "histogram must be a bool",
        ),
        (lambda x: moments(x, histogram=None), TypeError, "histogram must be a bool"),
        (lambda x: moments(x, higher="no"), TypeError, "higher must be a bool"),
        (lambda x: moments(x, higher=0), TypeError, "higher must be a bool"),
        (lambda x: moments(x, formats=["fp8"]), ValueError, "e4m3, e5m2"),
        (lambda x: moments(x, formats=["e4m3", "e4m3"]), ValueError, "once"),
        (lambda x: moments(x, dim=1, formats=["mxfp8"]), NotImplementedError, "by channel"),
        (lambda x: moments(x, dim=0, formats=["e4m3_tensor"]), NotImplementedError, "by channel"),
        (
            lambda x: moments(x, formats=["e4m3"]).merge(moments(x)),
            ValueError,
            "same was counted",
        ),
        (lambda x: moments(x).merge(moments(x, histogram=True)), ValueError, "same was counted"),
        (
            lambda x: moments(x, formats=["nvfp4"], part=Part((128, 64)).chunk(0, 2, 1)),
            NotImplementedError,
            "nvfp4 is scaled by the largest magnitude",
        ),
        (
            lambda x: moments(x, formats=["mxfp8"], part=Part((64, 72), [[(0, 64)], [(8, 64)]])),
            NotImplementedError,
            "on several ranks",
        ),
        (
            lambda x: moments(x, formats=["mxfp8"], part=Part((128, 64), flat=(64, 4096))),
            NotImplementedError,
            "on several ranks",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(
    call: Callable[[Tensor], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call(spread(64, 64))


def test_parts_of_whole_blocks_are_counted_as_in_the_whole() -> None:
    x = spread(64, 128, reach=5)
    whole = moments(x, formats=["mxfp8", "mxfp4"])
    for dim in (0, 1):
        parts = [Part((64, 128)).chunk(dim, 2, rank) for rank in range(2)]
        some = [
            moments(piece, formats=["mxfp8", "mxfp4"], part=part)
            for piece, part in zip(x.chunk(2, dim), parts)
        ]
        assert some[0].merge(some[1]).formats == whole.formats


def test_the_table_is_that_of_the_standards() -> None:
    for name, row in FORMATS.items():
        exponent, mantissa, bias, largest = ELEMENTS[ELEMENT[name]]
        assert (row.mantissa, row.least, row.largest) == (mantissa, 1 - bias, largest)
        blocks = {UNSCALED: 0, BY_TENSOR: 0, BY_POWER: 32, BY_E4M3: 16}
        assert row.block == blocks[row.scaling]
        assert exponent >= 2


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_counted_in_the_read_of_the_moments_or_behind_it_is_the_same(
    dtype: torch.dtype, name: str
) -> None:
    """A format that is scaled by the largest value is counted behind it, and takes the others along."""
    at_once = [n for n, row in FORMATS.items() if row.scaling not in (BY_TENSOR, BY_E4M3)]
    long = drawn(600_011, seed=3, reach=20).to(dtype)  # more than a task has
    long[1000], long[599_000] = math.inf, 0
    some = long[:9600]
    others = (some.view(100, 96), some.view(96, 100).t(), some.view(100, 96)[::2, 3:60])
    for x in (long, some[::3], some[:77], some[:0], some[0], some.view(10, 30, 32), *others):
        with forced(name):
            for higher in (False, True):
                plain = moments(x, higher=higher)
                once = moments(x, formats=at_once, histogram=True, higher=higher)
                behind = moments(x, formats=ALL, histogram=True, higher=higher)
                assert once.raw.numpy().tobytes() == plain.raw.numpy().tobytes()
                assert once.histogram is not None
                assert behind.histogram is not None
                assert once.histogram.plain() == behind.histogram.plain()
                for format in at_once:
                    shares = [m.formats[format].plain() for m in (once, behind)]
                    assert str(shares[0]) == str(shares[1])  # NaN of no values
