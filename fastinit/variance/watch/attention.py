"""Query, key and value as attention gets them: the arguments of scaled_dot_product_attention.

That is behind everything that a model does to them: fused projections are apart, norms and rotations of
query and key are done. Which attention it is, hooks of all modules say. What MultiheadAttention computes
goes past this; its projections are layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastinit.base.hooks import Uncopied
from fastinit.variance.layers import without_hooks
from fastinit.variance.watch.outputs import is_only_traced
from fastinit.variance.watch.targets import Target

PARTS = ("query", "key", "value")
CALLED = "scaled_dot_product_attention"


class Attention:
    """The attentions of a model, each with three targets: ``NAME.sdpa.query``, ``.key`` and ``.value``.

    Raises:
        ValueError: there are scripted or compiled modules in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        if closed := without_hooks(model):
            name = next(name for name, module in model.named_modules() if module in closed)
            why = next(iter(closed.values()))
            raise ValueError(f"attention=True sees nothing in {name or 'the model'}: {why}")
        self._model = model
        self._targets: dict[str, list[Target]] = {}

    def hook(self, measure: Callable[[Target, Tensor | None], None]) -> ExitStack:
        """From now on, until it is closed, calls ``measure`` with each target and its tensor."""
        hooks = ExitStack()
        running = _Running(partial(self._given, measure))
        hooks.callback(running.end)
        for name, module in self._model.named_modules():
            begin, end = partial(running.begin, name), partial(running.ended, name)
            hooks.callback(Uncopied(module.register_forward_pre_hook(begin)).remove)
            hooks.callback(Uncopied(module.register_forward_hook(end, always_call=True)).remove)
        return hooks

    def _given(
        self, measure: Callable[[Target, Tensor | None], None], name: str, given: dict[str, Any]
    ) -> None:
        if name not in self._targets:
            module, prefix = self._model.get_submodule(name), f"{name}." if name else ""
            self._targets[name] = [Target(f"{prefix}sdpa.{p}", module, None) for p in PARTS]
        for part, target in zip(PARTS, self._targets[name]):
            measure(target, given.get(part))

    def missing(self, measured: Container[str]) -> dict[str, str]:
        """Why there is nothing, if none of the targets was measured."""
        some = (target.name for targets in self._targets.values() for target in targets)
        if any(name in measured for name in some):
            return {}
        return {CALLED: "no module called it: attention that is computed otherwise is not seen"}


class _Running(TorchFunctionMode):
    """Which modules run in each thread, and in force while any does."""

    def __init__(self, given: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._given = given
        self._local = threading.local()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention and self._names:
            self._given(self._names[-1], dict(zip(PARTS, args)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))

    @property
    def _names(self) -> list[str]:
        """Of the modules that run in this thread, the innermost last."""
        if not hasattr(self._local, "names"):
            self._local.names = []
        found: list[str] = self._local.names
        return found

    def begin(self, name: str, *_: object) -> None:
        if is_only_traced():
            return
        if not self._names:
            self.__enter__()  # type: ignore[no-untyped-call]
        self._names.append(name)

    def ended(self, name: str, *_: object) -> None:
        if is_only_traced():
            return
        if self._names[-1:] == [name]:  # else one before it failed
            self._names.pop()
            if not self._names:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Of what nobody ended, such as an interrupt leaves."""
        if self._names:
            self._names.clear()
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
