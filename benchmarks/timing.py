"""Timing: contenders take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fastinit
from fastinit.base.timing import Timing, race, wall_clock

__all__ = [
    "Timing",
    "cpu_name",
    "machine",
    "newest",
    "race",
    "save",
    "saved",
    "wall_clock",
    "where",
]

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """The CPU, and the build for it that FASTINIT_ISA forces, if it does."""
    return ", ".join(filter(None, (_model(), os.environ.get("FASTINIT_ISA"))))


def _model() -> str:
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


def saved(kind: str) -> Any:
    """Results that were saved under their kind alone."""
    return json.loads((RESULTS / f"{kind}.json").read_text())


def newest(kind: str) -> dict[str, Any]:
    """The results of the last day, of any machine; of one day, where no build was forced."""
    paths = sorted(
        RESULTS.glob(f"{kind}-*.json"), reverse=True
    )  # "...-17.json", "...-17-avx2.json"
    found = [json.loads(path.read_text()) for path in paths]
    last: dict[str, Any] = max(found, key=lambda results: results["machine"]["date"])
    return last


def where(machine: Mapping[str, Any]) -> str:
    """The machine, in a line of text."""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}"
