"""Hooks that measure a model, for one block of a watch after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements import shards as shard
from fastinit.variance.watch.attention import Attention
from fastinit.variance.watch.block import Asked, Block
from fastinit.variance.watch.outputs import hook_output, is_only_traced, tensor_in
from fastinit.variance.watch.targets import Target


class Hooks:
    """Of a watch. They stay while one block follows another: to set them costs what many measure.

    Attributes:
        block: the one that is open, in which they measure.
    """

    def __init__(
        self, asked: Asked, targets: Sequence[Target], attention: Attention | None
    ) -> None:
        self._asked, self._targets, self._attention = asked, targets, attention
        self._accounts = asked.accounts_of(targets)
        self._set: ExitStack | None = None
        self.block: Block | None = None

    def begin(self) -> None:
        """Opens a block."""
        self.set()
        self.block = Block(self._asked, self._accounts)

    def end(self) -> Block | None:
        """The block that was open; what runs from now on is none of it."""
        block, self.block = self.block, None
        if block is not None:
            block.open = False
        return block

    @internals.between_graphs
    def set(self) -> None:
        """From now on they measure, unless they did."""
        if self._set is not None:
            return
        with ExitStack() as hooks:
            for target in self._targets:
                self._hook(target, hooks)
            if self._attention is not None:
                hooks.enter_context(self._attention.hook(self._measure))
            self._set = hooks.pop_all()

    @internals.between_graphs
    def remove(self) -> None:
        """No hooks are there, until :meth:`set` or :meth:`begin`."""
        if self._set is not None:
            hooks, self._set = self._set, None
            hooks.close()

    def _hook(self, target: Target, hooks: ExitStack) -> None:
        hooks.callback(hook_output(target, self._measure, self._fail).remove)
        if target.name in self._accounts:
            for hook in self._accounts[target.name].hooks():
                hooks.callback(hook.remove)
        if target.inside:
            return
        layer, module = target.layer, target.module
        if layer is not None and shard.is_dtensor(layer.weight_in):
            # Before those of tensor parallelism, which may make a plain tensor of it.
            noting = module.register_forward_hook(
                lambda module, args, output: self._note(target, output), prepend=True
            )
            hooks.callback(Uncopied(noting).remove)
        if self._asked.inputs:
            looking = module.register_forward_pre_hook(
                lambda module, args, kwargs: self._measure_input(target, args, kwargs),
                with_kwargs=True,
            )
            hooks.callback(Uncopied(looking).remove)

    # The block is asked for as each of these runs. That there is none is of a call in another thread.
    # Modes do not see what is done: they count, keep or put into graphs what they take for the model's.

    def _measure(self, target: Target, x: Tensor | None) -> None:
        if (block := self.block) is not None:
            with internals.without_modes():
                block.measure(target, x)

    def _fail(self, target: Target, why: str) -> None:
        if (block := self.block) is not None:
            block.fail(target, why)

    def _note(self, target: Target, output: Any) -> None:
        if not is_only_traced() and (block := self.block) is not None:
            block.note_whole(target, tensor_in(output))

    def _measure_input(self, target: Target, args: Any, kwargs: Any) -> None:
        if not is_only_traced() and (block := self.block) is not None:
            with internals.without_modes():
                block.measure_input(target, tensor_in((args, kwargs)))
