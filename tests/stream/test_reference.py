"""The reference: its float32 arithmetic is IEEE 754's, its transforms as accurate as promised."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

from fastinit.stream import laws, reference
from fastinit.stream.laws import Law


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The reference is many small operations, at each of which other threads would only spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(exact: Fraction) -> float:
    """The float32 nearest to an exact number, ties to even, by integer arithmetic alone."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    units = round(size / unit)  # Python rounds a Fraction to the even neighbour
    if units * unit >= Fraction(2) ** 128:
        return math.copysign(math.inf, exact)
    return math.copysign(float(units * unit), exact)


def assert_fma_is_exact(triples: list[tuple[float, float, float]]) -> None:
    got = reference.fma(*torch.tensor(triples, dtype=torch.float32).unbind(1)).tolist()
    for (a, b, c), value in zip(triples, got):
        assert value == rounded(Fraction(a) * Fraction(b) + Fraction(c)), (
            a.hex(),
            b.hex(),
            c.hex(),
        )


@settings(max_examples=100)
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=50))
def test_fma_of_any_floats(triples: list[tuple[float, float, float]]) -> None:
    assert_fma_is_exact(triples)


def test_fma_of_terms_of_every_relative_size() -> None:
    """c from 2^-80 to 2^80 times the product, so that each bit of each term decides some case."""
    draw = random.Random(1)
    triples = []
    for gap in range(-80, 81):
        for _ in range(60):
            a, b, c = (float(draw.choice((-1, 1)) * draw.randrange(2**23, 2**24)) for _ in range(3))
            triples.append((a, b, math.ldexp(c, 24 + gap)))
    assert_fma_is_exact(triples)


def test_fma_where_rounding_twice_is_wrong() -> None:
    """The product lies half way between two float32 numbers, and c is too small for float64 to see."""
    a, b = 1.0 + 2.0**-12, 1.0 + 2.0**-12  # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a tie
    triples = [
        (sign * a, b, side * 2.0**-exponent)
        for sign in (1, -1)
        for side in (1, -1)
        for exponent in range(20, 149)
    ]
    assert_fma_is_exact(triples)
    up = float(np.float32(1 + 2.0**-11 + 2.0**-23))
    assert reference.fma(a, b, 2.0**-100).item() == up
    assert np.float32(a * b + 2.0**-100) != up  # what rounding to float64 in between would give


def test_fma_of_subnormals_and_at_the_end_of_the_range() -> None:
    draw = random.Random(2)
    tiny = [
        math.ldexp(draw.randrange(-(2**24), 2**24), -149 - draw.randrange(0, 24)) for _ in "x" * 400
    ]
    tiny = torch.tensor(tiny, dtype=torch.float32).tolist()
    triples = [(draw.uniform(-2, 2), draw.choice(tiny), draw.choice(tiny)) for _ in range(2000)]
    large = [(draw.uniform(1, 2), 2.0**127, draw.choice((-1, 1)) * 2.0**103) for _ in range(200)]
    triples += [*large, (2.0**127, 2.0 - 2.0**-23, 2.0**102), (2.0**127, 2.0 - 2.0**-23, 2.0**103)]
    float32 = torch.tensor(triples, dtype=torch.float32).tolist()
    assert_fma_is_exact([(a, b, c) for a, b, c in float32])


def test_sqrt_of_every_mantissa() -> None:
    """All 2^24 float32 numbers in [1, 4): r = R 2^-23 is right if (2R - 1)^2 < 4 x 2^46 < (2R + 1)^2."""
    for power, start in ((23, 1 << 23), (24, 1 << 23)):
        for first in range(start, 1 << 24, 1 << 20):
            m = torch.arange(first, first + (1 << 20))
            x = m.to(torch.float32) * 2.0 ** (power - 46)
            root = (reference.sqrt(x).to(torch.float64) * 2.0**23).to(torch.int64)
            square = m << power + 2
            assert bool(((2 * root - 1) ** 2 < square).all())
            assert bool((square < (2 * root + 1) ** 2).all())


def test_sqrt_of_subnormals_and_zero() -> None:
    assert reference.sqrt(torch.tensor([0.0, 2.0**-148, 2.0**-140])).tolist() == [
        0.0,
        2.0**-74,
        2.0**-70,
    ]


