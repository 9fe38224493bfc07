"""A run that was watched: what is read from its file is what was measured, all of it and no more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from watching import mlp

from fastinit.variance.run.run import Run
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch


def trained(path: Path, steps: int = 5, start: int = 0, model: Any = None) -> list[Measured]:
    """A training whose third step has values that are not finite and a layer that is constant."""
    torch.manual_seed(0)
    model, told = model or mlp(3), list[Measured]()
    with watch(model, gradients=True, every=1, to=[path, told.append], start=start) as w:
        for number in range(steps):
            x = torch.randn(8, 32)
            if number == 2:
                x[0, 0] = math.inf
            model(x).square().mean().backward()
            w.step()
    return told


def same(one: Measured, other: Measured) -> bool:
    """Up to the last digits of float64: var and std each are two roundings away."""
    a, b = one.plain(), other.plain()
    flat = [_flat(a), _flat(b)]
    assert [key for key, _ in flat[0]] == [key for key, _ in flat[1]]
    return all(
        got == (pytest.approx(value, rel=1e-15) if isinstance(value, float) else value)
        for (_, got), (_, value) in zip(*flat)
    )


def _flat(plain: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(plain, (dict, list)):
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        return [one for k, v in items for one in _flat(v, f"{prefix}.{k}")]
    return [(prefix, plain)]


def test_a_file_says_what_a_function_is_told(tmp_path: Path) -> None:
    told = trained(tmp_path / "stats.jsonl")
    run, heard = Run.load(tmp_path / "stats.jsonl"), Run()
    for measured in told:
        heard(measured)
    assert run.steps == heard.steps == [0, 1, 2, 3, 4]
    assert run.layers == heard.layers == ["0", "2", "4"]
    assert run.signals == ["forward", "gradient", "weight"]
    assert run.last is not None
    assert same(run.last, told[-1])
    assert run.last.table(True) == told[-1].table(True)
    for signal in run.signals:
        key = f"{signal}_std"
        for name, curve in run.stds(signal).items():
            wanted = [m.scalars().get(f"{key}/{name}") for m in told]
            assert curve == [None if v is None else pytest.approx(v, rel=1e-15) for v in wanted]
            assert curve == heard.stds(signal)[name]
    assert run.stds()["0"][2] == math.inf
    with pytest.raises(ValueError, match="signal must be one of forward, gradient, weight"):
        run.stds("input")


CUT: dict[str, bytes] = {
    "half a line": b'{"step": 7, "produ',
    "a line without its end": b"whole",
    "half a letter": b'{"step": 7, "missing": "\xc3',
    "nothing": b"",
}


@pytest.mark.parametrize("kind", CUT)
def test_a_last_line_that_a_crash_cut_is_read_over(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    told = trained(path, 2)
    whole = json.dumps({"step": 7, **told[-1].plain()}).encode()
    path.write_bytes(path.read_bytes() + CUT[kind].replace(b"whole", whole))
    assert Run.load(path).steps == ([0, 1, 7] if kind == "a line without its end" else [0, 1])


OTHERS: dict[str, tuple[bytes, str]] = {
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1, is not what a watch writes"),
    "text": (b"loss 1\nloss 2\n", "line 1, is not what a watch writes"),
    "other lines of JSON": (b'{"loss": 3}\n', "line 1, is not what a watch writes.*'step'"),
    "a list": (b"[1, 2]\n", "line 1, is not what a watch writes"),
    "numbers": (b"1\n2\n", "line 1, is not what a watch writes"),
    "layers of another kind": (b'{"layers": [{"a": 1}], "step": 1}\n', "line 1, is not"),
    "a step that is no number": (
        b'{"layers": [], "step": Infinity, "missing": {}}\n',
        "line 1, is not",
    ),
    "a step that is no whole number": (
        b'{"layers": [], "step": 1.5, "missing": {}}\n',
        "line 1, is not",
    ),
    "a name that is no text": (
        b'{"layers": [{"name": 3}], "step": 1, "missing": {}}\n',
        "line 1.*name",
    ),
    "depths": (b"[" * 100_000 + b"\n", "line 1, is not what a watch writes"),
    "nothing": (b"", "has no step that was measured"),
    "a first line that was cut": (b'{"step": 0, "prod', "has no step that was measured"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(OTHERS[kind][0])
    with pytest.raises(ValueError, match=f"other.jsonl,? {OTHERS[kind][1]}"):
        Run.load(path)


def test_a_line_within_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    trained(path, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + first[:90] + b"\n" + second)
    with pytest.raises(ValueError, match="line 2"):
        Run.load(path)


def test_a_training_that_goes_back_takes_its_steps_back(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    trained(path, 6)
    again = trained(path, 3, start=4, model=mlp(2))  # layer 4 is gone
    run = Run.load(path)
    assert run.steps == [0, 1, 2, 3, 4, 5, 6]
    assert run.taken_back == 2
    assert run.stds()["0"][4] == pytest.approx(again[0].layers[0].forward.std)
    assert run.layers == ["0", "2", "4"]
    assert run.stds()["4"][4:] == [None] * 3
    assert all(len(curve) == 7 for curve in run.stds("weight").values())


def test_a_run_is_told_by_a_watch() -> None:
    run, model = Run(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data.zero_()
    model[1].bias.data.zero_()
    with watch(model, every=2, to=run) as w:
        for _ in range(5):
            model(torch.randn(8, 4))
            w.step()
    assert run.steps == [0, 2, 4]
    assert run.stds()["1"] == [0.0] * 3
