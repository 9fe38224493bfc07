"""Timing: contenders take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Clock = Callable[[Callable[[], object]], float]
"""The seconds that a call takes."""


class Timing(NamedTuple):
    """Seconds: the median of several rounds, and the fastest and slowest of them."""

    median: float
    fastest: float
    slowest: float

    @property
    def spread(self) -> float:
        """Half the distance from the fastest to the slowest round, relative to the median."""
        return (self.slowest - self.fastest) / 2 / self.median


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = wall_clock
) -> dict[str, Timing]:
    """Times each contender once per round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            taken = clock(run)
            if round_:
                seconds[name].append(taken)
    return {
        name: Timing(statistics.median(all_), min(all_), max(all_))
        for name, all_ in seconds.items()
    }
