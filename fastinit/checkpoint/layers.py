"""Layers: which weights of a checkpoint loaders take for linear layers', and what they are called.

Loaders of what compressed-tensors stores go by the names of layers (vLLM), by classes (the package, and
transformers), and by patterns (transformers, of experts).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from fastinit.checkpoint.entries import Stored, replaced, saved_names
from fastinit.checkpoint.sources import Source
from fastinit.plan.fit import Parts, Scope
from fastinit.plan.names import joined, named_modules
from fastinit.plan.storage import is_linear

_SCALE = "weight_scale"


class Layers(NamedTuple):
    """The layers that loaders replace (``torch.nn.Linear``), by the full names of their weights.

    Attributes:
        names: of all, whether or not the model has the weight as a parameter.
        logits: of that which gives them (``get_output_embeddings``).
        apart: of those that can't be in few bits: attention computes with the weight itself, or
            transformers stores it under a name that its scale would not have, as of Phi-MoE's router.
        replaced: modules of experts that transformers replaces by layers of other weights.
    """

    names: list[str]
    logits: list[str]
    apart: list[str]
    replaced: list[str]

    @classmethod
    def of(cls, model: nn.Module, parts: Parts | None) -> Layers:
        """Those of a model, or of what a rank has of one."""
        found, scope = cls([], [], [], []), Scope(parts=parts)
        last, others = getattr(model, "get_output_embeddings", lambda: None)(), replaced()
        modules = dict(named_modules(model, remove_duplicate=False))
        linear = {path for path, module in modules.items() if isinstance(module, nn.Linear)}
        keys = [joined(path, key) for path in linear for key in ("weight", _SCALE)]
        saved = saved_names(model, keys)
        for path, module in modules.items():
            if type(module).__name__ in others:
                found.replaced.append(path)
            if path not in linear:
                continue
            name = own = joined(path, "weight")
            if (weight := module._parameters.get("weight")) is not None:
                name = scope.planned([name], weight)[0][0]
            found.names.append(name)
            if module is last:
                found.logits.append(name)
            beside = joined(_module(saved[own]), _SCALE)
            if not is_linear(module) or saved[joined(path, _SCALE)] != beside:
                found.apart.append(name)
        return found

    @classmethod
    def together(cls, said: Iterable[Sequence[Sequence[str]]]) -> Layers:
        """Those of several ranks, each of which may have some."""
        return cls(
            *(list(dict.fromkeys(name for its in some for name in its)) for some in zip(*said))
        )


class Linear:
    """Linear weights, by the names under which they are stored.

    These are weights of layers that loaders replace, and matrices cut from a parameter of more
    dimensions, as experts are: where they are loaded there are linear layers of them. A weight that
    something else has too, such as an embedding, is none.

    Attributes:
        names: of all.
        by_default: those that do not give logits.
        cut: those that are cut from a parameter of more dimensions.
    """

    def __init__(
        self, layers: Layers, sources: Mapping[str, Source], stored: Sequence[Stored]
    ) -> None:
        of_others = {source for name, source in sources.items() if name not in layers.names}
        last = {sources.get(name) for name in layers.logits}
        apart = {sources.get(name) for name in layers.apart}
        self._layers = {name: sources.get(name) for name in layers.names}
        self._matrices = {
            name: source
            for name, source, which in stored
            if len(which.sizes) == 2 and name.endswith(".weight")
        }
        self.cut = {
            name
            for name, source in self._matrices.items()
            if len(source.shape) > 2 and name not in sources
        }
        self.names = [
            name
            for name, source in self._matrices.items()
            if source not in of_others | apart or name in self.cut
        ]
        self._stacks = {
            name.rpartition(".")[0]
            for name, source, which in stored
            if len(which.sizes) > 2 and source.is_parameter and not name.endswith(".weight")
        }
        self.by_default = [name for name in self.names if self._matrices[name] not in last]

    def others(self, chosen: Collection[str]) -> list[str]:
        """What is not chosen: layers, and all other matrices, of which loaders may make such layers.

        And what is below a module with a stack of matrices, such as all experts in one parameter: vLLM
        asks for the names that a layer of each would have.
        """
        known = {self._matrices[name] for name in chosen}
        own = [name for name, source in self._layers.items() if source not in known]
        left = dict.fromkeys(own + [name for name in self._matrices if name not in chosen])
        whole = (
            path
            for path in sorted(self._stacks)
            if path and not any(name.startswith(f"{path}.") for name in chosen)
        )
        below = [f"re:{re.escape(path)}\\..*" for path in whole]
        return [name.removesuffix(".weight") for name in left] + below

    def targets(self, formats: Mapping[str, str], format: str) -> list[str]:
        """What a format's layers are called: of experts by one pattern for all of a parameter's.

        By a pattern, and no name, transformers tells in which format experts are.
        """
        said: dict[str, set[str | None]] = {}
        for name in self.cut:
            said.setdefault(_of_all(name), set()).add(formats.get(name))
        called = []
        for name, its in formats.items():
            if its == format and name in self.cut:
                alike = len(said[_of_all(name)]) == 1
                called.append(_of_all(name) if alike else f"re:{re.escape(_module(name))}$")
            elif its == format:
                called.append(_module(name))
        return list(dict.fromkeys(called))


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _of_all(weight: str) -> str:
    """The pattern of an expert's layer, and of those that the other experts have there."""
    *head, number, last = _module(weight).split(".")
    of_all = r"\d+" if number.isdigit() else re.escape(number)
    return "re:" + r"\.".join([*map(re.escape, head), of_all, re.escape(last)]) + "$"
