"""At hand: plain memory that a fill writes straight away, for a few elements as for billions."""

from __future__ import annotations

from typing import Any

import torch

from fastinit.backends import choose as backends
from fastinit.base import torch_internals as internals
from fastinit.elements import tensors
from fastinit.stream import keys, laws
from fastinit.stream.laws import Law

# What every call needs, looked up once.
_whole_cpu_address = tensors.whole_cpu_address
_native_is_chosen = backends.native_is_chosen
_prepared = backends.native.prepared
_fill_contiguous: Any = getattr(backends.native.module, "fill_contiguous", None)
_draw_seed = keys.draw_seed
_CONSTANT = laws.CONSTANT
_threads = torch.get_num_threads
_traced = torch.compiler.is_dynamo_compiling
_dispatch_modes = internals.dispatch_modes
_increment_version = internals.increment_version


def at_hand(tensor: object) -> int:
    """The address of what is certainly plain CPU memory, all of its parameter and no temporary, for what
    is called often: nothing in force has to be shown what is written there.

    0 says nothing: the long way looks closer.
    """
    return 0 if _traced() or _dispatch_modes() else _whole_cpu_address(tensor)


def fill_at_hand(
    tensor: Any, law: Law, seed: int | None, stream: int, generator: torch.Generator | None
) -> bool:
    """``fastinit.ops.fill_`` of what is at hand: nothing here but what each call needs.

    False says nothing: then nothing was drawn and nothing written.
    """
    if (
        (address := at_hand(tensor))
        and _native_is_chosen()
        # which may refuse the law, before a seed is drawn
        and (prepared := _prepared(law, tensor.dtype)) is not None
    ):
        if seed is None:
            seed = _draw_seed(generator) if law[0] != _CONSTANT else 0
        elif generator is not None:
            raise ValueError("seed and generator exclude each other, but got both")
        else:
            seed = keys.check_seed(seed)
        _fill_contiguous(prepared, address, tensor.numel(), seed, stream, _threads())
        _increment_version((tensor,))
        return True
    return False
