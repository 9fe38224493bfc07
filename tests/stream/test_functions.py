"""Functions of exactly rounded operations: near the true value, right at the edges, the same bits."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from fastinit.stream import functions

X = [
    s * m * 10.0**e for e in (-12, -5, -2, -1, 0, 1) for m in (1.0, 1.7, 3.3, 6.9) for s in (1, -1)
]
POSITIVE = [x for x in X if x > 0] + [5e-324, 3e-310, 1 - 2**-53, 1 + 2**-52, 1e300]


def _exp(x: Decimal) -> Decimal:
    return x.exp()


TRUE: dict[str, tuple[Callable[[Decimal], Decimal], list[float]]] = {
    "exp": (_exp, X),
    "expm1": (lambda x: x.exp() - 1, X),
    "log": (lambda x: x.ln(), POSITIVE),
    "log1p": (lambda x: (1 + x).ln(), [*(x for x in X if x > -1), 1e300]),
    "sigmoid": (lambda x: 1 / (1 + (-x).exp()), X),
    "tanh": (lambda x: ((2 * x).exp() - 1) / ((2 * x).exp() + 1), X),
    "softplus": (lambda x: (1 + x.exp()).ln(), X),
    "inverse_softplus": (lambda x: (x.exp() - 1).ln(), [x for x in X if x > 1e-6]),
}


@pytest.mark.parametrize("name", TRUE)
def test_functions_are_near_their_true_value(name: str) -> None:
    """Their operations round a few times by 2^-53: 1e-15 of the value, or of what cancels."""
    true, given = TRUE[name]
    made = getattr(functions, name)(torch.tensor(given, dtype=torch.float64))
    with localcontext() as context:
        context.prec = 60
        for x, value in zip(given, made.tolist(), strict=True):
            exact = float(true(Decimal(x)))
            room = abs(x) if name == "inverse_softplus" else 0.0  # its terms cancel where it is 0
            assert abs(value - exact) <= 1e-15 * (abs(exact) + room), (x, value, exact)


@pytest.mark.parametrize("exponent", [0.37, -0.5, 2.0, -3.0, 64.0, 65.0, 66.0, -101.0, 0.0])
def test_powers(exponent: float) -> None:
    base = torch.tensor([0.3, 1.0, 1.9, 7.5], dtype=torch.float64)
    if exponent.is_integer():
        base = torch.cat([base, -base])
    exact = [x**exponent for x in base.tolist()]
    # exp carries the error of its argument, up to 2^-52 x 200.
    assert functions.power(base, exponent).tolist() == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("exp", {math.inf: math.inf, -math.inf: 0.0, 1e300: math.inf, -1e300: 0.0, 0.0: 1.0}),
        ("expm1", {math.inf: math.inf, -math.inf: -1.0, 0.0: 0.0}),
        (
            "log",
            {math.inf: math.inf, 0.0: -math.inf, -1.0: math.nan, -math.inf: math.nan, 1.0: 0.0},
        ),
        ("log1p", {math.inf: math.inf, -1.0: -math.inf, -1.5: math.nan, 0.0: 0.0}),
        ("sigmoid", {math.inf: 1.0, -math.inf: 0.0, 0.0: 0.5}),
        ("tanh", {math.inf: 1.0, -math.inf: -1.0, 0.0: 0.0}),
        ("softplus", {math.inf: math.inf, -math.inf: 0.0}),
        ("inverse_softplus", {math.inf: math.inf, 0.0: -math.inf, -1.0: math.nan}),
    ],
)
def test_edges(name: str, at: dict[float, float]) -> None:
    made = getattr(functions, name)(torch.tensor([*at, math.nan], dtype=torch.float64))
    torch.testing.assert_close(
        made,
        torch.tensor([*at.values(), math.nan], dtype=torch.float64),
        equal_nan=True,
        rtol=0,
        atol=0,
    )


def bits(x: Tensor) -> list[str]:
    return [float(value).hex() for value in x]


def test_bits_are_the_same_on_every_machine() -> None:
    x = torch.tensor([-3.7, -0.02, 0.3, 11.5], dtype=torch.float64)
    known = {
        "exp": [
            "0x1.9511fc6871044p-6",
            "0x1.f5dc99badec5bp-1",
            "0x1.599058c8c1a96p+0",
            "0x1.819bc560f6113p+16",
        ],
        "expm1": [
            "-0x1.f357701cbc77ep-1",
            "-0x1.446cc8a427492p-6",
            "0x1.6641632306a56p-2",
            "0x1.819ac560f6113p+16",
        ],
        "log": [
            "0x1.4eeee650ae550p+0",
            "-0x1.f4bd2b7ac1bafp+1",
            "-0x1.34378fcbda721p+0",
            "0x1.389ed3e132574p+1",
        ],
        "log1p": [
            "0x1.8c2d0e7b73742p+0",
            "0x1.44723d272a7f1p-6",
            "0x1.0ca937be1b9ddp-2",
            "0x1.434b1382efeb8p+1",
        ],
        "sigmoid": [
            "0x1.8b4c0ffc14fbep-6",
            "0x1.fae152dd46e9bp-2",
            "0x1.261d545e46a8bp-1",
            "0x1.fffeac180a413p-1",
        ],
        "tanh": [
            "-0x1.ff5fdc948488cp-1",
            "-0x1.47a2e5a063f19p-6",
            "0x1.2a4dda7d914f9p-2",
            "0x1.fffffffe3cad8p-1",
        ],
        "softplus": [
            "0x1.9024d723e49b5p-6",
            "0x1.5dcc054f4a687p-1",
            "0x1.b56e0cf4511aep-1",
            "0x1.7000153e86693p+3",
        ],
        "inverse_softplus": [
            "0x1.d66546caaa246p+1",
            "-0x1.f374f197007e7p+1",
            "-0x1.0cdb95f476196p+0",
            "0x1.6fffeac16b7c4p+3",
        ],
    }
    for name, wanted in known.items():
        given = x.abs() if name in ("log", "log1p", "inverse_softplus") else x
        assert bits(getattr(functions, name)(given)) == wanted, name
    assert bits(functions.power(x.abs(), 0.37)) == [
        "0x1.9f6862d7943a7p+0",
        "0x1.e1a09370f29d1p-3",
        "0x1.47f2a82326934p-1",
        "0x1.3bfc7a32769c3p+1",
    ]
