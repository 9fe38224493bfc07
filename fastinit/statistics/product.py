"""The moments of a linear layer's output that is never built.

On GPUs a Triton kernel measures each tile of the product where it is computed, in registers
(fastinit/backends/triton/product.py). Everywhere else, and for float64, blocks of the product are
built, measured and dropped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.base import number
from fastinit.base import torch_internals as internals
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.statistics.tensor import Moments, moments

BLOCK = 1 << 23
"""Outputs of a block: 32 MiB of float32."""
LEAST_COLUMNS = 256  # of a block: below, matrix products lose their speed


def linear_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, correction: float = 1
) -> Moments:
    """The moments of ``torch.nn.functional.linear(x, weight, bias)``.

    On a GPU with triton (and where ``fastinit.backend("triton")`` forces it) no output of 16-bit and
    float32 tensors is written to memory: products are summed in float32 (of float32 values without
    TF32) and rounded to the tensors' dtype, and there are 72 bytes for each tile of outputs,
    at most a few MiB. Else at most one block of outputs (32 MiB in float32) is in memory at a time, and
    each is computed as linear does, in the tensors' own dtype and to its rounding. The order of sums
    differs: the same bits on every run, but not on every device.

    Args:
        x: [..., in]; float16, bfloat16, float32 or float64.
        weight: [out, in], of the same dtype and device.
        bias: [out].
        correction: of the variance, as in :func:`fastinit.statistics.tensor.moments`.

    Raises:
        TypeError: dtypes or devices that differ.
        ValueError: shapes that do not fit; a tensor on meta or fake.
        NumberTypeError, NumberRangeError: a correction that is no number, or not finite.
        NotImplementedError: a DTensor, or another kind without plain memory.
        RuntimeError: the triton backend is forced and cannot serve the device.
    """
    _check(x, weight, bias)
    correction = number.finite("correction", correction)
    x, weight = tensors.values(x, "x"), tensors.values(weight, "weight")
    bias = None if bias is None else tensors.values(bias, "bias")
    with internals.without_modes(), torch.no_grad():
        rows = _rows(x)
        if kernels := backends.choose_multiplying(x.device, x.dtype):
            return Moments(kernels.product_moments(rows, weight, bias), correction)
        tall = max(1, min(len(rows), BLOCK // LEAST_COLUMNS))
        wide = max(1, min(len(weight), BLOCK // tall))
        buffer = rows.new_empty(tall * wide)
        total = moments(buffer[:0])
        for top in range(0, len(rows), tall):
            some = rows[top : top + tall]
            for left in range(0, len(weight), wide):
                part = weight[left : left + wide]
                out = buffer[: len(some) * len(part)].view(len(some), len(part))
                if bias is None:
                    torch.mm(some, part.t(), out=out)
                else:
                    torch.addmm(bias[left : left + wide], some, part.t(), out=out)
                total = total.merge(moments(out))
        return Moments(total.raw, correction)


def _rows(x: Tensor) -> Tensor:
    """[rows, in]: a view, unless the strides forbid one."""
    count = math.prod(x.shape[:-1])  # which -1 would not tell of a tensor without elements
    return x.reshape(count, x.shape[-1])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    named = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, but got {got}")
        if shard.is_dtensor(tensor):
            raise NotImplementedError(
                f"{name} is a DTensor, and a product of parts is no part of the product; "
                f"full_tensor() gives the whole"
            )
        if found := tensors.unreadable(tensor):
            raise found[0](f"{name} {found[1]}")
        if (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise TypeError(
                f"{name} must be {x.dtype} on {x.device} as x is, but is {tensor.dtype} on "
                f"{tensor.device}"
            )
    if x.dim() < 1 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be [out, {x.shape[-1] if x.dim() else 'in'}] for x of shape "
            f"{tuple(x.shape)}, but has shape {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}], but has shape {tuple(bias.shape)}")
