"""The callback for Lightning."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watching import hooks, mlp

lightning = pytest.importorskip("lightning.pytorch", reason="make frameworks")

from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from fastinit.frameworks.lightning import VarianceMonitor  # noqa: E402

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*num_workers.*"),
]


class MeanSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean()


class Net(lightning.LightningModule):  # type: ignore[misc]
    """Its loss is scripted, and it keeps an average of itself."""

    fails_at = -1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(2)
        self.loss = torch.jit.script(MeanSquare())
        self.averages: list[nn.Module] = []
        self.hooked: list[bool] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if index == self.fails_at:
            raise KeyError("at its turn")
        loss: Tensor = self.loss(self.net(batch))
        self.averages.append(copy.deepcopy(self.net))
        self.hooked.append(any(module._forward_hooks for module in self.modules()))
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.net(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Log(DummyLogger):  # type: ignore[misc]
    trainer: Any

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        watched = {k: v for k, v in metrics.items() if "/" in k}
        if watched:
            assert step not in self.told
            self.told[step] = watched


def fit(
    model: Net,
    folder: Path,
    monitor: VarianceMonitor,
    checkpoint: Path | None = None,
    **options: Any,
) -> Log:
    log = Log()
    options = {"max_epochs": 1, **options}
    log.trainer = trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[monitor],
        logger=log,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.randn(24, 32), batch_size=4)
    model.before = hooks(model.net)  # type: ignore[assignment]
    trainer.fit(model, data, data, ckpt_path=checkpoint)
    return log


def test_each_nth_step_is_logged(tmp_path: Path) -> None:
    model, path = Net(), tmp_path / "stats.jsonl"
    log = fit(model, tmp_path, VarianceMonitor(every=5, to=path))
    assert list(log.told) == [0, 5]
    signals = ("forward_std", "gradient_std", "weight_std", "dead")
    for values in log.told.values():
        assert set(values) == {f"{signal}/net.{i}" for signal in signals for i in (0, 2)}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 5]
    assert model.hooked == [True, False, False, False, False, True]
    assert hooks(model.net) == model.before
    assert all(hooks(copied) == model.before for copied in model.averages)


def test_a_training_that_goes_on_says_where(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    steps = []
    for whole, checkpoint in ((4, None), (6, tmp_path / "at.ckpt")):
        monitor = VarianceMonitor(every=2, to=path)
        trainer = fit(
            *(Net(), tmp_path, monitor), max_steps=whole, max_epochs=-1, checkpoint=checkpoint
        ).trainer
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        steps.append([json.loads(line)["step"] for line in path.read_text().splitlines()])
    assert steps == [[0, 2], [0, 2, 4]]


def test_validation_does_not_count(tmp_path: Path) -> None:
    monitor = VarianceMonitor(every=1)
    told = []
    monitor.to = lambda measured: told.append([layer.calls for layer in measured.layers])
    fit(Net(), tmp_path, monitor, val_check_interval=2)
    assert told == [[1, 1]] * 6


def test_gradients_that_are_accumulated_are_one_step(tmp_path: Path) -> None:
    monitor = VarianceMonitor(every=1)
    told = []
    monitor.to = lambda measured: told.append((measured.step, measured.layers[0].calls))
    fit(Net(), tmp_path, monitor, accumulate_grad_batches=3)
    assert told == [(0, 3), (1, 3)]


def test_a_loss_scale_of_the_precision_is_divided_out(tmp_path: Path) -> None:
    """To what float16 leaves of each value."""
    logged = []
    for precision in ("16-mixed", "bf16-mixed"):
        scaler = (
            torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
        )
        plugin = MixedPrecision(precision, "cpu", scaler=scaler)
        logged.append(fit(Net(), tmp_path, VarianceMonitor(), plugins=[plugin]).told[0])
    scaled, plain = ({k: v for k, v in told.items() if "std" in k} for told in logged)
    assert scaled == pytest.approx(plain, rel=2.0**-5)  # bfloat16 has 8 bits


def test_values_that_are_not_finite_are_logged_as_infinite(tmp_path: Path) -> None:
    """float16 does not hold the scale itself, and the finite values are the zeros."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    logged = fit(Net(), tmp_path, VarianceMonitor(), plugins=[plugin]).told[0]
    infinite = {key: math.isinf(value) for key, value in logged.items()}
    assert infinite == {key: key.startswith("gradient") for key in logged}


def test_what_fails_leaves_no_hooks(tmp_path: Path) -> None:
    model, path = Net(), tmp_path / "stats.jsonl"
    model.fails_at = 5
    with pytest.raises(KeyError, match="at its turn"):
        fit(model, tmp_path, VarianceMonitor(every=5, to=path))
    assert hooks(model.net) == model.before
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0]


def test_arguments_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    model = Net()
    with pytest.raises(ValueError, match="layers names modules that the model has not: nobody"):
        fit(model, tmp_path, VarianceMonitor(layers=["nobody"]))
    assert model.averages == []
    with pytest.raises(ValueError, match="every must be at least 1, but got 0"):
        VarianceMonitor(0)
