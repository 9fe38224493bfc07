"""Watching a model run: the moments of every layer's output and gradient, beside Kaiming's condition.

He et al., "Delving deep into rectifiers" (2015, arXiv 1502.01852), equations 8 to 10: behind a ReLU a
layer multiplies the variance by n Var[W] / 2, with n the fan-in, so signals neither grow nor fade over
the whole net if the product over all layers is 1.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from fastinit.base import html, ranks
from fastinit.base import torch_internals as internals
from fastinit.stream.formats import Counting
from fastinit.variance.layers import Which
from fastinit.variance.watch.attention import Attention
from fastinit.variance.watch.block import Asked, Block
from fastinit.variance.watch.blocks import block_targets
from fastinit.variance.watch.hooked import Hooks
from fastinit.variance.watch.record import Scaler
from fastinit.variance.watch.result import Measured, Watched
from fastinit.variance.watch.rows import Rows, all_merged, watched
from fastinit.variance.watch.sinks import To
from fastinit.variance.watch.steps import Steps, hook_steps
from fastinit.variance.watch.targets import targets

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.axes import Axes
    from torch.optim import Optimizer


class Watch(html.InNotebooks):
    """What :func:`watch` gives: a context manager, and afterwards what it saw.

    Entering again begins anew. A copy or a pickle has what was seen, and the model; it is not entered.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Which = None,
        asked: Asked = Asked(),  # noqa: B008  # frozen
        group: ranks.Group = None,
        full_name: Callable[[str], str] | None = None,
        steps: Steps | None = None,
    ) -> None:
        if full_name is not None and not callable(full_name):
            raise TypeError(f"full_name must be a function of a name, but got {full_name!r}")
        self.asked, self.group = asked, group
        self.full_name = full_name or str
        self._targets, self._passed = targets(
            model, layers, compiled=True, may_lack=group is not None
        )
        if asked.residual:
            blocks, closed = block_targets(model, {target.name for target in self._targets})
            self._targets, self._passed = self._targets + blocks, self._passed | closed
        self._attention = Attention(model) if asked.attention else None
        self._model, self._steps = model, steps
        self._stack: ExitStack | None = None
        self._hooks: Hooks | None = None  # None before there is a need
        self._ended: tuple[int, Block] | None = None  # a step and its block, not yet read
        self._seen: Measured | None = None

    def __enter__(self) -> Watch:
        """Raises RuntimeError if it is entered already."""
        if self._stack is not None:
            raise RuntimeError("this watch is entered already: make a second one for the model")
        self._ended = self._seen = None
        with ExitStack() as stack:
            if self.group is not None:
                stack.enter_context(ranks.together(self.group, "a watch"))
            if self._steps is not None:
                stack.callback(self._steps.end)
            stack.push(self._end)
            if self._steps is not None and self._steps.optimizer is not None:
                optimizer = self._steps.optimizer
                before = partial(self._before_optimizer, optimizer)
                stack.enter_context(hook_steps(optimizer, before, self._next))
            if self._steps is None or self._steps.begin(self._tells):
                self._hooked.begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stack is None:
            raise RuntimeError("this watch is not entered, or was left already")
        stack, self._stack = self._stack, None
        stack.__exit__(kind, error, trace)

    @property
    def is_entered(self) -> bool:
        """Whether its block is open."""
        return self._stack is not None

    def step(self) -> None:
        """The end of a training step, of a watch with ``every``: after the optimizer's.

        Hands on what an earlier step had measured, which has come from the device by now.

        Raises:
            RuntimeError: the watch has no ``every``, or an optimizer; or it is not entered.
            And what a function raises that is told, as ``to``.
        """
        if self._steps is None or self._stack is None:
            why = "is not entered" if self._steps is not None else "measures its whole block"
            raise RuntimeError(f"step() is for watches with every=, in their block; this one {why}")
        if self._steps.optimizer is not None:
            raise RuntimeError("step() is not called: the optimizer= that is given ends the steps")
        self._next()

    def pause(self) -> None:
        """Until :meth:`resume` or the next step, nothing is measured: of an evaluation between steps,
        say. No hooks are there meanwhile. Outside of the block it does nothing."""
        if self._hooks is not None:
            self._hooks.remove()

    def resume(self) -> None:
        """Ends a :meth:`pause`; without one, it does nothing."""
        if self._block is not None:
            self._hooked.set()

    def _before_optimizer(self, optimizer: Optimizer, given: Sequence[Any]) -> None:
        has_closure = any(map(callable, given))  # then they are yet to come
        if self._block is not None and not has_closure:
            # Fused optimizers take the scale out as they step: GradScaler leaves it to them.
            self._block.measure_weight_gradients(getattr(optimizer, "grad_scale", None))

    @internals.between_graphs
    def _next(self) -> None:
        assert self._steps is not None
        try:
            self._hand_on(self.group)
        finally:  # whoever could not listen, this step has ended
            number = self._steps.number
            is_due = self._steps.next()
            try:
                self._close(number)
            finally:
                if is_due:
                    self._hooked.begin()
                else:
                    self._hooked.remove()

    @property
    def _hooked(self) -> Hooks:
        if self._hooks is None:
            self._hooks = Hooks(self.asked, self._targets, self._attention)
        return self._hooks

    @property
    def _block(self) -> Block | None:
        """The one that is open."""
        return None if self._hooks is None else self._hooks.block

    def _close(self, number: int = 0) -> None:
        """The end of a block, of the step with this number: measures the weights and sends all."""
        if (block := self._hooked.end()) is not None:
            block.close()
            self._ended = number, block

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        """The end of the block: hears what other ranks saw."""
        if self._hooks is None:
            return
        self._hooks.remove()
        if self._steps is None:
            self._close()
            if self.group is not None and kind is None:
                self._hand_on(self.group)
            return
        self._hooks.end()  # of a step that has no end
        if kind is None:
            self._hand_on(self.group)
        elif self.group is None:
            try:
                self._hand_on(None)
            except Exception as error:  # what the block raised is what its user is to see
                warnings.warn(f"the last step was not told: {error!r}", stacklevel=4)

    def _hand_on(self, group: ranks.Group) -> None:
        """Reads what was measured last, merges it with the group's and tells who is to know."""
        if self._ended is None:
            return
        number, block = self._ended
        rows, missing = self._rows(block)
        if group is not None:
            rows, missing = all_merged(rows, missing, group)
        self._seen, self._ended = Measured(number, watched(rows), missing), None
        if self._steps is not None and self._tells:
            self._steps.tell(self._seen)

    def __getstate__(self) -> dict[str, Any]:
        seen = None if self._stack is not None else self._read() if self._ended else self._seen
        own = ("_stack", "_hooks", "_ended", "_steps")
        state = dict.fromkeys(own)
        return {**vars(self), **state, "_seen": seen, "group": None}

    @property
    def layers(self) -> list[Watched]:
        """The layers that ran, in the order in which their outputs first came; with ``every``, in the
        last step that was handed on."""
        return self._read().layers

    @property
    def missing(self) -> dict[str, str]:
        """By name, the layers that are not in ``layers``, and why."""
        return self._read().missing

    @property
    def product(self) -> float:
        """The product of all factors n Var[W] / 2; 1 is Kaiming's condition."""
        return self._read().product

    def _read(self) -> Measured:
        """What was seen; read from the device once."""
        if self._steps is None and self._stack is None and self._ended is not None:
            self._hand_on(None)  # alone: if there is a group, it has failed
        if self._seen is None:
            when = "after the with block" if self._steps is None else "a step after it measured"
            raise RuntimeError(f"nothing to read yet: a watch has its numbers {when}")
        return self._seen

    @property
    def _tells(self) -> bool:
        """Whether this rank tells what was measured: of a group the first does, else each its own."""
        return self.group is None or ranks.is_first(self.group)

    def _rows(self, block: Block) -> Rows:
        """What this rank saw."""
        rows = block.read(self.full_name)
        missing = self._passed | block.missing(self._targets)
        if unseen := [target for target in self._targets if target.name in missing]:
            there = set(self._model.modules())
            for target in unseen:
                if target.module not in there:
                    missing[target.name] = "it is not there any more: to see what is, watch anew"
        if self._attention is not None:
            missing |= self._attention.missing(block.records)
        return rows, {self.full_name(name): why for name, why in missing.items()}

    def table(self) -> html.Table:
        """One line for each layer, in 80 columns: standard deviations of output and gradient, fan-in,
        Var[W], n Var[W] / 2 and its product so far, dead units and values that are not finite."""
        return self._read().table(self.asked.gradients)

    def plot(
        self, path: Any = None, ax: Axes | None = None, label: str = "", before: Watch | None = None
    ) -> Axes:
        """:func:`fastinit.variance.plots.variance_through_depth`: a picture of the variance by layer.

        Args:
            before: an earlier watch, which is drawn hollow: of the layers of this one.

        Raises:
            ValueError: as the function; ``before`` has no layer of this one.
        """
        title = "Variance by layer" if label else f"Variance by layer: {type(self._model).__name__}"
        earlier = None if before is None else before._read()
        return self._read().plot(path, ax, label, earlier, title)

    def to_json(self) -> str:
        """Everything as strict JSON: NaN (what is not there) as null, infinities as strings."""
        return json.dumps(self._read().plain(), allow_nan=False, indent=2)

    def __repr__(self) -> str:
        return f"Watch({len(self._targets)} layers, gradients={self.asked.gradients})"


