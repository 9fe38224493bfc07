"""A Lightning callback that watches a training: how strong each layer's output and gradient are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from fastinit.base import number
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.sinks import To, sinks
from fastinit.variance.watch.watch import Watch, watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            f"fastinit.frameworks.lightning needs Lightning: {error} (pip install lightning)"
        ) from error


class VarianceMonitor(Callback):  # type: ignore[misc]  # Any, to mypy
    """:func:`fastinit.watch` for the training of a Trainer: its loggers get
    :meth:`fastinit.variance.watch.result.Measured.scalars` of each ``every``-th step.

    A step is a batch after which the optimizer stepped, with those before it whose gradients it
    accumulated. Validation does not count. The scale of the trainer's precision is divided out of
    gradients. Ranks watch together, if there are several.

    Args:
        every: as in :func:`fastinit.watch`.
        to: who else is told, as there.
        options: those of :func:`fastinit.watch`; gradients are measured by default.

    Attributes:
        watch: what watches; None before the training.

    Raises:
        NumberTypeError, NumberRangeError: ``every`` is no whole number, or less than 1.
        and as :func:`fastinit.watch`, before anything is trained.
    """

    def __init__(self, every: int = 100, *, to: To | Sequence[To] = (), **options: Any) -> None:
        self.every, self.to = number.integer("every", every, least=1), to
        self.options = options
        self.watch: Watch | None = None
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: only now the trainer has the steps of the checkpoint from which it goes on.
        def log(measured: Measured) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(measured.scalars(), step=measured.step)

        told: list[To] = [log, *sinks(self.to)]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        given = {"every": self.every, "to": told, "scaler": scaler, "start": trainer.global_step}
        given |= {"gradients": True, "group": dist.group.WORLD} | self.options
        self.watch = watch(pl_module, **given).__enter__()
        self.watch.pause()
        self._step = trainer.global_step

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
        assert self.watch is not None
        self.watch.__exit__(None, None, None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self.watch is not None and self.watch.is_entered:
            self.watch.__exit__(type(exception), exception, exception.__traceback__)
