"""Job: a command that ``torchrun`` started several times, as the ranks of one group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from fastinit.base import ranks

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

LONGEST = timedelta(days=1)
"""What one rank may take longer than another. One that has ended is noticed at once."""


@contextmanager
def joined() -> Iterator[bool]:
    """Whether this process speaks for all: it is the first rank, or alone.

    Within the block the ranks that torchrun started have a process group, over the CPU.
    """
    if not all(os.environ.get(name) for name in _SAID) or os.environ["WORLD_SIZE"] == "1":
        yield True
        return
    import torch.distributed as dist

    own = not ranks.is_up()
    if own:
        dist.init_process_group("gloo", timeout=LONGEST)
    try:
        yield dist.get_rank() == 0
    finally:
        if own:
            dist.destroy_process_group()
