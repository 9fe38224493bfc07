"""Fill and Plan: names to values, whatever the order, dtype, ties or file they went through."""

import math
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

from fastinit.plan import write as writing
from fastinit.plan.groups import pattern
from fastinit.plan.plan import Fill, Plan
from fastinit.recipes import torch_default
from fastinit.record.block import deferred


class Net(nn.Module):
    """Two layers with an embedding tied to the output; ``backwards`` registers them in reverse."""

    def __init__(self, *, backwards: bool = False, tied: bool = True) -> None:
        super().__init__()
        parts = {
            "embed": nn.Embedding(50, 64),
            "layers": nn.ModuleList(nn.Linear(64, 64) for _ in range(2)),
            "norm": nn.LayerNorm(64),
        }
        for name in reversed(parts) if backwards else parts:
            self.add_module(name, parts[name])
        self.head = nn.Linear(64, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("fill", "law"),
    [
        (Fill.uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
        (Fill.normal(0.5, 0.02), stats.norm(0.5, 0.02)),
        (Fill.truncated_normal(), stats.truncnorm(-2, 2)),
        (Fill.truncated_normal(1.0, 2.0, 0.0, math.inf), stats.truncnorm(-0.5, math.inf, 1.0, 2.0)),
        (Fill.truncated_normal(0.0, 1.0, 4.0, 6.0), stats.truncnorm(4, 6)),
        (Fill.truncated_normal(0.0, 1.0, -6.0, -4.0), stats.truncnorm(-6, -4)),
        (Fill.truncated_normal(0.0, 1.0, 0.5, 0.5 + 1e-6), stats.uniform(0.5, 1e-6)),
    ],
)
def test_moments_of_a_fill_are_those_of_its_law(fill: Fill, law: stats.rv_continuous) -> None:
    # Doubles; the truncated law's formula cancels about four digits 6 sigma out.
    assert fill.mean == pytest.approx(law.mean(), rel=1e-9)
    assert fill.std == pytest.approx(law.std(), rel=1e-9)


def test_scale_multiplies_values() -> None:
    fill = Fill.truncated_normal(0.1, 1.0, -2.0, math.inf).scaled(0.5).scaled(0.5)
    assert fill.scale == 0.25
    assert fill.law.parameters == {"mean": 0.025, "std": 0.25, "a": -0.5, "b": math.inf}
    assert fill != Fill.truncated_normal(0.1, 1.0, -2.0, math.inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cauchy", (0.0,)), "distribution must be one of"),
        (("normal", (0.0,)), "normal takes 2 parameters"),
        (("normal", (0.0, 1.0, 2.0)), "normal takes 2 parameters"),
        (("normal", (0.0, 1.0), 0.0), "scale must be positive"),
        (("normal", (0.0, 1.0), math.nan), "scale must be positive"),
        (("normal", (0.0, 1.0), "2"), "scale must be a number"),
    ],
)
def test_bad_fills_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fill(*arguments)


def test_bad_laws_are_refused_also_after_scaling() -> None:
    with pytest.raises(RuntimeError, match="std=-1"):
        Fill.normal(std=-1.0)
    with pytest.raises(RuntimeError, match=r"got std=9\.99.*e\+75"):
        Fill.normal(std=1e38).scaled(1e38)


def test_values_do_not_depend_on_the_order_of_construction() -> None:
    a, b = Net(), Net(backwards=True)
    for model in (a, b):
        assert Plan.from_model(model, torch_default, seed=7).apply_(model) is model
    in_order = values(a)
    assert same(in_order, {name: values(b)[name] for name in in_order})


