"""Fills in float64: in plans and their JSON, with steps, in checkpoints and recorded models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dtensors import distributed
from ranks import on_ranks
from safetensors.torch import load_file
from torch import nn

import fastinit
from fastinit import Fill, Part, Plan, checkpoint, init
from fastinit.stream import functions

FILLS = {
    "uniform": Fill.uniform(-1.0, 1.0, exact=True),
    "normal": Fill.normal(std=0.02, exact=True),
    "truncated": Fill.truncated_normal(exact=True).scaled(0.3),
    "constant": Fill.constant(0.1, exact=True),
    "steps": Fill.normal(exact=True).then("exp").scaled(0.3),
    "float32": Fill.normal(),
    "part": Fill.normal().with_part(
        torch.empty(8, 6, device="meta")[2:5], Fill.uniform(exact=True).then("log1p")
    ),
}
PLAN = Plan(FILLS, seed=9)


def model(dtype: torch.dtype = torch.float64) -> nn.ParameterDict:
    return nn.ParameterDict({n: nn.Parameter(torch.full((8, 6), 7.0, dtype=dtype)) for n in FILLS})


def test_values() -> None:
    made = PLAN.apply_(model())
    alone = init.normal_(
        torch.empty(8, 6, dtype=torch.float64), 0.0, 0.02, seed=9, name="normal", exact=True
    )
    assert torch.equal(made["normal"].detach(), alone)
    assert made["constant"].unique().tolist() == [0.1]
    drawn = init.normal_(torch.empty(8, 6, dtype=torch.float64), seed=9, name="steps", exact=True)
    assert torch.equal(made["steps"].detach(), functions.exp(drawn) * 0.3)
    for name in ("float32", "part"):
        first = made[name].detach()[:2]
        assert torch.equal(first, first.float().double())
    part = made["part"].detach()[2:5]
    assert not torch.equal(part, part.float().double())


def test_json() -> None:
    again = Plan.from_json(PLAN.to_json())
    assert again == PLAN
    assert again["normal"].exact
    assert PLAN.diff(
        Plan({n: f for n, f in FILLS.items() if n != "normal"} | {"normal": Fill.normal(std=0.02)})
    )
    assert '"exact": true' in PLAN.to_json()
    with pytest.raises(ValueError, match="exact must be true or false"):
        Plan.from_json(PLAN.to_json().replace('"exact": true', '"exact": 1'))


def test_what_is_made_of_one_is_one() -> None:
    fill = Fill.normal(exact=True)
    for made in (fill.scaled(2.0), fill.then("exp"), fill.affine(-2.0, 1.0), fill.affine(0.0, 0.1)):
        assert made is not None
        assert made.exact
        assert made.drawn.exact
    assert Fill.constant(0.1, exact=True).then("mul", 3.0).law.p0 == 0.1 * 3.0
    assert "float64" in str(fill)
    assert eval(repr(fill)) == fill
    with pytest.raises(ValueError, match="exact is of uniform"):
        Fill("orthogonal", (1.0,), exact=True)
    with pytest.raises(TypeError, match="exact must be a bool"):
        Fill.normal(exact=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in FILLS if name != "float32"])
def test_parameters_of_other_dtypes_are_named_and_nothing_is_written(name: str) -> None:
    plan = Plan({"float32": FILLS["float32"], name: FILLS[name]})
    made = nn.ParameterDict({n: nn.Parameter(torch.full((8, 6), 7.0)) for n in plan})
    with pytest.raises(ValueError, match=f"{name} is torch.float32"):
        plan.apply_(made)
    assert made["float32"].unique().tolist() == [7.0]
    meta = nn.ParameterDict({n: nn.Parameter(p.detach().to("meta")) for n, p in model().items()})
    with pytest.raises(ValueError, match=r"is torch\.bfloat16"):
        PLAN.apply_(meta, device="cpu", dtype=torch.bfloat16)


def test_checkpoints_and_recorded_models(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 6, dtype=torch.float64))
            init.xavier_normal_(self.weight, exact=True)
            self.other = nn.Parameter(self.weight * 3.0)

    def recorded() -> nn.Module:
        with fastinit.deferred(seed=4):
            return Net()

    assert fastinit.recorded_plan(recorded())["weight"].exact
    made = fastinit.materialize_(recorded())
    alone = init.xavier_normal_(
        torch.empty(8, 6, dtype=torch.float64), seed=4, name="weight", exact=True
    )
    assert torch.equal(made.weight.detach(), alone)
    assert torch.equal(made.other.detach(), alone * 3.0)
    checkpoint.write(recorded(), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert torch.equal(load_file(file)["weight"], alone)
    model = recorded()
    with pytest.raises(ValueError, match=r"is torch\.float32"):
        fastinit.materialize_(model, dtype=torch.float32)
    assert model.weight.is_meta
    masters = fastinit.master_(
        {"weight": torch.empty(8, 6, dtype=torch.float64)}, fastinit.recorded_plan(model)
    )
    assert torch.equal(masters["weight"], alone)


@on_ranks(2)
def test_parts_of_dtensors_and_plain_ones() -> None:
    """Rows and columns of which blocks of the stream are cut: those of the whole, to the last bit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    mesh, rank = init_device_mesh("cpu", (2,)), torch.distributed.get_rank()
    whole = {name: parameter.detach() for name, parameter in PLAN.apply_(model()).items()}
    for dim in (0, 1):
        cut, plain, parts = model(), model(), {}
        for name, parameter in cut.items():
            held = distributed(parameter.detach(), mesh, [Shard(dim)])
            cut[name] = nn.Parameter(held)
            parts[name] = Part((8, 6)).chunk(dim, 2, rank)
            plain[name] = nn.Parameter(torch.empty(parts[name].local_shape, dtype=torch.float64))
        PLAN.apply_(cut)
        PLAN.apply_(plain, parts=parts)
        for name, value in whole.items():
            want = value.chunk(2, dim)[rank]
            assert cut[name].detach().to_local().equal(want), (name, dim)
            assert plain[name].detach().equal(want), (name, dim)
        one = init.normal_(cut["normal"], 0.0, 0.02, seed=9, name="normal", exact=True)
        assert one.detach().to_local().equal(whole["normal"].chunk(2, dim)[rank])


