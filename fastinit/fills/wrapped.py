"""Wrapped: parameters that are tensor subclasses over packed values and scales, as torchao's are.

They say what they hold (``__tensor_flatten__``): inner tensors by name, each in plain memory. By these
names, dtypes and shapes it is told what is stored, whatever the class is called. Values are what is
stored times its scales; of tensors that may hold something else nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements.part import Part
from fastinit.elements.strided import row_major
from fastinit.fills.blocks import Blocks
from fastinit.fills.many import Request
from fastinit.stream import blocks as formats
from fastinit.stream import laws
from fastinit.stream.formats import BY_POWER, FORMATS
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8

_NAMES = {"qdata": "scale", "_data": "_scale_inv"}
"""What packed values are called, and the scales that they are multiplied by: in torchao, and in
TransformerEngine. (``_data`` beside ``_scale`` would be divided by it.)"""

_BYTES = {"kFloat8E4M3": torch.float8_e4m3fn, "kFloat8E5M2": torch.float8_e5m2}
"""What TransformerEngine's bytes mean, by the name of the ``fp8_dtype`` that it flattens to."""

_TURNED = "_transpose"
"""TransformerEngine's second copy of them, which has the last dimension first."""

_OF_TENSOR, _OF_INPUTS = "per_tensor_scale", "act_per_tensor_scale"
"""torchao's other two: a scale of all values, and one of activations, which is left alone."""

_SWIZZLED = "is_swizzled_scales"

_VALUES = ("_tensor", "_data")
"""What torchao calls the values of weights that are cast as they are used: of float8 with FSDP2, and of
layers and experts that it trains in few bits."""


class Wrapped(NamedTuple):
    """What is under a tensor: blocks, 8-bit floats with one scale, or a tensor of its values.

    Attributes:
        scale: of 8-bit floats. copy: a second one of them, which gets the same values.
    """

    held: Blocks | Tensor
    scale: Tensor | None = None
    copy: Tensor | None = None

    @property
    def values(self) -> Tensor | None:
        """The tensor of the values themselves, if that is what there is."""
        return self.held if self.scale is None and isinstance(self.held, Tensor) else None

    def requests(self, law: Law, seed: int, stream: int, part: Part | None) -> Iterator[Request]:
        """What writes a law there; of 8-bit floats with the scale that the law gives.

        Raises:
            NumberRangeError: values that are not finite.
        """
        if self.scale is not None and isinstance(self.held, Tensor):
            scale = formats.float8_scale_of(law, self.held.dtype)
            for held in (self.held, self.copy):
                if held is not None:
                    yield Request(held, laws.scaled(law, scale), seed, stream, part)
            yield Request(self.scale, laws.constant(scale), seed)
        else:
            yield Request(self.held, law, seed, stream, part)


def wrapped(tensor: Tensor, argument: str = "tensor") -> Wrapped | None:
    """What is under a tensor subclass; None of a tensor that is none, or holds nothing of the kind.

    Of a DTensor it is what is under this rank's part.

    Raises:
        NotImplementedError: inner tensors of which nothing says what they mean; scales in an order that
            is not written.
    """
    if type(tensor) in shard.PLAIN:
        return None
    if shard.is_dtensor(tensor):
        # Itself: to_local() may lack what was made of its values.
        tensor = next(t for t in _inner(tensor).values() if isinstance(t, Tensor))
    if type(tensor) in shard.PLAIN or internals.is_fake_class(type(tensor)):
        return None
    if type(tensor).__torch_dispatch__ is internals.plain_dispatch:
        return None
    inner = _inner(tensor)
    if not inner or not all(isinstance(its, Tensor) for its in inner.values()):
        return None
    said = ", ".join(f"{name} {t.dtype} {tuple(t.shape)}" for name, t in inner.items())
    what = f"{argument} is a tensor of shape {tuple(tensor.shape)} over {said}"
    if inner.keys() & set(_VALUES) and len(inner) == 1:
        (values,) = inner.values()
        if (values.shape, values.stride(), values.dtype) == (
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        ):
            return Wrapped(values)
    if _VALUES[0] in inner:
        raise NotImplementedError(
            f"{what}: its values, and what was made of them, which writing them would not change"
        )
    known = next(((d, s) for d, s in _NAMES.items() if d in inner and s in inner), None)
    if known is None:
        return None  # the gate says what it is, such as a result to come
    if not inner.keys() <= {*known, _TURNED, _OF_TENSOR, _OF_INPUTS}:
        raise NotImplementedError(f"{what}: what values these stand for is not known")
    if getattr(tensor, _SWIZZLED, False):
        raise NotImplementedError(f"{what}: its scales are swizzled, which fills do not write")
    data, scale, turned = inner[known[0]], inner[known[1]], inner.get(_TURNED)
    floats, copy = _floats(data, tensor), None
    if turned is not None:
        copy = _floats(turned.movedim(0, -1) if turned.dim() else turned, tensor)
    is_scale = scale.numel() == 1 or scale.shape == (*tensor.shape[:-1], 1)
    if (
        floats is not None
        and (copy is not None or turned is None)
        and is_scale
        and scale.dtype == torch.float32
    ):
        return Wrapped(floats, scale, copy)
    if turned is not None:
        raise NotImplementedError(f"{what}: what values these stand for is not known")
    for name in formats.ELEMENTS:
        whole = inner.get(_OF_TENSOR)
        if _is(name, data, scale, tensor.shape) and (whole is None or name == "nvfp4"):
            if name == "nvfp4" and whole is None:  # all is left to the blocks
                whole = torch.empty((), dtype=torch.float32, device=data.device)
                return Wrapped(Blocks(data, scale, name, whole, fixed_scale=1.0))
            return Wrapped(Blocks(data, scale, name, whole))
    raise NotImplementedError(f"{what}: that is no format which fills write")


