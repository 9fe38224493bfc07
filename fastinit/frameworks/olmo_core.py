"""OLMo-core: the weights of a ``Transformer`` that is parallelised already.

Its ``init_weights`` makes each full parameter on each rank, from one generator for all of them, and
keeps a shard (``_apply_init`` in ``olmo_core/nn/transformer/init.py``, ai2-olmo-core 3.0). Here each
rank writes its shard, by the same laws: whichever ``InitMethod`` the model has is asked, not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from olmo_core.nn.attention import Attention
from olmo_core.nn.ddp.model import OLMoDDPModel
from olmo_core.nn.transformer import Transformer

from fastinit.frameworks.unsharded import plan_of, write_
from fastinit.plan.plan import Plan


def plan(model: Transformer, seed: int | None = None) -> Plan:
    """The plan of what the model's ``init_weights`` does.

    Args:
        model: on meta or not, whole, a pipeline's part, or sharded by ``apply_fsdp``, ``apply_tp`` and
            ``apply_ep``.
        seed: in [0, 2^64); by default the model's ``init_seed``. It is that of all ranks, also of a
            pipeline: numbers follow from names.

    Raises:
        NotImplementedError: an ``OLMoDDPModel``, which casts itself as it initialises, and whose experts
            are plain tensors that do not say which they are.
    """
    if isinstance(model, OLMoDDPModel):
        raise NotImplementedError(
            "an OLMoDDPModel keeps experts in plain tensors that do not say which they are; build it "
            "as a Transformer, or use its own init_weights"
        )
    seed = model.init_seed if seed is None else seed
    return plan_of(model, lambda twin: twin.init_weights(device=torch.device("cpu")), seed)


def init_weights_(
    model: Transformer,
    seed: int | None = None,
    *,
    device: torch.device | str | None = None,
    max_seq_len: int | None = None,
    max_local_microbatch_size: int | None = None,
) -> Transformer:
    """In place of ``model.init_weights(...)``; returns the model.

    Args:
        model, seed: as of :func:`plan`.
        device: where what is on meta gets memory.
        max_seq_len, max_local_microbatch_size: caches are filled for these, as ``init_weights`` does.

    Raises:
        As :func:`plan` and :meth:`fastinit.Plan.apply_`; nothing is written then.
    """
    write_(model, plan(model, seed), device)
    place = model.device if device is None else torch.device(device)
    for block in model.blocks.values():
        if max_local_microbatch_size is not None and hasattr(block, "feed_forward_moe"):
            block.feed_forward_moe.warmup_cache(max_local_microbatch_size)
        if max_seq_len is not None and isinstance(block.attention, Attention):
            for cached in (block.attention.backend, block.attention.rope):
                if cached is not None:
                    cached.warmup_cache(max_seq_len, place)
    return model


@contextmanager
def initialized(seed: int | None = None) -> Iterator[None]:
    """Within the block, the ``init_weights`` of every ``Transformer`` is :func:`init_weights_`.

    For ``parallelize_model`` and train modules, which call it when they are made.
    """
    own = {kind: vars(kind)["init_weights"] for kind in _kinds() if "init_weights" in vars(kind)}

    def init_weights(
        model: Transformer, *, world_mesh: Any = None, model_part_idx: int = 0, **kwargs: Any
    ) -> torch.Generator:
        _set(own)  # which the twin is asked for
        try:
            init_weights_(model, seed, **kwargs)
        finally:
            _set(dict.fromkeys(own, init_weights))
        return torch.Generator()

    _set(dict.fromkeys(own, init_weights))
    try:
        yield
    finally:
        _set(own)


def _kinds() -> Iterator[type]:
    waiting: list[type] = [Transformer]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _set(methods: dict[type, Any]) -> None:
    for kind, method in methods.items():
        kind.init_weights = method  # type: ignore[attr-defined]
