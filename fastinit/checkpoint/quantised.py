"""Quantised: weights of linear layers in 8 bits and fewer, as compressed-tensors stores them.

The package compressed-tensors (0.20) says which tensors there are, of which names and dtypes, and what
``quantization_config`` in config.json says of them; transformers and vLLM load that. Scales follow from
the plan's laws: no value is looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fastinit.checkpoint.entries import METHOD, Stored, check_whole
from fastinit.checkpoint.layers import Layers, Linear
from fastinit.checkpoint.packed import Packed, bytes_of
from fastinit.checkpoint.sources import Source
from fastinit.elements.strided import Strided
from fastinit.fills.blocks import Blocks
from fastinit.plan.fill import Fill
from fastinit.plan.storage import Format, Formats, Storage
from fastinit.stream import blocks
from fastinit.stream.formats import FORMATS

OTHERS = torch.bfloat16
"""The dtype of what is not quantised."""

FLOAT8 = "float8_e4m3fn"

Dtype = Format | Formats | Storage
"""``dtype=`` of a checkpoint: of all parameters, or a format of weights; or both, by patterns, which may
have been checked as what they were given as."""


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


_OF_VLLM = ("mxfp8", "nvfp4")
"""Formats of experts whose scales transformers 5.24 does not all read (CompressedTensorsDequantize)."""

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
    format: str | None = None
    """Of the weights that are chosen by default."""
    by_pattern: Storage | None = None

    @property
    def is_quantised(self) -> bool:
        """Whether some are stored otherwise than the rest."""
        return self.format is not None or self.by_pattern is not None

    @classmethod
    def of(cls, dtype: Dtype | None) -> Asked:
        """Checked.

        Raises:
            TypeError: no dtype, text or mapping. ValueError: a format that is not known; no pattern.
        """
        if isinstance(dtype, Mapping):
            dtype = Storage("dtype", dtype, in_files)
        if isinstance(dtype, Storage):
            return cls(OTHERS, by_pattern=dtype)
        if isinstance(dtype, str) or dtype is torch.float8_e4m3fn:
            return cls(OTHERS, str(in_files("dtype", dtype)))
        return cls(dtype)


def in_files(argument: str, given: Any) -> Format:
    """What a weight can be stored as; float8_e4m3fn is a format with scales, however it is given.

    Raises:
        TypeError: neither dtype nor text. ValueError: another dtype or name.
    """
    is_dtype = isinstance(given, torch.dtype)
    if is_dtype and given.is_floating_point and given.itemsize > 1:
        return given  # type: ignore[no-any-return]
    name = str(given).removeprefix("torch.") if is_dtype else given
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a torch.dtype or a format's name, but got {given!r}")
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise ValueError(
            f"{argument} must be one of {known}, or of 16 bits and more, but got {name!r}"
        )
    return name


def quantised(
    layers: Layers,
    sources: Mapping[str, Source],
    stored: Sequence[Stored],
    asked: Asked,
) -> tuple[list[Stored], dict[str, Any] | None]:
    """(what files hold of tensors, those that are quantised replaced; ``quantization_config``).

    Args:
        layers: of all ranks.
        sources: by their names in ``state_dict``.

    Raises:
        ValueError: a pattern that matches nothing of its kind; a model without any linear weight; one
            that is not of whole blocks, or whose values do not follow from one law of a plan; experts
            that transformers reads as other tensors than the model has.

    Warns:
        UserWarning: experts in a format of which transformers reads no scales.
    """
    if not asked.is_quantised:
        return list(stored), None
    linear = Linear(layers, sources, stored)
    chosen: dict[str, Format] = {}
    if asked.format is not None:
        chosen.update(dict.fromkeys(linear.by_default, asked.format))
    if asked.by_pattern is not None:
        parameters = [
            t for t in stored if t.source.is_parameter and t.source.dtype.is_floating_point
        ]
        chosen = asked.by_pattern.of(([t.name] for t in parameters), linear.names)
    elif not chosen:
        raise ValueError(
            f"the model has no weight to be stored in {asked.format}: none is a torch.nn.Linear's alone"
        )
    formats = {name: its for name, its in chosen.items() if isinstance(its, str)}
    made: list[Stored] = []
    for tensor in stored:
        its = chosen.get(tensor.name)
        if isinstance(its, str):
            made += _tensors(tensor, its)
        elif its is not None:
            made.append(tensor._replace(source=replace(tensor.source, dtype=its)))
            check_whole(made[-1])
        else:
            made.append(tensor)
    if not formats:
        return made, None
    if layers.replaced:
        raise ValueError(
            f"a checkpoint of weights in few bits can't hold {layers.replaced[0]}: transformers reads a "
            f"linear layer for each expert there, and the model has all in one parameter"
        )
    if unread := linear.cut.intersection(n for n, its in formats.items() if its in _OF_VLLM):
        warnings.warn(
            f"{min(unread)} is an expert's weight in {formats[min(unread)]}, which vLLM reads: "
            f"transformers 5.24 reads weight_global_scale of no expert, nor the scales of mxfp8",
            stacklevel=2,
        )
    return made, _config(formats, linear)


def _config(formats: Mapping[str, str], linear: Linear) -> dict[str, Any]:
    """``quantization_config``, as the package writes it; of several formats with the layers' names."""
    groups, count = {}, len(set(formats.values()))
    for i, format in enumerate(dict.fromkeys(formats.values())):
        scheme = SCHEMES[format]
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if count == 1 else linear.targets(formats, format),
            "weights": {**_ALL, **scheme.weights},
            "input_activations": scheme.inputs and {**_ALL, **scheme.inputs},
            "output_activations": None,
            "format": scheme.format,
        }
    all_formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "format": all_formats.pop() if len(all_formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": linear.others(formats),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _tensors(weight: Stored, format: str) -> Iterator[Stored]:
    """What there is of a weight in a format."""
    name, source, which = weight
    scheme, is_known = SCHEMES[format], source.content is not None
    fill = source.content if is_known else Fill.normal()  # another rank knows, and writes it
    if not isinstance(fill, Fill) or not fill.has_law or fill.parts:
        what = fill if isinstance(fill, Fill) else "values that were computed or are there"
        raise ValueError(
            f"{name} cannot be stored in {format}: what is has one law in a plan, but it has {what}; "
            f"patterns can leave it out"
        )
    if not which.is_run:
        raise ValueError(
            f"{name} cannot be stored in {format}: it is no run of {source.name}'s rows"
        )
    prefix, (rows, columns) = name.removesuffix("weight"), which.sizes

    def stored(
        key: str, shape: tuple[int, ...], dtype: torch.dtype, its: Any, each: int = 0
    ) -> Stored:
        content = its if is_known else None
        made = replace(source, shape=shape, dtype=dtype, content=content, each=each)
        return Stored(prefix + key, made, Strided.contiguous(shape))

    law = fill.law
    try:
        blocks.check_law(law, format)
        if format == FLOAT8:
            scale = blocks.float8_scale_of(law, torch.float8_e4m3fn)
            eight = fill.scaled(1 / scale) if is_known else None
            yield Stored(name, replace(source, dtype=torch.float8_e4m3fn, content=eight), which)
            yield stored("weight_scale", (rows, 1), OTHERS, Fill.constant(scale))
            return
        Blocks.empty((rows, columns), format, device="meta")  # of whole blocks
        if format == "nvfp4":
            reciprocal = 1 / blocks.tensor_scale_of(law)
            yield stored("weight_global_scale", (1,), torch.float32, Fill.constant(reciprocal))
    except ValueError as error:
        raise type(error)(f"{name}: {error}; patterns can leave it out") from None
    stream, block = fill.stream or source.name, FORMATS[format].block
    of_blocks = rows * columns // block
    data = Packed(fill, stream, source.shape, which.offset, format, False, of_blocks)
    width, element = bytes_of(columns, format), blocks.ELEMENTS[format] or torch.uint8
    yield stored(scheme.data, (rows, width), element, data, columns // width)
    held = torch.float8_e4m3fn if format == "nvfp4" else torch.uint8
    width = columns // block
    yield stored("weight_scale", (rows, width), held, replace(data, scales=True))
