"""A Lightning callback that logs how strong each layer's output and gradient are.

Importing this module needs Lightning: ``pip install lightning``.
"""

from __future__ import annotations

from typing import Any

from fastinit.base import number
from fastinit.variance.layers import Which
from fastinit.variance.watch import Watch, watch
from fastinit.variance.watched import Watched

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            f"fastinit.lightning needs Lightning: {error} (pip install lightning)"
        ) from error


class VarianceMonitor(Callback):  # type: ignore[misc]  # Any, to mypy
    """Logs ``forward_std/LAYER`` and ``gradient_std/LAYER`` of every n-th training batch.

    Other batches run without hooks. Reading the numbers waits for the device once for each batch that
    is watched. Where the trainer's precision has a loss scaler, its scale is divided out of gradients.
    What has values that are not finite is logged as infinite.

    Args:
        every_n_batches: watches batches 0, n, 2n, ... of each epoch.
        layers: as in :func:`fastinit.watch`.
        gradients: also logs those of gradients.

    Raises:
        NumberTypeError, NumberRangeError: every_n_batches is no whole number, or less than 1.
    """

    def __init__(
        self, every_n_batches: int = 100, *, layers: Which = None, gradients: bool = True
    ) -> None:
        self.every_n_batches = number.integer("every_n_batches", every_n_batches, least=1)
        self.layers, self.gradients = layers, gradients
        self._watch: Watch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError before anything is trained if there is nothing to watch."""
        watch(pl_module, layers=self.layers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._end()  # of a batch that was skipped half-way
        if batch_idx % self.every_n_batches == 0:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            started = watch(pl_module, layers=self.layers, gradients=self.gradients, scaler=scaler)
            self._watch = started.__enter__()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (ended := self._end()) is not None:
            pl_module.log_dict(_stds(ended.layers))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> Watch | None:
        ended, self._watch = self._watch, None
        if ended is not None:
            ended.__exit__(None, None, None)
        return ended


def _stds(layers: list[Watched]) -> dict[str, float]:
    """What is logged, by key; what there is none of is left out."""
    return {
        f"{key}/{layer.name}": std
        for layer in layers
        for key, std in layer.stds().items()
        if key in ("forward_std", "gradient_std")
    }
