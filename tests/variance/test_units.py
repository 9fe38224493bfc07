"""Dead units, of every dtype and layout, by the kernel and without it, beside torch's own extremes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastinit
from fastinit.stream import laws
from fastinit.variance.watch.units import Units

UNITS = 5
LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, int]]] = {
    "rows": lambda x: (x, 1),
    "columns": lambda x: (x.t().contiguous(), 0),
    "one value each": lambda x: (x[0].clone(), 0),
    "one row": lambda x: (x[:1], -1),
    "images": lambda x: (x.reshape(3, 2, 4, UNITS).permute(0, 3, 1, 2).contiguous(), 1),
    "images, channels last": lambda x: (x.reshape(3, 2, 4, UNITS).permute(0, 3, 1, 2), 1),
    "sequences": lambda x: (x.reshape(4, 6, UNITS), -1),
    "not dense": lambda x: (torch.cat((x, x), 1)[:, :UNITS], 1),
}


def values(dtype: torch.dtype) -> Tensor:
    """[24, units]: one varies, one is 0 of both signs, one is 3 but for the last, one 3, one of NaN."""
    x = torch.randn(24, UNITS, generator=torch.Generator().manual_seed(0))
    x[:, 1] = torch.tensor([0.0, -0.0] * 12)
    x[:, 2:4] = 3
    x[-1, 2] = 4
    x[:, 4] = torch.nan
    return x.to(dtype)


def still(x: Tensor, dim: int, of_gradients: bool) -> list[float]:
    """By plain torch: the value of each unit that has one, NaN of the others."""
    rows = x.movedim(dim, 0).reshape(x.shape[dim], -1).double()
    same = (rows == (0 if of_gradients else rows[:, :1])).all(1)
    return torch.where(same, rows[:, 0], torch.nan).tolist()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("of_gradients", [False, True], ids=["outputs", "gradients"])
@pytest.mark.parametrize("dtype", laws.DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_that_are_still(
    layout: str, dtype: torch.dtype, of_gradients: bool, backend: str
) -> None:
    x, dim = LAYOUTS[layout](values(dtype))
    units = Units(of_gradients)
    with fastinit.backend(backend):
        units.add(x, dim)
    assert units.values == x.numel() // UNITS
    found = units.still()
    assert found is not None
    torch.testing.assert_close(found.tolist(), still(x, dim, of_gradients), equal_nan=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("of_gradients", [False, True], ids=["outputs", "gradients"])
def test_calls_add_up(of_gradients: bool, backend: str) -> None:
    """A unit that is still in each of two calls, but not at one value, is alive."""
    units, both = Units(of_gradients), [torch.zeros(3, 4), torch.zeros(3, 4)]
    both[0][1, 0], both[1][:, 1] = 1, 1
    with fastinit.backend(backend):
        for x in both:
            units.add(x, 1)
        found = units.still()
        assert found is not None
        expected = still(torch.cat(both), 1, of_gradients)
        torch.testing.assert_close(found.tolist(), expected, equal_nan=True)
        units.add(torch.randn(3, 4), 1)
    assert units.alive
    assert units.still() is None


def test_nothing_is_still_of_no_values() -> None:
    units = Units(of_gradients=False)
    units.add(torch.empty(0, 3), 1)
    assert (units.values, units.alive, units.still()) == (0, False, None)
