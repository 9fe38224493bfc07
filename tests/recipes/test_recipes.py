"""Recipes: which rule a parameter gets, the numbers of known models, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from fastinit import recipes
from fastinit.plan.plan import Fill, Plan
from fastinit.recipes.rules import needs

ZERO, ONE = Fill.constant(0.0), Fill.constant(1.0)


@pytest.mark.parametrize("of", [dict, lambda **fields: Config(**fields)])
def test_an_initializer_range_of_0_is_none_in_every_kind_of_config(of: Callable[..., Any]) -> None:
    """As PreTrainedModel._init_weights reads it."""
    plan = Plan.from_model(nn.Linear(2, 2), recipes.llama, config=of(initializer_range=0.0))
    assert plan["weight"] == Fill.normal(0.0, 0.02)


@dataclass
class Config:
    """As of a model that is not transformers'."""

    n_layer: int = 8
    initializer_range: float = 0.02


class Block(nn.Module):
    """A block of nanoGPT's shape and names."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size)
        self.c_attn = nn.Linear(size, 3 * size)
        self.c_proj = nn.Linear(size, size)


def test_gpt2_scales_residuals_by_depth_in_any_model() -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(9, 16), "h": nn.ModuleList([Block(16)])})
    for config in (Config(), {"n_layer": 8}):
        plan = Plan.from_model(model, recipes.gpt2, config=config)
        assert plan["wte.weight"] == plan["h.0.c_attn.weight"] == Fill.normal(0.0, 0.02)
        assert plan["h.0.c_proj.weight"].std == pytest.approx(0.02 / 4)
        assert plan["h.0.c_proj.bias"] == ZERO
        assert plan["h.0.ln_1.weight"] == ONE
    model.config = Config(n_layer=32)
    assert Plan.from_model(model, recipes.gpt2)["h.0.c_proj.weight"].std == pytest.approx(0.02 / 8)
    with pytest.raises(ValueError, match="config with n_layer or num_hidden_layers, but got dict"):
        Plan.from_model(model, recipes.gpt2, config={"layers": 8})
    with pytest.raises(ValueError, match=r"no parameter matches \*c_proj\.weight"):
        Plan.from_model(nn.Linear(2, 2), recipes.gpt2, config=Config())


class LayerScale(nn.Module):
    def __init__(self, size: int, init_values: float) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.empty(size))


class ViT(nn.Module):
    """timm's VisionTransformer by the names and shapes of its parameters."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.reg_token = nn.Parameter(torch.empty(1, 4, size))
        self.pos_embed = nn.Parameter(torch.empty(1, 5, size))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size, 4, 4)})
        block = {
            "norm1": nn.LayerNorm(size),
            "attn": nn.ModuleDict(
                {"qkv": nn.Linear(size, 3 * size), "proj": nn.Linear(size, size)}
            ),
            "ls1": LayerScale(size, 1e-5),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(size, 4 * size)}),
        }
        self.blocks = nn.Sequential(nn.ModuleDict(block))
        self.head = nn.Linear(size, 10)


