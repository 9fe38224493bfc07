"""Parts in plans: a stage, experts, buffers and what is computed, written, recorded and refused."""

import itertools

import pytest
import torch
from test_part import CUTS, taken
from torch import nn

import fastinit
from fastinit import Fill, Part, Plan, materialize_, recorded_plan


class Net(nn.Module):
    """Layers as one process has them."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 12) for _ in range(layers))
        self.register_buffer("table", torch.arange(8.0))


class Stage(nn.Module):
    """Layers 2 and 3 as one of two tensor-parallel ranks of the second pipeline stage has them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 6) for _ in range(2))


def stage_parts(rank: int) -> dict[str, Part]:
    return {
        f"layers.{i}.{name}": Part(shape, name=f"layers.{i + 2}.{name}").chunk(0, 2, rank)
        for i, (name, shape) in itertools.product(range(2), (("weight", (12, 8)), ("bias", (12,))))
    }


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["map", "function", "meta"])
def test_a_plan_writes_a_stage(rank: int, how: str) -> None:
    with fastinit.deferred(seed=4):
        net = Net()
    plan = recorded_plan(net)
    materialize_(net)
    stage, parts = Stage(), stage_parts(rank)
    if how == "meta":
        stage.to("meta")
    given = (lambda name, _: parts[name]) if how == "function" else parts
    plan.apply_(stage, parts=given, device="cpu")
    for i, layer in enumerate(stage.layers):
        whole = net.layers[i + 2]
        assert torch.equal(layer.weight, whole.weight.chunk(2)[rank])
        assert torch.equal(layer.bias, whole.bias.chunk(2)[rank])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_is_recorded_and_written(rank: int) -> None:
    """By the law of its own constructor, which asks for the same std: fan_in is not cut."""
    with fastinit.deferred(seed=4):
        net, stage = Net(), Stage()
    parts = stage_parts(rank)
    plan = recorded_plan(stage, parts=parts)
    assert set(plan) == {f"layers.{i}.{n}" for i in (2, 3) for n in ("weight", "bias")}
    again = plan.apply_(Stage(), parts=parts)
    materialize_(net), materialize_(stage, parts=parts)
    for i, layer in enumerate(stage.layers):
        whole = net.layers[i + 2]
        assert torch.equal(layer.weight, whole.weight.chunk(2)[rank])
        assert torch.equal(layer.bias, whole.bias.chunk(2)[rank])
        assert torch.equal(again.layers[i].weight, layer.weight)


def test_a_rule_is_asked_with_full_names_and_shapes() -> None:
    seen: dict[str, torch.Size] = {}

    def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill:
        seen[name] = shape
        return Fill.normal(std=0.02)

    parts = stage_parts(1)
    plan = Plan.from_model(Stage(), rule, seed=1, parts=parts)
    assert seen == {part.name: torch.Size(part.shape) for part in parts.values()}
    assert set(plan) == set(seen)


def test_experts_of_one_parameter() -> None:
    plan = Plan({"experts": Fill.orthogonal(), "bias": Fill.uniform(-1.0, 1.0)}, seed=2)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.bias = (
                nn.Parameter(torch.empty(4, 3, 2)),
                nn.Parameter(torch.empty(4)),
            )

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.empty(3, 2)), nn.Parameter(torch.empty(3, 2))
            self.c = nn.Parameter(torch.empty(1))

    whole = plan.apply_(Whole())
    experts = Part((4, 3, 2), name="experts")
    parts = {
        "a": experts.select(0, 3),
        "b": experts.select(0, 1),
        "c": Part((4,), name="bias").select(0, 3),
    }
    local = plan.apply_(Local(), parts=parts)
    assert torch.equal(local.a, whole.experts[3])
    assert torch.equal(local.b, whole.experts[1])
    assert torch.equal(local.c, whole.bias[3:])


def test_parts_of_fused_fills_and_computed_values() -> None:
    """Regions of a Fill, with streams of their own, and what a constructor computed."""
    with fastinit.deferred(seed=5):
        net = nn.Module()
        net.qkv = nn.Parameter(torch.empty(12, 8))
        for i, rows in enumerate(net.qkv.detach().chunk(3)):
            nn.init.normal_(rows, std=0.1 * (i + 1))
        net.mixed = nn.Parameter(torch.randn(6, 4) @ torch.randn(4, 6))
    plan = recorded_plan(net)
    materialize_(net)
    for cut in (c for c in CUTS.values() if c((12, 8)).numel):
        local = nn.Module()
        parts = {"qkv": cut((12, 8)), "mixed": Part((6, 6), flat=(5, 9))}
        local.qkv = nn.Parameter(torch.empty(parts["qkv"].local_shape))
        local.mixed = nn.Parameter(torch.empty(9))
        plan.apply_(local, parts=parts)
        assert torch.equal(local.qkv, taken(net.qkv.detach(), parts["qkv"]))
        assert torch.equal(local.mixed, net.mixed.detach().flatten()[5:14])


