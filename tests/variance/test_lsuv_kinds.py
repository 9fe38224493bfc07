"""Every kind of layer, judged by a plain pass: lsuv_(verify=True) on whatever may be in a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastinit import LSUVError, lsuv_
from tests.running_models import (
    COMPILED,
    LAZY,
    MODELS,
    PLAIN,
    WRITERS,
    build,
    differences,
    everything,
)
from tests.variance.test_layers import AFFINE, COMPUTED, OTHER, OWNERS, Lookalike

TOL = 0.02
"""lsuv_'s, of the variance."""


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "center": {"center": True},
    "activation": {"activation": torch.relu},
    "pool": {"reuse": "pool"},
    "orthonormal": {"pre": "orthonormal", "target_std": 0.5},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, "plain") for name in (*WRITERS, *COMPILED, *LAZY)]
    + [
        pytest.param(name, options, marks=[pytest.mark.slow] if (i - j) % len(OPTIONS) else [])
        for i, name in enumerate(PLAIN)
        for j, options in enumerate(OPTIONS)
    ],  # always each with one of the options, in turn
)
def test_what_is_said_is_so(name: str, options: str) -> None:
    model, x = build({**MODELS, **COMPILED, **LAZY}[name])
    assert lsuv_(model, x, verify=True, **OPTIONS[options]).layers


class Between(nn.Module):
    """A layer of some kind between two plain ones, with what brings images to it and back."""

    def __init__(self, layer: nn.Module, spatial: int) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(8, 8), layer, nn.Linear(8, 3)
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.spatial:  # [rows, 8] as [1, 8, rows / 4, 4]
            x = self.layer(x.t().reshape(1, 8, -1, 4))
            return self.after(x.flatten(2)[0, :8].t())
        if isinstance(self.layer, nn.Embedding):
            return self.after(self.layer(x.argmax(1)))
        return self.after(self.layer(x).tanh())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [*AFFINE, *OTHER])
def test_layers_of_all_kinds(name: str, options: str) -> None:
    layer = {**AFFINE, **OTHER}[name](8, 8)
    if options == "orthonormal" and name == "lazy":
        return
    model = Between(layer, hasattr(layer, "kernel_size"))
    result = lsuv_(model, torch.randn(64, 8), verify=True, **OPTIONS[options])
    of = {m.name: m for m in result.layers}
    inside = ["layer.down", "layer.up"] if name == "LoRA" else []
    assert list(of) == ["before", *inside, "layer", "after"]
    measured = of["layer"]
    assert "also" not in "".join(m.note for m in result.layers)
    if name in ("weight-standardised", "weight-standardised inside", "cosine"):
        assert measured.note.startswith("its std does not follow its weight's scale")
        assert measured.scale == 1.0
    else:
        assert measured.target == OPTIONS[options].get("target_std", 1.0)
        assert measured.scale != 1.0
    assert (measured.iterations > 1) == (name in OTHER or options == "activation")


def test_lora_whose_end_is_zero() -> None:
    layer = OTHER["LoRA"](8, 8)
    nn.init.zeros_(layer.up.weight)
    model, x = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 4)), torch.randn(64, 8)
    with pytest.raises(LSUVError, match=r"output of 0\.up is dead.*\n\(dead=\"skip\" leaves"):
        lsuv_(model, x)
    result = lsuv_(model, x, dead="skip", verify=True)
    notes = {m.name: m.note for m in result.layers}
    assert notes == {"0.down": "", "0.up": "dead: left as it is", "0": "", "2": ""}


