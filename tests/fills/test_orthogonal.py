"""fastinit.fills.orthogonal: exactness, and Haar's measure.

Distribution tests reject at level 1e-4 each, with fixed seeds: they cannot fail by chance once they
have passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from same_bits import assert_values, bits, drawn
from scipy import stats

from fastinit import Part, init
from fastinit.backends.choose import backend, native
from fastinit.fills.orthogonal import orthonormal_rows

LEVEL = 1e-4
TOLERANCE = {  # the promise for float32; a few units in the last place of one entry for the others
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float64: 1e-13,
    torch.complex128: 1e-13,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def deviation(w: torch.Tensor) -> float:
    """The largest entry of |Q^H Q - 1|, over the shorter side, in double."""
    m = w.detach().flatten(1).to(torch.complex128 if w.is_complex() else torch.float64)
    m = m if m.size(0) >= m.size(1) else m.mH
    return (m.mH @ m - torch.eye(m.size(1))).abs().max().item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (64, 64), (90, 31), (31, 90), (8, 3, 5, 5)]
)
def test_orthonormal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.empty(shape, dtype=dtype)
    assert init.orthogonal_(w, seed=1) is w
    assert deviation(w) < TOLERANCE[dtype]


def test_orthonormal_when_large() -> None:
    assert deviation(init.orthogonal_(torch.empty(700, 600), seed=1)) < 1e-5


def test_a_function_of_the_seed_alone() -> None:
    plain = init.orthogonal_(torch.empty(6, 4, 3, 3), seed=3)
    others = [
        torch.empty(6, 4, 3, 3).to(memory_format=torch.channels_last),
        torch.empty(3, 3, 4, 6).permute(3, 2, 0, 1),
        torch.empty(12, 4, 3, 3)[::2],
        torch.empty(6, 4, 3, 3, dtype=torch.float64),
    ]
    for w in others:
        # 1e-6: float64 differs from float32 by rounding alone.
        torch.testing.assert_close(init.orthogonal_(w, seed=3).float(), plain, rtol=0, atol=1e-6)
    for key in ({"seed": 4}, {"seed": 3, "name": "w"}):
        other = init.orthogonal_(torch.empty(6, 4, 3, 3), **key)
        assert not other.allclose(plain, atol=1e-3)


def test_gain() -> None:
    q = init.orthogonal_(torch.empty(5, 9), seed=0)
    torch.testing.assert_close(init.orthogonal_(torch.empty(5, 9), -2.0, seed=0), -2.0 * q)


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_gain_must_be_finite(gain: float) -> None:
    w = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=f"gain must be finite, but got {gain}"):
        init.orthogonal_(w, gain)
    assert not w.any()


SMALL = [(1, 1), (2, 2), (1, 7), (3, 5), (16, 16), (4, 300)]


def in_order(gaussians: list[list[float]], gain: float) -> list[list[float]]:
    """What csrc/cpu/whole.cpp computes: float64, every sum in the order of its terms."""
    few, many = len(gaussians), len(gaussians[0])
    rows = [list(row) for row in gaussians]
    for k in reversed(range(few)):
        v, squares = rows[k], 0.0
        for x in v[k:]:
            squares += x * x
        first = v[k] + 1e-36
        beta = math.copysign(max(math.sqrt(squares), 1e-36), first)
        tau, sign = first / beta + 1, gain if beta < 0 else -gain
        v[k + 1 :] = [x / (first + beta) for x in v[k + 1 :]]
        for row in rows[k + 1 :]:
            along = 0.0
            for i in range(k + 1, many):
                along += v[i] * row[i]
            along *= tau
            row[k:] = [-along, *(row[i] - along * v[i] for i in range(k + 1, many))]
        v[: k + 1] = [*[0.0] * k, sign * (1 - tau)]
        v[k + 1 :] = [x * (-sign * tau) for x in v[k + 1 :]]
    return rows


@pytest.mark.skipif(native.module is None, reason="without the native module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SMALL)
def test_small_ones_are_computed_in_one_order(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for gaussians in (drawn(*shape, seed=1).to(dtype), torch.zeros(shape, dtype=dtype)):
        for gain in (1.0, -0.3):
            expected = torch.tensor(in_order(gaussians.tolist(), gain), dtype=torch.float64)
            got = orthonormal_rows(gaussians.clone(), gain)
            assert bits(got).equal(bits(expected.to(dtype)))
            with backend("reference"):  # torch's linear algebra, in the same dtype
                torchs = orthonormal_rows(gaussians.clone(), gain)
            torch.testing.assert_close(got, torchs, rtol=0, atol=TOLERANCE[dtype])


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "of all rows": lambda: torch.empty(5, 6),
    "turned": lambda: torch.empty(6, 5).t(),
    "of every other": lambda: torch.empty(10, 12)[::2, ::2],
    "a parameter": lambda: torch.nn.Parameter(torch.empty(5, 6)),
    "a parameter's rows": lambda: torch.nn.Parameter(torch.empty(9, 6))[2:7],
    "wide": lambda: torch.empty(5, 6, dtype=torch.float64),
    "of more dimensions": lambda: torch.empty(5, 3, 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_small_ones_have_the_same_bits_in_any_strides(name: str) -> None:
    plain = init.orthogonal_(torch.empty(5, 6), seed=3)
    its = init.orthogonal_(VIEWS[name](), seed=3)
    got = its.detach().reshape(5, 6).float()
    assert bits(got).equal(bits(plain)) or (native.module is None and got.allclose(plain))


@pytest.mark.skipif(native.module is None, reason="without the native module")
def test_parts_of_small_ones_have_the_bits_of_the_whole() -> None:
    whole = init.orthogonal_(torch.empty(7, 5), seed=3, name="w")
    for rank, rows in enumerate((4, 3)):
        part = Part((7, 5)).chunk(0, ranks=2, rank=rank)
        its = init.orthogonal_(torch.empty(rows, 5), seed=3, name="w", part=part)
        assert bits(its).equal(bits(whole[4 * rank : 4 * rank + rows]))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Thousands of tiny matrices: LAPACK's threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draws(rows: int, columns: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.stack(
        [init.orthogonal_(torch.empty(rows, columns, dtype=dtype), seed=s) for s in range(count)]
    )


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_every_entry_has_haars_law(shape: tuple[int, int]) -> None:
    # The square of any entry of an orthonormal n-vector is Beta(1/2, (n-1)/2), its sign a fair coin.
    n = max(shape)
    q = draws(*shape, 1000)
    for i in range(shape[0]):
        for j in range(shape[1]):
            x = q[:, i, j]
            assert stats.kstest(x**2, stats.beta(0.5, (n - 1) / 2).cdf).pvalue > LEVEL
            assert stats.binomtest(int((x > 0).sum()), len(x)).pvalue > LEVEL


@pytest.mark.parametrize("n", [3, 4, 5])
def test_traces_and_determinant(n: int) -> None:
    # Diaconis & Shahshahani 1994: tr Q has mean 0 and variance 1, tr Q^2 has mean 1 and variance 2
    # (exactly, for n >= 4); det Q is +1 or -1 with even chances.
    q = draws(n, n, 2000)
    trace = q.diagonal(dim1=1, dim2=2).sum(1)
    square = (q @ q).diagonal(dim1=1, dim2=2).sum(1)
    assert stats.ttest_1samp(trace, 0.0).pvalue > LEVEL
    assert stats.ttest_1samp(trace**2, 1.0).pvalue > LEVEL
    assert stats.ttest_1samp(square, 1.0).pvalue > LEVEL
    if n >= 4:
        assert stats.ttest_1samp((square - 1) ** 2, 2.0).pvalue > LEVEL
    positive = int((torch.linalg.det(q) > 0).sum())
    assert stats.binomtest(positive, len(q)).pvalue > LEVEL


@pytest.mark.usefixtures("_one_thread")
def test_unitary_phases_are_uniform() -> None:
    # An entry's argument is uniform; |u|^2 is Beta(1, n - 1); |tr U|^2 has mean 1.
    u = draws(3, 3, 1500, torch.complex128)
    for i in range(3):
        for j in range(3):
            phase = (u[:, i, j].angle() / (2 * torch.pi)) % 1.0
            assert stats.kstest(phase, "uniform").pvalue > LEVEL
            assert stats.kstest(u[:, i, j].abs() ** 2, stats.beta(1, 2).cdf).pvalue > LEVEL
    trace = u.diagonal(dim1=1, dim2=2).sum(1)
    assert stats.ttest_1samp(trace.abs() ** 2, 1.0).pvalue > LEVEL


@pytest.mark.parametrize("shape", [(8, 4, 3), (8, 8, 3, 5), (5, 2, 4, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.full(shape, 7.0, dtype=dtype)
    assert init.delta_orthogonal_(w, seed=2) is w
    centre = w[(slice(None), slice(None), *(s // 2 for s in shape[2:]))]
    assert deviation(centre) < TOLERANCE[dtype]
    assert w.count_nonzero() == centre.count_nonzero()
    alone = init.orthogonal_(torch.empty(shape[:2], dtype=dtype), seed=2)
    assert_values(centre, alone, "orthogonal")


def test_delta_orthogonal_keeps_norms() -> None:
    conv = torch.nn.Conv1d(4, 6, 3, padding=1, bias=False)
    init.delta_orthogonal_(conv.weight, seed=0)
    x = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 1), (3,), (2, 2, 1, 1, 1, 1)])
def test_delta_orthogonal_refuses_shapes(shape: tuple[int, ...]) -> None:
    w = torch.zeros(shape)
    with pytest.raises(ValueError, match="but got shape"):
        init.delta_orthogonal_(w)
    with pytest.raises(ValueError, match="seed and generator"):
        init.delta_orthogonal_(torch.empty(2, 2, 1), seed=1, generator=torch.Generator())
    assert not w.any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 0, 3)])
def test_without_elements(shape: tuple[int, ...]) -> None:
    assert init.orthogonal_(torch.empty(shape)).shape == shape
