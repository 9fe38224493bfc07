"""Watching a model run: the moments of every layer's output and gradient, beside Kaiming's condition.

He et al., "Delving deep into rectifiers" (2015, arXiv 1502.01852), equations 8 to 10: behind a ReLU a
layer multiplies the variance by n Var[W] / 2, with n the fan-in, so signals neither grow nor fade over
the whole net if the product over all layers is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from fastinit.base import ranks
from fastinit.statistics.tensor import Moments
from fastinit.variance import watched
from fastinit.variance.layers import Which
from fastinit.variance.watch_block import Block, Scaler
from fastinit.variance.watch_rows import Rows, all_merged
from fastinit.variance.watch_rows import watched as watched_rows
from fastinit.variance.watch_targets import targets
from fastinit.variance.watched import Watched

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.axes import Axes


class Watch:
    """What :func:`watch` gives: a context manager, and afterwards what it saw.

    Entering again begins anew. A copy or a pickle has what was seen, and the model; it is not entered.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Which = None,
        gradients: bool = False,
        scaler: Scaler | None = None,
        group: ranks.Group = None,
        full_name: Callable[[str], str] | None = None,
    ) -> None:
        if full_name is not None and not callable(full_name):
            raise TypeError(f"full_name must be a function of a name, but got {full_name!r}")
        if scaler is not None and not callable(getattr(scaler, "scale", None)):
            raise TypeError(
                f"scaler must have a method scale, as torch.amp.GradScaler, but got {scaler!r}"
            )
        self.gradients, self.scaler, self.group = gradients, scaler, group
        self.full_name = full_name or str
        self._targets, self._passed = targets(model, layers)
        self._name = type(model).__name__
        self._stack: ExitStack | None = None
        self._block: Block | None = None
        self._seen: tuple[list[Watched], dict[str, str]] | None = None

    def __enter__(self) -> Watch:
        """Raises RuntimeError if it is entered already."""
        if self._stack is not None:
            raise RuntimeError("this watch is entered already: make a second one for the model")
        self._block, self._seen = Block(self.gradients, self.scaler), None
        with ExitStack() as stack:
            if self.group is not None:
                stack.enter_context(ranks.together(self.group, "a watch"))
            stack.push(self._end)
            for target in self._targets:
                for hook in self._block.hook(target):
                    stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stack is not None
        stack, self._stack = self._stack, None
        stack.__exit__(kind, error, trace)

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        """After the hooks are gone: measures the weights, and hears what other ranks saw."""
        assert self._block is not None
        self._block.close()
        if self.group is not None and kind is None:
            rows, missing = all_merged(*self._rows(), self.group)
            self._seen, self._block = (watched_rows(rows), missing), None

    def __getstate__(self) -> dict[str, Any]:
        seen = self._read() if self._block is not None and self._stack is None else self._seen
        return {**vars(self), "_stack": None, "_block": None, "_seen": seen, "group": None}

    @property
    def layers(self) -> list[Watched]:
        """The layers that ran, in the order in which their outputs first came."""
        return self._read()[0]

    @property
    def missing(self) -> dict[str, str]:
        """By name, the layers that are not in ``layers``, and why."""
        return self._read()[1]

    @property
    def product(self) -> float:
        """The product of all factors n Var[W] / 2; 1 is Kaiming's condition."""
        return watched.product(self.layers)

    def _read(self) -> tuple[list[Watched], dict[str, str]]:
        """What was seen; read from the device once."""
        if self._stack is not None or (self._block is None and self._seen is None):
            raise RuntimeError("nothing to read yet: a watch has its numbers after the with block")
        if self._seen is None:
            rows, missing = self._rows()
            self._seen, self._block = (watched_rows(rows), missing), None
        return self._seen

    def _rows(self) -> Rows:
        """What this rank saw."""
        assert self._block is not None
        missing = self._passed | self._block.missing([target.name for target in self._targets])
        named = {self.full_name(name): why for name, why in missing.items()}
        return self._block.read(self.full_name), named

    def table(self) -> str:
        """One line for each layer, in 80 columns: standard deviations of output and gradient, fan-in,
        Var[W], n Var[W] / 2 and its product so far, dead units and values that are not finite."""
        return watched.table(*self._read(), self.gradients)

    def plot(self, path: Any = None, ax: Axes | None = None, label: str = "") -> Axes:
        """:func:`fastinit.variance.plots.variance_through_depth`: a picture of the variance by layer."""
        from fastinit.variance.plots import variance_through_depth

        layers = self.layers
        return variance_through_depth(
            [layer.name for layer in layers],
            [_variance(layer.forward) for layer in layers],
            [None if layer.backward is None else _variance(layer.backward) for layer in layers],
            path=path,
            ax=ax,
            label=label,
            title="Variance by layer" if label else f"Variance by layer: {self._name}",
            missing=self.missing,
        )

    def to_json(self) -> str:
        """Everything as strict JSON: NaN (what is not there) as null, infinities as strings."""
        return watched.to_json(*self._read())

    def __repr__(self) -> str:
        return f"Watch({len(self._targets)} layers, gradients={self.gradients})"


