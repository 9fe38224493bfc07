"""The hooks by which LSUV sees layers run, each call as one of the strategies.

A layer that is not affine runs again within its own hook, from the arguments that it was called with,
with all that others hooked to it. Whether others' hooks change a layer is asked by what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from fastinit.variance.layers import Layer, projections
from fastinit.variance.lsuv.affine import AffineSums, LSUVError
from fastinit.variance.lsuv.begun import (
    Begun,
    buffers_of,
    is_changed,
    is_weight_changed,
    raw_moments,
    version,
)
from fastinit.variance.lsuv.passes import Passes, Scaling
from fastinit.variance.lsuv.ranks import Seen
from fastinit.variance.lsuv.shards import (
    Sharded,
    laid_out_first,
    lays_out,
    part_of,
    unbuilt_moments,
)
from fastinit.variance.lsuv.strategies import (
    Activated,
    Affine,
    Rerun,
    Scale,
    Strategy,
    Unbuilt,
    first,
)
from fastinit.variance.lsuv.unchanged import ModelState, RandomNumbers


class PassEnded(BaseException):
    """Ends a forward pass at the layer that is not built."""


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
        self.found, self.options, self.ranks = passes.found, passes.options, passes.ranks
        self.calls: set[str] = set()  # the layers that were called, with this batch
        self.begun: dict[str, Begun] = {}
        self.changed: set[str] = set()  # layers whose hooks change what they give
        self.again: Again | None = None
        self.scaled: list[Held] = []
        self.sharded = {layer.name: Sharded(layer) for layer in self.found if layer.is_sharded}

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
            module, foreign = layer.module, _may_write_weight(layer)
            begin = partial(self._begin, layer, foreign)
            if layer.name == self.options.unbuilt:
                if foreign:
                    yield _before_others(module, begin)
                end = partial(self._end_before, layer)
                yield Uncopied(module.register_forward_pre_hook(end, with_kwargs=True))
                continue
            if layer.weight_in.requires_grad:
                others = any(not lays_out(hook) for hook in module._forward_hooks.values())
                hooked = foreign or others or internals.global_hooks()
                if hooked or not layer.affine:
                    yield _before_others(module, begin)
                if others and not internals.global_hooks():
                    note = partial(self._note, layer)
                    yield Uncopied(module.register_forward_hook(note, prepend=True))
                    laid_out_first(module)
            if layer.name in self.sharded:
                noted = self.sharded[layer.name].note
                yield Uncopied(module.register_forward_hook(noted, prepend=True))
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
            versions = [(x, version(x)) for x in leaves]
            buffers, random = buffers_of(module), self.random.now()
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
                begun.gave, begun.version = output, version(first(output))
                begun.raw = raw_moments(first(output))

    def _after(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.again is not None and self.again.layer is layer:
            self.again.output = output
            return None
        with self.state.undo.paused():
            out = _measurable(layer, first(output))
            begun = self.begun.pop(layer.name, None)
            if begun is not None and is_changed(layer, begun, output, out):
                self.changed.add(layer.name)
            call = self._call(layer, out, self._bias(layer, out), begun, first(output))
            self._tell(call)
        if begun is not None and begun.again is not None:
            output = begun.again
        given = first(output) if shard.is_dtensor(first(output)) else call.out
        return (given, *output[1:]) if isinstance(output, tuple) else given

    def _call(
        self, layer: Layer, out: Tensor, bias: Tensor | None, begun: Begun | None, given: Any = None
    ) -> Strategy:
        """A call of a layer, by what all ranks know of its output.

        Args:
            given: what ``out`` is the local tensor of, if the module itself gave it.
        """
        held, trials = self._held(layer), self.options.trials
        written = self._is_written(layer) if begun is None else begun.written
        seen = Seen(self.ranks, layer.name, part_of(given, out, self.sharded.get(layer.name)))
        # What this rank saw of it that others may not have seen.
        facts = [
            layer.runs_with_another(),
            written,
            layer.name in self.changed or not layer.affine,
            begun is None,
            begun is not None and any(version(x) != v for x, v in begun.versions),
        ]
        sums, bias = None, layer.bias_like(out, bias) if not any(facts[:3]) else None
        if self._counts(layer) and not any(facts[:3]) and trials.activation is None:
            sums = AffineSums.of(layer, out, bias)
        facts, sums = seen.call(facts, sums, out)
        another, written, changed, once, rewritten = facts
        if changed and layer.affine:
            self.changed.add(layer.name)
        run: Callable[[float], Tensor] | str
        if another:
            run = "it runs with another weight than its own: left as it is"
        elif written:
            run = "the model writes its weight before it runs: left as it is"
        elif not changed:
            affine = Affine(layer, seen, out, bias, held, sums)
            return affine if trials.activation is None else Activated(affine, trials)
        elif once or begun is None:
            run = "cannot be run again: left as it is"
        elif rewritten:
            run = "writes its inputs, so that it is not run again: left as it is"
        else:
            run = partial(self._run, layer, begun)
        return Rerun(layer, seen, out, held, trials, run)

    def _bias(self, layer: Layer, out: Tensor) -> Tensor | None:
        sharded = self.sharded.get(layer.name)
        return layer.bias if sharded is None else sharded.bias_of(out)

    def _counts(self, layer: Layer) -> bool:
        """Whether a call is measured, and not only scaled as an earlier one."""
        return self.again is None and (self.options.pool or layer.name not in self.calls)

    def _is_written(self, layer: Layer) -> bool:
        """Whether a layer that is to be scaled is about to run with values that the pass wrote."""
        scaling = self.passes.scalings.get(layer.key)
        return (scaling is None or scaling.fit.left) and self.state.wrote(layer.weight_in)

    def _held(self, layer: Layer) -> Scale:
        scaling = self.passes.scalings.get(layer.key)
        return Scale() if scaling is None else scaling.held_by(layer)

    def _run(self, layer: Layer, begun: Begun, factor: float) -> Tensor:
        """What a layer gives with its weight scaled, which it is from now on."""
        scaling = self.passes.scalings[layer.key]
        if (sharded := self.sharded.get(layer.name)) is not None:
            if begun.present is None:
                begun.present = sharded.gathered(layer.weight_in), scaling.held.factor
            sharded.hold(layer.weight_in, *begun.present, factor)
        scaling.hold(factor, self._original(layer))
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
        if self.again is not None:  # a layer that holds this one runs again
            if call.layer.name in self.passes.measured:
                call.rescale(self.passes.scalings[call.layer.key].scale(call.layer))
        elif self._counts(call.layer):
            self.calls.add(call.layer.name)
            self.passes.take(call)
        else:
            self.passes.pass_by(call)

    def _end_before(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        with self.state.undo.paused():
            begun = self.begun.pop(layer.name, None)
            if self._is_written(layer) or (begun and is_weight_changed(layer, begun)):
                raise LSUVError(
                    f"{layer.name} is unbuilt, but its weight is written before it runs"
                )
            seen = Seen(self.ranks, layer.name)
            found = unbuilt_moments(seen, layer, self.sharded.get(layer.name), args, kwargs)
            sums = AffineSums(layer.name, found)
            self.passes.take(Unbuilt(layer, seen, self._held(layer), sums))
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
                weight, bias = self.sharded.get(layer.name, layer).in_use()
                out = layer.projected(args, kwargs, (weight, bias))
                if out is None:
                    return  # forward will say what it misses
                self._tell(self._call(layer, _measurable(layer, out), bias, None))
            for layer in inputs:
                if (scaling := self.passes.scalings.get(layer.key)) is None:
                    continue
                scale, held = scaling.scale(layer), scaling.held_by(layer)
                weight, bias = self.sharded.get(layer.name, layer).in_use()
                if scale.factor != held.factor:
                    self._hold(module, scaling, weight).mul_(scale.factor / held.factor)
                    scaling.held = scaling.held._replace(factor=scale.factor)
                if scale.shift != held.shift and bias is not None:
                    self._hold(module, scaling, bias).add_(scale.shift - held.shift)
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
                if tensors.obstacle(held.tensor) is None:  # else what was gathered is freed
                    held.tensor.copy_(held.copy)
                held.scaling.held = held.before


def _before_others(module: nn.Module, begin: Callable[..., None]) -> Uncopied:
    return Uncopied(module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True))


def _may_write_weight(layer: Layer) -> bool:
    """Whether others' hooks might: not weight_norm's, which makes it, nor those of lazy modules."""
    hooks = layer.module._forward_pre_hooks.values()
    foreign = any(type(hook) is not WeightNorm and not lays_out(hook) for hook in hooks)
    return foreign and not is_lazy(layer.weight_in)


def _measurable(layer: Layer, out: Any) -> Tensor:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        raise LSUVError(f"{layer.name} gives no floating-point tensor: {type(out).__name__}")
    if found := tensors.unreadable(out):
        hint = " (a TransformerEncoder gives none with enable_nested_tensor=False)"
        raise LSUVError(f"the output of {layer.name} {found[1]}{hint if out.is_nested else ''}")
    return tensors.local(out)
