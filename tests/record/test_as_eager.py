"""What deferred() records is what a constructor does eagerly, over a table of idioms; or is refused."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import idioms
import pytest
import torch
from as_eager import compare, differences
from selection import cases
from torch import nn

from fastinit import DeferredError, deferred, materialize_

for found in pkgutil.iter_modules(idioms.__path__):
    importlib.import_module(f"idioms.{found.name}")


def names(refused: bool) -> list[str]:
    return [name for name, m in idioms.MEMBERS.items() if (m.error is not None) == refused]


def written(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with deferred(seed):
        model = build()
    return materialize_(model)


@pytest.mark.parametrize("name", cases(names(refused=False), always=names(refused=False)[::3]))
def test_it_is_as_eager(name: str) -> None:
    member = idioms.MEMBERS[name]
    found = differences(member.build)
    assert [d for d in found if member.strides or ": stride " not in d] == []


@pytest.mark.parametrize("name", names(refused=True))
def test_it_is_refused(name: str) -> None:
    member = idioms.MEMBERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        member.build()  # nothing is wrong with it eagerly
        with pytest.raises(member.error, match=f"(?i){member.word}") as refusal:
            written(member.build)
    assert type(refusal.value) is member.error
    if member.error is DeferredError:
        assert f"{Path(idioms.__path__[0]).name}/" in str(refusal.value), "it names no line"


@pytest.mark.parametrize(
    "draw",
    [
        nn.init.orthogonal_,
        lambda x: nn.init.sparse_(x, 0.5),
        lambda x: x.data.bernoulli_(0.5),
        lambda x: x.data.copy_(torch.randn(8, 8)),
        nn.init.normal_,
        lambda x: x.data.normal_().exp_(),
    ],
)
def test_parts_have_the_same_values_in_any_order(draw: Callable[[Any], object]) -> None:
    class Experts(nn.Module):
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(4, 8, 8))
            for i in order:
                draw(self.w[i])

    def ours(order: list[int]) -> Callable[[int], nn.Module]:
        return lambda seed: written(lambda: Experts(order), seed)

    assert compare(lambda: Experts([0, 1, 2, 3]), ours([2, 0, 3, 1])) == []
    forth, back = (ours(order)(0).w for order in ([0, 1, 2, 3], [3, 2, 1, 0]))
    assert torch.equal(forth, back)
