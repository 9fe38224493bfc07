"""What of a model a watch measures: which modules, and why others are not measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastinit.fills.layer_kinds import kind_of
from fastinit.variance.layers import Layer, Which, find, other_weights, without_hooks

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""LSTM, GRU, RNN and their cells: of weights they have several, so only their output is measured."""


@dataclass
class Target:
    """A module to watch. ``layer`` is None where its output is measured and its weight is not."""

    name: str
    module: nn.Module
    layer: Layer | None
    why: str = ""

    @property
    def inside(self) -> bool:
        """Whether it is a projection inside MultiheadAttention, and computed once more to be seen."""
        return self.layer is not None and self.layer.projection is not None


def targets(
    model: nn.Module, which: Which = None, compiled: bool = False, may_lack: bool = False
) -> tuple[list[Target], dict[str, str]]:
    """The modules to watch, and by name why others that were asked for cannot be watched.

    Of those in which no hooks run, the outermost is named.

    Args:
        compiled: also those in compiled modules.
        may_lack: the model may be a stage without any, as others have them.

    Raises:
        TypeError: ``model`` is no module, or ``which`` is none of what it may be.
        ValueError: there is nothing to watch, or ``which`` names what is not there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    found, passed = find(model, which, compiled)
    if which is None:
        passed = other_weights(model, found, compiled) | passed
    closed = without_hooks(model, compiled)
    passed = _by_outermost(passed, [n for n, module in model.named_modules() if module in closed])
    targets = [Target(layer.name, layer.module, layer) for layer in found]
    for name, module in model.named_modules():
        seen = which is not None or kind_of(module) is not None or isinstance(module, RECURRENT)
        if seen and name in passed and module not in closed:
            targets.append(Target(name, module, None, passed.pop(name)))  # by its output
    if not targets and not (may_lack and not passed):
        reasons = "".join(f"; {name or 'the model'}: {why}" for name, why in passed.items())
        raise ValueError(
            f"layers must choose at least one layer of the model that can be watched, but {which!r} "
            f"does not{reasons}"
        )
    return targets, passed


def _by_outermost(passed: dict[str, str], closed: list[str]) -> dict[str, str]:
    """The reasons, with the outermost of the closed modules in place of what is inside them."""
    found: dict[str, str] = {}
    for name, why in passed.items():
        outer = (o for o in closed if not o or name == o or name.startswith(f"{o}."))
        found.setdefault(next(outer, name), why)
    return found
