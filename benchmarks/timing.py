"""Timing: contenders take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastinit


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
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[Callable[[], object]], float] = wall_clock,
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


def per_call(call: Callable[[], object], calls: int = 2000, rounds: int = 7) -> Timing:
    """Times a short call, as the mean over many calls in each of several rounds."""

    def run() -> None:
        for _ in range(calls):
            call()

    timing = race({"call": run}, rounds)["call"]
    return Timing(*(seconds / calls for seconds in timing))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in lines)
            if key.strip() in ("model name", "cpu family", "model")
        }
        return f"{model['model name']} (family {model['cpu family']}, model {model['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cpu": cpu_name(),
        "cores": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "system": platform.platform(terse=True),
        "fastinit": fastinit.info(),
    }


def save(results: Mapping[str, Any], folder: Path, kind: str, hardware: str) -> Path:
    """Writes results as JSON under the hardware's name."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", hardware).strip("-").lower()
    path = folder / f"{kind}-{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path
