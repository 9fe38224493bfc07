"""What else is asked of a model that the sweep has built: a row here is a column of the results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from fastinit import Plan, lsuv_
from sweep.shrink import Build

HOLDS = "holds"


@dataclass
class Models:
    """A model, built both ways.

    Args:
        build: makes another one.
        eager: as it was built eagerly; a check may change it.
        plan: of the recorded one.
        written: that, written.
    """

    build: Build
    eager: nn.Module
    plan: Plan
    written: nn.Module


def plan_is_the_model(models: Models) -> str:
    """The recorded plan, applied to an eager model, gives what ``materialize_`` gives, to the bit."""
    written = _tensors(models.written)
    eager = _tensors(models.plan.apply_(models.eager, buffers="restore"))
    wrong = [name for name in eager if not _equal(eager[name], written[name])]
    return f"differ: {', '.join(wrong[:5])} ({len(wrong)} in all)" if wrong else HOLDS


def plan_saves(models: Models) -> str:
    """The plan is JSON, and read again the same plan."""
    again = Plan.from_json(models.plan.to_json())
    return HOLDS if again == models.plan else "read again it is another"


def lsuv_is_true(models: Models) -> str:
    """What ``lsuv_`` reports is what a plain pass measures, for a model that says what it takes."""
    model = models.build()
    inputs = _inputs(model)
    if inputs is None:
        return "it does not say what it takes"
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        return f"eagerly {type(error).__name__}: {error}"
    lsuv_(model, verify=True, dead="skip", **inputs)
    return HOLDS


CHECKS: dict[str, Callable[[Models], str]] = {
    "plan": plan_is_the_model,
    "saves": plan_saves,
}
FURTHER: dict[str, Callable[[Models], str]] = {"lsuv": lsuv_is_true}
"""Those that run the model, which takes longer: asked by ``--further``."""


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {k: t for k, t in tensors.items() if not isinstance(t, UninitializedTensorMixin)}


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_floating_point():
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    return torch.equal(one, other)


def _inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """A batch for a model of transformers, of what its forward is called with."""
    from sweep.shrink import WORDS

    dummy: Any = getattr(model, "dummy_inputs", None)
    if not isinstance(dummy, dict):
        return None
    torch.manual_seed(0)
    config: Any = model.config
    words, pixels = torch.randint(3, WORDS - 3, (4, 16)), _pixels(config)
    there = {
        "input_ids": words,
        "decoder_input_ids": words,
        "pixel_values": pixels,
        "input_values": torch.randn(4, 4000),
        "input_features": None,
    }
    takes = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [main, *(["decoder_input_ids"] if "decoder_input_ids" in takes else [])]
    found = {name: there.get(name) for name in wanted}
    return None if any(value is None for value in found.values()) else found


def _pixels(config: Any) -> Tensor | None:
    size = getattr(config, "image_size", 64)
    channels = getattr(config, "num_channels", 3)
    if not isinstance(channels, int) or not isinstance(size, (int, list, tuple)):
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return torch.randn(4, channels, *sides)