def _inner(tensor: Any) -> dict[str, Any]:
    """What a tensor subclass says it is made of: tensors, and in torch's own ones what else there is."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return {} if flatten is None else {name: getattr(tensor, name) for name in flatten()[0]}


def _floats(data: Tensor, tensor: Any) -> Tensor | None:
    """Values of a parameter as 8-bit floats, where they are some, or bytes that are said to be some."""
    if data.shape != tensor.shape:
        return None
    if data.dtype == torch.uint8:
        context = tensor.__tensor_flatten__()[1]
        said = context.get("nontensor_kwargs", {}) if isinstance(context, dict) else {}
        element = _BYTES.get(getattr(said.get("fp8_dtype"), "name", ""))
        return None if element is None else data.view(element)
    return data if data.dtype in FLOAT8 else None


def as_tensor(blocks: Blocks, dtype: torch.dtype, argument: str = "tensor") -> Tensor:
    """torchao's tensor over blocks: ``MXTensor`` or ``NVFP4Tensor``, as its own functions make them.

    mx weights round the activations that they meet to their format, as torchao has no kernels without;
    it emulates those unless it is told otherwise (``kernel_preference``).

    Args:
        dtype: in which it takes part in computations.

    Raises:
        NotImplementedError: torchao is not there.
    """
    block, shape = torch.zeros(1, FORMATS[blocks.format].block, dtype=dtype), blocks.shape
    try:
        if blocks.format == "nvfp4":
            from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

            like: Any = NVFP4Tensor.to_nvfp4(block, per_tensor_scale=torch.ones(()))
        else:
            from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs

            element = formats.ELEMENTS[blocks.format] or torch.float4_e2m1fn_x2
            inputs = QuantizeTensorToMXKwargs(elem_dtype=element)
            like = MXTensor.to_mx(block, element, act_quant_kwargs=inputs)
    except ImportError as error:
        raise NotImplementedError(
            f"{argument} cannot be a parameter in {blocks.format}: that is a tensor of torchao's, which "
            f"is not there ({error}); install torchao, or write fastinit.Blocks of your own"
        ) from None
    inner = {"qdata": blocks.data, "scale": blocks.scale, _OF_TENSOR: blocks.tensor_scale}
    names, context = like.__tensor_flatten__()
    return type(like).__tensor_unflatten__(  # type: ignore[no-any-return]
        {name: inner[name] for name in names}, context, shape, row_major(shape)
    )


def _is(name: str, data: Tensor, scale: Tensor, shape: torch.Size) -> bool:
    """Whether two tensors are the packed values and scales of a parameter of a shape, in a format."""
    block, element = FORMATS[name].block, formats.ELEMENTS[name]
    rows, columns = shape[:-1], shape[-1] if shape else 0
    of_scale = "float8_e8m0fnu" if FORMATS[name].scaling == BY_POWER else "float8_e4m3fn"
    packed = ("uint8", "float4_e2m1fn_x2") if element is None else (str(element).partition(".")[2],)
    return (
        not columns % block
        and str(data.dtype).partition(".")[2] in packed
        and data.shape == (*rows, columns if element else columns // 2)
        and str(scale.dtype).partition(".")[2] == of_scale
        and scale.shape == (*rows, columns // block)
    )
