"""A model that is used without being changed: generators, buffers and weights are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KEPT = 1 << 16
"""Bytes: of smaller buffers a copy is kept. Larger ones (masks, tables) are watched."""


class Kept:
    """Copies of what may change, and putting them back."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        self.held: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.buffers: list[tuple[str, nn.Module, str, Tensor, int, Tensor | None]] = []
        for prefix, module in model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    name = f"{prefix}.{key}" if prefix else key
                    copy = buffer.clone() if buffer.nbytes <= KEPT else None
                    self.buffers.append((name, module, key, buffer, buffer._version, copy))

    def keep(self, weight: Tensor) -> Tensor:
        """A copy of a weight that is about to change, as it was when it was first asked for."""
        if id(weight) not in self.weights:
            self.weights[id(weight)] = (weight, weight.detach().clone())
        return self.weights[id(weight)][1]

    def hold(self, module: nn.Module, weight: Tensor) -> None:
        """Copies a weight that is to be another while ``module`` runs, until its :meth:`release`."""
        self.held.append((module, weight, weight.clone()))

    def release(self, module: nn.Module | None = None) -> None:
        """Puts back what is held for a module, or for all, and lets go of the copies."""
        while self.held and module in (None, self.held[-1][0]):
            _, weight, copy = self.held.pop()
            weight.copy_(copy)

    def changed_for_good(self) -> list[str]:
        """Buffers that have changed and of which there is no copy."""
        return [
            name
            for name, _, _, buffer, version, copy in self.buffers
            if copy is None and buffer._version != version
        ]

    def restore_buffers(self) -> None:
        for _, module, key, buffer, _, copy in self.buffers:
            module._buffers[key] = buffer
            if copy is not None:  # whatever its version: batch_norm writes without counting
                buffer.copy_(copy)

    def restore_weights(self) -> None:
        self.release()
        for weight, copy in self.weights.values():
            weight.copy_(copy)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Kept]:
    """Within the block the model may run. After it buffers and generators are as before, and after an
    exception the weights given to :meth:`Kept.keep` too."""
    kept = Kept(model)
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng([d.index for d in devices]), torch.no_grad():
        try:
            yield kept
        except BaseException:
            kept.restore_weights()
            raise
        finally:
            kept.restore_buffers()
