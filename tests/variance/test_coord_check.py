"""Coordinate checks: what parametrisations are seen to do, and what is measured and shown."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastinit import CoordCheck, Plan, coord_check, recipes

WIDTHS = [64, 128, 256]
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    )


def verdicts(found: CoordCheck) -> list[str]:
    return [layer.verdict for layer in found.layers]


MUP = recipes.mup(mlp(64), recipes.torch_default)


# --- parametrisations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "slopes"), [("adam", (0.0, 1.0, 1.0)), ("sgd", (-0.5, 0.5, 0.5))]
)
def test_the_standard_parametrisation_fails(optimizer: str, slopes: tuple[float, ...]) -> None:
    """What training changes: under Adam by a power of 1 with the width, as all entries of an update are
    of one size. Under SGD input layers change less. (Measured within 0.2 of these.)"""
    found = coord_check(mlp, WIDTHS, X, optimizer=optimizer)
    assert not found.passed
    first = "flat" if optimizer == "adam" else "shrinks"
    assert verdicts(found) == [first, "grows", "grows"]
    assert [layer.change.value for layer in found.layers] == pytest.approx(slopes, abs=0.25)
    assert [layer.init.value for layer in found.layers[:2]] == pytest.approx([0, 0], abs=0.1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("recipe", [MUP, recipes.spectral], ids=["mup", "spectral"])
def test_mup_and_spectral_pass(recipe: recipes.Rule, optimizer: str) -> None:
    """Hidden layers within 0.15 (measured 0.10). The output begins with a slope of -1/2, as mup's README
    says, which the verdict knows."""
    rate = 0.05 if recipe is recipes.spectral and optimizer == "adam" else None
    found = coord_check(mlp, WIDTHS, X, optimizer=optimizer, recipe=recipe, lr=rate)
    assert found.passed, found.table()
    for layer in found.layers[:2]:
        assert abs(layer.size.value) < 0.15
        assert abs(layer.change.value) < 0.15
    assert found.layers[2].init.value == pytest.approx(-0.5, abs=0.25)


def test_a_multiplier_that_the_model_lacks_is_seen() -> None:
    """Table 8 is for a model that multiplies its output, which this one does not."""
    rule = recipes.mup(mlp(64), recipes.torch_default, table=8)
    assert verdicts(coord_check(mlp, WIDTHS, X, recipe=rule)) == ["flat", "flat", "grows"]


class Deep(nn.Module):
    """A residual net; the number of its blocks is what is scaled."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.config = {"num_hidden_layers": layers}
        self.embed, self.stream, self.head = nn.Linear(8, 32), nn.Identity(), nn.Linear(32, 4)
        blocks = (
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
            for _ in range(layers)
        )
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.layers:
            x = x + block(x)
        return self.head(self.stream(x))


@pytest.mark.parametrize(("rule", "alpha"), [("completep", 1.0), ("depth_mup", 0.5)])
def test_depth_is_scaled_alike(rule: str, alpha: float) -> None:
    """The stream and its changes are the same in deeper nets (measured within 0.07), and one block gives
    depth^-alpha of it at first."""
    recipe = getattr(recipes, rule)(Deep(2), recipes.torch_default, last="layers.*.3.*")
    names = ["embed", "layers.0", "stream", "head"]
    found = coord_check(Deep, [2, 8, 32], X, recipe=recipe, layers=names, seeds=2)
    assert verdicts(found) == ["flat", "shrinks", "flat", "flat"]
    block, stream = found.layers[1:3]
    assert [*stream.init[:1], *stream.change[:1]] == pytest.approx([0, 0], abs=0.15)
    assert block.init.value == pytest.approx(-alpha, abs=0.1)


def test_depth_that_is_not_scaled_fails() -> None:
    found = coord_check(Deep, [2, 8, 32], X, layers=["embed", "stream", "head"], seeds=2)
    assert verdicts(found) == ["flat", "grows", "grows"]


# --- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["rms", "l1"])
def test_sizes_and_changes_are_those_of_the_plan_trained_by_hand(norm: str) -> None:
    def size(x: Tensor) -> float:
        return (x.square().mean().sqrt() if norm == "rms" else x.abs().mean()).item()

    built = []

    def build(width: int) -> nn.Module:
        built.append(width)
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 2))

    found = coord_check(
        build,
        [16, 4],
        X,
        3,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
        recipe=recipes.torch_default,
        loss=lambda y: y.square().sum(),
        norm=norm,
        seeds=2,
    )
    assert built == [4, 16]  # once for each width
    assert (found.widths, found.seeds, found.steps) == ([4, 16], 2, 3)
    for i, width in enumerate((4, 16)):
        for seed in range(2):
            net = build(width)
            Plan.from_model(net, recipes.torch_default, seed=seed).apply_(net)
            optimizer, first = torch.optim.SGD(net.parameters(), lr=0.1), []
            for step in range(3):
                outputs = [net[0](X), net(X)]
                first = first or [y.detach() for y in outputs]
                for layer, y, y0 in zip(found.layers, outputs, first):
                    assert layer.sizes[i, seed, step] == pytest.approx(size(y), rel=1e-5)
                    changed = layer.changes[i, seed, step]
                    assert changed == pytest.approx(size(y - y0), rel=1e-3, abs=1e-12)
                optimizer.zero_grad()
                net(X).square().sum().backward()
                optimizer.step()


