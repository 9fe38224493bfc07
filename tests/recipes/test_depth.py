"""Recipes for deep nets: Fixup, DeepNorm, T-Fixup, zeroed branches, and what keeps norms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastinit import recipes
from fastinit.plan.plan import Fill, Plan

ZERO, ONE = Fill.constant(0.0), Fill.constant(1.0)


def test_a_deep_orthogonal_net_keeps_norms() -> None:
    """100 layers, each an isometry up to float32's rounding."""
    net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(100)))
    Plan.from_model(net, recipes.orthogonal()).apply_(net)
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(x).norm(dim=1), x.norm(dim=1), rtol=1e-4)
    relu = Plan.from_model(net, recipes.orthogonal("relu"))
    assert relu["3.weight"] == Fill.orthogonal(math.sqrt(2))
    assert relu["3.bias"] == ZERO
    rnn = Plan.from_model(nn.ModuleList([nn.RNN(4, 4), nn.LSTM(4, 4)]), recipes.orthogonal())
    assert rnn["0.weight_hh_l0"] == Fill.orthogonal(1.0)
    assert rnn["1.weight_hh_l0"] == Fill.uniform(-0.5, 0.5)


def test_a_deep_delta_orthogonal_net_keeps_norms_of_pixels() -> None:
    layers = [nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(60))]
    net = nn.Sequential(*layers)
    Plan.from_model(net, recipes.delta_orthogonal()).apply_(net)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(x).norm(dim=1), x.norm(dim=1), rtol=1e-4)
    for bad in (nn.Conv2d(8, 4, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(4, 4, 3)):
        with pytest.raises(ValueError, match=r"no Fill for parameter 0\.weight"):
            Plan.from_model(nn.Sequential(bad), recipes.delta_orthogonal())


class FixupBlock(nn.Module):
    """FixupBasicBlock of hongyi-zhang/Fixup, or its bottleneck without ReLU between 1x1 convolutions."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for i in range(1, layers + 1):
            setattr(self, f"bias{i}a", nn.Parameter(torch.empty(1)))
            setattr(self, f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            setattr(self, f"bias{i}b", nn.Parameter(torch.empty(1)))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for i in range(1, self.layers + 1):
            out = getattr(self, f"conv{i}")(out + getattr(self, f"bias{i}a"))
            if i < self.layers:
                out = F.relu(out + getattr(self, f"bias{i}b"))
        return F.relu(x + out * self.scale + getattr(self, f"bias{self.layers}b"))


class FixupNet(nn.Module):
    def __init__(self, blocks: int, layers: int, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bias1 = nn.Parameter(torch.empty(1))
        self.layer1 = nn.Sequential(*(FixupBlock(channels, layers) for _ in range(blocks)))
        self.bias2 = nn.Parameter(torch.empty(1))
        self.fc = nn.Linear(channels, 10)


@pytest.mark.parametrize("layers", [2, 3])
def test_fixup_scales_branches_and_ends_them_with_zero(layers: int) -> None:
    net = FixupNet(16, layers)
    plan = Plan.from_model(net, recipes.fixup(16, layers))
    plan.apply_(net)
    he = math.sqrt(2 / (8 * 9))
    assert plan["conv1.weight"].std == pytest.approx(he)
    for i in range(1, layers):
        std = plan[f"layer1.3.conv{i}.weight"].std
        assert std == pytest.approx(he * 16 ** -(1 / (2 * layers - 2)))
    assert plan[f"layer1.3.conv{layers}.weight"] == ZERO
    assert plan["fc.weight"] == plan["fc.bias"] == plan["bias1"] == plan["layer1.0.bias1a"] == ZERO
    assert plan["layer1.0.scale"] == ONE
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(net.layer1(x), x)
    assert Plan.from_model(net, recipes.fixup(None, layers), config={"branches": 16}) == plan


def test_fixup_leaves_downsampling_unscaled() -> None:
    """FixupResNet of hongyi-zhang/Fixup: ``downsample`` sqrt(2 / fan_out), ``conv1`` times L^-1/2."""
    block = {"conv1": nn.Conv2d(8, 16, 3), "conv2": nn.Conv2d(16, 16, 3)}
    block["downsample"] = nn.Conv2d(8, 16, 1)
    net = nn.ModuleDict({"layer1": nn.ModuleDict(block), "fc": nn.Linear(16, 4)})
    plan = Plan.from_model(net, recipes.fixup(25))
    assert plan["layer1.downsample.weight"].std == pytest.approx(math.sqrt(2 / 16))
    assert plan["layer1.conv1.weight"].std == pytest.approx(math.sqrt(2 / (16 * 9)) / 5)


def test_fixup_refuses_what_it_is_not_made_for() -> None:
    with pytest.raises(ValueError, match="at least 2, but got 1"):
        recipes.fixup(16, 1)
    with pytest.raises(ValueError, match=r"is 2, but parameters match \*layer\*\.conv3\.weight"):
        Plan.from_model(FixupNet(2, 3), recipes.fixup(2))
    with pytest.raises(ValueError, match=r"pattern \*layer\*\.conv3\.weight"):
        Plan.from_model(FixupNet(2, 2), recipes.fixup(2, 3))
    net = FixupNet(2, 2)
    net.norm = nn.BatchNorm2d(8)
    with pytest.raises(ValueError, match=r"no Fill for parameters norm\.weight \(BatchNorm2d\)"):
        Plan.from_model(net, recipes.fixup(2))


def test_deepnorm_has_the_papers_constants() -> None:
    """Figure 2 of arXiv 2203.00555."""
    n, m = 18, 6
    assert recipes.deepnorm_constants(n, 0, decoder=False) == ((2 * n) ** 0.25, (8 * n) ** -0.25)
    assert recipes.deepnorm_constants(0, m, decoder=True) == ((2 * m) ** 0.25, (8 * m) ** -0.25)
    sixteenth = (n**4 * m) ** (1 / 16)
    encoder = recipes.deepnorm_constants(n, m, decoder=False)
    assert encoder == pytest.approx((0.81 * sixteenth, 0.87 / sixteenth))
    decoder = recipes.deepnorm_constants(n, m, decoder=True)
    assert decoder == pytest.approx(((3 * m) ** 0.25, (12 * m) ** -0.25))


def test_deepnorm_scales_values_outputs_and_feed_forward_only() -> None:
    model = nn.Transformer(16, 2, 2, 3, 32)
    plan = Plan.from_model(model, recipes.deepnorm(2, 3))
    sides = {
        "encoder": recipes.deepnorm_constants(2, 3, decoder=False).beta,
        "decoder": recipes.deepnorm_constants(2, 3, decoder=True).beta,
    }
    square = math.sqrt(2 / (16 + 16))
    for side, beta in sides.items():
        layer = f"{side}.layers.1."
        assert plan[layer + "linear1.weight"].std == pytest.approx(beta * math.sqrt(2 / 48))
        assert plan[layer + "linear2.weight"].std == pytest.approx(beta * math.sqrt(2 / 48))
        assert plan[layer + "self_attn.out_proj.weight"].std == pytest.approx(beta * square)
        joint = plan[layer + "self_attn.in_proj_weight"]
        assert joint.std == pytest.approx(square)
        ((region, v, _),) = joint.parts
        assert (region.offset, region.numel) == (2 * 16 * 16, 16 * 16)
        assert v.std == pytest.approx(beta * square)
        assert plan[layer + "self_attn.in_proj_bias"] == plan[layer + "linear1.bias"] == ZERO
        assert plan[layer + "norm1.weight"] == ONE
    fairseq = {"encoder_layers": 2, "decoder_layers": 3}
    assert Plan.from_model(model, recipes.deepnorm(), config=fairseq) == plan


def test_deepnorm_of_one_stack_and_its_refusals() -> None:
    parts = {name: nn.Linear(16, 16) for name in ("q_proj", "v_proj", "out_proj", "fc1")}
    model = nn.ModuleDict({"embed": nn.Embedding(9, 16, padding_idx=0), **parts})
    plan = Plan.from_model(model, recipes.deepnorm(), config={"num_hidden_layers": 2})
    beta, square = 16**-0.25, math.sqrt(2 / 32)
    assert plan["q_proj.weight"].std == pytest.approx(square)
    for name in ("v_proj", "out_proj", "fc1"):
        assert plan[f"{name}.weight"].std == pytest.approx(beta * square)
    plan.apply_(model)
    assert (model["embed"].weight[0] == 0).all()
    assert model["embed"].weight[1:].std().item() == pytest.approx(16**-0.5, rel=0.2)
    with pytest.raises(ValueError, match="config with encoder_layers or"):
        Plan.from_model(model, recipes.deepnorm())
    with pytest.raises(ValueError, match="needs a number of layers"):
        Plan.from_model(model, recipes.deepnorm(0, 0))
    with pytest.raises(ValueError, match=r"matches \*fc1\.weight or"):
        Plan.from_model(nn.Linear(2, 2), recipes.deepnorm(2))


def test_t_fixup_has_the_papers_factors() -> None:
    parts = {"encoder": nn.TransformerEncoderLayer(16, 2, 32)}
    parts["decoder"] = nn.TransformerDecoderLayer(16, 2, 32)
    model = nn.ModuleDict({"embed": nn.Embedding(9, 16), **parts})
    plan = Plan.from_model(model, recipes.t_fixup(6, 6))
    encoder, decoder = 0.67 * 6**-0.25, (9 * 6) ** -0.25
    square, tall = math.sqrt(2 / 32), math.sqrt(2 / 48)
    for side, factor in (("encoder", encoder), ("decoder", decoder)):
        assert plan[f"{side}.linear1.weight"].std == pytest.approx(factor * tall)
        assert plan[f"{side}.linear1.weight"].distribution == "uniform"
        joint = plan[f"{side}.self_attn.in_proj_weight"]
        assert joint.std == pytest.approx(square)
        assert joint.parts[0].fill.std == pytest.approx(factor * square)
    assert plan["decoder.multihead_attn.out_proj.weight"].std == pytest.approx(decoder * square)
    assert plan["embed.weight"] == Fill.normal(0.0, decoder * 16**-0.5)


def test_t_fixup_scales_an_embedding_by_its_own_side() -> None:
    """models/transformer.py of layer6ai-labs/T-Fixup; it scales a shared one by the encoder's layers."""
    sides = {side: nn.ModuleDict({"embed": nn.Embedding(9, 16)}) for side in ("encoder", "decoder")}
    model = nn.ModuleDict({"shared": nn.Embedding(9, 16), "fc1": nn.Linear(16, 16), **sides})
    plan = Plan.from_model(model, recipes.t_fixup(4, 6))
    for name, layers in (("shared", 4), ("encoder.embed", 4), ("decoder.embed", 6)):
        assert plan[f"{name}.weight"].std == pytest.approx((9 * layers) ** -0.25 * 16**-0.5)


class Residual(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.linear = nn.Linear(8, 8)
        self.register_parameter(name, nn.Parameter(torch.empty(())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + getattr(self, self.name) * F.relu(self.linear(x))


@pytest.mark.parametrize(
    ("rule", "name"), [(recipes.rezero(), "resweight"), (recipes.skipinit(), "skipinit_gain")]
)
def test_a_net_with_zeroed_branches_is_the_identity(rule: recipes.Rule, name: str) -> None:
    net = nn.Sequential(*(Residual(name) for _ in range(5)))
    plan = Plan.from_model(net, rule)
    plan.apply_(net)
    x = torch.randn(3, 8)
    assert torch.equal(net(x), x)
    assert (
        plan["2.linear.weight"] == Plan.from_model(net[2].linear, recipes.torch_default)["weight"]
    )
    with pytest.raises(ValueError, match=f"pattern .{name}"):
        Plan.from_model(nn.Linear(2, 2), rule)
    scaled = recipes.skipinit(alphas=f"*{name}", value=5**-0.5)
    assert Plan.from_model(net, scaled)[f"0.{name}"] == Fill.constant(5**-0.5)
