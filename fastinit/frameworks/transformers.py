"""A callback of transformers' Trainer that watches a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastinit.base import number
from fastinit.frameworks.accelerate import of_steps
from fastinit.variance.watch.sinks import To
from fastinit.variance.watch.watch import Watch, watch

FILE = "watch.jsonl"


class VarianceMonitor(TrainerCallback):  # type: ignore[misc]  # Any, to mypy
    """:func:`fastinit.watch` for a Trainer: each ``every``-th step of its optimizer is measured.

    Evaluation does not count. The scale that losses have is divided out of gradients. Ranks watch
    together, if there are several.

    Args:
        every, to: as in :func:`fastinit.watch`; by default, ``watch.jsonl`` in the Trainer's
            ``output_dir`` is written.
        options: those of :func:`fastinit.watch`; gradients are measured by default.

    Attributes:
        watch: what watches; None before the training.

    Raises:
        NumberTypeError, NumberRangeError: ``every`` is no whole number, or less than 1.
        and as :func:`fastinit.watch`, before anything is trained.
    """

    def __init__(
        self, every: int = 100, *, to: To | Sequence[To] | None = None, **options: Any
    ) -> None:
        self.every, self.to = number.integer("every", every, least=1), to
        self.options = options
        self.watch: Watch | None = None

    def end(self) -> None:
        """The end of a training that failed, of which Trainer tells nobody; the next one ends it too."""
        if self.watch is not None and self.watch.is_entered:
            error = RuntimeError("the training has failed")
            self.watch.__exit__(RuntimeError, error, None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.end()
        to = self.to
        if to is None:
            to = Path(args.output_dir) / FILE
            to.parent.mkdir(parents=True, exist_ok=True)
        given = {"every": self.every, "to": to, "start": state.global_step}
        given |= {"gradients": True, "group": dist.group.WORLD}
        given |= of_steps(kwargs["optimizer"]) | self.options
        self.watch = watch(extract_model_from_parallel(kwargs["model"]), **given).__enter__()
        self.watch.pause()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.watch is not None
        self.watch.resume()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.watch is not None
        self.watch.pause()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.watch is not None
        self.watch.__exit__(None, None, None)
