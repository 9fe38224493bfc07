"""What callbacks that watch a training have in common, whatever trains."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch.distributed as dist
from torch import nn

from fastinit.base import number
from fastinit.variance.watch.sinks import To
from fastinit.variance.watch.watch import Watch, watch


class Monitor:
    """:func:`fastinit.watch` for the training that a trainer runs.

    Args:
        every: as in :func:`fastinit.watch`: steps of the optimizer.
        to: who is told, as there.
        options: those of :func:`fastinit.watch`; gradients are measured by default.

    Attributes:
        watch: what watches; None before the training.

    Raises:
        NumberTypeError, NumberRangeError: ``every`` is no whole number, or less than 1.
        and as :func:`fastinit.watch`, before anything is trained.
    """

    def __init__(self, every: int = 100, *, to: To | Sequence[To] = (), **options: Any) -> None:
        super().__init__()
        self.every, self.to = number.integer("every", every, least=1), to
        self.options = options
        self.watch: Watch | None = None
        self._held: set[Any] = set()

    def end(self) -> None:
        """The end of a training that failed, of which not all trainers tell.

        The next training of the model, or one told to the same file, does it too.
        """
        self._end(RuntimeError("the training has failed"))

    def _begin(self, model: nn.Module, to: To | Sequence[To], **given: Any) -> None:
        """Watches from now on, after :meth:`Watch.resume`."""
        told = to if isinstance(to, (list, tuple)) else [to]
        paths = [Path(one).resolve() for one in told if isinstance(one, (str, os.PathLike))]
        held = {(threading.get_ident(), what) for what in [id(model), *paths]}
        for other in list(_begun):
            if other is self or other._held & held:  # a thread trains one at a time: it has failed
                other.end()
        given = {"gradients": True, "group": dist.group.WORLD} | given | self.options
        self.watch = watch(model, every=self.every, to=to, **given).__enter__()
        self.watch.pause()
        self._held = held
        _begun.add(self)

    def _end(self, error: BaseException | None = None) -> None:
        """Ends the watch, if nobody did."""
        _begun.discard(self)
        if self.watch is not None and self.watch.is_entered:
            trace = None if error is None else error.__traceback__
            self.watch.__exit__(None if error is None else type(error), error, trace)


_begun: WeakSet[Monitor] = WeakSet()
"""Those whose training has begun, and not ended."""
