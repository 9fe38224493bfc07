"""Watching a model run: the moments of every layer's output and gradient, beside Kaiming's condition.

He et al., "Delving deep into rectifiers" (2015, arXiv 1502.01852), equations 8 to 10: behind a ReLU a
layer multiplies the variance by n Var[W] / 2, with n the fan-in, so signals neither grow nor fade over
the whole net if the product over all layers is 1.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastinit.variance import layers as finding
from fastinit.variance import watched
from fastinit.variance.layers import Which
from fastinit.variance.watch_block import Block, Target
from fastinit.variance.watched import Watched

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.axes import Axes


class Watch:
    """What :func:`watch` gives: a context manager, and afterwards what it saw.

    Entering again begins anew.
    """

    def __init__(self, model: nn.Module, layers: Which = None, gradients: bool = False) -> None:
        _check(model)
        self.gradients = gradients
        self._targets, self._passed = _targets(model, layers)
        self._stack: ExitStack | None = None
        self._block: Block | None = None
        self._layers: list[Watched] | None = None

    def __enter__(self) -> Watch:
        """Raises RuntimeError if it is entered already."""
        if self._stack is not None:
            raise RuntimeError("this watch is entered already: make a second one for the model")
        self._block, self._layers = Block(self.gradients), None
        with ExitStack() as stack:
            for target in self._targets:
                stack.callback(self._block.hook(target).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stack is not None
        assert self._block is not None
        stack, self._stack = self._stack, None
        with stack:
            self._block.close()

    @property
    def layers(self) -> list[Watched]:
        """The layers that ran, in the order in which their outputs first came."""
        if self._layers is None:
            self._layers = self._ended().read()
        return self._layers

    @property
    def missing(self) -> dict[str, str]:
        """By name, the layers that are not in ``layers``, and why."""
        block = self._ended()
        missing = dict(self._passed)
        for target in self._targets:
            if target.name not in block.records:
                why = "did not run as a module, or was only traced"
                missing[target.name] = block.unseen.get(target.name, why)
        return missing

    @property
    def product(self) -> float:
        """The product of all factors n Var[W] / 2; 1 is Kaiming's condition."""
        return watched.product(self.layers)

    def _ended(self) -> Block:
        if self._block is None or self._stack is not None:
            raise RuntimeError("nothing to read yet: a watch has its numbers after the with block")
        return self._block

    def table(self) -> str:
        """One line for each layer, in 80 columns: standard deviations of output and gradient, fan-in,
        Var[W], n Var[W] / 2 and its product so far, dead units and values that are not finite."""
        return watched.table(self.layers, self.missing, self.gradients)

    def plot(self, path: Any = None, ax: Axes | None = None, label: str = "") -> Axes:
        """:func:`fastinit.variance.plots.variance_through_depth`: a picture of the variance by layer."""
        from fastinit.variance.plots import variance_through_depth

        layers = self.layers
        return variance_through_depth(
            [layer.name for layer in layers],
            [layer.forward.var for layer in layers],
            [None if layer.backward is None else layer.backward.var for layer in layers],
            path=path,
            ax=ax,
            label=label,
        )

    def to_json(self) -> str:
        """Everything as strict JSON: NaN (what is not there) as null, infinities as strings."""
        return watched.to_json(self.layers, self.missing)

    def __repr__(self) -> str:
        return f"Watch({len(self._targets)} layers, gradients={self.gradients})"


def watch(model: nn.Module, *, layers: Which = None, gradients: bool = False) -> Watch:
    """Measures every layer while ``model`` runs in the ``with`` block.

    Only what runs inside the block counts, all passes together; a module that is called several times
    is one layer. Of an output that is a tuple, list or mapping, the first floating-point tensor counts.
    The model is as before afterwards, also if the block raises; what ran until then is kept.

    Args:
        model: in any mode, on any device. Gradients are as backward gives them: under a loss scaler,
            scaled.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``. Those of the inputs are computed once more, in order to be seen.
        gradients: also measures the gradient with respect to each output, in the backward passes inside
            the block; not of input projections, which only MultiheadAttention has.

    Raises:
        TypeError: the model is no module, or has ScriptModules or compiled modules in it.
        ValueError: ``layers`` chooses none, or names what is not there.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> with watch(net, gradients=True) as w:
    ...     net(torch.ones(8, 64)).square().mean().backward()
    >>> [(layer.name, layer.fan_in, layer.forward.count) for layer in w.layers]
    [('0', 64, 512.0), ('2', 64, 512.0)]
    """
    return Watch(model, layers, gradients)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"its module {name!r} is" if name else "it is"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"model cannot be watched: {where} a ScriptModule, which has no hooks")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise TypeError(
                f"model cannot be watched: {where} compiled; watch the model before torch.compile"
            )


def _targets(model: nn.Module, which: Which) -> tuple[list[Target], dict[str, str]]:
    found, passed = finding.find(model, which)
    targets = [Target(layer.name, layer.module, layer) for layer in found]
    for name, module in model.named_modules():
        if name in passed:  # an activation, or a normed weight: its output can still be seen
            targets.append(Target(name, module, None, passed.pop(name)))
    if not targets:
        raise ValueError(
            f"layers must choose at least one layer of the model, but {which!r} does not"
        )
    return targets, passed
