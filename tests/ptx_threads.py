"""The threads that run together in ptxrun.py, and how those of a warp exchange values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ptx_operations import Fault, Words

WARP = 32


class Threads(NamedTuple):
    """The threads that run a block of instructions now, in the order of their ids."""

    ids: Any
    places: Any  # in their thread blocks
    blocks: Any  # their thread blocks, from 0 on
    barriers: Any  # that these have passed
    memory: dict[str, Any]

    def some(self, which: Any) -> Threads:
        ids, places, blocks, barriers, memory = self
        return Threads(ids[which], places[which], blocks[which], barriers[which], memory)


def shuffled(threads: Threads, a: Words, b: Words, c: Words, mask: Words) -> tuple[Words, Words]:
    """shfl.sync.bfly.b32: another lane's word, and whether the lane is in reach.

    All lanes of the mask have to come at the same time. (A GPU would wait for those that come later.
    Here they have met before, unless the text runs them apart.)
    """
    shape = threads.ids.shape
    a, b, c, mask = (np.broadcast_to(x, shape).astype(np.uint32) for x in (a, b, c, mask))
    lane = (threads.places % WARP).astype(np.uint32)
    first = threads.ids - lane  # of the warp
    _, warp = np.unique(first, return_inverse=True)
    here = np.zeros(warp.max() + 1, np.uint32)
    np.bitwise_or.at(here, warp, np.uint32(1) << lane)
    one = np.zeros_like(here)
    one[warp] = mask
    if (one[warp] != mask).any():
        raise Fault("lanes of a warp with other masks")
    if (mask >> lane & 1 == 0).any():
        raise Fault("a lane that is not in its mask")
    if (mask & ~here[warp]).any():
        raise Fault("lanes of the mask that do not come along")
    segments, last = c >> np.uint32(8) & np.uint32(31), c & np.uint32(31)
    other = lane ^ (b & np.uint32(31))
    within = other <= (lane & segments | last & ~segments)
    other = np.where(within, other, lane)
    if (mask >> other & 1 == 0).any():
        raise Fault("the word of a lane that is not in the mask")
    return a[np.searchsorted(threads.ids, first + other)], within