def _variance(moments: Moments) -> float:
    """Infinite where not all values are finite: those that are say little then."""
    return math.inf if moments.nonfinite else moments.var


def watch(
    model: nn.Module,
    *,
    layers: Which = None,
    gradients: bool = False,
    scaler: Scaler | None = None,
    step: Callable[[], object] | None = None,
    group: ranks.Group = None,
    full_name: Callable[[str], str] | None = None,
) -> Watch:
    """Measures every layer while ``model`` runs in the ``with`` block, or in ``step``.

    Only what runs inside the block counts, all passes together, whatever code runs them: a training
    step, a pipeline, generation. A module that is called several times is one layer. Of an output that
    is a tuple, list or mapping, the first floating-point tensor counts, of a packed sequence its data.
    The model is as before afterwards, also if the block raises; what ran until then is kept.

    Args:
        model: in any mode, on any device. ScriptModules and compiled modules in it are not watched, as
            ``missing`` says.
        layers: types, names or a predicate of (name, module); by default Linear, convolutions,
            embeddings, Bilinear, transformers' Conv1D and MultiheadAttention's projections: of its
            inputs ``q_proj``, ``k_proj`` and ``v_proj``, also where they are rows of one parameter,
            and ``out_proj``; and LSTM, GRU, RNN and their cells. The projections of inputs are computed
            once more, in order to be seen.
        gradients: also measures the gradient with respect to each output, in the backward passes inside
            the block; not of input projections, which only MultiheadAttention has. Passes with
            ``create_graph=True`` don't count: their gradients are what a loss is made of (forces,
            penalties).
        scaler: what scaled the loss of every backward pass in the block
            (:class:`torch.amp.GradScaler`): its scale is divided out of the gradients. Those that do not
            fit their dtype when scaled stay infinite.
        step: runs the model; then there is no need for a block, and the watch has seen it.
        group: the ranks (a process group or device mesh, such as ``torch.distributed.group.WORLD``) that
            watch together, all of them: at the end of the block they tell each other what they saw, and
            from then on each has the same table, of all. By default each rank has what it saw itself.
            Batches add up; so do the parts that ranks have of one output or weight; what several ranks
            have alike counts once (ranks whose layers gave the same numbers, to the bit, saw one batch);
            layers of other pipeline stages come after one another, in the order of ranks. An error on
            one rank, in the block too, is an error on all.
        full_name: what a layer is called in the whole model, by its name in this one (of a pipeline
            stage, say); by default the same.

    Raises:
        TypeError: the model is no module, the scaler none.
        ValueError: there is nothing to watch, or ``layers`` names what is not there; at the end of the
            block on all ranks, if they have different weights under one name.
        RuntimeError: another rank failed (:func:`fastinit.base.ranks.together`).

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> with watch(net, gradients=True) as w:
    ...     net(torch.ones(8, 64)).square().mean().backward()
    >>> [(layer.name, layer.fan_in, layer.forward.count) for layer in w.layers]
    [('0', 64, 512.0), ('2', 64, 512.0)]
    """
    seen = Watch(model, layers, gradients, scaler, group, full_name)
    if step is not None:
        with seen:
            step()
    return seen
