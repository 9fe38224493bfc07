"""Parts of their own: the same values along every way of writing them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastinit import Fill, Plan
from fastinit.elements.strided import Strided
from fastinit.plan.history import Contents, View
from fastinit.plan.replay import Computed
from fastinit.plan.streams import Origin, Source, Stream

DT = Fill.uniform(math.log(1e-3), math.log(0.1)).then("exp").then("clamp_min", 0.01)
DT = DT.then("inverse_softplus")  # Mamba's dt_bias


def one(tensor: Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(tensor))
    return model


def written(fill: Fill, shape: tuple[int, ...], name: str = "w", **like) -> Tensor:
    """What a plan writes in a parameter of this name."""
    model = nn.ParameterDict({name: nn.Parameter(torch.empty(shape, **like))})
    return Plan({name: fill}, seed=5).apply_(model)[name].detach()


# Of a [12, 8] parameter: view, and a Fill that the view's shape takes.
Place = tuple[Callable[[Tensor], Tensor], Fill]
PLACES: dict[str, Place] = {
    "rows": (lambda w: w[4:8], Fill.normal(std=0.1)),
    "columns": (lambda w: w[:, 2:5], Fill.truncated_normal()),
    "turned": (lambda w: w[2:9].T, Fill.uniform(-1, 1)),
    "by turns": (lambda w: w.view(2, 3, 2, 8)[:, 1], Fill.normal()),
    "every other": (lambda w: w[::2, 1::3], DT),
    "over ends of rows": (lambda w: w.flatten()[5:47], Fill.uniform().then("neg")),
    "one": (lambda w: w[3, 3], Fill.normal()),
    "none": (lambda w: w[3:3], Fill.normal()),
    "gate": (lambda w: w[0:4, 4:], Fill.orthogonal().scaled(2.0)),
    "turned gate": (lambda w: w[1:7].T, Fill.orthogonal()),
    "sparse": (lambda w: w[6:], Fill.sparse(0.5)),
    "convolution": (lambda w: w.view(4, 4, 6)[:, :, 1:4], Fill.dirac()),
    "ramp": (lambda w: w.view(3, 4, 8)[1], Fill.arange(1.0, 2.0, 0).then("log")),
    "constant": (lambda w: w[:2], Fill.constant(4.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_a_part_of_its_own_is_the_parameter_that_it_would_be(place: str, dtype) -> None:
    view, fill = PLACES[place]
    meta = torch.empty(12, 8, device="meta")
    alone = written(fill, tuple(view(meta).shape), "part", dtype=dtype)
    for name, given in (("part", replace(fill, stream="part")), ("w[0]", fill)):
        if name == "w[0]":  # by default it has the name of its place
            alone = written(fill, tuple(view(meta).shape), name, dtype=dtype)
        whole = Fill.normal(std=9.0).with_part(view(meta), given, own=True)
        w = written(whole, (12, 8), dtype=dtype)
        # Values of orthogonal_ are a LAPACK's, which other strides may take another way.
        reach = {"rtol": 1e-5, "atol": 1e-5} if "gate" in place else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(view(w), alone, **reach)
        rest = torch.ones(12, 8, dtype=torch.bool)
        view(rest).fill_(False)
        assert torch.equal(w[rest], written(Fill.normal(std=9.0), (12, 8), dtype=dtype)[rest])


@pytest.mark.parametrize("place", PLACES)
def test_strides_and_replays_change_no_value(place: str) -> None:
    view, fill = PLACES[place]
    fill = DT.with_part(view(torch.empty(12, 8, device="meta")), fill, own=True)
    w = written(fill, (12, 8))
    turned = one(torch.zeros(8, 12).T)
    Plan({"w": fill}, seed=5).apply_(turned)
    torch.testing.assert_close(turned.w.detach(), w)
    if place not in ("gate", "turned gate", "sparse", "convolution"):
        assert torch.equal(turned.w, w)
    origin = Origin(Source())
    contents = Contents(96, torch.float32, torch.device("cpu"))
    contents = contents.filled(contents.whole, fill, origin)
    replayed = torch.zeros(12, 8)
    view_of_all = View(Strided.contiguous((12, 8)), torch.float32)
    Computed(contents, view_of_all, {origin: Stream("w")}).write_(replayed, 5)
    torch.testing.assert_close(replayed, w)


def qkv(w: Tensor) -> dict[str, tuple[Tensor, Fill]]:
    fills = (Fill.normal(std=0.1), Fill.uniform(), Fill.orthogonal())
    return {f"w{n}": (w[:, i], fill) for i, (n, fill) in enumerate(zip("qkv", fills, strict=True))}


def test_a_fused_parameter_is_its_parts() -> None:
    meta = torch.empty(2, 3, 4, 8, device="meta")  # two heads
    fill = Fill.fused(qkv(meta))
    w = written(fill, (24, 8)).view(2, 3, 4, 8)
    for name, (view, part) in qkv(w).items():
        torch.testing.assert_close(view, written(part, (2, 4, 8), name))
    assert str(fill) == "normal, orthogonal, uniform"
    assert math.isnan(fill.std)
    two = Fill.fused({"a": (meta[0], Fill.constant(1.0)), "b": (meta[1], Fill.constant(3.0))})
    assert (two.mean, two.std, str(two)) == (2.0, 1.0, "constant 1, constant 3")
    twice = written(fill.scaled(2.0), (24, 8))
    torch.testing.assert_close(twice, 2.0 * w.view(24, 8))


@pytest.mark.parametrize(
    "parts",
    [
        lambda w: {},
        lambda w: {"a": w[:2]},  # of a parameter of 3 rows
        lambda w: {"a": w[1:]},
        lambda w: {"a": w[:2], "b": w[1:]},
        lambda w: {"a": w[:1], "b": w[2:]},
        lambda w: {"a": w[:, :2], "b": w[:, 3:]},
        lambda w: {"a": w[:1].expand(3, 4)},
    ],
)
def test_what_is_not_every_element_once_is_refused_and_nothing_written(parts) -> None:
    model = one(torch.full((3, 4), 7.0))
    fused = parts(torch.empty(3, 4, device="meta"))

    def write() -> None:
        fill = Fill.fused({name: (view, Fill.normal()) for name, view in fused.items()})
        Plan({"w": fill}).apply_(model)

    with pytest.raises(ValueError, match=r"every element once|elements twice|but parts of 8"):
        write()
    assert (model.w == 7.0).all()


def test_saved_scaled_and_moved() -> None:
    meta = torch.empty(2, 3, 4, 8, device="meta")
    fills = {
        "fused": Fill.fused(qkv(meta)),
        "steps": DT.scaled(3.0).then("add", 1.0),
        "ramp": Fill.arange(1.0, -0.5, 1).then("exp").scaled(2.0),
        "own": Fill.normal().with_part(meta[1], Fill.dirac(), own=True),
        "not own": DT.with_part(meta[1], DT),
    }
    plan = Plan(fills, seed=3)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert [hash(f) for f in again.values()] == [hash(f) for f in plan.values()]
    assert '"own": true' in plan.to_json()
    assert Fill.normal().with_part(meta[1], DT) != Fill.normal().with_part(meta[1], DT, own=True)
    for name in ("steps", "not own", "ramp"):
        moved = fills[name].affine(-2.0, 0.5)
        expected = written(fills[name], (24, 8)) * -2.0 + 0.5
        torch.testing.assert_close(written(moved, (24, 8)), expected)
    assert fills["fused"].affine(-1.0) is None
    assert "steps" not in Plan({"w": Fill.normal()}).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "log"}, "steps must be a list"),
        ({"steps": ["log"]}, r"steps\[0\] must be a list of a name"),
        ({"steps": [[]]}, r"steps\[0\] must be a list of a name"),
        ({"steps": [[3]]}, r"steps\[0\] must be text"),
        ({"steps": [["add", "1"]]}, "must be a number"),
        ({"steps": [["add"]]}, "step add takes term"),
        ({"steps": [["lag"]]}, "step must be one of"),
        ({"steps": [["div", 0]]}, "divisor must be another number than 0"),
        ({"steps": [["sub", 1.0]] * 40}, "at most 32"),
        ({"steps": [["log"]]}, "log makes NaN"),
        ({"parts": [{"own": 1}]}, "own must be true or false"),
    ],
)
def test_json_that_is_no_fill_is_refused(change: dict, message: str) -> None:
    document = json.loads(Plan({"w": Fill.normal()}).to_json())
    for part in change.get("parts", ()):
        part.update(offset=0, sizes=[2], strides=[1], distribution="eye")
    document["parameters"][0] |= change
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(document))


def test_a_table_has_one_line_for_layers_whose_parts_have_other_names() -> None:
    meta = torch.empty(6, 4, device="meta")
    fills = {
        f"h.{i}.qkv": Fill.fused({f"h.{i}.{n}": (p, DT) for n, p in zip("qkv", meta.split(2))})
        for i in range(3)
    }
    table = Plan(fills).table()
    assert max(map(len, table.splitlines())) <= 80
    (line,) = [line for line in table.splitlines() if line.startswith("h.*.qkv")]
    assert "inverse_softplus(clamp_min(exp(uniform), 0.01))" in line


def test_layers_whose_parts_have_other_names_are_written_once() -> None:
    meta = torch.empty(6, 4, device="meta")

    def plan(stem: str, layers: int) -> Plan:
        fills = {}
        for i in range(layers):
            names = (f"{stem}.{i}.wq", f"{stem}.{i}.wk", "h.0.wv")
            parts = zip(names, meta.split(2), strict=True)
            fills[f"h.{i}.qkv"] = Fill.fused({name: (p, Fill.normal()) for name, p in parts})
            fills[f"h.{i}.out"] = Fill(**{**vars(DT), "stream": f"{stem}.{i}.other"})
        return Plan(fills)

    for stem in ("h", "g", "h.h"):
        for layers in (1, 2, 12):
            assert Plan.from_json(plan(stem, layers).to_json()) == plan(stem, layers)
    assert len(plan("h", 80).to_json()) == len(plan("h", 12).to_json())
    document = json.loads(Plan({"w": Fill.normal()}).to_json())
    document["parameters"][0]["stream_in_layer"] = "x"
    with pytest.raises(ValueError, match="parameter w: stream_in_layer is for layers"):
        Plan.from_json(json.dumps(document))
    document["parameters"][0]["stream"] = "y"
    with pytest.raises(ValueError, match="nobody knows the key stream"):
        Plan.from_json(json.dumps(document))
