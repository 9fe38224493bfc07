"""Raw moments on their way from the device: merged there, sent without waiting, read later."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit.statistics.formats import merged_rows


def together(raws: Sequence[Tensor], counted: int = 0) -> Tensor:
    """Rows of at least one set of values, [fields], all together, merged pairwise.

    Args:
        counted: how many of the fields, the last ones, are counts.
    """
    if len(raws) == 1:
        return raws[0]
    stacked = torch.stack([raw.to(raws[0].device) for raw in raws])
    while len(stacked) > 1:
        half = len(stacked) // 2
        pairs = merged_rows(stacked[:half], stacked[half : 2 * half], counted)
        stacked = torch.cat((pairs, stacked[2 * half :]))
    return stacked[0]


class _Sent(NamedTuple):
    """Some tensors of one device, one after another."""

    which: list[int]
    flat: Tensor
    arrived: torch.Event | None
    """When it is on the CPU; None: it is."""


class Transfer:
    """Float64 tensors, [n] each, on their way to the CPU, from each device in one piece.

    From a CUDA device it goes to pinned memory, behind what was queued before; nothing waits for it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._sizes = [len(tensor) for tensor in tensors]
        places: dict[torch.device, list[int]] = {}
        for i, tensor in enumerate(tensors):
            places.setdefault(tensor.device, []).append(i)
        self._sent = [
            _send(which, torch.cat([tensors[i] for i in which])) for which in places.values()
        ]

    def arrived(self) -> list[list[float]]:
        """The numbers of each; waits for them."""
        found: list[list[float]] = [[]] * len(self._sizes)
        for sent in self._sent:
            if sent.arrived is not None:
                sent.arrived.synchronize()
            numbers = iter(sent.flat.tolist())
            for i in sent.which:
                found[i] = list(islice(numbers, self._sizes[i]))
        return found


def _send(which: list[int], flat: Tensor) -> _Sent:
    if flat.device.type != "cuda":
        return _Sent(which, flat.cpu(), None)
    there = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
    there.copy_(flat, non_blocking=True)
    arrived = torch.Event(flat.device)
    arrived.record(torch.cuda.current_stream(flat.device))
    return _Sent(which, there, arrived)
