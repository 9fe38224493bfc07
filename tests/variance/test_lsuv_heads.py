"""LSUV: a head without outputs is not built, unless it is more than its weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lsuv_judged import EXACT, assert_same, mlp, stds
from torch import Tensor, nn

from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.lsuv import lsuv_
from tests.running_models import everything


def test_a_head_that_is_never_built() -> None:
    model, x = (
        nn.Sequential(mlp(2), nn.Linear(64, 500, bias=False), nn.Softmax(-1)),
        torch.randn(99, 64),
    )
    built = copy.deepcopy(model)
    ran = []
    model[2].register_forward_hook(lambda *args: ran.append(args))
    result = lsuv_(model, x, unbuilt="1")
    assert not ran
    lsuv_(built, x)
    for a, b in zip(model.parameters(), built.parameters()):
        torch.testing.assert_close(a, b)
    assert result.layers[-1].name == "1"
    assert stds(model, x)["1"] == EXACT
    with pytest.raises(ValueError, match=r"unbuilt must name a Linear without a bias, but '0\.2'"):
        lsuv_(model, x, unbuilt="0.2")
    with pytest.raises(ValueError, match="unbuilt must name one of the layers, a Linear"):
        lsuv_(model, x, unbuilt="2")


class Capped(nn.Linear):
    """As Gemma's logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def _capped_by(hook: Callable[[nn.Linear], object]) -> Callable[[], nn.Linear]:
    def make() -> nn.Linear:
        head = nn.Linear(64, 50, bias=False)
        hook(head)
        return head

    return make


def _own_forward(head: nn.Linear) -> None:
    plain = head.forward
    head.forward = lambda x: plain(x).tanh()  # type: ignore[method-assign]


def _written(head: nn.Linear) -> None:
    before = head.weight.detach().clone()

    def hook(module: Any, args: Any) -> None:
        module.weight.data.copy_(before)

    head.register_forward_pre_hook(hook)


OTHER_HEADS: dict[str, tuple[Callable[[], nn.Linear], str]] = {
    "a class": (lambda: Capped(64, 50, bias=False), "has a forward of its own"),
    "an attribute": (_capped_by(_own_forward), "has a forward of its own"),
    "a hook": (
        _capped_by(lambda head: head.register_forward_hook(lambda m, args, out: out.tanh())),
        "has a forward hook, which may change it",
    ),
    "a weight that is written": (_capped_by(_written), "its weight is written before it runs"),
}


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_a_head_that_is_more_than_its_weight_is_built(name: str) -> None:
    make, message = OTHER_HEADS[name]
    model, x = nn.Sequential(mlp(2), make()), torch.randn(99, 64)
    before = everything(model)
    with pytest.raises((ValueError, LSUVError), match=message):
        lsuv_(model, x, unbuilt="1")
    assert_same(before, everything(model))
