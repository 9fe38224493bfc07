"""torchtitan: the weights of a model that is parallelised already.

A torchtitan ``Module`` initialises itself in ``init_states``, by the functions of its config's
``param_init`` (``torchtitan/protocols/module.py``, torchtitan 0.3). These are asked, of whole
parameters, whatever they are; each rank writes its shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.module import Module

from fastinit.frameworks.unsharded import plan_of, write_
from fastinit.plan.plan import Plan

M = TypeVar("M", bound=Module)

_META = torch.device("meta")


def plan(model: M, seed: int = 0) -> Plan:
    """The plan of what the model's ``init_states`` does.

    Args:
        model: on meta or not, whole, after ``parallelize_fn``, or a part of ``pipelining_fn``.
        seed: in [0, 2^64).

    Raises:
        ValueError: parameters or buffers that ``init_states`` leaves unwritten.
        NotImplementedError: plain tensors that are shards: of ``spmd_backend="spmd_types"``, which
            torch 2.13's ``fully_shard`` does not take. Say ``"partial_dtensor"`` or ``"full_dtensor"``.
    """
    # Caches are computed where they are written, and not before.
    return plan_of(model, lambda twin: twin.init_states(buffer_device=_META), seed)


def init_states_(
    model: M,
    seed: int = 0,
    *,
    device: torch.device | str | None = None,
    buffer_device: torch.device | str | None = None,
) -> M:
    """In place of ``model.to_empty(device=...)`` and ``model.init_states()``; returns the model.

    Args:
        model, seed: as of :func:`plan`.
        device: where what is on meta gets memory.
        buffer_device: where buffers are moved to; by default they are with the parameters.

    Raises:
        As :func:`plan` and :meth:`fastinit.Plan.apply_`; nothing is written then.
    """
    write_(model, plan(model, seed), device)
    if buffer_device is not None:
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(buffer_device)
    return model


@contextmanager
def initialized(seed: int = 0) -> Iterator[None]:
    """Within the block, every torchtitan model's ``init_weights`` is :func:`init_states_` of a seed.

    For a ``Trainer``, which calls that as it is made: ``with initialized(0): trainer = config.build()``.
    """

    def init_weights(model: BaseModel, **kwargs: Any) -> None:
        init_states_(model, seed, buffer_device=kwargs.get("buffer_device"))

    own = BaseModel.init_weights
    BaseModel.init_weights = init_weights
    try:
        yield
    finally:
        BaseModel.init_weights = own