CONSTANTS = (0.1, -1.0 / 3.0, 1e300, 2.0**-149 / 3.0, 3.0, 0.0, float("inf"))
DTYPES = (torch.float64, torch.complex128, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    """As torch fills with it, unlike what is drawn, which is of float32 in all dtypes."""
    for value in CONSTANTS:
        if abs(value) > torch.finfo(dtype).max and value != float("inf"):
            continue  # torch refuses it
        wanted = torch.full((3, 5), value, dtype=dtype)
        parts = Fill.normal().with_part(torch.empty(3, 5, device="meta")[:], Fill.constant(value))
        for fill in (Fill.constant(value), parts):
            made = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, 5, dtype=dtype))})
            assert torch.equal(Plan({"w": fill}).apply_(made)["w"].detach(), wanted)


RECORDED = {
    "data": lambda v, w: setattr(w, "data", torch.full((3,), v, dtype=torch.float64)),
    "constant_": lambda v, w: nn.init.constant_(w, v),
    "fill_": lambda v, w: w.data.fill_(v),
    "copy_": lambda v, w: w.data.copy_(torch.tensor(v, dtype=torch.float64)),
    "part": lambda v, w: nn.init.constant_(nn.init.ones_(w)[:2], v),
    "times": lambda v, w: nn.init.ones_(w).data.mul_(v),
}


@pytest.mark.parametrize("way", RECORDED)
def test_recorded_constants_are_those_of_float64(way: str) -> None:
    def build(value: float) -> nn.Module:
        model = nn.Module()
        model.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        RECORDED[way](value, model.w)
        return model

    for value in CONSTANTS[:5]:
        with fastinit.deferred(seed=0):
            recorded = build(value)
        assert torch.equal(fastinit.materialize_(recorded).w, build(value).w)
