"""Which steps of a training a watch measures, and who is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.base.frames import is_called_by
from fastinit.base.hooks import Uncopied
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.sinks import JsonLines, To, sinks


class Steps:
    """Counts the steps of a training, of which each ``every``-th is measured.

    Args:
        every: at least 1.
        to: who is told of what was measured.
        start: the number of the first step, which counts from 0.
        optimizer: each of whose steps ends one.
    """

    def __init__(
        self,
        every: int,
        to: To | Sequence[To] = (),
        start: int = 0,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.every = number.integer("every", every, least=1)
        self.start = number.integer("start", start, least=0)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, but got {optimizer!r:.60}")
        self.optimizer = optimizer
        self._sinks = sinks(to)
        self.number = self.start

    def begin(self, tells: bool) -> bool:
        """Begins anew. Whether the first step is measured.

        Args:
            tells: whether this rank tells anybody.

        Raises:
            OSError: a file cannot be written to.
        """
        self.number = self.start
        for sink in self._sinks if tells else ():
            if isinstance(sink, JsonLines):
                sink.open()
        return self._is_due()

    def end(self) -> None:
        """Gives files back."""
        for sink in self._sinks:
            if isinstance(sink, JsonLines):
                sink.close()

    def next(self) -> bool:
        """Goes on to the next step. Whether it is measured."""
        self.number += 1
        return self._is_due()

    def _is_due(self) -> bool:
        return self.number % self.every == 0

    def tell(self, measured: Measured) -> None:
        """Tells everybody, and then raises what the first of them raised who could not listen."""
        errors = []
        for sink in self._sinks:
            try:
                sink(measured)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def hook_steps(
    optimizer: Optimizer, before: Callable[[Sequence[Any]], object], after: Callable[[], object]
) -> ExitStack:
    """From now on, until it is closed, calls ``before`` (with all arguments) and ``after`` of each step.

    Of a step() that calls the one of the class above, torch runs hooks in both: it counts once. Where it
    runs compiled, which has no frames to go by, that is when the first of the two ends.
    """
    outermost: FrameType | None = None  # of a step that runs, or that failed
    runs = False  # a step that is compiled

    def begin(given: Sequence[Any]) -> None:
        nonlocal runs
        if not runs:
            runs = True
            before(given)

    def end() -> None:
        nonlocal runs
        if runs:
            runs = False
            after()

    compiled_begin = internals.between_graphs(begin)
    compiled_end = internals.between_graphs(end)

    def begun(optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        nonlocal outermost
        if torch.compiler.is_dynamo_compiling():
            compiled_begin([*args[1:], *kwargs.values()])
            return
        caller = sys._getframe(1)
        if outermost is None or not is_called_by(caller, outermost):
            outermost = caller
            before([*args[1:], *kwargs.values()])

    def ended(optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        nonlocal outermost
        if torch.compiler.is_dynamo_compiling():
            compiled_end()
        elif sys._getframe(1) is outermost:
            outermost = None
            after()

    with ExitStack() as hooks:
        hooks.callback(Uncopied(optimizer.register_step_pre_hook(begun)).remove)
        hooks.callback(Uncopied(optimizer.register_step_post_hook(ended)).remove)
        return hooks.pop_all()
