"""Watching what transformers' Trainer and Accelerate train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_models import CONFIGS, quiet, transformers
from torch import Tensor, nn
from watching import hooks, mlp

__all__ = ["quiet"]  # a fixture of each test here

pytestmark = pytest.mark.frameworks
accelerate = pytest.importorskip("accelerate", reason="make frameworks")

from fastinit.frameworks import accelerate as ours  # noqa: E402
from fastinit.frameworks.transformers import VarianceMonitor  # noqa: E402


def inner_hooks(model: nn.Module) -> list[Any]:
    """But for what Accelerate says on the outermost module."""
    return hooks(nn.ModuleList(model.children()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, fails_at: int = -1) -> None:
        self.words = torch.randint(1, 40, (24, 8))
        self.fails_at = fails_at

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == self.fails_at:
            raise KeyError("at its turn")
        return {"input_ids": self.words[index], "labels": self.words[index]}


def trainer(
    path: Path, monitor: VarianceMonitor, data: Sentences, model: Any = None, **options: Any
) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    model = model or transformers.AutoModelForCausalLM.from_config(CONFIGS["gpt2"]())
    evaluated = Sentences()
    return transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=evaluated, callbacks=[monitor]
    )


def test_each_nth_step_of_a_trainer_is_told(tmp_path: Path) -> None:
    """Its evaluation, in between, is not counted."""
    monitor = VarianceMonitor(every=2, weight_gradients=True)
    its = trainer(tmp_path, monitor, Sentences(), eval_strategy="steps", eval_steps=1)
    before = inner_hooks(its.model)
    its.train()
    assert inner_hooks(its.model) == before
    told = lines(tmp_path / "watch.jsonl")
    assert [line["step"] for line in told] == [0, 2, 4]
    for line in told:
        for layer in line["layers"]:
            assert layer["calls"] == 1
            assert layer["backward"]["count"] == layer["forward"]["count"]
            assert layer["weight_gradient"]["count"] == layer["weight"]["count"]
    assert monitor.watch is not None
    assert monitor.watch.layers[0].name == "transformer.wte"


def test_gradients_that_a_trainer_accumulates_are_one_step(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    monitor = VarianceMonitor(
        every=1, to=lambda measured: told.append((measured.step, measured.layers[0].calls))
    )
    its = trainer(tmp_path, monitor, Sentences(), gradient_accumulation_steps=3)
    its.train()
    assert told == [(0, 3), (1, 3)]


def test_a_training_that_failed_is_ended(tmp_path: Path) -> None:
    monitor = VarianceMonitor(every=1)
    data = Sentences(fails_at=20)
    its = trainer(tmp_path, monitor, data, train_sampling_strategy="sequential")
    before = inner_hooks(its.model)
    with pytest.raises(KeyError, match="at its turn"):
        its.train()
    monitor.end()
    assert inner_hooks(its.model) == before
    data.fails_at = -1
    its.train()  # and is written to the same file
    assert inner_hooks(its.model) == before
    steps = [line["step"] for line in lines(tmp_path / "watch.jsonl")]
    assert steps[-6:] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("shared", ["its directory", "its model", "its file"])
def test_a_training_that_failed_is_ended_by_the_next(shared: str, tmp_path: Path) -> None:
    """Nobody has told its monitor, and it still has the file and hooks."""
    to: Any = tmp_path / "told.jsonl" if shared == "its file" else ()
    failed = VarianceMonitor(every=1, to=to, weight_gradients=True)
    first = trainer(tmp_path / "a", failed, Sentences(fails_at=20))
    before = inner_hooks(first.model)
    with pytest.raises(KeyError, match="at its turn"):
        first.train()
    assert failed.watch is not None
    assert failed.watch.is_entered
    where = tmp_path / ("b" if shared == "its model" else "a")
    next_one = trainer(where, VarianceMonitor(every=1, to=to), Sentences())
    if shared == "its model":
        next_one = trainer(where, VarianceMonitor(every=1), Sentences(), model=first.model)
    next_one.train()
    assert not failed.watch.is_entered
    assert inner_hooks(first.model) == inner_hooks(next_one.model) == before
    told = to or where / "watch.jsonl"
    assert [line["step"] for line in lines(told)][-6:] == [0, 1, 2, 3, 4, 5]
    failed.end()  # has ended


def test_a_monitor_of_a_trainer_takes_a_whole_number() -> None:
    with pytest.raises(ValueError, match="every must be at least 1, but got 0"):
        VarianceMonitor(0)


def test_what_accelerate_prepared_is_watched(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.log = lambda values, step: told.append((step, values))
    plain = mlp(2)
    before = inner_hooks(plain)
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), 0.1))
    with ours.watch(accelerator, model, optimizer, every=2, weight_gradients=True) as w:
        for _ in range(12):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.randn(8, 32)).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            w.pause()
            with torch.no_grad():
                model(torch.randn(8, 32))
            w.resume()
    assert [step for step, _ in told] == [0, 2, 4]
    signals = {key.split("/")[0] for _, values in told for key in values}
    assert {"forward_std", "gradient_std", "weight_gradient_std"} < signals
    assert [layer.calls for layer in w.layers] == [2, 2]
    assert inner_hooks(plain) == before


def test_the_scale_of_an_accelerated_optimizer_is_divided_out() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(
        torch.optim.SGD(plain.parameters(), 0.1), scaler=scaler
    )
    given = ours.of_steps(optimizer)
    assert given["scaler"] is scaler
    assert given["optimizer"] is optimizer.optimizer
    other = torch.optim.SGD(plain.parameters(), 0.1)
    assert ours.of_steps(other) == {"optimizer": other}