def test_vit_has_timms_numbers() -> None:
    model, size = ViT(), 24
    trunc = Fill.truncated_normal(0.0, 0.02, -2.0, 2.0)
    plan, jax, moco = (
        Plan.from_model(model, rule) for rule in (recipes.vit, recipes.vit_jax, recipes.vit_moco)
    )
    for each in (plan, jax, moco):
        assert each["pos_embed"] == trunc
        assert each["cls_token"] == each["reg_token"] == Fill.normal(0.0, 1e-6)
        assert each["blocks.0.ls1.gamma"] == Fill.constant(1e-5)
        assert each["blocks.0.norm1.weight"] == ONE
        assert each["blocks.0.attn.proj.bias"] == ZERO
    patch = 3 * 4 * 4
    assert plan["head.weight"] == plan["blocks.0.attn.qkv.weight"] == trunc
    assert plan["blocks.0.mlp.fc1.bias"] == ZERO
    torchs = (1 / math.sqrt(patch)) / math.sqrt(3)
    assert plan["patch_embed.proj.weight"].std == pytest.approx(torchs)
    assert plan["patch_embed.proj.bias"].std == pytest.approx(torchs)

    assert jax["head.weight"] == jax["head.bias"] == jax["patch_embed.proj.bias"] == ZERO
    assert jax["blocks.0.mlp.fc1.bias"] == Fill.normal(0.0, 1e-6)
    assert jax["blocks.0.attn.qkv.weight"].std == pytest.approx(math.sqrt(2 / (4 * size)))
    lecun = jax["patch_embed.proj.weight"]
    assert lecun.distribution == "truncated_normal"
    assert lecun.std == pytest.approx(1 / math.sqrt(patch))

    qkv = moco["blocks.0.attn.qkv.weight"]
    assert qkv.distribution == "uniform"
    assert qkv.std == pytest.approx(math.sqrt(2 / (2 * size)))
    assert moco["blocks.0.mlp.fc1.bias"] == ZERO


def test_by_name_gives_the_first_match() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def by_fan(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill:
        return Fill.normal(0.0, config["gain"] / math.sqrt(shape[1]))

    rule = recipes.by_name({"*.bias": ZERO, ("1.*", "norm.*"): ONE, "*.weight": by_fan})
    plan = Plan.from_model(model, rule, config={"gain": 3.0})
    assert dict(plan) == {
        "0.weight": Fill.normal(0.0, 1.5),
        "0.bias": ZERO,
        "1.weight": ONE,
        "1.bias": ZERO,
    }


@pytest.mark.parametrize(
    ("fills", "message"),
    [
        ({"*": ZERO, "9.*": ONE}, r"matches pattern 9\.\* \(after earlier patterns\)$"),
        ({"*.weigth": ZERO, "2.*": ONE, "*": ONE}, r"matches patterns \*\.weigth, 2\.\*$"),
        ({("*.gain", "*.scale"): ONE, "*": ZERO}, r"matches pattern \*\.gain or \*\.scale$"),
        ({"*.weight": ONE}, r"no Fill for parameters 0\.bias \(Linear\), 9\.bias \(LayerNorm\)"),
        ({"*": recipes.by_name({"*": ONE, "8.*": ZERO})}, r"pattern 8\.\*"),
    ],
)
def test_a_pattern_or_a_parameter_without_its_match_is_an_error(
    fills: dict[Any, Any], message: str
) -> None:
    model = nn.ModuleDict({"0": nn.Linear(4, 4), "9": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match=message):
        Plan.from_model(model, recipes.by_name(fills))


def test_first_of_falls_back_and_checks_every_rule() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    rule = recipes.first_of(recipes.by_name({"0.weight": Fill.eye()}), recipes.torch_default)
    plan = Plan.from_model(model, rule)
    assert plan["0.weight"] == Fill.eye()
    assert plan["1.weight"] == ONE
    nowhere = recipes.by_name({"7.weight": ONE})
    with pytest.raises(ValueError, match=r"pattern 7\.weight"):
        Plan.from_model(model, recipes.first_of(recipes.torch_default, rule, nowhere))


def test_needs_checks_beside_the_rule_that_it_decorates() -> None:
    rule = needs("*.gain")(recipes.by_name({"*weight": ONE, "*bias": ZERO}))
    for model, missing in (
        (nn.Linear(2, 2), r"\*\.gain"),
        (nn.Linear(2, 2, bias=False), r"\*bias"),
    ):
        with pytest.raises(ValueError, match=missing):
            Plan.from_model(model, rule)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_has_a_name_and_a_source(name: str) -> None:
    made = getattr(recipes, name)
    assert "Source:" in made.__doc__
    assert callable(recipes.NAMES[name])