def test_all_dead_layers_are_named_and_left() -> None:
    model, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))), torch.randn(64, 8)
    for i in (2, 4):
        nn.init.zeros_(model[i].weight)
    nn.init.zeros_(model[2].bias)
    before = everything(model)
    with pytest.raises(LSUVError) as caught:
        lsuv_(model, x)
    assert differences(before, everything(model)) == []
    said = str(caught.value).splitlines()
    assert said[0] == "3 layers cannot be given their std:"
    assert [line.split(" is dead")[0] for line in said[1:4]] == [
        "  the output of 2",
        "  3",
        "  4",
    ]
    weights = [layer.weight.detach().clone() for layer in model]
    result = lsuv_(model, x, dead="skip", verify=True)
    assert [m.note == "dead: left as it is" for m in result.layers] == [1 < i < 5 for i in range(6)]
    assert [layer.weight.equal(was) for layer, was in zip(model, weights)] == [
        1 < i < 5 for i in range(6)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_weight_that_is_small_beside_the_bias(size: float, dtype: torch.dtype) -> None:
    """It is scaled where the output's dtype shows it, and dead where that rounds it away."""
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(512, 64)
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[0].bias.fill_(1.0)
    model = model.to(dtype)
    # std / bias is size / sqrt(3), in units of the last place of 1.0:
    if size / 3**0.5 > 4 * torch.finfo(dtype).eps:
        # What rounding adds to a std of four such units is 1/sqrt(12) of one: 3e-3 of the variance.
        result = lsuv_(model, x.to(dtype), center=True)
        with torch.no_grad():
            assert model(x.to(dtype)).float().var().item() == pytest.approx(1.0, abs=TOL)
        assert result.layers[0].scale == pytest.approx(3**0.5 / size, rel=0.1)
    elif size < torch.finfo(dtype).eps:
        with pytest.raises(LSUVError, match="0 is dead"):
            lsuv_(model, x.to(dtype))


@pytest.mark.parametrize("name", OWNERS)
def test_what_is_no_layer_is_passed_with_the_reason(name: str) -> None:
    make, why = OWNERS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other = nn.Linear(3, 3), make()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if name == "positions":
                return x @ self.other.pos
            return self.other(x.argmax(1) if name == "renormalised" else x)

    model, x = Net(), torch.randn(32, 3)
    if name == "compiled":
        model.other.compile(backend="eager")
    result = lsuv_(model, x, verify=True)
    assert result.passed == {"other": why}
    assert [m.name for m in result.layers] == ["first"]
    assert result.table().splitlines()[-1] == f"not measured: {why}: other"


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_passed(name: str) -> None:
    model, x = nn.Sequential(COMPUTED[name](8, 8), nn.Linear(8, 8)), torch.randn(32, 8)
    assert lsuv_(model, x, verify=True).passed == {"0": "its weight is computed"}


def test_what_has_no_one_weight_says_so() -> None:
    with pytest.raises(
        ValueError, match="none is; 0 recurrent: its output follows from no one weight"
    ):
        lsuv_(nn.Sequential(nn.GRU(3, 4)), torch.randn(2, 5, 3), layers=nn.GRU)
    model = nn.Sequential(nn.Linear(3, 3), Lookalike(3, 4))
    result = lsuv_(model, torch.randn(32, 3), layers=["0", "1"], verify=True)
    assert result.layers[1].std ** 2 == pytest.approx(1.0, abs=TOL)
    assert result.layers[1].iterations == 2


class Tied(nn.Module):
    """Two layers with one weight, of kinds that are told apart by how they are scaled."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.last = one, other, nn.Linear(8, 4)
        other.weight = one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.other(torch.tanh(self.one(x)))))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("first", ["Linear", "residual"])
@pytest.mark.parametrize("second", ["Linear", "residual"])
def test_tied_layers(first: str, second: str, options: str) -> None:
    kinds = {**AFFINE, **OTHER}
    model, x = Tied(kinds[first](8, 8), kinds[second](8, 8)), torch.randn(256, 8)
    if options == "pool":  # that the pooled outputs have the std is what the passes come to
        result = lsuv_(model, batches=[x[:128], x[128:]], verify=True, reuse="pool")
    else:
        result = lsuv_(model, x, verify=True, **OPTIONS[options])
    assert result.layers[1].note == "tied to one"


def test_weights_that_share_a_part_of_their_memory_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.project = nn.MultiheadAttention(8, 2), nn.Linear(8, 24)
            self.project.weight = self.attend.in_proj_weight

        def forward(self, x: Tensor) -> Tensor:
            return self.project(self.attend(x, x, x)[0])

    model, x = Net(), torch.randn(5, 4, 8)
    before = everything(model)
    with pytest.raises(
        ValueError, match=r"attend\.q_proj and project have part of their memory in"
    ):
        lsuv_(model, x)
    assert differences(before, everything(model)) == []
    result = lsuv_(model, x, layers=nn.Linear)
    assert [m.note for m in result.layers] == [
        "its weight is also that of attend, which is no such layer"
    ]


def test_a_weight_that_others_have_is_said_to_be_theirs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(50, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.inner(self.embed(tokens)))

    model, tokens = Net(), torch.randint(50, (32, 4))
    result = lsuv_(model, tokens, verify=True)
    assert [m.note for m in result.layers] == ["", "", "tied to embed"]
    result = lsuv_(model, tokens, layers=["inner", "head"], target_std=0.5)
    note = "its weight is also that of embed, which is no such layer"
    assert [m.note for m in result.layers] == ["", note]
    with pytest.raises(LSUVError, match="in a plain pass"):
        lsuv_(model, tokens, layers=["inner", "head"], target_std=0.7, verify=True)


def test_center_where_there_is_nothing_to_shift() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, bias=i != 0) for i in range(5)))
    model[2].bias = model[1].bias
    model[3].bias.requires_grad_(False)
    shared = model[1].bias.detach().clone()
    x = torch.randn(64, 8)
    result = lsuv_(model, x, center=True, verify=True)
    assert [m.note for m in result.layers] == [
        "not centered: no bias",
        "not centered: its bias is another's too",
        "not centered: its bias is another's too",
        "not centered: its bias is frozen",
        "",
    ]
    assert model[1].bias.equal(shared)
    # Sums over 64 rows in float32.
    assert model(x).mean().item() == pytest.approx(0.0, abs=1e-5)


class Drifting(nn.Module):
    """Draws numbers where nobody puts them back, so that no two passes are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.draw = iter([1.0, 3.0, 9.0]).__next__

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.draw())


@pytest.mark.parametrize("pre", ["keep", "orthonormal"])
def test_what_is_not_so_is_an_error_and_changes_nothing(pre: str) -> None:
    model, x = Drifting(), torch.randn(64, 8)
    before = everything(model)
    with pytest.raises(
        LSUVError, match=r"is another than was asked for or found:\n  last: \d.* of 1$"
    ):
        lsuv_(model, x, verify=True, center=True, pre=pre)
    left = [name for name in differences(before, everything(model)) if "draw" not in name]
    assert left == []


def test_deferred_models_are_verified() -> None:
    fastinit = pytest.importorskip("fastinit")
    with fastinit.deferred(seed=0):
        model = nn.Sequential(
            nn.Embedding(50, 16),
            parametrizations.weight_norm(nn.Linear(16, 16)),
            nn.ReLU(),
            OTHER["residual"](16, 16),
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0),
            nn.Linear(16, 50),
        )
    result = lsuv_(model, torch.randint(0, 50, (8, 12)), verify=True)
    assert all(p.is_meta for p in model.parameters())
    assert len(result.layers) == 10
    plan = result.plan
    assert plan is not None
    scaled = fastinit.materialize_(model)
    out = scaled(torch.randint(0, 50, (8, 12)))
    assert out.var().item() == pytest.approx(1.0, abs=0.1)  # of other tokens