def test_buffers_are_parts_too() -> None:
    with fastinit.deferred(seed=0):
        net = Net(0)
    plan = recorded_plan(net)
    local = nn.Module()
    local.register_buffer("its_half", torch.empty(4, device="meta"))
    local.embed = nn.Parameter(torch.empty(5, 8))
    parts = {
        "its_half": Part((8,), name="table").chunk(0, 2, 1),
        "embed": Part((10, 8), name="embed.weight").chunk(0, 2, 1),
    }
    plan.apply_(local, parts=parts, device="cpu")
    assert local.its_half.tolist() == [4.0, 5.0, 6.0, 7.0]
    local.its_half.zero_()
    with pytest.raises(ValueError, match="table: other values"):
        plan.apply_(local, parts=parts)


@pytest.mark.parametrize(
    ("parts", "error", "said"),
    [
        ({"layers.9.weight": Part((12, 8))}, ValueError, r"layers\.9\.weight that the model lacks"),
        ({"layers.0.weight": (12, 8)}, TypeError, "must be a fastinit.Part"),
        (3, TypeError, "parts must be a map"),
        (
            {"layers.0.weight": Part((12, 8), name="other")},
            ValueError,
            "the plan has no parameter other",
        ),
        ({"layers.0.weight": Part((13, 8), name="layers.2.weight")}, ValueError, r"shape \(6, 8\)"),
    ],
)
def test_parts_that_do_not_fit(parts: object, error: type[Exception], said: str) -> None:
    plan = Plan({f"layers.{i}.{n}": Fill.normal() for i in range(4) for n in ("weight", "bias")})
    stage = Stage()
    before = [p.detach().clone() for p in stage.parameters()]
    with pytest.raises(error, match=said):
        plan.apply_(stage, parts=parts)  # type: ignore[arg-type]
    assert all(map(torch.equal, before, stage.parameters()))


ROWS = Part((8, 4), name="w").chunk(0, 2, 1)


@pytest.mark.parametrize(
    ("other", "shape"),
    [
        (Part((16, 4), name="w").chunk(0, 4, 0), (4, 4)),
        (Part((4, 8), name="w").chunk(1, 2, 0), (4, 4)),
        (Part((4, 4), name="w"), (4, 4)),  # whole
        (None, (4, 4)),  # whole, of its own name
        (Part((32,), name="w", flat=(0, 16)), (16,)),
        (Part((8, 4, 1), name="w").cut(0, []), (0, 4)),  # nothing of it
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_parameter_has_one_shape(first: bool, other: Part | None, shape: tuple[int, ...]) -> None:
    """Whoever is told parts of a parameter by one name, and of two shapes, writes nothing."""

    def build(where: str = "cpu") -> nn.Module:
        model = nn.Module()
        names = (("a", (4, 4)), ("w", shape))
        for name, size in names if first else reversed(names):
            model.register_parameter(name, nn.Parameter(torch.full(size, 7.0, device=where)))
        return model

    def rule(*_: object) -> Fill:
        return Fill.normal()

    parts = {"a": ROWS} | ({} if other is None else {"w": other})
    plan, model = Plan({"w": Fill.normal()}), build()
    with fastinit.deferred(seed=0):
        recorded = build()
    for call in (
        lambda: plan.apply_(model, parts=parts),
        lambda: plan.apply_(model, parts=lambda name, _: parts.get(name)),
        lambda: Plan.from_model(model, rule, parts=parts),
        lambda: recorded_plan(recorded, parts=parts),
        lambda: materialize_(recorded, parts=parts),
        lambda: fastinit.checkpoint.layout(model, parts=parts),
        lambda: fastinit.checkpoint.layout(model, plan, parts=parts),
    ):
        with pytest.raises(ValueError, match="parts of w are of several shapes"):
            call()
    assert all((p == 7).all() for p in model.parameters())
    assert all(p.is_meta for p in recorded.parameters())


def test_a_part_drawn_by_two_laws_is_refused() -> None:
    with fastinit.deferred(seed=0):
        embed = nn.Embedding(6, 4, padding_idx=0)
    part = Part((12, 4), name="embed.weight").chunk(0, 2, 0)
    with pytest.raises(ValueError, match=r"one law alone: parameter embed\.weight \(weight\)"):
        materialize_(embed, parts={"weight": part})
    with pytest.raises(ValueError, match="one law alone"):
        recorded_plan(embed, parts={"weight": part})
    assert embed.weight.is_meta
