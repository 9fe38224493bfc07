"""The program that made the polynomials of csrc/stream.h.

    python csrc/fit_polynomials.py

It fits them again (seconds; needs numpy, scipy and mpmath), prints each with its error, and
exits with 1 if a coefficient is not the one in stream.h. The wheel does not hold it.

Each fit minimises the largest weighted error on a Chebyshev grid, as a linear program. The
coefficients are rounded to float32 one after another, the constant first, and those that are left are
fitted again after each: later ones make up for the rounding of earlier ones. Errors are those of the
polynomial in exact arithmetic; tests/cpp/exhaustive.cpp measures those of the float32 evaluation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mpmath as mp
import numpy as np
from mpmath import mpf
from scipy.optimize import linprog

Function = Callable[[float], mpf]

mp.mp.dps = 30
HEADER = Path(__file__).with_name("stream.h")

KAPPA = mpf(7291) / 8192
SIGMA = mpf(float(np.float32(float(mp.sqrt(mp.log(2) / KAPPA)))))

TAIL = 7.0  # where the truncated normal's tail begins, in l = -log2(4 t (1 - t))
TAIL_FROM, TAIL_TO = 6.9, 97.0  # what its polynomial covers: t down to 2^-96
TAIL_SHIFT, TAIL_MIDDLE = 2.0, 6.5  # its argument is sqrt(l + shift) - middle


class Fit(NamedTuple):
    """A polynomial to fit: target(x) on [low, high], errors times weight(x) being minimised."""

    name: str
    target: Function
    weight: Function
    powers: range
    low: float
    high: float
    points: int


def minus_log2_1p(x: float) -> mpf:
    """-log2(1 + x) / x."""
    return -(mp.log1p(mpf(x)) / mpf(x) if x != 0 else mpf(1)) / mp.log(2)


def scaled_log(x: float) -> mpf:
    """-KAPPA log2(1 + x) / x."""
    return -(mp.log1p(mpf(x)) / mpf(x) if x != 0 else mpf(1)) * KAPPA / mp.log(2)


def cosine(x: float) -> mpf:
    return SIGMA * mp.cos(mp.pi / 4 * x)


def sine(x: float) -> mpf:
    """SIGMA sin(pi/4 x) / x."""
    return SIGMA * mp.sin(mp.pi / 4 * x) / x if x else SIGMA * mp.pi / 4


def angle_weight(x: float) -> mpf:
    """Errors of z = radius (c - s) count relative to max(1, z), at the largest radius."""
    largest = mp.sqrt(33 * KAPPA)
    return 1 / max(1, largest * (cosine(x) - x * sine(x)))


@lru_cache(None)
def quantile_ratio(ell: float) -> mpf:
    """z / x, where z is the normal quantile at p, x = 2p - 1, and ell = -log2(1 - x^2)."""
    y = mpf(2) ** (-mpf(ell))
    x = mp.sqrt(1 - y)
    if ell < 1e-15:
        return mp.sqrt(mp.pi / 2)
    t = y / (2 * (1 + x))  # the probability of the nearer tail
    start = mp.sqrt(2 * mp.log(1 / t)) - 0.3 if t < 0.1 else x * 1.2533
    return mp.findroot(lambda z: mp.log(mp.erfc(z / mp.sqrt(2)) / 2) - mp.log(t), start) / x


def quantile_weight(ell: float) -> mpf:
    """Errors of z count relative to max(1, z)."""
    return 1 / max(1, quantile_ratio(ell) * mp.sqrt(1 - mpf(2) ** -mpf(ell)))


def tail(r: float) -> mpf:
    """z / x from r = sqrt(l + shift) - middle."""
    return quantile_ratio((mpf(r) + TAIL_MIDDLE) ** 2 - TAIL_SHIFT)


def tail_argument(ell: float) -> float:
    return float(np.sqrt(ell + TAIL_SHIFT)) - TAIL_MIDDLE


# q, c, s: normal_pair. l, z: truncated_normal. tail: tail_quantile.
FITS = (
    Fit("q", scaled_log, lambda x: 1 / abs(scaled_log(x)), range(9), -0.5, 0.0, 600),
    Fit("c", cosine, angle_weight, range(0, 7, 2), 0.0, 1.0, 600),
    Fit("s", sine, lambda x: x * angle_weight(x) + mpf(1e-4), range(0, 7, 2), 0.0, 1.0, 600),
    Fit("l", minus_log2_1p, lambda x: abs(x) + mpf(1e-4), range(7), -0.5, 0.0, 600),
    Fit("z", quantile_ratio, quantile_weight, range(8), 0.0, TAIL, 200),
    Fit(
        "tail",
        tail,
        lambda r: 1 / tail(r),
        range(14),
        tail_argument(TAIL_FROM),
        tail_argument(TAIL_TO),
        240,
    ),
)


def solve(fit: Fit) -> tuple[list[float], float]:
    """The float32 coefficients, constant first, and the largest weighted error on the grid."""
    k = np.arange(fit.points)
    middle, reach = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    x = middle + reach * np.cos(np.pi * (k + 0.5) / fit.points)
    y = np.array([float(fit.target(v)) for v in x])
    weight = np.array([float(fit.weight(v)) for v in x])
    chosen: list[float] = []
    for place in range(len(fit.powers)):
        rest = y - sum((c * x**p for p, c in zip(fit.powers, chosen)), np.zeros_like(x))
        columns = np.stack([weight * x**p for p in fit.powers[place:]], 1)
        chosen.append(float(np.float32(minimax(columns, weight * rest)[0])))
    value = sum((c * x**p for p, c in zip(fit.powers, chosen)), np.zeros_like(x))
    return chosen, float(np.max(np.abs(weight * (y - value))))


def minimax(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The c that minimises max |columns c - wanted|.

    The program is solved for what least squares leaves, scaled to 1, so that the solver's absolute
    tolerances do not matter.
    """
    scale = np.abs(columns).max(0)
    columns = columns / scale
    start = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    left = wanted - columns @ start
    largest = np.max(np.abs(left)) or 1.0
    ones = np.ones((len(wanted), 1))
    unknowns = columns.shape[1]
    solution = linprog(
        np.r_[np.zeros(unknowns), 1.0],
        A_ub=np.block([[columns, -ones], [-columns, -ones]]),
        b_ub=np.concatenate([left, -left]) / largest,
        bounds=[(None, None)] * unknowns + [(0, None)],
        method="highs",
    )
    return (start + solution.x[:-1] * largest) / scale