def test_words_as_numbers() -> None:
    words = torch.tensor([0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
    assert reference.from_int(words).tolist() == [0.0, 1.0, 2.0**31, -(2.0**31), -1.0]
    assert reference.from_uint(words).tolist() == [0.0, 1.0, 2.0**31, 2.0**31, 2.0**32]
    assert reference.bits(reference.from_bits(words)).equal(words)


# --- accuracy --------------------------------------------------------------------------------------

WORDS = 1 << 18  # test_exhaustive.py takes all 2^32
EDGE_WORDS = [0, 1, 2, 0x7FFF_FFFE, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFE, 0xFFFF_FFFF]


def words(seed: int) -> Tensor:
    """Of the stream, the first of them words where the transforms change course."""
    some = reference.philox_words(seed, 0, torch.arange(WORDS // 4)).view(-1)
    some[: len(EDGE_WORDS)] = torch.tensor(EDGE_WORDS)
    return some


def signed(words: np.ndarray) -> np.ndarray:
    return words.astype(np.int32).astype(np.float64)


def test_the_accuracy_of_normals() -> None:
    """Within 5e-7 max(1, |z|) of Box-Muller in float64 on the same words (the design's bound)."""
    radius_word, angle_word = words(1), words(2)
    got = [z.numpy().astype(np.float64) for z in reference.normal_pair(radius_word, angle_word)]
    u = (radius_word.numpy() + 0.5) * 2.0**-32
    angle = angle_word.numpy()
    phi = signed(angle << 2 & 0xFFFF_FFFF) * 2.0**-31 * (math.pi / 4)  # within an eighth of a turn
    radius = np.sqrt(-2 * np.log(u))
    exact = [
        radius * np.cos(phi - math.pi / 4) * np.where(angle >> 31 & 1, -1, 1),
        radius * np.cos(phi + math.pi / 4) * np.where(angle >> 30 & 1, -1, 1),
    ]
    for one, other in zip(got, exact):
        assert np.all(np.abs(one - other) <= 5e-7 * np.maximum(1, np.abs(other)))


WINDOWS = [
    (-2.0, 2.0),
    (-100.0, 100.0),
    (-math.inf, math.inf),
    (-0.01, 0.01),
    (0.5, math.inf),
    (-math.inf, 1.5),
    (-1.0, 3.0),
    (3.0, 9.0),
    (-9.0, -3.0),
    (6.0, 6.5),
    (8.0, math.inf),
    (-8.8, -8.5),
    (-8.0, 8.0),
]


@pytest.mark.parametrize(("a", "b"), WINDOWS)
def test_the_accuracy_of_truncated_normals(a: float, b: float) -> None:
    """Within 1e-6 max(1, |z|) of the inverse CDF in float64 on the same words (the design's bound)."""
    params = laws.kernel_params(laws.truncated_normal(a=a, b=b), torch.float32)
    word = words(3)
    got = reference.truncated_normal(word, params).numpy().astype(np.float64)
    u = (word.numpy() + 0.5) * 2.0**-32
    ends = (-a, -b) if a > 0 else (b, a)
    mass = special.ndtr(ends[0]) - special.ndtr(ends[1])
    below, above = special.ndtr(a) + u * mass, special.ndtr(-b) + (1 - u) * mass
    exact = np.where(below < above, special.ndtri(below), -special.ndtri(above))
    error = np.abs(got - exact) / np.maximum(1, np.abs(exact))
    assert error.max() <= 1e-6
    assert a <= got.min()
    assert got.max() <= b


def test_the_largest_values() -> None:
    """Of a normal 6.7637, of a truncated normal with far bounds about 6.4 (the design's figures)."""
    first, angles = torch.tensor([0, 0]), torch.tensor([0x6000_0000, 0x2000_0000])
    radius = torch.stack(reference.normal_pair(first, angles)).double().norm(dim=0)
    assert radius.tolist() == pytest.approx([6.76372, 6.76372], abs=1e-4)
    for bound in (7.0, 100.0, 1e30, math.inf):
        params = laws.kernel_params(laws.truncated_normal(a=-bound, b=bound), torch.float32)
        ends = reference.truncated_normal(torch.tensor([0, 0xFFFF_FFFF]), params).tolist()
        assert ends == pytest.approx([-6.3379, 6.3379], abs=1e-3) or bound == 7.0
        assert -6.5 < ends[0] < -6.2
        assert 6.2 < ends[1] < 6.5


def test_a_pair_of_normals_is_two_neighbours_of_the_stream() -> None:
    law: Law = laws.normal()
    params = laws.kernel_params(law, torch.float32)
    values = reference.values(law.kind, params, 5, 6, torch.arange(8))
    w = reference.philox_words(5, 6, torch.arange(2))
    pairs = [torch.stack(reference.normal_pair(w[:, k], w[:, k + 1]), -1) for k in (0, 2)]
    assert values.equal(torch.cat(pairs, -1).view(-1))


def test_windows_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window larger than what is computed at once."""
    params = laws.kernel_params(laws.uniform(), torch.float32)
    whole, pieces = torch.empty(37, 53), torch.empty(37, 53)
    reference.fill(whole, laws.UNIFORM, params, 1, 2, (1000, 3), 7)
    monkeypatch.setattr(reference, "CHUNK", 100)
    reference.fill(pieces, laws.UNIFORM, params, 1, 2, (1000, 3), 7)
    assert pieces.equal(whole)
