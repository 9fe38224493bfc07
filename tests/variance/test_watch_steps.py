"""A watch that stays on: which steps it measures, and when it tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from watching import hooks, mlp

from fastinit.base.number import NumberRangeError
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch


def train(
    w: Any, model: nn.Module, steps: int, each: Callable[[int], object] = lambda n: None
) -> None:
    for number in range(steps):
        model(torch.randn(8, 32)).square().mean().backward()
        each(number)
        w.step()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_nth_step_is_measured_and_no_other_has_hooks(tmp_path: Path) -> None:
    model, told = mlp(), list[Measured]()
    plain, seen = hooks(model), list[bool]()
    path = tmp_path / "stats.jsonl"
    with watch(model, gradients=True, every=3, to=[path, told.append]) as w:
        train(w, model, 8, lambda number: seen.append(hooks(model) != plain))
        assert [measured.step for measured in told] == [0, 3, 6]
    assert seen == [True, False, False] * 2 + [True, False]
    assert hooks(model) == plain
    assert [line["step"] for line in lines(path)] == [0, 3, 6]
    assert [line["layers"][0]["calls"] for line in lines(path)] == [1, 1, 1]
    assert w.layers == told[-1].layers


def test_a_step_is_what_a_block_of_its_own_sees() -> None:
    model, told = mlp(), list[Measured]()
    torch.manual_seed(1)
    with watch(model, gradients=True, every=2, to=told.append) as w:
        train(w, model, 3)
    torch.manual_seed(1)
    blocks = []
    for _ in range(3):
        with watch(model, gradients=True) as block:
            model(torch.randn(8, 32)).square().mean().backward()
        blocks.append(json.loads(block.to_json()))
    assert [measured.plain() for measured in told] == blocks[::2]


def test_what_was_measured_is_told_when_the_next_step_has_ended() -> None:
    model, told = mlp(), list[Measured]()
    with watch(model, every=1, to=told.append) as w:
        with pytest.raises(RuntimeError, match="nothing to read yet"):
            _ = w.layers
        train(w, model, 1)
        assert told == []
        train(w, model, 1)
        assert [measured.step for measured in told] == [0]
        assert w.layers == told[0].layers
    assert [measured.step for measured in told] == [0, 1]


def test_a_step_without_an_end_is_not_told() -> None:
    model, told = mlp(), list[Measured]()
    plain = hooks(model)
    w = watch(model, every=2, to=told.append)
    with pytest.raises(ZeroDivisionError), w:
        train(w, model, 4, lambda number: number == 2 and 1 // 0)
    assert [measured.step for measured in told] == [0]
    assert hooks(model) == plain
    with watch(model, every=2, to=told.append, start=7) as w:  # it goes on
        train(w, model, 2)
    assert [measured.step for measured in told] == [0, 8]


def test_what_runs_while_it_pauses_does_not_count() -> None:
    model, told = mlp(), list[Measured]()
    plain = hooks(model)

    def evaluate(number: int) -> None:
        w.pause()
        w.pause()
        assert hooks(model) == plain
        model(torch.randn(8, 32))
        w.resume()

    w = watch(model, gradients=True, every=2, to=told.append)
    with w:
        train(w, model, 4, evaluate)
        evaluate(4)
        w.resume()
        train(w, model, 1)
    assert [measured.step for measured in told] == [0, 2, 4]
    assert [layer.calls for measured in told for layer in measured.layers] == [1] * 12
    assert hooks(model) == plain
    w.resume()  # of a block that is over
    assert hooks(model) == plain


def test_curves_are_drawn_by_a_summary_writer() -> None:
    class Writer:
        def __init__(self) -> None:
            self.points: dict[str, list[tuple[int, float]]] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.points.setdefault(tag, []).append((global_step, scalar_value))

    model, writer, told = mlp(), Writer(), list[Measured]()
    with watch(model, gradients=True, every=1, to=(writer, told.append)) as w:
        train(w, model, 2)
    stds = [(measured.step, measured.layers[1].forward.std) for measured in told]
    assert writer.points["forward_std/2"] == stds
    names = {tag.split("/")[0] for tag in writer.points}
    assert names == {"forward_std", "gradient_std", "weight_std", "dead"}


def test_steps_are_what_they_were_for_who_goes_on_when_a_logger_fails() -> None:
    model, told = mlp(), list[Measured]()

    def fail(measured: Measured) -> None:
        raise ConnectionError("the logger is away")

    with watch(model, every=2, to=[told.append, fail]) as w:
        for _ in range(6):
            with suppress(ConnectionError):
                train(w, model, 1)
    assert [(measured.step, measured.layers[0].calls) for measured in told] == [
        (0, 1),
        (2, 1),
        (4, 1),
    ]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"every": 0}, NumberRangeError, "every"),
        ({"every": 1, "start": -1}, NumberRangeError, "start"),
        ({"every": 1, "to": 3}, TypeError, "to must be a path, a writer"),
        ({"every": 1, "step": print}, TypeError, "every counts the steps"),
        ({"step": 3}, TypeError, "step must be a function, but got 3"),
        ({"gradients": "no"}, TypeError, "gradients must be a bool"),
        ({"residual": 0}, TypeError, "residual must be a bool"),
        ({"higher": None}, TypeError, "higher must be a bool"),
        ({"to": "stats.jsonl"}, TypeError, "to is of a watch with every="),
        ({"start": 3}, TypeError, "start is of a watch with every="),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        watch(mlp(), **wrong)


def test_step_is_for_watches_that_count_steps(tmp_path: Path) -> None:
    with watch(mlp()) as w, pytest.raises(RuntimeError, match="measures its whole block"):
        w.step()
    with pytest.raises(RuntimeError, match="is not entered"):
        watch(mlp(), every=1).step()
    gone = tmp_path / "not there" / "stats.jsonl"
    model = mlp()
    plain = hooks(model)
    with pytest.raises(FileNotFoundError), watch(model, every=1, to=gone):
        pass
    assert hooks(model) == plain


def test_hooks_stay_from_one_measured_step_to_the_next() -> None:
    model = mlp()

    def own() -> list[list[int]]:
        return [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]

    with watch(model, gradients=True, inputs=True, every=1) as w:
        first = own()
        train(w, model, 2)
        assert own() == first
        w.pause()
        train(w, model, 1)  # its end is the pause's too
        assert own() != first
        train(w, model, 2)
    assert {layer.calls for layer in w.layers} == {1}


class Above(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Twice(Above):
    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():  # as those that correct a step have
            super().step(closure)
        return None


class Inside(torch.optim.Optimizer):
    """Another one within, as Lookahead has it."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.inner = Twice(list(parameters), lr=lr)
        super().__init__(self.inner.param_groups, {})

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Fails(Twice):
    """Each second time, in the class's above."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls % 2:
            self.param_groups[0]["lr"] = "fast"
        try:
            return super().step(closure)
        finally:
            self.param_groups[0]["lr"] = 0.1


@pytest.mark.parametrize("kind", [torch.optim.SGD, Above, Twice, Inside, Fails])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_step_counts_once_whatever_it_calls(kind: Any, scheduled: bool) -> None:
    model, told = mlp(), list[Measured]()
    torch.optim.SGD(model.parameters(), lr=0.1)  # now each SGD's step has hooks, by itself
    optimizer = kind(model.parameters(), lr=0.1)
    if scheduled:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    given = {"every": 1, "to": told.append, "optimizer": optimizer, "weight_gradients": True}
    with watch(model, gradients=True, **given):
        for _ in range(4):
            model(torch.randn(8, 32)).square().mean().backward()
            with suppress(TypeError) if kind is Fails else nullcontext():
                optimizer.step()
            optimizer.zero_grad()
    failed = kind is Fails  # and then the next one's passes count with its own
    assert [measured.step for measured in told] == list(range(2 if failed else 4))
    for measured in told:
        assert {layer.calls for layer in measured.layers} == {2 if failed else 1}
        assert all(layer.weight_gradient for layer in measured.layers)


def test_what_the_block_raised_is_what_its_user_sees() -> None:
    def fail(measured: Measured) -> None:
        raise ConnectionError("the logger is away")

    model = mlp()
    plain = hooks(model)
    w = watch(model, every=2, to=fail)

    def interrupted() -> None:
        with w:
            train(w, model, 1)
            raise KeyboardInterrupt

    with (
        pytest.warns(UserWarning, match="not told: ConnectionError"),
        pytest.raises(KeyboardInterrupt),
    ):
        interrupted()
    assert hooks(model) == plain
    assert w.layers
    with pytest.raises(RuntimeError, match="was left already"):
        w.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["replaced", "removed", "moved", "wrapped"])
def test_a_layer_that_is_not_there_any_more_is_said(how: str) -> None:
    model, told = mlp(2), list[Measured]()
    x = torch.randn(8, 32)
    with watch(model, every=1, to=told.append) as w:
        model(x)
        w.step()
        first = model[0]
        if how == "moved":
            model.append(first)
        model[0] = nn.Sequential(first) if how == "wrapped" else nn.Linear(32, 32)
        if how == "removed":
            model[0] = nn.Identity()
        model(x)
        w.step()
    assert not told[0].missing
    if how in ("replaced", "removed"):
        assert told[1].missing == {"0": "it is not there any more: to see what is, watch anew"}
    else:
        assert not told[1].missing
