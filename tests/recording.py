"""A parameter, or a model, recorded and written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastinit import deferred, materialize_

LEVEL = 1e-4  # of all tests of a distribution in a model together, by Bonferroni


class Holder(nn.Module):
    """One parameter, written by a function."""

    def __init__(self, write: Callable[[Tensor], object], *shape: int, **kwargs: object) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(shape, **kwargs))
        write(self.w)


def recorded(construct: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with deferred(seed):
        return construct()


def written(construct: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return materialize_(recorded(construct, seed))


def holder(write: Callable[[Tensor], object], *shape: int) -> Tensor:
    return written(lambda: Holder(write, *shape)).w.detach()


def quiet(write: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    def without_gradients(w: Tensor) -> None:
        with torch.no_grad():
            write(w)

    return without_gradients
