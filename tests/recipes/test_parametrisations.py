"""Recipes that scale an optimizer's settings too: the spectral one, CompleteP, Depth-muP, and groups."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastinit import Fill, Plan, recipes

ZERO = Fill.constant(0.0)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.fc(self.norm(x))))


class Residual(nn.Module):
    """x + multiplier F(x), some times."""

    def __init__(self, width: int, layers: int, multiplier: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=layers)
        self.embed, self.multiplier = nn.Linear(6, width), multiplier
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.layers:
            x = x + self.multiplier * block(x)
        return self.head(self.norm(x))


def scalings(model: nn.Module, rule: Any, optimizer: str = "adam") -> dict[str, recipes.Scaling]:
    """By name, as the groups have them."""
    settings = {"lr": 1.0, "weight_decay": 1.0, "eps": 1.0}
    groups = recipes.param_groups(model, rule, optimizer=optimizer, **settings)
    of = {id(p): group for group in groups for p in group["params"]}
    found = {}
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        found[name] = recipes.Scaling(group["lr"], group["weight_decay"], group.get("eps", 1.0))
    return found


# --- spectral ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "fan_in", "fan_out"),
    [
        (nn.Linear(16, 64), 16, 64),
        (nn.Linear(64, 16), 64, 16),
        (nn.Linear(64, 64, bias=False), 64, 64),
        (nn.Conv2d(8, 4, 3), 72, 36),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 8, 16),
        (nn.Embedding(1000, 16), 1, 16),
    ],
    ids=repr,
)
def test_spectral_has_the_papers_std_and_rates(
    module: nn.Module, fan_in: int, fan_out: int
) -> None:
    plan = Plan.from_model(module, recipes.spectral)
    assert plan["weight"].std == pytest.approx(
        min(1, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
    )
    adam, sgd = (scalings(module, recipes.spectral, of) for of in ("adam", "sgd"))
    assert adam["weight"] == pytest.approx((1 / fan_in, fan_in, 1.0))
    assert sgd["weight"] == pytest.approx((fan_out / fan_in, fan_in / fan_out, 1.0))
    if "bias" in plan:
        assert plan["bias"] == ZERO
        assert adam["bias"] == (1.0, 1.0, 1.0)
        assert sgd["bias"].lr == len(module.bias)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(64, 512), (512, 64), (256, 256)])
def test_spectral_weights_have_the_norm_of_condition_1(fan_in: int, fan_out: int) -> None:
    """Of a normal matrix it is about std (sqrt(fan_in) + sqrt(fan_out)): 1 to 2 times the condition's.
    (Its fluctuations are of the order fan^-1/6 of a std, some percent here.)"""
    layer = nn.Linear(fan_in, fan_out, bias=False)
    Plan.from_model(layer, recipes.spectral).apply_(layer)
    norm = torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
    assert 1.0 < norm / math.sqrt(fan_out / fan_in) < 2.05


def test_spectral_of_norms_and_of_what_it_does_not_know() -> None:
    norm = nn.LayerNorm(8)
    assert dict(Plan.from_model(norm, recipes.spectral)) == {
        "weight": Fill.constant(1.0),
        "bias": ZERO,
    }
    assert scalings(norm, recipes.spectral, "sgd")["weight"].lr == 8
    scale = nn.ParameterDict({"scale": nn.Parameter(torch.ones(3))})
    with pytest.raises(ValueError, match="no Fill for parameter scale"):
        Plan.from_model(scale, recipes.spectral)


# --- groups --------------------------------------------------------------------------------------


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 4)
    )


@pytest.mark.parametrize("table", [3, 8])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_groups_of_mup_have_its_learning_rates(optimizer: str, table: int) -> None:
    base, wide = mlp(16), mlp(64)
    rule = recipes.mup(base, recipes.torch_default, table=table)
    rates = recipes.mup_learning_rates(wide, base, optimizer=optimizer, table=table)
    found = scalings(wide, rule, optimizer)
    assert {name: scaling.lr for name, scaling in found.items()} == rates
    assert all(s.lr * s.weight_decay == pytest.approx(1.0) for s in found.values())
    plain = scalings(wide, recipes.torch_default, optimizer)
    assert set(plain.values()) == {recipes.Scaling()}


def test_groups_of_rules_made_of_others() -> None:
    """What only fills says nothing of the optimizer, and the next rule does."""
    base, wide = mlp(16), mlp(64)
    mup = recipes.mup(base, recipes.torch_default)
    inner = recipes.first_of(recipes.by_name({"3.*": ZERO}), mup)
    by_name = recipes.by_name({"0.*": ZERO, "*": recipes.spectral})
    assert scalings(wide, inner) == scalings(wide, mup)
    named = scalings(wide, by_name)
    assert named["0.weight"] == recipes.Scaling()
    assert named["2.weight"] == scalings(wide, recipes.spectral)["2.weight"] != recipes.Scaling()
    assert Plan.from_model(wide, inner)["3.weight"] == ZERO


def test_groups_are_of_trained_parameters_and_each_tied_one_once() -> None:
    net = mlp(16)
    net[3].bias.requires_grad_(False)
    net[2].weight = net.register_parameter("tied", net[2].weight) or net.tied
    groups = recipes.param_groups(net, recipes.torch_default, lr=0.1, optimizer="sgd")
    assert [sorted(group) for group in groups] == [["lr", "params", "weight_decay"]]
    assert len(groups[0]["params"]) == 5
    torch.optim.SGD(groups)


def test_groups_refuse_other_optimizers_and_models() -> None:
    rule = recipes.mup(mlp(16), recipes.torch_default)
    for optimizer in ("lion", None):
        with pytest.raises(ValueError, match="optimizer must be one of adam, sgd, but got"):
            recipes.param_groups(mlp(16), rule, lr=0.1, optimizer=optimizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no parameters 4\.weight, 4\.bias"):
        recipes.param_groups(nn.Sequential(*mlp(16), nn.Linear(4, 4)), rule, lr=0.1)


# --- depth ---------------------------------------------------------------------------------------

FEW, MANY = 2, 8
M = MANY / FEW


@pytest.mark.parametrize(("of", "alpha"), [("completep", 1.0), ("depth_mup", 0.5)])
def test_depth_rules_have_the_papers_table(of: str, alpha: float) -> None:
    """Twice the width and four times the depth: arXiv 2505.01618, table 1 and equation 40 (and the
    groups in nanoGPT-mup's README) with alpha 1 and 1/2; of one with alpha 1/2 also 2310.02244's."""
    base, deep = Residual(16, FEW), Residual(32, MANY)
    make = getattr(recipes, of)
    rule = make(base, recipes.torch_default, table=8)
    plan = Plan.from_model(deep, rule)
    wider = recipes.mup(base, recipes.torch_default, table=8)
    same_depth = Plan.from_model(Residual(32, FEW), wider)
    for name, fill in plan.items():
        few = name.replace("layers.7", "layers.1").replace("layers.5", "layers.0")
        assert few not in same_depth or fill == same_depth[few], name
    found = scalings(deep, rule)
    lr, eps = M ** (alpha - 1), 0.5 * M**-alpha
    for i in range(MANY):
        assert found[f"layers.{i}.fc.weight"] == pytest.approx((0.5 * lr, 2.0, eps))
        assert found[f"layers.{i}.fc.bias"] == pytest.approx((lr, 1.0, eps))
        assert found[f"layers.{i}.norm.weight"] == pytest.approx((lr, 1.0, eps))
    for name in ("embed.weight", "norm.weight", "norm.bias", "head.weight"):
        assert found[name] == pytest.approx((1.0, 1.0, 0.5)), name
    assert recipes.depth_multiplier(MANY, FEW, alpha=alpha) == M**-alpha


@pytest.mark.parametrize(
    ("of", "alpha", "optimizer"),
    [("completep", 1.0, "adam"), ("depth_mup", 0.5, "adam"), ("depth_mup", 0.5, "sgd")],
)
def test_a_multiplier_in_the_weights_is_the_same_net(of: str, alpha: float, optimizer: str) -> None:
    """Lemma J.1 of arXiv 2203.03466, in float64, with an eps and a weight decay that matter. Weights
    that are rounded to float32 differ by 1e-7; another exponent of a setting changes percents."""
    base = Residual(16, FEW)
    make = getattr(recipes, of)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = []
    for multiplier, last in ((M**-alpha, ()), (1.0, "layers.*.out.*")):
        net = Residual(16, MANY, multiplier).double()
        rule = make(base, recipes.torch_default, last=last)
        Plan.from_model(net, rule, seed=3).apply_(net)
        settings = {"lr": 0.02, "weight_decay": 0.5, "eps": 1e-2}
        groups = recipes.param_groups(net, rule, optimizer=optimizer, **settings)
        step = torch.optim.AdamW(groups) if optimizer == "adam" else torch.optim.SGD(groups)
        for _ in range(5):
            step.zero_grad()
            (net(x) - 1).square().mean().backward()
            step.step()
        outputs.append(net(x).detach())
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_numbers_of_layers_are_asked_of_the_config_or_given() -> None:
    base, deep = Residual(16, FEW), Residual(16, MANY)
    by_config = recipes.completep(base, recipes.torch_default, last="*.out.*")
    del base.config, deep.config
    given = recipes.completep(
        base, recipes.torch_default, layers=MANY, base_layers=FEW, last="*.out.*"
    )
    config = {"n_layer": MANY}
    plans = [Plan.from_model(deep, rule, config=config) for rule in (by_config, given)]
    assert plans[0] == plans[1]
    assert plans[0]["layers.7.out.weight"].scale == 1 / M
    with pytest.raises(ValueError, match="needs a config with num_hidden_layers or n_layer"):
        Plan.from_model(deep, by_config)
    shallow = Residual(16, 1)
    assert len(Plan.from_model(shallow, by_config)) == len(list(shallow.parameters()))


@pytest.mark.parametrize("block", [recipes.depth.BLOCK, "stages.0.blocks.*"])
def test_numbers_inside_a_block_are_not_its_own(block: Any) -> None:
    """A block's third part is as the base's third, of another shape and law than its first."""

    def net(layers: int) -> nn.Module:
        blocks = (nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 8)) for _ in range(layers))
        stage = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        return nn.ModuleDict({"stages": nn.ModuleList([stage])})

    rule = recipes.completep(
        net(2), recipes.torch_default, layers=6, base_layers=2, block=block, last="*.2.weight"
    )
    plan, base = (Plan.from_model(net(n), r) for n, r in ((6, rule), (2, recipes.torch_default)))
    for i in range(6):
        for part in (0, 2):
            like = base[f"stages.0.blocks.1.{part}.weight"]
            wanted = like.scaled(1 / 3) if part == 2 else like
            assert plan[f"stages.0.blocks.{i}.{part}.weight"] == wanted


def test_depth_rules_refuse_what_they_cannot_carry_over() -> None:
    base = Residual(16, FEW)
    unlike = recipes.by_name({"layers.1.fc.bias": ZERO, "*": recipes.torch_default})
    with pytest.raises(ValueError, match=r"must be alike, but layers\.0\.fc\.bias and layers\.1"):
        recipes.completep(base, unlike)
    with pytest.raises(ValueError, match=r"no parameter of the base model matches h\.\*"):
        recipes.completep(base, recipes.torch_default, block="h.*")
    with pytest.raises(ValueError, match=r"matches \*c_proj\.weight"):
        recipes.completep(base, recipes.torch_default, last="*c_proj.weight")
    rule = recipes.completep(base, recipes.torch_default)
    other = Residual(16, MANY)
    other.tail = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match=r"the base model has no parameter tail\.weight"):
        Plan.from_model(other, rule)
    del other.tail, other.head
    with pytest.raises(ValueError, match=r"base model alone has parameter head\.weight"):
        Plan.from_model(other, rule)
    with pytest.raises(ValueError, match="Adam's: it has none for SGD"):
        recipes.param_groups(Residual(16, MANY), rule, lr=0.1, optimizer="sgd")
