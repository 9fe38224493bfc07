"""Outputs of layers: hooks that are given them, and which of them can be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements import tensors
from fastinit.stream import laws
from fastinit.variance.lsuv.shards import Sharded
from fastinit.variance.watch.targets import Target

Measure = Callable[[Target, Tensor | None], None]
"""Given a target and its output; None if that has no floating-point tensor."""


Fail = Callable[[Target, str], None]
"""Given a target, and why its output could not be computed once more."""


def hook_output(target: Target, measure: Measure, fail: Fail) -> Uncopied:
    """From now on calls ``measure`` whenever the target has run, but not while it is only traced."""
    layer, module = target.layer, target.module
    if layer is None or not target.inside:

        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not is_only_traced():
                measure(target, tensor_in(output))

        return Uncopied(module.register_forward_hook(look))

    inside = Sharded(layer)

    def project(module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_only_traced() or runs_again():
            return
        with internals.without_modes(), torch.no_grad():
            try:
                out = layer.projected(args, kwargs, inside.in_use())
            except Exception as error:  # of which the model that runs knows nothing
                fail(target, why_not(error))
            else:
                measure(target, out)

    return Uncopied(module.register_forward_pre_hook(project, with_kwargs=True))


def is_only_traced() -> bool:
    """Whether a graph is being made, by torch.compile, torch.export or torch.jit.trace: there is nothing
    to see yet, and what is done would become a part of it."""
    return torch.compiler.is_compiling() or internals.is_jit_tracing()


def runs_again() -> bool:
    """Whether a backward pass runs: a layer that runs in it is one that checkpointing runs again."""
    return internals.backward_pass() != -1


def tensor_in(output: Any) -> Tensor | None:
    """The first floating-point tensor in an output."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    return next((x for x in map(tensor_in, parts) if x is not None), None)


def immeasurable(x: Tensor | None, what: str = "its output") -> str | None:
    """Why a tensor has no moments, or None."""
    if x is None:
        return "gives no floating-point tensor"
    if x.dtype not in laws.DTYPES:
        return f"gives {x.dtype}" if what == "its output" else f"{what} is {x.dtype}"
    found = tensors.unreadable(x)
    return f"{what} {found[1]}" if found else None


def why_not(error: Exception) -> str:
    """Why something was not measured that an error kept from it, in a line."""
    return f"could not be measured: {type(error).__name__}: {error}".split("\n")[0]
