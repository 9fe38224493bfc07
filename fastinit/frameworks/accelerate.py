"""Watching a training that Accelerate prepared."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from fastinit.variance.watch import watch as watching
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import Watch


def watch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int = 100,
    **options: Any,
) -> Watch:
    """:func:`fastinit.watch` of a model and an optimizer, as ``accelerator.prepare`` gave them.

    The optimizer's steps are those that are counted, however many passes each takes. The accelerator's
    trackers get :meth:`fastinit.variance.watch.result.Measured.scalars` of each ``every``-th. The
    scale that it puts on losses is divided out of gradients. Ranks watch together, if there are several.

    Args:
        every: as in :func:`fastinit.watch`.
        options: those of :func:`fastinit.watch`; gradients are measured by default.

    Raises:
        as :func:`fastinit.watch`.
    """

    def log(measured: Measured) -> None:
        accelerator.log(measured.scalars(), step=measured.step)

    given = {"to": log, "gradients": True, "group": dist.group.WORLD, **of_steps(optimizer)}
    return watching.watch(accelerator.unwrap_model(model), every=every, **{**given, **options})


def of_steps(optimizer: Optimizer) -> dict[str, Any]:
    """What :func:`fastinit.watch` is to know of an optimizer, which may be Accelerate's."""
    if not isinstance(optimizer, AcceleratedOptimizer):
        return {"optimizer": optimizer}
    return {"optimizer": optimizer.optimizer, "scaler": optimizer.scaler}