def test_seed_and_name_make_the_values() -> None:
    model = Net()
    first = values(Plan.from_model(model, torch_default, seed=1).apply_(model))
    second = values(Plan.from_model(model, torch_default, seed=2).apply_(model))
    assert not torch.equal(first["embed.weight"], second["embed.weight"])
    assert not torch.equal(first["layers.0.weight"], first["layers.1.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_float32(dtype: torch.dtype) -> None:
    # Normal and constant fills: a uniform one also keeps below its bound in the dtype it is for.
    def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill:
        return Fill.normal(0.0, 0.02) if len(shape) > 1 else Fill.constant(0.1)

    full, half = Net(), Net().to(dtype)
    plan = Plan.from_model(full, rule, seed=3)
    rounded = {name: value.to(dtype) for name, value in values(plan.apply_(full)).items()}
    assert same(rounded, values(plan.apply_(half)))


def test_progress_reaches_the_total_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH", 3000)
    model, calls = Net(), []
    plan = Plan.from_model(model, torch_default)
    whole = values(plan.apply_(model))
    batched = plan.apply_(Net(), progress=lambda done, total: calls.append((done, total)))
    total = sum(p.numel() for p in model.parameters())
    assert same(whole, values(batched))
    assert len(calls) > 1
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_a_tied_parameter_is_planned_once_under_its_first_name() -> None:
    model = Net()
    plan = Plan.from_model(model, torch_default)
    assert "head.weight" not in list(plan)
    assert plan.aliases == {"head.weight": "embed.weight"}
    assert plan["head.weight"] is plan["embed.weight"]
    assert len(plan) == len(list(model.parameters()))
    version = model.embed.weight._version
    plan.apply_(model)
    assert model.embed.weight._version == version + 1
    assert model.head.weight is model.embed.weight


def test_a_padding_row_is_zero_also_in_json() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=3))
    plan = Plan.from_json(Plan.from_model(model, torch_default).to_json())
    weight = plan.apply_(model)[0].weight.detach()
    assert (weight == 0).all(dim=1).tolist() == [row == 3 for row in range(9)]


def test_a_rule_that_does_not_cover_a_model_is_an_error_that_lists_what() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model.register_parameter("gain", nn.Parameter(torch.ones(3)))
    model.register_parameter("shift", nn.Parameter(torch.ones(3)))
    with pytest.raises(ValueError, match=r"no Fill for parameters gain \(Sequential\), shift"):
        Plan.from_model(model, torch_default)


def test_the_config_is_the_one_given_or_the_models() -> None:
    seen = []

    def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill:
        seen.append((name, type(module), tuple(shape), config))
        return Fill.constant(0.0)

    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    Plan.from_model(model, rule)
    model.config = "the model's"
    Plan.from_model(model, rule)
    Plan.from_model(model, rule, config="given")
    called = ("0.weight", nn.Linear, (3, 2))
    assert seen == [(*called, None), (*called, "the model's"), (*called, "given")]


def test_a_rule_may_refuse_a_model_by_its_names() -> None:
    class Refusing:
        def __call__(self, *arguments: object) -> Fill:
            raise AssertionError("called before it was asked")

        def check(self, names: list[str]) -> None:
            raise ValueError(f"not for {names}")

    with pytest.raises(ValueError, match=r"not for \['0.weight', '0.bias'\]"):
        Plan.from_model(nn.Sequential(nn.Linear(2, 2)), Refusing())


def test_a_plan_that_does_not_fit_writes_nothing() -> None:
    plan = Plan.from_model(Net(), torch_default)
    untied, other = Net(tied=False), nn.Sequential(nn.Linear(2, 2))
    for model, message in (
        (untied, "tied in the plan but not in the model: embed.weight, head.weight"),
        (
            other,
            r"plan has no parameters 0.weight, 0.bias; the model has no parameters embed.weight",
        ),
    ):
        before = values(model)
        with pytest.raises(ValueError, match=message):
            plan.apply_(model)
        assert same(before, values(model))
    model = Net()
    before = values(model)
    with pytest.raises(
        ValueError, match=r"tied in the model but not in the plan: embed.weight, head"
    ):
        Plan.from_model(untied, torch_default).apply_(model)
    assert same(before, values(model))


