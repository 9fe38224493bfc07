"""The examples run, and the slow test: they show what they are there to show."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn has the digits")
digits = pytest.importorskip("examples.digits", reason="not run from the checkout")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the example asks for; the tests of other modules have as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean(results: Sequence[digits.Result], net: str, init: str) -> float:
    return statistics.fmean(
        next(r.accuracy for r in results if r.net.startswith(net) and r.init == init)
    )


def test_the_split_is_fixed_and_whole() -> None:
    one, two = digits.load(), digits.load()
    for a, b in zip(one, two):
        assert a.equal(b)
    assert len(one.test_y) == digits.TEST
    assert len(one.y) + len(one.test_y) == 1797
    assert one.x.shape[1:] == (64,)
    assert int(one.x.max()) == digits.LEVELS - 1


def test_digits_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        torch, "set_num_threads", lambda count: None
    )  # for the tests after this one
    files = tmp_path / "results.json", tmp_path / "picture.png"
    arguments = ["--seeds", "1", "--steps", "2", "--json", str(files[0]), "--plot", str(files[1])]
    monkeypatch.setattr(sys, "argv", ["digits.py", *arguments])
    digits.main()
    records = json.loads(files[0].read_text())
    expected = [
        (case.net, name, case.rate)
        for case in digits.CASES + digits.EMBEDDINGS
        for name in case.inits
    ]
    assert [(r["net"], r["init"], r["rate"]) for r in records] == expected
    for record in records:
        assert record["steps"] == 2
        assert record["early_steps"] == len(record["accuracy"]) == len(record["early"]) == 1
        assert 0 <= record["accuracy"][0] <= 100
    assert files[1].read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert all(len(line) <= 80 for line in table.splitlines())
    assert all(f"  {name} " in table for name in digits.INITS)


@pytest.mark.parametrize("case", digits.CASES + digits.EMBEDDINGS, ids=lambda case: case.net)
def test_a_seed_gives_the_same_weights(case: digits.Case) -> None:
    x = digits.load().x
    for initialise in case.inits.values():
        nets = [case.make(), case.make()]
        for net in nets:
            initialise(net, 3, x)
        for a, b in zip(nets[0].parameters(), nets[1].parameters()):
            # LSUV's scales come from what torch multiplies: to some roundings of float32.
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_alternating_factors_leave_the_function() -> None:
    """ReLU is homogeneous, and over an even number of layers the product is 1."""
    data, (case, *_) = digits.load(), digits.CASES
    nets = [case.make(), case.make()]
    digits.kaiming(nets[0], 0, data.x)
    digits.alternating(nets[1], 0, data.x)
    for place in (1, 3):
        plain, scaled = (net[place].weight.detach().var() for net in nets)
        assert float(scaled / plain) == pytest.approx({1: 1.25, 3: 0.8}[place], rel=1e-4)
    torch.testing.assert_close(nets[0](data.test_x), nets[1](data.test_x), rtol=1e-3, atol=1e-4)


def test_moving_the_embeddings_scale_leaves_the_function() -> None:
    assert digits.changed_scores(digits.load(), range(2)) < 1e-4


def test_a_rate_that_diverges_is_as_bad_as_a_guess() -> None:
    case = digits.CASES[0]
    assert digits.mean_loss(case, 1e9, digits.load(), [0], 3) == pytest.approx(math.log(10), 1e-3)


@pytest.fixture(scope="module")
def full(one_thread: None) -> list[digits.Result]:
    return list(digits.experiment(digits.load(), range(5), 300))


# Tolerances are wide of what was seen, since rounding differs between machines and training doubles
# its traces: a net trains, or it stays at the 10 % of a guess.
TRAINS, GUESSES = 75.0, 20.0


@pytest.mark.slow
def test_lsuv_trains_every_net_and_torchs_default_none(full: list[digits.Result]) -> None:
    for case in digits.CASES:
        assert mean(full, case.net, "LSUV") > TRAINS
        assert mean(full, case.net, "torch's default") < GUESSES
    assert mean(full, "ReLU", "LSUV") > 90
    assert mean(full, "ReLU", "Kaiming") > TRAINS
    assert mean(full, "ReLU", "Xavier") < GUESSES
    assert mean(full, "tanh", "Xavier") > TRAINS


@pytest.mark.slow
def test_alternating_factors_train_like_kaiming(full: list[digits.Result]) -> None:
    difference, error = digits.difference(full, digits.ALTERNATING, "Kaiming")
    assert abs(difference) <= 3 * error


@pytest.mark.slow
def test_a_moved_scale_is_another_rate(full: list[digits.Result]) -> None:
    low, high = (case.net for case in digits.EMBEDDINGS)
    plain, moved = digits.MOVED
    early = {(r.net, r.init): statistics.fmean(r.early) for r in full}
    assert early[low, moved] > early[low, plain] + 10
    assert mean(full, high, plain) > TRAINS
    assert mean(full, high, moved) < mean(full, high, plain) - 30
