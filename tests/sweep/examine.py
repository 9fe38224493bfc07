"""One model, looked at: built eagerly and recorded, compared, and asked the further questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from as_eager import RAISES, differences
from torch import nn

from fastinit import deferred, materialize_, recorded_plan
from sweep.checks import CHECKS, FURTHER, Models
from sweep.shrink import MOST, Build, NoModel, Unbuildable

SHOWN = 20
"""Differences that are kept of a model; how many more there are is said."""


def examine(find: Callable[[], Build], further: Sequence[str] = ()) -> dict[str, Any] | None:
    """The outcome for one model, as ``results.json`` has it.

    Args:
        find: gives the function that builds the model, each time another one.
        further: which of ``FURTHER`` is asked as well.

    Returns:
        None of what is no model, or has no parameters.
    """
    try:
        build = find()
        torch.manual_seed(0)
        started = time.perf_counter()
        model = build()
        eager = time.perf_counter() - started
    except NoModel:
        return None
    except Unbuildable as error:
        return {"outcome": "skipped", "why": _line(str(error))}
    except Exception as error:
        return {"outcome": "skipped", "why": _line(f"{type(error).__name__}: {error}")}
    if not isinstance(model, nn.Module):
        return {"outcome": "skipped", "why": f"it makes a {type(model).__name__}"}
    parameters = sum(p.numel() for p in model.parameters() if not _has_no_shape(p))
    if not parameters and not any(True for _ in model.parameters()):
        return None
    if parameters > MOST:
        return {"outcome": "skipped", "why": f"{parameters / 1e6:.0f} million parameters"}
    result: dict[str, Any] = {"parameters": parameters}
    found = differences(build)
    if any(what.startswith(f"eager {RAISES}") for what in found):
        return {"outcome": "skipped", "why": _line(found[0])}
    if any(what.startswith(RAISES) for what in found):
        return {"outcome": "raises", "why": _line(found[0].removeprefix(RAISES)), **result}
    started = time.perf_counter()
    with deferred(seed=0):
        recorded = build()
    plan = recorded_plan(recorded)
    models = Models(build, model, plan, materialize_(recorded))
    seconds = [round(eager, 3), round(time.perf_counter() - started, 3)]
    result["seconds"] = dict(zip(("eager", "deferred"), seconds))
    checks = CHECKS | {name: FURTHER[name] for name in further}
    result["checks"] = {name: _asked(check, models) for name, check in checks.items()}
    if not found:
        return {"outcome": "agrees", **result}
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return {"outcome": "differs", "why": [_line(w) for w in found[:SHOWN]] + more, **result}


def _asked(check: Callable[[Models], str], models: Models) -> str:
    try:
        return _line(check(models))
    except Exception as error:
        return _line(f"{type(error).__name__}: {error}")


def _has_no_shape(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:397]}..."
