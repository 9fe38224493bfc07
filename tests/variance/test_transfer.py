"""Moving a scale: the function stays the same, or nothing is written and what would change is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fastinit import transfer_scale_
from fastinit.fills.layer_kinds import CONVOLUTIONS, NORMS
from tests.running_models import differences, everything
from tests.variance.test_layers import COMPUTED, OTHER, Doubled, _property


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def _norm(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(8), *layers)


KEPT: dict[str, tuple[Callable[[], nn.Sequential], int, tuple[int, ...]]] = {
    "Linear": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), 2, (4, 8)),
    "no bias": (lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3)), 1, (4, 8)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)),
        2,
        (1, 2, 7, 7),
    ),
    "a norm": (lambda: _norm(nn.ReLU(), nn.Linear(8, 3)), 2, (4, 8)),
    "weight_norm": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(8, 8)),
            nn.ReLU(),
            parametrizations.weight_norm(nn.Linear(8, 3)),
        ),
        2,
        (4, 8),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KEPT)
def test_the_function_stays_the_same(name: str, dtype: torch.dtype) -> None:
    make, second, shape = KEPT[name]
    model, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    before = model(x)
    transfer_scale_(model[0], model[second], 4.0)
    # A power of two is exact in each product and sum; weight_norm's own roundings are of one more.
    exact = name != "weight_norm"
    torch.testing.assert_close(model(x), before, **({"rtol": 1e-6, "atol": 0.0} if exact else {}))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.out = nn.ModuleDict({"head": nn.Linear(8, 9, bias=False)})
        self.out["head"].weight = self.embed.weight


def _by_memory() -> tuple[nn.Module, nn.Module, Any]:
    first, second, other = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    other.bias.data = first.bias.data
    return first, second, other


def _one_bias() -> tuple[nn.Module, nn.Module, Any]:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.bias = first.bias
    return first, second, None


def _tied() -> tuple[nn.Module, nn.Module, Any]:
    model = Tied()
    return model.embed, model.fc, model


def _tied_after() -> tuple[nn.Module, nn.Module, Any]:
    model = Tied()
    return model.fc, model.out["head"], model


def _alike() -> tuple[nn.Module, nn.Module, Any]:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight.data = first.weight.data.t()
    return first, second, None


def _half(scale: float) -> tuple[nn.Module, nn.Module, Any]:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
    with torch.no_grad():
        first.weight.mul_(scale)
    return first.half(), second.half(), None


def _two(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module, Any]:
    return first, second, None


def _own_forward(norm: nn.Module) -> None:
    plain = norm.forward
    norm.forward = lambda x: plain(x) + 1  # type: ignore[method-assign]


def _parametrised(norm: nn.Module) -> None:
    parametrize.register_parametrization(norm, "bias", Doubled())


def _buffer(norm: nn.Module) -> None:
    bias = norm.bias.detach()
    del norm.bias
    norm.register_buffer("bias", bias)


def _class(norm: nn.Module) -> None:
    kind = type(norm)
    its: dict[str, Any] = {"forward": lambda self, x: kind.forward(self, x).sinh()}
    norm.__class__ = type(f"Own{kind.__name__}", (kind,), its)


CHANGED: dict[str, Callable[[nn.Module], None]] = {
    "a forward of its own": _own_forward,
    "a class of its own": _class,
    "a parametrised bias": _parametrised,
    "a bias that is a buffer": _buffer,
}
"""What makes of a norm another, whose output is not proportional to its weight, but for its bias."""


def _before_a_layer(kind: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A norm, a layer, and the shape of what they take."""
    norm: nn.Module
    if kind in (nn.LayerNorm, nn.RMSNorm):
        norm, following, shape = kind(8), nn.Linear(8, 3), (4, 8)
    else:
        dims = int(kind.__name__[-2]) if kind.__name__.endswith("d") else 1
        norm = kind(2, 8) if kind is nn.GroupNorm else kind(8, affine=True)
        following, shape = CONVOLUTIONS[dims - 1](8, 3, 1), (4, 8, *[2] * dims)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(norm, following).eval(), shape


@pytest.mark.parametrize("kind", NORMS, ids=lambda kind: kind.__name__)
def test_a_norm_is_what_its_forward_is(kind: type[nn.Module]) -> None:
    model, shape = _before_a_layer(kind)
    x = torch.randn(shape)
    expected = model(x)
    transfer_scale_(*model, 4.0)
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=0.0)  # powers of two are exact
    for way, change in CHANGED.items():
        if kind is nn.RMSNorm and "bias" in way:
            continue
        model, _ = _before_a_layer(kind)
        change(model[0])
        before = everything(model)
        with pytest.raises(ValueError, match="layer has a forward of its own"):
            transfer_scale_(*model, 4.0)
        assert differences(before, everything(model)) == [], way


LINEAR = lambda: nn.Linear(8, 8)  # noqa: E731
REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module, Any]], float, str]] = {
    "tied to a head": (_tied, 2.0, "layer.weight is also out.head.weight of a Tied, which would"),
    "following tied": (_tied_after, 2.0, "following.weight is also embed.weight of a Tied"),
    "a bias by its memory": (_by_memory, 2.0, "layer.bias is also bias of a Linear"),
    "each other's bias": (_one_bias, 2.0, "layer.bias is also following.bias, which would change"),
    "each other's": (_alike, 2.0, "layer and following have the same weight"),
    "overflow": (
        lambda: _half(3e4),
        16.0,
        "layer.weight would overflow: its largest value, .* than t",
    ),
    "overflow after": (lambda: _half(3e4), 1e-6, "following.weight would overflow"),
    "underflow": (lambda: _half(1.0), 1e5, "following.weight would underflow"),
    "max_norm": (
        lambda: _two(nn.Embedding(9, 8, max_norm=1.0), LINEAR()),
        2.0,
        "layer renormalises its weight's rows to max_norm",
    ),
    "a table after": (
        lambda: _two(LINEAR(), nn.Embedding(9, 8)),
        2.0,
        "following is not linear in its input",
    ),
    "a norm after": (
        lambda: _two(LINEAR(), nn.LayerNorm(8)),
        2.0,
        "following is not linear in its input",
    ),
    "no weight": (lambda: _two(nn.ReLU(), LINEAR()), 2.0, "layer has no weight"),
    "recurrent": (lambda: _two(LINEAR(), nn.GRU(8, 8)), 2.0, "following recurrent"),
    "attention": (lambda: _two(LINEAR(), nn.MultiheadAttention(8, 2)), 2.0, "following "),
    **{
        name: (lambda make=make: _two(make(8, 8), LINEAR()), 2.0, "layer has a forward of its own")
        for name, make in OTHER.items()
    },
    **{
        name: (lambda make=make: _two(make(8, 8), LINEAR()), 2.0, "layer its weight is computed")
        for name, make in COMPUTED.items()
    },
    "a property": (lambda: _two(_property(8, 8), LINEAR()), 2.0, "layer has a forward of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_something_is_refused(name: str) -> None:
    make, factor, message = REFUSED[name]
    with torch.no_grad():  # old parametrisations keep what they compute
        first, second, kept = make()
    models = nn.ModuleList([first, second])
    before = everything(models)
    with pytest.raises(ValueError, match=message):
        transfer_scale_(first, second, factor)
    assert differences(before, everything(models)) == []
    del kept
