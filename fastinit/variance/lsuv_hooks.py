"""The hooks by which LSUV sees layers run, each call as one of the strategies.

A layer that is not affine runs again within its own hook, from the arguments that it was called with,
with all that others hooked to it. Whether others' hooks change a layer is asked by what they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.weight_norm import WeightNorm

from fastinit.base import torch_internals as internals
from fastinit.base.hooks import Uncopied
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.statistics.tensor import moments
from fastinit.stream import laws
from fastinit.variance.affine import LSUVError
from fastinit.variance.layers import Layer, projections
from fastinit.variance.lsuv_passes import Passes, Scaling
from fastinit.variance.lsuv_strategies import (
    Activated,
    Affine,
    Rerun,
    Scale,
    Strategy,
    Unbuilt,
    first,
)
from fastinit.variance.unchanged import ModelState, RandomNumbers, RandomState


class PassEnded(BaseException):
    """Ends a forward pass at the layer that is not built."""


@dataclass
class Begun:
    """A layer that is about to run."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random: RandomState
    weight: Tensor | None
    """A copy, where somebody's hook may write it."""
    versions: list[tuple[Tensor, int]]
    """Of its arguments."""
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]]
    """Those in it, by module and name, and copies of them."""
    written: bool
    """Whether its weight was, before it."""
    again: Any = None
    """What it gave when it last ran again: of several things, all."""
    gave: Any = None
    """What its forward gave, before hooks."""
    version: int = 0
    raw: Tensor | None = None
    """Moments of that: what is written through ``.data`` or an address is not counted as a version."""


@dataclass
class Again:
    """A layer that runs again, and what it gave."""

    layer: Layer
    output: Any = None


@dataclass
class Held:
    """A weight or bias of a MultiheadAttention that is scaled while that runs."""

    module: nn.Module
    tensor: Tensor
    copy: Tensor
    scaling: Scaling
    before: Scale
    """What the scaling held."""