def in_header(name: str) -> list[float]:
    """The coefficients that stream.h has under this name, constant first."""
    text = HEADER.read_text()
    function, variable = {
        "q": ("normal_pair", "q"),
        "c": ("normal_pair", "c"),
        "s": ("normal_pair", "s"),
        "l": ("truncated_normal", "l"),
        "z": ("truncated_normal", "z"),
        "tail": ("tail_quantile", "z"),
    }[name]
    start = re.search(rf"FASTINIT_FN [^;{{]*\b{function}\(", text)
    assert start is not None, function
    body = text[start.start() : text.index("\n}", start.start())]
    lines = re.findall(rf"^  (?:typename L::F {variable} =|{variable} =|return) .*$", body, re.M)
    found = re.findall(r"L::set\((-?0x[0-9a-f.]+p[+-]\d+)f\)", "\n".join(lines))
    return [float.fromhex(c) for c in reversed(found)]


def main() -> int:
    different = []
    for fit in FITS:
        coefficients, error = solve(fit)
        same = coefficients == in_header(fit.name)
        if not same:
            different.append(fit.name)
        print(f"{fit.name}: error {error:.2g}" + ("" if same else ", not what stream.h has:"))
        for power, c in zip(fit.powers, coefficients):
            print(f"  x^{power:<2} {c.hex()}")
        sys.stdout.flush()
    print("differs: " + ", ".join(different) if different else "all as in stream.h")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
