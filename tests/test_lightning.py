"""The callback for Lightning."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watching import mlp

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from fastinit.lightning import VarianceMonitor  # noqa: E402


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
        self.logged: list[dict[str, float]] = []
        self.averages: list[nn.Module] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if index == self.fails_at:
            raise KeyError("at its turn")
        loss: Tensor = self.loss(self.net(batch))
        self.averages.append(copy.deepcopy(self.net))
        return loss

    def log_dict(self, values: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.append(dict(values))
        super().log_dict(values, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(model: Net, directory: Path, monitor: VarianceMonitor, **options: Any) -> None:
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(24, 32), batch_size=4))


def hooked(model: nn.Module) -> bool:
    return any(module._forward_hooks for module in model.modules())


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*num_workers.*")


def test_each_nth_batch_is_logged(tmp_path: Path) -> None:
    model = Net()
    fit(model, tmp_path, VarianceMonitor(every_n_batches=5))
    assert len(model.logged) == 2  # batches 0 and 5
    for values in model.logged:
        assert set(values) == {f"{k}_std/net.{i}" for k in ("forward", "gradient") for i in (0, 2)}
        assert all(value > 0 for value in values.values())
    assert not hooked(model)
    assert not any(map(hooked, model.averages))


def test_a_loss_scale_of_the_precision_is_divided_out(tmp_path: Path) -> None:
    """To what float16 leaves of each value."""
    logged = []
    for precision in ("16-mixed", "bf16-mixed"):
        model = Net()
        scaler = (
            torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
        )
        plugin = MixedPrecision(precision, "cpu", scaler=scaler)
        fit(model, tmp_path, VarianceMonitor(), plugins=[plugin])
        logged += model.logged
    scaled, plain = logged
    assert scaled == pytest.approx(plain, rel=2.0**-5)  # bfloat16 has 8 bits


def test_values_that_are_not_finite_are_logged_as_infinite(tmp_path: Path) -> None:
    """float16 does not hold the scale itself, and the finite values are the zeros."""
    model, scaler = Net(), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit(model, tmp_path, VarianceMonitor(), plugins=[plugin])
    (logged,) = model.logged
    infinite = {key: math.isinf(value) for key, value in logged.items()}
    assert infinite == {key: key.startswith("gradient") for key in logged}


def test_what_fails_leaves_no_hooks(tmp_path: Path) -> None:
    model = Net()
    model.fails_at = 5
    with pytest.raises(KeyError, match="at its turn"):
        fit(model, tmp_path, VarianceMonitor(every_n_batches=5))
    assert len(model.logged) == 1
    assert not hooked(model)


def test_arguments_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    model = Net()
    with pytest.raises(ValueError, match="layers names modules that the model has not: nobody"):
        fit(model, tmp_path, VarianceMonitor(layers=["nobody"]))
    assert model.averages == []
    with pytest.raises(ValueError, match="every_n_batches must be at least 1, but got 0"):
        VarianceMonitor(0)
