"""Layers: what is affine in its weight is told by what its forward is, and none is run to find out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from fastinit.variance.layers import find, other_weights
from tests.running_models import differences, everything


class Standardised(nn.Conv2d):
    """As in BiT and NFNets."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


class Inner(nn.Conv2d):
    """Its forward is torch's; what that calls is not."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.std(), bias)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


class Residual(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x / 4 + super().forward(x)


class Adapted(nn.Linear):
    """LoRA."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 2, bias=False), nn.Linear(2, sizes[1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x)) / 8


class Property(nn.Linear):
    """Equalised learning rate, by a property in the weight's place."""


class Lookalike(nn.Module):
    """torch_geometric's and timm's Linear: a weight, and a forward of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sizes[::-1]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Named(nn.Linear):
    """Adds nothing that its forward knows of."""

    def extra_repr(self) -> str:
        return "named"


class Subclass(nn.Parameter):
    """A parameter with operators of its own, maybe."""


def _property(*sizes: int) -> nn.Module:
    layer = nn.Linear(*sizes)
    Property.weight = property(lambda self: self._parameters["weight"] * 2)  # type: ignore
    layer.__class__ = Property
    return layer


def _overridden(*sizes: int) -> nn.Module:
    layer = nn.Linear(*sizes)
    plain = layer.forward
    layer.forward = lambda x: plain(x).sinh()  # type: ignore[method-assign]
    return layer


def _buffer_bias(*sizes: int) -> nn.Module:
    layer = nn.Linear(*sizes, bias=False)
    del layer.bias
    layer.register_buffer("bias", torch.ones(sizes[1]))
    return layer


def _pruned_bias(*sizes: int) -> nn.Module:
    return prune.l1_unstructured(nn.Linear(*sizes), "bias", amount=2)


def _subclassed(*sizes: int) -> nn.Module:
    layer = nn.Linear(*sizes)
    layer.weight = Subclass(layer.weight.detach())
    return layer


def _out_proj(*sizes: int) -> nn.Module:
    return type(nn.MultiheadAttention(4, 2).out_proj)(*sizes)


def _old(norm: Callable[..., Any]) -> Callable[..., nn.Module]:
    def make(*sizes: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(nn.Linear(*sizes))

    return make


AFFINE: dict[str, Callable[..., nn.Module]] = {
    "Linear": nn.Linear,
    "another name": Named,
    "attention's own class of Linear": _out_proj,
    "convolution": lambda i, o: nn.Conv2d(i, o, 3, padding="same", padding_mode="reflect"),
    "transposed": lambda i, o: nn.ConvTranspose2d(i, o, 3),
    "embedding": nn.Embedding,
    "weight_norm": lambda i, o: parametrizations.weight_norm(nn.Linear(i, o)),
    "weight_norm of a whole": lambda i, o: parametrizations.weight_norm(nn.Linear(i, o), dim=None),
    "weight_norm, old": _old(weight_norm),
    "lazy": lambda i, o: nn.LazyLinear(o),
}
OTHER: dict[str, Callable[..., nn.Module]] = {
    "weight-standardised": lambda i, o: Standardised(i, o, 3),
    "weight-standardised inside": lambda i, o: Inner(i, o, 3),
    "cosine": Cosine,
    "residual": Residual,
    "LoRA": Adapted,
    "a property": _property,
    "a forward of its own": _overridden,
    "a bias that is a buffer": _buffer_bias,
    "a pruned bias": _pruned_bias,
    "a subclass of Parameter": _subclassed,
}


@pytest.mark.parametrize("name", [*AFFINE, *OTHER])
def test_a_layer_is_what_its_forward_does(name: str) -> None:
    layer = {**AFFINE, **OTHER}[name](8, 8)
    found, passed = find(nn.Sequential(layer))
    assert [(x.name, x.affine) for x in found if x.module is layer] == [("0", name in AFFINE)]
    assert passed == {}


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def _twice(*sizes: int) -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(*sizes))
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


COMPUTED: dict[str, Callable[..., nn.Module]] = {
    "spectral_norm": lambda i, o: parametrizations.spectral_norm(nn.Linear(i, o)),
    "spectral_norm, old": _old(spectral_norm),
    "orthogonal": lambda i, o: parametrizations.orthogonal(nn.Linear(i, o)),
    "pruned": lambda i, o: prune.random_unstructured(nn.Linear(i, o), "weight", amount=0.5),
    "weight_norm and more": _twice,
}


@pytest.mark.parametrize("name", [*COMPUTED, *AFFINE])
def test_looking_for_layers_runs_nothing(name: str) -> None:
    with torch.no_grad():
        model = nn.Sequential({**COMPUTED, **AFFINE}[name](8, 8))
    before = everything(model)
    found, passed = find(model)
    assert passed == ({"0": "its weight is computed"} if name in COMPUTED else {})
    assert len(found) == (name in AFFINE)
    other_weights(model, found)
    assert differences(before, everything(model)) == []


def test_weight_norm_is_scaled_through_g() -> None:
    for name in ("weight_norm", "weight_norm of a whole", "weight_norm, old"):
        model = nn.Sequential(AFFINE[name](8, 6))
        (layer,), _ = find(model)
        assert layer.shape == (6, 8)
        torch.testing.assert_close(layer.weight, model[0].weight.detach())
        x = torch.randn(5, 8)
        out = model(x) - model[0].bias
        layer.scaled.mul_(3.0)
        torch.testing.assert_close(model(x) - model[0].bias, 3 * out)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos, self.cls = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(4))


class Mixed(nn.LayerNorm):
    """A norm with more than a norm has."""

    def __init__(self) -> None:
        super().__init__(3)
        self.mix = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.mix


class Table(nn.RMSNorm):
    """A norm's weight, used as a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


OWNERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GRU": (lambda: nn.GRU(3, 4), "recurrent: its output follows from no one weight"),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), "recurrent: its output follows from no one weight"),
    "look-alike": (lambda: Lookalike(3, 4), "no known kind of layer: it has weight"),
    "positions": (Positions, "no known kind of layer: it has pos"),
    "renormalised": (lambda: nn.Embedding(3, 4, max_norm=1.0), "renormalises its weight"),
    "a norm and a matrix": (Mixed, "no known kind of layer: it has mix"),
    "a norm's matrix": (lambda: Table((3, 3)), "no known kind of layer: it has weight"),
    "scripted": (lambda: torch.jit.script(nn.Linear(3, 4)), "scripted: no hooks run in it"),
    "compiled": (
        lambda: torch.compile(nn.Linear(3, 4), backend="eager"),
        "compiled: no hooks run in it",
    ),
}


@pytest.mark.parametrize("name", OWNERS)
def test_what_owns_a_weight_and_is_no_layer_is_named(name: str) -> None:
    make, why = OWNERS[name]
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm((2, 3)), make(), nn.BatchNorm1d(3))
    found, passed = find(model)
    assert [layer.name for layer in found] == ["0"]
    assert other_weights(model, found) == {"2": why}
    chosen, passed = find(model, lambda name, module: module is model[2])
    if chosen:
        assert [(x.name, x.affine) for x in chosen] == [("2", False)]
    else:
        assert passed == {"2": why}


def place(layer: nn.Module) -> Any:
    (found,), _ = find(layer)
    return found.key


def test_ties_are_told_by_their_memory() -> None:
    one, other = nn.Linear(8, 24), nn.Linear(8, 24)
    assert not place(one).overlaps(place(other))
    other.weight.data = one.weight.data
    assert place(one) == place(other)
    attend = nn.MultiheadAttention(8, 2)
    attend.in_proj_weight = one.weight
    parts = [layer.key for layer in find(attend)[0]]
    assert [place(one).overlaps(part) for part in parts] == [True, True, True, False]
    assert len(set(parts)) == 4


@pytest.mark.parametrize("names", ["b", ["b", "c"], ["a", "b"]])
def test_a_module_of_two_names_may_be_called_by_either(names: str | list[str]) -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    found, _ = find(model, names)
    assert [layer.name for layer in found] == ["a", *(["c"] if "c" in names else [])]
    attention = nn.MultiheadAttention(4, 2)
    found, _ = find(nn.ModuleDict({"a": attention, "b": attention}), "b")
    assert {layer.name.partition(".")[0] for layer in found} == {"a"}
    assert len(found) == 4