def watch(
    model: nn.Module,
    *,
    layers: Which = None,
    gradients: bool = False,
    inputs: bool = False,
    weight_gradients: bool = False,
    residual: bool = False,
    attention: bool = False,
    scaler: Scaler | None = None,
    higher: bool = False,
    formats: Sequence[str] = (),
    histogram: bool = False,
    step: Callable[[], object] | None = None,
    every: int | None = None,
    to: To | Sequence[To] = (),
    start: int = 0,
    optimizer: Optimizer | None = None,
    group: ranks.Group = None,
    full_name: Callable[[str], str] | None = None,
) -> Watch:
    """Measures every layer while ``model`` runs in the ``with`` block, or in ``step``.

    Only what runs inside the block counts, all passes together, whatever code runs them: a training
    step, a pipeline, generation. A module that is called several times is one layer. Of an output that
    is a tuple, list or mapping, the first floating-point tensor counts, of a packed sequence its data.
    The model is as before afterwards, also if the block raises; what ran until then is kept.

    Args:
        model: in any mode, on any device, also compiled (``torch.compile``): graphs measure then, and
            :mod:`fastinit.variance.watch.compiled` says how. ScriptModules in it are not watched, as
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
        inputs: also measures what comes into each layer: of its arguments the first floating-point
            tensor, as it is when the module's own pre-hooks have run. Not of input projections.
        weight_gradients: also measures the ``grad`` of each weight as it stands at the end of the block
            (before it is set to zero), or with ``optimizer`` as it steps with it, or after the step of
            one that is given a closure. Else a loss scale that nobody has taken out is in it.
        residual: also measures the residual stream: the output of each block, as ``transformer.h.3``.
            Blocks are the members of the outermost module that can be iterated, as a ModuleList can, and
            has two or more with one forward and modules inside.
        attention: also measures query, key and value as attention gets them, the arguments of
            torch.nn.functional.scaled_dot_product_attention: as ``NAME.sdpa.query`` of the module that
            called it. Attention computed otherwise is not seen; MultiheadAttention's are layers.
        scaler: what scaled the loss of every backward pass in the block
            (:class:`torch.amp.GradScaler`): it is divided out of gradients. What was infinite stays so.
        higher, formats, histogram: of all that is measured also what :func:`fastinit.moments` gives with
            them, in records and curves. Compiled code is not counted, nor anything with a ``scaler``.
        step: runs the model; then there is no need for a block, and the watch has seen it.
        every: the block is a training, of which each ``every``-th step is measured, the first one too;
            :meth:`Watch.step` ends a step. In the others there are no hooks. What was measured is read
            when the next step has ended, so that no step waits for the device; ``layers`` and ``table``
            are those of the last one that was read. Memory for one step's numbers is all it takes.
        to: who is told of each step that is measured, on the group's first rank: a path, to whose file a
            line of JSON is added (:class:`fastinit.variance.watch.sinks.JsonLines`); what has
            ``add_scalar``, as TensorBoard's SummaryWriter; a function of what was
            :class:`fastinit.variance.watch.result.Measured`; or several of these.
        start: the number of the first step, of a training that goes on.
        optimizer: what ends the steps: each step of it is one, whatever number of passes it takes, and
            :meth:`Watch.step` is not called. Steps that a scaler skips go with the next.
        group: the ranks (a process group or device mesh, such as ``torch.distributed.group.WORLD``) that
            watch together, all of them: at the end of the block they tell each other what they saw, and
            from then on each has the same table, of all. By default each rank has what it saw itself.
            Batches add up; so do the parts that ranks have of one output or weight; what several ranks
            have alike counts once (ranks whose layers gave the same numbers, to the bit, saw one batch);
            layers of other pipeline stages come after one another, in the order of ranks, and a stage
            may be without any. An error on one rank, in the block too, is an error on all.
        full_name: what a layer is called in the whole model, by its name in this one (of a pipeline
            stage, say); by default the same.

    Raises:
        TypeError: the model is no module, the scaler or optimizer none, a flag no bool; ``to``,
            ``start`` or ``optimizer`` without ``every``, or ``step`` with it.
        NumberTypeError, NumberRangeError: ``every`` is no whole number from 1 on, or start from 0 on.
        OSError: a file of ``to`` cannot be written to.
        ValueError: there is nothing to watch, or ``layers`` names what is not there; ``residual`` of a
            model without blocks, ``attention`` of one with compiled modules; a file of ``to`` holds
            something else; at the end of the block on all ranks, if they have different weights under
            one name.
        RuntimeError: another rank failed (:func:`fastinit.base.ranks.together`).

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> with watch(net, gradients=True) as w:
    ...     net(torch.ones(8, 64)).square().mean().backward()
    >>> [(layer.name, layer.fan_in, layer.forward.count) for layer in w.layers]
    [('0', 64, 512.0), ('2', 64, 512.0)]
    """
    # Ranks with good arguments are in the block before they hear of one whose arguments are not.
    with nullcontext() if group is None else ranks.telling(group, "a watch"):
        steps = None
        if step is not None and not callable(step):
            raise TypeError(f"step must be a function, but got {step!r:.60}")
        if every is not None:
            if step is not None:
                raise TypeError("every counts the steps of a block: step= is all that is measured")
            steps = Steps(every, to, start, optimizer)
        else:
            for name, given in {"to": to, "start": start, "optimizer": optimizer}.items():
                if given:
                    raise TypeError(f"{name} is of a watch with every=, which is not given")
        counting = Counting.of(formats, histogram)
        which = gradients, inputs, weight_gradients, residual, attention
        asked = Asked(*which, scaler, higher, counting)
        seen = Watch(model, layers, asked, group, full_name, steps)
    if step is not None:
        with seen:
            step()
    return seen
