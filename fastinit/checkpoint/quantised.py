"""Quantised: weights of linear layers in 8 bits and fewer, as compressed-tensors stores them.

The package compressed-tensors (0.20) says which tensors there are, of which names and dtypes, and what
``quantization_config`` in config.json says of them; transformers and vLLM load that. Scales follow from
the plan's laws: no value is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.checkpoint.entries import Stored
from fastinit.checkpoint.packed import Packed, bytes_of
from fastinit.checkpoint.sources import Source
from fastinit.elements.strided import Strided
from fastinit.fills.blocks import Blocks
from fastinit.plan.fill import Fill
from fastinit.plan.names import joined, named_modules
from fastinit.stream import blocks
from fastinit.stream.formats import FORMATS

OTHERS = torch.bfloat16
"""The dtype of what is not quantised."""

FLOAT8 = "float8_e4m3fn"

Storage = torch.dtype | str | Mapping[str | tuple[str, ...], torch.dtype | str]
"""``dtype=`` of a checkpoint: of all parameters, or a format of weights, also by patterns."""


class Scheme(NamedTuple):
    """How compressed-tensors calls a format, and stores it.

    Attributes:
        format: its name for it.
        data: under which name it has the values, beside ``weight_scale``.
        weights: its ``QuantizationArgs``, but for what all have.
        inputs: those of activations, where they have a format too, which needs no calibration.
    """

    format: str
    data: str
    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None


_ALL = {"type": "float", "symmetric": True, "dynamic": False}
_MX = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
_E4M3 = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
SCHEMES = {
    FLOAT8: Scheme(
        "float-quantized",
        "weight",
        {"num_bits": 8, "strategy": "channel"},
        {"num_bits": 8, "strategy": "token", "dynamic": True},
    ),
    "mxfp8": Scheme("mxfp8-quantized", "weight", {"num_bits": 8, **_MX}),
    "mxfp4": Scheme("mxfp4-pack-quantized", "weight_packed", {"num_bits": 4, **_MX}),
    "nvfp4": Scheme("nvfp4-pack-quantized", "weight_packed", {"num_bits": 4, **_E4M3}),
}
"""Its presets FP8_DYNAMIC, MXFP8A16, MXFP4A16 and NVFP4A16."""


class Asked(NamedTuple):
    """What ``dtype=`` says: the dtype of parameters, None is their own, and the formats of weights."""

    dtype: torch.dtype | None
    formats: tuple[tuple[Choice | None, str], ...] = ()
    """Patterns of weights, of which the first that matches counts; None is what is chosen by default."""

    @classmethod
    def of(cls, dtype: Storage | None) -> Asked:
        """Checked.

        Raises:
            TypeError: no dtype, text or mapping. ValueError: a format that is not known; no pattern.
        """
        if isinstance(dtype, Mapping):
            if not dtype:
                raise ValueError(
                    "dtype must be a dtype, a format, or formats by pattern, but got {}"
                )
            chosen = [(Choice.given("dtype", p), _format(its)) for p, its in dtype.items()]
            return cls(OTHERS, tuple(chosen))
        if isinstance(dtype, str) or dtype is torch.float8_e4m3fn:
            return cls(OTHERS, ((None, _format(dtype)),))
        return cls(dtype)


def quantised(
    model: nn.Module,
    sources: Mapping[str, Source],
    stored: Sequence[Stored],
    asked: Asked,
) -> tuple[list[Stored], dict[str, Any] | None]:
    """(what files hold of tensors, those that are quantised replaced; ``quantization_config``).

    Args:
        sources: by their names in ``state_dict``.

    Raises:
        ValueError: a pattern that matches no linear weight; a model without any; a weight that is not of
            whole blocks, or whose values do not follow from one law of a plan.
    """
    if not asked.formats:
        return list(stored), None
    linear = _Linear(model, sources, stored)
    idle = [p for choice, _ in asked.formats if choice for p in choice.idle(linear.names)]
    if idle:
        raise ValueError(f"no linear weight matches {listing('pattern', idle)}")
    formats: dict[str, str] = {}
    for choice, format in asked.formats:
        for name in linear.by_default if choice is None else linear.names:
            if choice is None or name in choice:
                formats.setdefault(name, format)
    if not formats:
        raise ValueError(
            f"{type(model).__name__} has no weight to be stored in {asked.formats[0][1]}: none is a "
            f"torch.nn.Linear's alone"
        )
    made: list[Stored] = []
    for tensor in stored:
        its = formats.get(tensor.name)
        made += [tensor] if its is None else _tensors(tensor, its)
    return made, _config(formats, linear.others(formats))


def _format(given: Any) -> str:
    name = str(given).removeprefix("torch.") if isinstance(given, torch.dtype) else given
    if not isinstance(name, str):
        raise TypeError(f"dtype must be a torch.dtype or a format's name, but got {given!r}")
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise ValueError(f"dtype must be one of {known}, or of 16 bits and more, but got {name!r}")
    return name


class _Linear:
    """Linear weights, by the names under which they are stored.

    These are weights of ``torch.nn.Linear``, which is what loaders replace, and matrices cut from a
    parameter of more dimensions, as experts are: where they are loaded there are linear layers of them.
    A weight that something else has too, such as an embedding, is none.

    Attributes:
        names: of all.
        by_default: those that do not give logits (``get_output_embeddings``).
    """

    def __init__(
        self, model: nn.Module, sources: Mapping[str, Source], stored: Sequence[Stored]
    ) -> None:
        named = named_modules(model, remove_duplicate=False)
        layers = {
            joined(n, "weight"): module for n, module in named if isinstance(module, nn.Linear)
        }
        of_others = {source for name, source in sources.items() if name not in layers}
        logits = getattr(model, "get_output_embeddings", lambda: None)()
        last = {sources.get(name) for name, module in layers.items() if module is logits}
        self._layers = {name: sources.get(name) for name in layers}
        self._matrices = {
            name: source
            for name, source, which in stored
            if len(which.sizes) == 2 and name.endswith(".weight")
        }
        self.names = [
            name
            for name, source in self._matrices.items()
            if source not in of_others or (len(source.shape) > 2 and name not in sources)
        ]
        self.by_default = [name for name in self.names if self._matrices[name] not in last]

    def others(self, chosen: Collection[str]) -> list[str]:
        """What is not chosen: layers, and all other matrices, of which loaders may make such layers."""
        known = {self._matrices[name] for name in chosen}
        own = [name for name, source in self._layers.items() if source not in known]
        left = dict.fromkeys(own + [name for name in self._matrices if name not in chosen])
        return [name.removesuffix(".weight") for name in left]


def _config(formats: Mapping[str, str], ignore: Sequence[str]) -> dict[str, Any]:
    """``quantization_config``, as the package writes it; of several formats with the layers' names."""
    groups = {}
    for i, format in enumerate(dict.fromkeys(formats.values())):
        scheme = SCHEMES[format]
        own = [name.removesuffix(".weight") for name, its in formats.items() if its == format]
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(own) == len(formats) else own,
            "weights": {**_ALL, **scheme.weights},
            "input_activations": scheme.inputs and {**_ALL, **scheme.inputs},
            "output_activations": None,
            "format": scheme.format,
        }
    all_formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": all_formats.pop() if len(all_formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _tensors(weight: Stored, format: str) -> Iterator[Stored]:
    """What there is of a weight in a format."""
    name, source, which = weight
    scheme, fill = SCHEMES[format], source.content
    if not isinstance(fill, Fill) or not fill.has_law or fill.parts:
        what = fill if isinstance(fill, Fill) else "values that were computed or are there"
        raise ValueError(
            f"{name} cannot be stored in {format}: what is has one law in a plan, but it has {what}; "
            f"dtype= takes patterns, to leave it out"
        )
    if not which.is_run:
        raise ValueError(
            f"{name} cannot be stored in {format}: it is no run of {source.name}'s rows"
        )
    prefix, (rows, columns) = name.removesuffix("weight"), which.sizes

    def stored(
        key: str, shape: tuple[int, ...], dtype: torch.dtype, its: Any, each: int = 0
    ) -> Stored:
        made = Source(source.name, shape, dtype, its, source.is_parameter, each=each)
        return Stored(prefix + key, made, Strided.contiguous(shape))

    law = fill.law
    try:
        blocks.check_law(law, format)
        if format == FLOAT8:
            scale = blocks.float8_scale_of(law, torch.float8_e4m3fn)
            eight = replace(source, dtype=torch.float8_e4m3fn, content=fill.scaled(1 / scale))
            yield Stored(name, eight, which)
            yield stored("weight_scale", (rows, 1), OTHERS, Fill.constant(scale))
            return
        Blocks.empty((rows, columns), format, device="meta")  # of whole blocks
        if format == "nvfp4":
            reciprocal = 1 / blocks.tensor_scale_of(law)
            yield stored("weight_global_scale", (1,), torch.float32, Fill.constant(reciprocal))
    except ValueError as error:
        raise type(error)(f"{name}: {error}") from None
    data = Packed(fill, fill.stream or source.name, source.shape, which.offset, format, False)
    width, element = bytes_of(columns, format), blocks.ELEMENTS[format] or torch.uint8
    yield stored(scheme.data, (rows, width), element, data, columns // width)
    held = torch.float8_e4m3fn if format == "nvfp4" else torch.uint8
    width = columns // FORMATS[format].block
    yield stored("weight_scale", (rows, width), held, replace(data, scales=True))
