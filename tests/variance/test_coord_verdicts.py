"""Coordinate checks: slopes of least squares, the verdicts on them, and what is unclear."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from test_coord_check import WIDTHS
from torch import Tensor

from fastinit.variance.coord.result import Coordinates, Slope


def test_slopes_are_those_of_least_squares() -> None:
    """Against scipy.stats.linregress, which has the standard error too."""
    generator = torch.Generator().manual_seed(0)
    widths = [3, 10, 64, 100]
    sizes = torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.1
    slope = Slope.fit(widths, sizes)
    x = [math.log2(width) for width in widths for _ in range(5)]
    known = stats.linregress(x, sizes.log2().flatten().numpy())
    assert slope == pytest.approx((known.slope, known.stderr))
    for bad in (0.0, math.inf, math.nan):
        sizes[1, 2] = bad
        assert math.isnan(Slope.fit(widths, sizes).value)


def powers(init: float, size: float, change: float, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sizes and changes that go by powers of the width, of 2 seeds and 2 steps."""
    widths = torch.tensor([WIDTHS]).T.double()
    spread = torch.tensor([1.0 + noise, 1.0 / (1.0 + noise)]).double()
    wrong = spread if noise == 0 else torch.stack([spread, 1 / spread, spread])
    of = [(widths**power * wrong) for power in (init, size, change)]
    return torch.stack(of[:2], dim=2), torch.stack([torch.zeros(3, 2), of[2]], dim=2)


@pytest.mark.parametrize(
    ("slopes", "widens", "verdict"),
    [
        ((0.0, 0.0, 0.0), True, "flat"),
        ((0.1, -0.1, 0.2), True, "flat"),
        ((0.5, 0.0, 0.0), True, "grows"),
        ((0.0, 0.3, 0.0), True, "grows"),
        ((0.0, 0.0, 1.0), True, "grows"),
        ((0.0, 0.0, 1.0), False, "grows"),
        ((0.5, -1.0, -1.0), False, "grows"),
        ((0.0, 0.0, -0.5), True, "shrinks"),
        ((-0.5, 0.0, 0.0), True, "shrinks"),
        ((-0.5, -0.5, 0.0), False, "flat"),
        ((-0.5, -0.4, -0.3), False, "flat"),
        ((-0.5, -0.5, -1.0), False, "shrinks"),
    ],
)
def test_verdicts(slopes: tuple[float, float, float], widens: bool, verdict: str) -> None:
    sizes, changes = powers(*slopes)
    layer = Coordinates.of("fc", "Linear", WIDTHS, sizes, changes, widens, 0.25)
    assert layer.verdict == verdict
    assert (layer.init.value, layer.size.value, layer.change.value) == pytest.approx(slopes)
    assert layer.note == ""


def test_what_errors_do_not_tell_is_unclear() -> None:
    for slope in (0.0, 0.5):
        sizes, changes = powers(0, 0, slope, noise=3.0)
        layer = Coordinates.of("fc", "Linear", WIDTHS, sizes, changes, True, 0.25)
        assert layer.verdict == "unclear"
    sizes[1, 0, 1] = math.inf
    assert Coordinates.of("", "", WIDTHS, sizes, changes, True, 0.25).verdict == "not finite"
