"""Whether what LSUV says of each layer is so: one more pass, plain, in which it is only looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.base.hooks import Uncopied
from fastinit.elements import tensors
from fastinit.statistics.tensor import Moments
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.hooks import PassEnded
from fastinit.variance.lsuv.passes import Options
from fastinit.variance.lsuv.ranks import Ranks, Seen
from fastinit.variance.lsuv.result import Measured
from fastinit.variance.lsuv.shards import Sharded, part_of, unbuilt_moments
from fastinit.variance.lsuv.strategies import first


class Verification:
    """What the layers give in a plain pass, of the calls that count."""

    def __init__(self, found: list[Layer], options: Options, ranks: Ranks) -> None:
        self.found, self.options, self.ranks = found, options, ranks
        self.sharded = {layer.name: Sharded(layer) for layer in found if layer.is_sharded}
        self.calls: dict[str, int] = {}
        self.pools: dict[str, Moments] = {}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Within the block, in which one batch runs, layers are measured."""
        self.calls.clear()
        with ExitStack() as stack:
            for layer in self.found:
                module = layer.module
                if layer.name == self.options.unbuilt:
                    look = partial(self._unbuilt, layer)
                elif layer.projection is not None:
                    look = partial(self._projected, layer)
                else:
                    if layer.name in self.sharded:
                        note = self.sharded[layer.name].note
                        hook = Uncopied(module.register_forward_hook(note, prepend=True))
                        stack.callback(hook.remove)
                    ran = partial(self._ran, layer)
                    stack.callback(Uncopied(module.register_forward_hook(ran)).remove)
                    continue
                hook = Uncopied(module.register_forward_pre_hook(look, with_kwargs=True))
                stack.callback(hook.remove)
            yield

    def _ran(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        self._count(layer, first(output))

    def _projected(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        sharded: Layer | Sharded = self.sharded.get(layer.name, layer)
        if (out := layer.projected(args, kwargs, sharded.in_use())) is not None:
            self._count(layer, out)

    def _unbuilt(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        seen, sharded = Seen(self.ranks, layer.name), self.sharded.get(layer.name)
        self._pool(layer, unbuilt_moments(seen, layer, sharded, args, kwargs))
        raise PassEnded

    def _count(self, layer: Layer, out: Tensor) -> None:
        self.calls[layer.name] = self.calls.get(layer.name, 0) + 1
        if self.calls[layer.name] == 1 or self.options.pool:
            with torch.no_grad():
                here = tensors.local(out)
                part = part_of(out, here, self.sharded.get(layer.name))
                seen = Seen(self.ranks, layer.name, part)
                self._pool(layer, self.options.trials.measure(here, seen))

    def _pool(self, layer: Layer, now: Moments) -> None:
        pool = self.pools.get(layer.name)
        self.pools[layer.name] = now if pool is None else pool.merge(now)

    def check(self, measured: list[Measured], said: str) -> None:
        """Raises LSUVError that names all layers whose variance is not the target's, within tol.

        Of a layer without a target, it is what was said of it.
        """
        wrong = []
        keys = {layer.name: layer.key for layer in self.found}
        deciding = {keys[m.name]: m.name for m in reversed(measured)}
        for m in measured:
            names = [m.name]
            if self.options.pool and deciding[keys[m.name]] == m.name:
                names = [o.name for o in measured if keys[o.name] == keys[m.name]]
            pools = [self.pools[name] for name in names if name in self.pools]
            std = pools[0].merge(*pools[1:]).std if pools else math.nan
            wanted = m.std if math.isnan(m.target) else m.target
            if not abs(std**2 - wanted**2) <= self.options.trials.tol * wanted**2:
                wrong.append(f"\n  {m.name}: {std:.6g} instead of {wanted:.6g}")
        if wrong:
            raise LSUVError(f"{said}:{''.join(wrong)}")