class Odd(nn.Module):
    """Draws, has running statistics, runs a layer twice and another again for its gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(8, width), nn.Linear(width, width)
        self.norm, self.attention = nn.BatchNorm1d(width), nn.MultiheadAttention(width, 2)
        self.dropout, self.unused = nn.Dropout(0.5), nn.Linear(width, 3)
        if width > 8:
            self.extra = nn.Linear(width, width)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.dropout(self.norm(self.first(x)))
        x = self.twice(torch.relu(checkpoint(self.twice, x, use_reentrant=True)))
        x = x + self.attention(x, x, x)[0]
        return {"tokens": x.argmax(1), "out": self.extra(x) if hasattr(self, "extra") else x}


def test_models_that_draw_and_count_and_run_layers_again() -> None:
    """Nothing is learned here, so that nothing may change: neither by dropout nor by what BatchNorm
    counts. What a seed gives is the same in a check of that seed and others."""
    state = torch.get_rng_state()

    def still(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=0.0)

    def loss(given: dict[str, Tensor]) -> Tensor:
        return given["out"].square().mean()

    given: dict[str, Any] = {"optimizer": still, "loss": loss, "layers": None}
    found = coord_check(Odd, [8, 16, 32], X, 3, **given)
    assert torch.get_rng_state().equal(state)
    projections = [f"attention.{name}_proj" for name in ("q", "k", "v", "out")]
    assert {layer.name for layer in found.layers} == {"first", "twice", *projections}
    for layer in found.layers:
        assert (layer.changes == 0).all()
        assert (layer.sizes == layer.sizes[..., :1]).all()
        assert math.isnan(layer.change.value)
        assert layer.note == "training does not change it"
    assert found.missing["unused"] == "did not run as a module at each step"
    assert found.missing["extra"] == "is not there at every width"
    fewer = coord_check(Odd, [8, 16, 32], X, 3, seeds=1, **given)
    for one, other in zip(fewer.layers, found.layers):
        assert one.sizes.equal(other.sizes[:, :1])


def test_buffers_are_as_the_constructor_made_them_for_each_seed() -> None:
    class Counting(nn.Linear):
        def __init__(self, width: int) -> None:
            super().__init__(8, width)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    for recipe in (None, recipes.torch_default):
        found = coord_check(
            Counting,
            [4, 8],
            X,
            3,
            lambda net: torch.optim.SGD(net.parameters(), lr=0.0),
            recipe=recipe,
        )
        sizes = found.layers[0].sizes
        times = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        torch.testing.assert_close(sizes, sizes[..., :1] * times, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("batch", "loss"),
    [
        (X, None),
        ((X,), lambda y: F.l1_loss(y, torch.zeros_like(y))),
        ([X], None),
        ({"input": X}, None),
        (X.to(torch.bfloat16), None),
    ],
    ids=["tensor", "arguments", "list", "keywords", "bfloat16"],
)
def test_batches_and_losses(batch: Any, loss: Any) -> None:
    dtype = torch.bfloat16 if isinstance(batch, Tensor) else torch.float32

    def build(width: int) -> nn.Module:
        return nn.Linear(8, width, dtype=dtype if batch is not X else None)

    found = coord_check(build, [4, 8, 16], batch, 2, loss=loss)
    assert [layer.name for layer in found.layers] == [""]
    assert (found.layers[0].changes[..., 1] > 0).all()
    assert "the model" in found.table()


@pytest.mark.parametrize("own", [True, False], ids=["loss", "scalar"])
def test_a_models_own_loss(own: bool) -> None:
    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            loss = F.cross_entropy(y, torch.zeros(len(y), dtype=torch.int64))
            return SimpleNamespace(loss=loss, logits=y) if own else loss

    found = coord_check(lambda n: nn.Sequential(nn.Linear(8, n), Head(n, 2)), [4, 8], X, 2)
    assert found.layers[0].name == "0"
    assert (found.layers[0].changes[..., 1] > 0).all()
    assert found.missing == ({"1": "gives no floating-point tensor"} if own else {})


def test_a_training_that_diverges_is_not_finite() -> None:
    found = coord_check(mlp, [8, 16, 32], X, optimizer="sgd", lr=1e30, seeds=1)
    assert verdicts(found)[1:] == ["not finite", "not finite"]
    assert not found.passed
    assert '"Infinity"' in found.to_json()


# --- the result ----------------------------------------------------------------------------------


def test_the_table_and_json() -> None:
    found = coord_check(mlp, [8, 16, 32], X, 2, layers=[*"024", "1"])
    lines = found.table().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["layer", "init", "±", "step", "1", "±", "change", "±", "verdict"]
    assert [line.split()[0] for line in lines[2:6]] == list("0124")
    assert "at 8, 16, 32, 3 seeds; flat is within 0.25 of 0" in " ".join(lines)
    told = json.loads(found.to_json())
    assert told["widths"] == [8, 16, 32]
    assert told["layers"][1]["name"] == "1"
    assert told["layers"][0]["sizes"] == found.layers[0].sizes.tolist()
    assert told["layers"][0]["change"]["error"] == found.layers[0].change.error
    assert told["passed"] is found.passed


def test_names_that_are_long_are_cut() -> None:
    def build(width: int) -> nn.Module:
        net: nn.Module = nn.Linear(8, width)
        for name in ("projection_of_attention", "encoder_layer_stack", "language_model"):
            net = nn.Sequential(OrderedDict({name: net}))
        return net

    found = coord_check(build, [4, 8, 16], X, 2)
    assert all(len(line) <= 80 for line in found.table().splitlines())
    assert "l.encoder_layer_stack.p" not in found.table()
    assert "l.e.projection_of_attention" in found.table()


# --- what is refused -----------------------------------------------------------------------------


def _built() -> Callable[[int], nn.Module]:
    nets = {width: nn.Linear(8, width) for width in (4, 8, 16)}
    return lambda width: nets[width]


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("build", {"build": mlp(4)[0].weight}, TypeError, "build must be a function"),
    ("no module", {"build": lambda n: n}, TypeError, r"build\(8\) must be a .*Module, but is int"),
    ("built before", {"build": _built()}, ValueError, r"build\(8\) must make its model .* weight"),
    ("one width", {"widths": [8]}, ValueError, "widths must be two or more, each once"),
    ("twice", {"widths": [8, 16, 8]}, ValueError, r"each once, but got \[8, 16, 8\]"),
    ("text", {"widths": "8,16"}, TypeError, "widths must be several numbers, but got '8,16'"),
    ("a width", {"widths": 8}, TypeError, "widths must be several numbers, but got 8"),
    ("too few points", {"widths": [8, 16], "seeds": 1}, ValueError, "seeds must be at least 2"),
    ("one step", {"steps": 1}, ValueError, "steps must be at least 2"),
    ("optimizer", {"optimizer": "lion"}, ValueError, "optimizer must be adam or sgd, or a func"),
    ("no optimizer", {"optimizer": lambda net: 3}, TypeError, "must make a .*Optimizer, .* int"),
    ("lr", {"optimizer": lambda net: 3, "lr": 0.1}, ValueError, "lr must be said to the optim"),
    ("norm", {"norm": "l2"}, ValueError, "norm must be one of rms, l1, but got 'l2'"),
    ("recipe", {"recipe": "mup"}, TypeError, "recipe must be a rule or a Plan, but got 'mup'"),
    ("loss", {"loss": 0.5}, TypeError, "loss must be a function of what the model gives"),
    ("no scalar", {"loss": lambda y: y}, TypeError, "loss must be a scalar tensor that depends"),
    ("no gradient", {"loss": lambda y: X.sum()}, TypeError, "loss must be a scalar tensor"),
    ("layers", {"layers": ["5"]}, ValueError, "layers names modules that the model has not: 5"),
    ("model", {"recipe": MUP, "build": lambda n: mlp(n)[:3]}, ValueError, "base model alone has"),
    ("plan", {"recipe": Plan({})}, ValueError, r"0\.weight"),
]


@pytest.mark.parametrize(
    ("case", "given", "error", "message"), REFUSED, ids=[r[0] for r in REFUSED]
)
def test_refused_by_name(
    case: str, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = torch.get_rng_state()
    build, widths = given.pop("build", mlp), given.pop("widths", [8, 16, 32])
    with pytest.raises(error, match=message):
        coord_check(build, widths, X, **given)
    assert torch.get_rng_state().equal(state)


def test_layers_that_no_two_widths_share() -> None:
    def build(width: int) -> nn.Module:
        return nn.ModuleDict({f"fc{width}": nn.Linear(8, width)})

    def run(net: nn.Module) -> nn.Module:
        net.forward = next(iter(net.children())).forward  # type: ignore[method-assign]
        return net

    with pytest.raises(ValueError, match="no layer ran at every width; fc8: did not run"):
        coord_check(lambda width: run(build(width)), [8, 16, 32], X)


def test_a_plan_and_a_loss_that_is_not_said() -> None:
    plan = Plan.from_model(mlp(8), recipes.torch_default)
    found = coord_check(mlp, [8, 16, 32], X, recipe=plan)
    assert found.layers[1].init.value > 0.3  # of a std that is the same at each width

    class NoTensor(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return str(super().forward(x))

    with pytest.raises(TypeError, match="loss must be given for a model that gives str"):
        coord_check(lambda n: nn.Sequential(nn.Linear(8, n), NoTensor(n, n)), [4, 8], X)
