"""At hand: plain memory that a fill writes straight away, for a few elements as for billions."""

from __future__ import annotations

from typing import Any

import torch

from fastinit.backends import choose as backends
from fastinit.backends.contract import Write
from fastinit.base import torch_internals as internals
from fastinit.elements import tensors
from fastinit.elements.strided import whole
from fastinit.stream import keys, laws
from fastinit.stream.laws import Law

# What every call needs, looked up once.
_whole_address = tensors.whole_address
_whole_cpu_address = tensors.whole_cpu_address
_plain_cpu_address = tensors.plain_cpu_address
_native_is_chosen = backends.native_is_chosen
_prepared = backends.native.prepared
_fill_contiguous: Any = getattr(backends.native.module, "fill_contiguous", None)
_draw_seed = keys.draw_seed
_CONSTANT = laws.CONSTANT
_threads = torch.get_num_threads
_traced = torch.compiler.is_dynamo_compiling
_dispatch_modes = internals.dispatch_modes
_jit_traced = internals.is_jit_tracing
_increment_version = internals.increment_version
SHORT_WAY = frozenset(laws.WRITTEN)
"""The dtypes that backends write."""


def at_hand(tensor: object) -> int:
    """The address of what is certainly plain memory, all of its parameter and no temporary, for what is
    called often: nothing in force has to be shown what is written there.

    0 says nothing: the long way looks closer.
    """
    return 0 if _traced() or _dispatch_modes() else _whole_address(tensor)


def native_address(tensor: torch.Tensor) -> int:
    """The address of contiguous memory on the CPU that native kernels serve; 0 says nothing.

    Whether it may be written was asked before; if it may, an inference tensor is as good as another.
    """
    if _traced() or _dispatch_modes() or _jit_traced() or not _native_is_chosen():
        return 0
    if (address := _plain_cpu_address(tensor)) or not tensor.is_inference():
        return address
    is_plain = tensors.obstacle(tensor) is None and tensor.is_cpu and tensor.is_contiguous()
    return tensor.data_ptr() if is_plain and not tensor.is_neg() else 0


def fill_at_hand(
    tensor: Any, law: Law, seed: int | None, stream: int, generator: torch.Generator | None
) -> bool:
    """``fastinit.ops.fill_`` of what is at hand: nothing here but what each call needs.

    False says nothing: then nothing was drawn and nothing written.
    """
    if _traced() or _dispatch_modes():
        return False
    # What may refuse the law or the device comes before a seed is drawn.
    prepared = None
    if (address := _whole_cpu_address(tensor)) and _native_is_chosen():
        count = tensor.numel()
        if type(count) is int:  # and no tensor of torch.jit.trace's graph
            prepared = _prepared(law, tensor.dtype)
    if prepared is None:
        if _jit_traced() or not (address or _whole_address(tensor)):
            return False
        if tensor.dtype not in SHORT_WAY:
            return False
        laws.kernel_params(law, tensor.dtype)
        backend = backends.choose(tensor.device, exact=bool(law.exact))
    if seed is None:
        seed = _draw_seed(generator) if law[0] != _CONSTANT else 0
    elif generator is not None:
        raise ValueError("seed and generator exclude each other, but got both")
    else:
        seed = keys.check_seed(seed)
    if prepared is not None:
        _fill_contiguous(prepared, address, count, seed, stream, _threads())
    else:
        writes = [Write(tensor, law, seed, stream, whole(tensor.shape).strides, 0)]
        with torch.no_grad():
            backend.fill_many(writes)
    _increment_version((tensor,))
    return True
