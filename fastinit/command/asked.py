"""Asked: what commands that take a model are asked, in the same words, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any

import torch
import typer
from torch import nn

from fastinit import recipes
from fastinit.base import memory
from fastinit.command import devices, models, options, reads
from fastinit.plan.plan import Plan
from fastinit.plan.storage import Storage
from fastinit.record.materialize import recorded_plan


class Dtype(str, Enum):
    """The dtypes that a model can be initialised in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class StoredAs(str, Enum):
    """What the parameters of a checkpoint can be stored as: a dtype, or a format of linear weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float8_e4m3fn = "float8_e4m3fn"
    mxfp8 = "mxfp8"
    mxfp4 = "mxfp4"
    nvfp4 = "nvfp4"

    @property
    def others(self) -> Dtype:
        """The dtype of what has no format."""
        return Dtype(self.value) if self.value in Dtype.__members__ else Dtype.bfloat16

    def storage(self, by_pattern: Sequence[str] | None) -> str | Storage | None:
        """``dtype=`` of a checkpoint, whose errors name the option; None where the model has it already.

        Args:
            by_pattern: as ``--storage`` is given.

        Raises:
            ValueError: text that is no pattern and format, or a pattern that is there twice; a format
                for what has none by pattern.
        """
        is_dtype = self.value in Dtype.__members__
        if not by_pattern:
            return None if is_dtype else self.value
        if not is_dtype:
            raise ValueError(
                f"with --storage, --dtype is a dtype of the rest, but got {self.value}"
            )
        found: dict[str | tuple[str, ...], Any] = {}
        for text in by_pattern:
            pattern, _, format = text.rpartition("=")
            if not pattern or pattern in found:
                raise ValueError(f"--storage must be PATTERN=FORMAT, each once, but got {text!r}")
            if format not in StoredAs.__members__:
                known = ", ".join(StoredAs.__members__)
                raise ValueError(
                    f"--storage must be PATTERN=, and one of {known}, but got {text!r}"
                )
            found[pattern] = getattr(torch, format) if format in Dtype.__members__ else format
        if "*" not in found:
            found["*"] = getattr(torch, self.value)
        from fastinit.checkpoint.quantised import in_files

        return Storage("--storage", found, in_files)


class Format(str, Enum):
    """Those of a checkpoint."""

    safetensors = "safetensors"
    dcp = "dcp"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=models.shipped_configs,
        help="A transformers config.json, a directory with one, a shipped name (gpt2-xl, "
        "llama-2-7b, llama-3.1-70b, llama-3.2-1b), or module:function, which returns a model.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="In [0, 2^64); by default the plan's, without one 0.")
]
OfCheckpoint = Annotated[
    StoredAs,
    typer.Option(
        help="Of the parameters; in 8 bits and fewer those of linear layers, the rest in bfloat16."
    ),
]
ByPattern = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=FORMAT",
        help="Of the parameters that a pattern of names matches, such as '*.mlp.*=mxfp4': a dtype, or a "
        "format of linear layers' weights; --dtype is then of the rest. Several, of which the first "
        "that matches counts.",
    ),
]
OfParameters = Annotated[Dtype, typer.Option(help="Of the parameters.")]
SavedPlan = Annotated[
    str | None,
    typer.Option(
        "--plan",
        autocompletion=lambda: [*recipes.NAMES],
        help="A saved plan, or a recipe (gpt2, llama, vit, torch_default, ...), instead of what the "
        "constructors do.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="By default torch's number of threads.")
]
Device = Annotated[
    str,
    typer.Option(
        autocompletion=devices.names,
        help="auto (the first GPU with enough free memory, else the CPU), cpu, cuda or cuda:N.",
    ),
]


class Asked:
    """What the commands that take a model are asked, checked."""

    def __init__(
        self,
        seed: int | None,
        saved: str | None,
        threads: int | None,
        devices_: Sequence[str] = (),
    ) -> None:
        self.seed, self.devices = options.seed(seed), list(map(devices.check, devices_))
        self.name, self.saved = saved, options.plan(saved)
        if threads is not None:
            torch.set_num_threads(threads)

    def planned(self, name: str, dtype: Dtype) -> tuple[nn.Module, Plan]:
        """A model on meta and what its parameters shall be: as planned, or as its constructors do.

        By then it is known what was read, of which nothing may be written over.
        """
        seed, saved = self.seed or 0, self.saved
        model = models.build(name, getattr(torch, dtype.value), seed)
        reads.check()
        if saved is None:
            return model, recorded_plan(model)
        if not isinstance(saved, Plan):
            try:
                return model, Plan.from_model(model, saved, seed)
            except ValueError as error:
                raise ValueError(f"--plan {self.name} is not of {name}: {error}") from None
        return model, saved if self.seed is None else Plan(saved, seed=seed, aliases=saved.aliases)

    def places(self, needed: int, what: str) -> list[devices.Choice]:
        """The devices for so many bytes, each once."""
        there = devices.found() if {*self.devices} != {"cpu"} else ([], "")
        chosen = [devices.choose(asked, needed, *there) for asked in self.devices]
        if any(choice.device.type == "cpu" for choice in chosen):
            memory.check_room(needed, what)
        return list({choice.device: choice for choice in chosen}.values())