class Hooks:
    """Sees the layers run, and tells :class:`Passes`."""

    def __init__(self, passes: Passes, state: ModelState, random: RandomNumbers) -> None:
        self.passes, self.state, self.random = passes, state, random
        self.found, self.options = passes.found, passes.options
        self.calls: dict[str, int] = {}  # of each layer, with this batch
        self.begun: dict[str, Begun] = {}
        self.changed: set[str] = set()  # layers whose hooks change what they give
        self.again: Again | None = None
        self.scaled: list[Held] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within the block, in which one batch runs, layers are measured and scaled."""
        self.calls.clear()
        with ExitStack() as stack:
            stack.callback(self.begun.clear)
            stack.callback(self._unscale_projections)
            for hook in self._hooks():
                stack.callback(hook.remove)
            yield

    def _hooks(self) -> Iterator[Uncopied]:
        own = [layer for layer in self.found if layer.projection is None]
        if internals.global_hooks():
            by_module = {layer.module: layer for layer in own}
            note_any = partial(self._note_any, by_module)
            yield Uncopied(register_module_forward_hook(note_any))
            internals.last_global_hook_first()
        for layer in own:
            module = layer.module
            if layer.name == self.options.unbuilt:
                end = partial(self._end_before, layer)
                yield Uncopied(module.register_forward_pre_hook(end, with_kwargs=True))
                continue
            if layer.weight_in.requires_grad:
                foreign = _may_write_weight(layer)
                hooked = foreign or module._forward_hooks or internals.global_hooks()
                if hooked or not layer.affine:
                    begin = partial(self._begin, layer, foreign)
                    options = {"prepend": True, "with_kwargs": True}
                    yield Uncopied(module.register_forward_pre_hook(begin, **options))
                if module._forward_hooks and not internals.global_hooks():
                    note = partial(self._note, layer)
                    yield Uncopied(module.register_forward_hook(note, prepend=True))
            after = partial(self._after, layer)
            yield Uncopied(module.register_forward_hook(after, with_kwargs=True))
        for module, inputs in projections(self.found).items():
            project = partial(self._scale_projections, inputs)
            yield Uncopied(module.register_forward_pre_hook(project, with_kwargs=True))
            unscale = partial(self._unscale_projections, at_once=False)
            yield Uncopied(module.register_forward_hook(unscale, always_call=True))

    # --- modules ---------------------------------------------------------------------------------

    def _begin(
        self, layer: Layer, foreign: bool, module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        if self.again is not None:
            return
        with self.state.undo.paused():
            written = self._is_written(layer)
            if foreign or not layer.affine:  # it may be written, as renormalised embeddings are
                self._original(layer)
            weight = layer.scaled.clone() if foreign and layer.affine else None
            leaves = [x for x in internals.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            versions = [(x, _version(x)) for x in leaves]
            buffers, random = _buffers(module), self.random.now()
            begun = Begun(args, kwargs, random, weight, versions, buffers, written)
            self.begun[layer.name] = begun

    def _original(self, layer: Layer) -> Tensor:
        """The weight's, or weight_norm's g's, as it was before the first pass."""
        return self.state.original(layer.weight_in)

    def _note_any(
        self, layers: dict[nn.Module, Layer], module: nn.Module, args: Any, output: Any
    ) -> None:
        if module in layers:
            self._note(layers[module], module, args, output)

    def _note(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """The output as forward gave it."""
        if (begun := self.begun.get(layer.name)) is not None and self.again is None:
            with self.state.undo.paused():
                begun.gave, begun.version = output, _version(first(output))
                begun.raw = _raw_moments(first(output))

    def _after(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.again is not None and self.again.layer is layer:
            self.again.output = output
            return None
        with self.state.undo.paused():
            out = _measurable(layer, first(output))
            begun = self.begun.pop(layer.name, None)
            if begun is not None and _is_changed(layer, begun, output, out):
                self.changed.add(layer.name)
            call = self._call(layer, out, begun)
            self._tell(call)
        if begun is not None and begun.again is not None:
            output = begun.again
        return (call.out, *output[1:]) if isinstance(output, tuple) else call.out

    def _call(self, layer: Layer, out: Tensor, begun: Begun | None) -> Strategy:
        """A call of a layer, by what is known of its output."""
        held, trials = self._held(layer), self.options.trials
        if layer.runs_with_another():
            why = "it runs with another weight than its own: left as it is"
            return Rerun(layer, out, held, trials, why)
        if self._is_written(layer) if begun is None else begun.written:
            why = "the model writes its weight before it runs: left as it is"
            return Rerun(layer, out, held, trials, why)
        if layer.affine and layer.name not in self.changed:
            if trials.activation is not None:
                return Activated(layer, out, held, trials)
            return Affine(layer, out, held)
        run: Any = "cannot be run again: left as it is"
        if begun is not None:
            run = partial(self._run, layer, begun)
            if any(_version(x) != version for x, version in begun.versions):
                run = "writes its inputs, so that it is not run again: left as it is"
        return Rerun(layer, out, held, trials, run)

    def _is_written(self, layer: Layer) -> bool:
        """Whether a layer that is to be scaled is about to run with values that the pass wrote."""
        scaling = self.passes.scalings.get(layer.key)
        return (scaling is None or scaling.fit.left) and self.state.wrote(layer.weight_in)

    def _held(self, layer: Layer) -> Scale:
        scaling = self.passes.scalings.get(layer.key)
        return Scale() if scaling is None else scaling.held_by(layer)

    def _run(self, layer: Layer, begun: Begun, factor: float) -> Tensor:
        """What a layer gives with its weight scaled, which it is from now on."""
        self.passes.scalings[layer.key].hold(factor, self._original(layer))
        now, self.again = self.again, Again(layer)
        try:
            with self.state.undo:
                begun.random.set()
                for module, name, buffer, copy in begun.buffers:  # as an observer's, of what it saw
                    module._buffers[name] = buffer
                    if not buffer.equal(copy):
                        buffer.resize_(copy.shape).copy_(copy)
                # As it runs in a pass, whatever its class makes of a call.
                nn.Module.__call__(layer.module, *begun.args, **begun.kwargs)
            begun.again = self.again.output
            return _measurable(layer, first(begun.again))
        finally:
            self.again = now

    def _tell(self, call: Strategy) -> None:
        name = call.layer.name
        if self.again is not None:  # a layer that holds this one runs again
            if name in self.passes.measured:
                call.rescale(self.passes.scalings[call.layer.key].scale(call.layer))
            return
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.calls[name] > 1 and not self.options.pool:
            self.passes.pass_by(call)
        else:
            self.passes.take(call)

    def _end_before(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        with self.state.undo.paused():
            x = args[0] if args else kwargs["input"]
            self.passes.take(Unbuilt(layer, x, self._held(layer)))
        raise PassEnded

    # --- MultiheadAttention's projections --------------------------------------------------------

    def _scale_projections(
        self, inputs: list[Layer], module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        """MultiheadAttention projects its inputs inside, so its output is that of scaled weights only if
        it runs with them. They are scaled while it does, and as the others' when all has gone well.

        What it projects is computed once more, one projection at a time: it builds all three itself.
        """
        with self.state.undo.paused():
            for layer in inputs:
                out = layer.projected(args, kwargs)
                if out is None:
                    return  # forward will say what it misses
                self._tell(self._call(layer, _measurable(layer, out), None))
            for layer in inputs:
                if (scaling := self.passes.scalings.get(layer.key)) is None:
                    continue
                scale, held = scaling.scale(layer), scaling.held_by(layer)
                if scale.factor != held.factor:
                    self._hold(module, scaling, layer.scaled).mul_(scale.factor / held.factor)
                    scaling.held = scaling.held._replace(factor=scale.factor)
                if scale.shift != held.shift and layer.bias is not None:
                    self._hold(module, scaling, layer.bias).add_(scale.shift - held.shift)
                    scaling.held = scaling.held._replace(shift=scale.shift)

    def _hold(self, module: nn.Module, scaling: Scaling, tensor: Tensor) -> Tensor:
        self.scaled.append(Held(module, tensor, tensor.clone(), scaling, scaling.held))
        torch.clear_autocast_cache()
        return tensor

    def _unscale_projections(
        self, module: nn.Module | None = None, *rest: object, at_once: bool = True
    ) -> None:
        """Puts back the weights in an attention, or in all.

        Where a graph of gradients was recorded they stay as they are: it may need them.
        """
        if torch.is_grad_enabled() and not at_once:
            return
        with self.state.undo.paused():
            while self.scaled and (module is None or module is self.scaled[-1].module):
                held = self.scaled.pop()
                held.tensor.copy_(held.copy)
                held.scaling.held = held.before


def _may_write_weight(layer: Layer) -> bool:
    """Whether others' hooks might: not weight_norm's, which makes it, nor those of lazy modules."""
    hooks = layer.module._forward_pre_hooks.values()
    return not is_lazy(layer.weight_in) and any(type(hook) is not WeightNorm for hook in hooks)


def _is_changed(layer: Layer, begun: Begun, output: Any, out: Tensor) -> bool:
    """Whether hooks made something else of a layer than its forward is.

    One that gives its output back as it is, or brings a DTensor into another layout, does not.
    """
    if begun.weight is not None and not tensors.local(layer.scaled).equal(
        tensors.local(begun.weight)
    ):
        return True
    if begun.raw is None:
        return False
    if begun.gave is not output or out.is_inference() or _version(out) != begun.version:
        return True
    return not moments(out).raw.equal(begun.raw)


def _raw_moments(out: Any) -> Tensor | None:
    """float64 [7]; None of what is no plain floating-point tensor."""
    if not isinstance(out, Tensor) or out.dtype not in laws.DTYPES or shard.is_dtensor(out):
        return None
    return None if tensors.unreadable(out) else moments(out).raw


def _buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (inner, name, buffer, buffer.clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
        if buffer is not None and tensors.unreadable(buffer) is None
    ]


def _version(tensor: Any) -> int:
    """How often it was written, as far as that is counted."""
    counts = isinstance(tensor, Tensor) and not tensor.is_inference()
    return internals.version_of(tensor) if counts else 0


def _measurable(layer: Layer, out: Any) -> Tensor:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        raise LSUVError(f"{layer.name} gives no floating-point tensor: {type(out).__name__}")
    if shard.is_dtensor(out):
        raise LSUVError(
            f"{layer.name} gives a DTensor, which lsuv_ does not scale: let the layer give local tensors"
        )
    if found := tensors.unreadable(out):
        hint = " (a TransformerEncoder gives none with enable_nested_tensor=False)"
        raise LSUVError(f"the output of {layer.name} {found[1]}{hint if out.is_nested else ''}")
    return tensors.local(out)
