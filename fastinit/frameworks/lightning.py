"""A Lightning callback that watches a training: how strong each layer's output and gradient are."""

from __future__ import annotations

from typing import Any

from fastinit.frameworks.monitor import Monitor
from fastinit.variance.watch.result import Measured

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            f"fastinit.frameworks.lightning needs Lightning: {error} (pip install lightning)"
        ) from error


class VarianceMonitor(Monitor, Callback):  # type: ignore[misc]  # Any, to mypy
    """A callback for a Trainer, whose loggers get
    :meth:`fastinit.variance.watch.result.Measured.scalars` of each ``every``-th step.

    A step is a batch after which the optimizer stepped, with those before it whose gradients it
    accumulated. Validation does not count. The scale of the trainer's precision is divided out of
    gradients. Ranks watch together, if there are several.

    Its arguments, attribute and errors are :class:`fastinit.frameworks.monitor.Monitor`'s.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: only now the trainer has the steps of the checkpoint from which it goes on.
        def log(measured: Measured) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(measured.scalars(), step=measured.step)

        others = self.to if isinstance(self.to, (list, tuple)) else [self.to]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._step = trainer.global_step
        self._begin(pl_module, [log, *others], scaler=scaler, start=self._step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self.watch is not None
        self.watch.resume()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self.watch is not None
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.watch.step()
        self.watch.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end(exception)