def test_a_meta_or_unwritable_parameter_stops_everything() -> None:
    model = Net()
    plan = Plan.from_model(model, torch_default)
    before = values(model)
    model.norm.to("meta")
    with pytest.raises(ValueError, match=r"device='cpu'\): parameters norm.weight, norm.bias"):
        plan.apply_(model)
    model.norm = nn.LayerNorm(64)
    model.norm.weight = nn.Parameter(torch.ones(64, dtype=torch.int32), requires_grad=False)
    with pytest.raises(NotImplementedError, match=r"norm\.weight"):
        plan.apply_(model)
    assert torch.equal(model.embed.weight, before["embed.weight"])


def test_parameters_on_meta_get_memory_where_asked() -> None:
    plan = Plan.from_model(Net(), torch_default, seed=3)
    with deferred():
        model = Net()
    steps = []
    assert plan.apply_(model, device="cpu", progress=lambda *step: steps.append(step)) is model
    assert same(values(plan.apply_(Net())), values(model))
    assert model.head.weight is model.embed.weight
    assert steps[-1][0] == steps[-1][1]


def test_a_model_on_meta_stays_there_if_it_cannot_be_written() -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with deferred():
        model = Net()
    plan = Plan.from_model(model, torch_default)
    with pytest.raises(ValueError, match="device must be one that holds values"):
        plan.apply_(model, device="meta")
    with pytest.raises(
        ZeroDivisionError
    ):  # when all is written, and the model does not have it yet
        plan.apply_(model, device="cpu", progress=fail)
    model.register_buffer("table", torch.empty(2, device="meta"))
    with pytest.raises(ValueError, match="cannot write buffer table on meta"):
        plan.apply_(model, device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_plan_from_json_writes_the_same_bits() -> None:
    model = Net()
    plan = Plan.from_model(model, torch_default, seed=2**64 - 1)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert list(again.items()) == list(plan.items())
    assert again.aliases == plan.aliases
    assert same(values(plan.apply_(model)), values(again.apply_(Net())))


def test_json_is_exact_for_any_float_and_small_for_deep_models() -> None:
    odd = {
        "a": Fill.truncated_normal(0.1, 1 / 3, -math.inf, math.inf),
        "b": Fill.constant(-0.0),
        "c": Fill.constant(math.nan),
        "d": Fill.normal(0.0, 5e-324).scaled(1.1),
    }
    again = Plan.from_json(Plan(odd).to_json())
    assert again == Plan(odd)
    assert not again.diff(Plan(odd))

    deep = Plan({f"h.{i}.{part}": Fill.normal() for i in range(200) for part in ("w", "b")})
    assert len(deep.to_json()) < 500
    one_differs = Plan({**deep, "h.7.w": Fill.normal().scaled(0.3)})
    for plan in (deep, one_differs, Plan({"h.1.w": Fill.normal(), "h.0.w": Fill.normal()})):
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert list(again) == list(plan)


def test_nan_is_a_constant_like_others() -> None:
    """It gives the same bits, so it is equal, wherever it was made."""
    plan = Plan({f"h.{i}.w": Fill.constant(float("nan")) for i in range(3)})
    assert len(plan.groups()) == 1
    for other in (Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan))):
        assert other == plan
        assert not plan.diff(other)
        assert len(Plan({"h.0.w": plan["h.0.w"], "h.1.w": other["h.1.w"]}).groups()) == 1


def test_save_and_load(tmp_path) -> None:
    plan = Plan({"w": Fill.normal()}, seed=5)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan({"w": Fill.normal()}, seed=6) != plan
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: not a plan: not JSON"):
        Plan.load(tmp_path / "bad.json")


def test_table_groups_layers_and_fits_a_terminal() -> None:
    model = Net()
    plan = Plan.from_model(model, torch_default)
    for table in (plan.table(), plan.table(model)):
        assert max(map(len, table.splitlines())) <= 80
        line = next(line for line in table.splitlines() if line.startswith("layers.*.weight"))
        assert " 2 " in line
        assert line.endswith(f"{1 / math.sqrt(64) / math.sqrt(3):.4g}")
    assert "8192" in line
    assert pattern("a.0.b.12.c1.3") == "a.*.b.*.c1.*"
