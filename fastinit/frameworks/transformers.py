"""A callback of transformers' Trainer that watches a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastinit.frameworks.accelerate import of_steps
from fastinit.frameworks.monitor import Monitor

FILE = "watch.jsonl"


class VarianceMonitor(Monitor, TrainerCallback):  # type: ignore[misc]  # Any, to mypy
    """A callback for a Trainer: each ``every``-th step of its optimizer is measured, and by
    default told to ``watch.jsonl`` in the Trainer's ``output_dir``.

    Evaluation does not count. The scale that losses have is divided out of gradients. Ranks watch
    together, if there are several. Of a training that failed, Trainer tells nobody: :meth:`end` takes
    the hooks away.

    Its arguments, attribute and errors are :class:`fastinit.frameworks.monitor.Monitor`'s.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        to = self.to
        if isinstance(to, (list, tuple)) and not to:
            to = Path(args.output_dir) / FILE
            to.parent.mkdir(parents=True, exist_ok=True)
        model = extract_model_from_parallel(kwargs["model"])
        self._begin(model, to, start=state.global_step, **of_steps(kwargs["optimizer"]))

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
        self._end()
