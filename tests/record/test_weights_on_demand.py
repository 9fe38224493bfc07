"""lsuv_ on a recorded model: weights are made as they are used, and only their scales are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import warm
from torch import Tensor, nn

import fastinit
from benchmarks.constructors import constructors
from fastinit import LSUVError, deferred, lsuv_, materialize_, recorded_plan

pytest.importorskip("transformers")
CONSTRUCTORS = constructors(small=True)
X = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(32).view(2, 16) * 7 % 512
SEQUENCE = X.view(20, 5, 64)


class Squashed(nn.Module):
    """Not proportional to its weight: repeated on its own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def mlp() -> nn.Module:
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(64, 64), nn.ReLU())))


def reused() -> nn.Module:
    shared = nn.Linear(64, 64)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), nn.Linear(64, 8, bias=False))


def squashed() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), Squashed(), nn.Linear(64, 64))


def squashed_twice() -> nn.Module:
    shared = Squashed()
    return nn.Sequential(nn.Linear(64, 64), shared, shared, nn.Linear(64, 64))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Recurrent(nn.Module):
    """LSTM holds its weights by weak references too."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.after = nn.Linear(64, 64), nn.LSTM(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.lstm(self.before(x))[0])
        return out


def recorded(build: Callable[[], nn.Module]) -> nn.Module:
    with deferred(seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build().eval()


CASES = [
    *(pytest.param(CONSTRUCTORS[n], (TOKENS,), {}, id=n) for n in ("GPT-2", "Llama", "Mixtral")),
    *(pytest.param(CONSTRUCTORS[n], (TOKENS,), {}, id=n) for n in ("BERT", "Mamba")),
    pytest.param(mlp, (X,), {}, id="MLP"),
    pytest.param(mlp, (X,), {"center": True, "activation": torch.relu}, id="centred"),
    pytest.param(mlp, (), {"batches": [X[:60], X[60:]]}, id="batches"),
    pytest.param(reused, (X,), {"reuse": "pool"}, id="reused"),
    pytest.param(reused, (X,), {"unbuilt": "4"}, id="unbuilt"),
    pytest.param(
        squashed, (X,), {"layers": (nn.Linear, Squashed), "target_std": 0.5}, id="repeated"
    ),
    pytest.param(
        squashed_twice,
        (X,),
        {"layers": (nn.Linear, Squashed), "target_std": 0.5},
        id="repeated twice",
    ),
    pytest.param(attention, (SEQUENCE,), {}, id="attention"),
    pytest.param(Recurrent, (SEQUENCE,), {}, id="LSTM"),
    pytest.param(CONSTRUCTORS["nn.Transformer"], (SEQUENCE, SEQUENCE), {}, id="nn.Transformer"),
]


@pytest.mark.parametrize(("build", "inputs", "options"), CASES)
def test_scales_are_those_of_the_model_in_memory(
    build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], options: dict[str, Any]
) -> None:
    model, present = recorded(build), materialize_(recorded(build))
    result, wanted = lsuv_(model, *inputs, **options), lsuv_(present, *inputs, **options)
    # Of the same weights, which are the same bits: what torch multiplies may be rounded otherwise.
    assert result.scales == pytest.approx(wanted.scales, rel=1e-5)
    for m, there in zip(result.layers, wanted.layers, strict=True):
        assert m.shift == pytest.approx(there.shift, rel=1e-5, abs=1e-6)
        assert m.std == pytest.approx(there.std, rel=1e-5)
    assert all(parameter.is_meta for parameter in model.parameters())
    materialize_(model)
    for (name, parameter), there in zip(
        model.named_parameters(), present.named_parameters(), strict=True
    ):
        # Scaled as they are drawn, once rounded where those in memory are twice.
        torch.testing.assert_close(parameter, there[1], rtol=1e-5, atol=1e-6, msg=name)


def test_the_result_is_a_plan_that_regenerates_the_model(tmp_path) -> None:
    model = recorded(CONSTRUCTORS["GPT-2"])
    result = lsuv_(model, TOKENS)
    result.plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").stat().st_size < 32_000
    plan = fastinit.Plan.load(tmp_path / "plan.json")
    again = plan.apply_(CONSTRUCTORS["GPT-2"]())
    for (name, a), b in zip(
        materialize_(model).named_parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert lsuv_(mlp(), X).plan is None


def test_orthonormal_weights_are_drawn_as_they_are_used() -> None:
    result = lsuv_(recorded(mlp), X, pre="orthonormal")
    assert {result.plan[f"{i}.weight"].distribution for i in (0, 2, 4, 6)} == {"orthogonal"}
    assert all(abs(m.std - 1) < 1e-5 for m in result.layers)


@pytest.mark.parametrize("pre", ["keep", "orthonormal"])
def test_a_failure_changes_nothing(pre: str) -> None:
    model = recorded(mlp)
    before = recorded_plan(model)
    bad = X.clone()
    bad[3, 3] = torch.nan
    with pytest.raises(LSUVError):
        lsuv_(model, bad, pre=pre)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert recorded_plan(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_memory_is_that_of_the_largest_module() -> None:
    """Of 24 layers of 4 MB (101 MB), the peak grows by less than four layers."""
    code = """
import torch, fastinit
from torch import nn
def kibibytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
def build(layers):
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(layers)))
with fastinit.deferred():
    small, large = build(1), build(24)
x = torch.randn(8, 1024)
fastinit.lsuv_(small, x)
before = kibibytes("VmRSS")
fastinit.lsuv_(large, x)
print(kibibytes("VmHWM") - before)
"""
    done = warm.run(code)
    assert int(done.stdout) * 1024 < 4 * 1024 * 1024 * 4


def test_weights_are_written_where_it_is_asked() -> None:
    def on_meta() -> nn.Module:
        with deferred(seed=0):
            return nn.Sequential(nn.Linear(64, 64, device="meta"), nn.Linear(64, 8, device="meta"))

    model, same = on_meta(), on_meta()
    with torch.device("meta"):  # where weights would be that are asked for nowhere else
        with pytest.raises(RuntimeError):
            lsuv_(model, X)
        found = lsuv_(same, X, device="cpu").scales
    assert found == lsuv_(on_meta(), X).scales


@pytest.mark.parametrize(
    ("recorded", "device", "said"),
    [
        (True, "meta", "device must be one that holds values, but got meta"),
        (False, "meta", "device must be one that holds values, but got meta"),
        (False, "cpu", "device must be None where all parameters have values"),
    ],
)
def test_other_places_are_refused(recorded: bool, device: str, said: str) -> None:
    with deferred(seed=0):
        model = nn.Sequential(nn.Linear(64, 8))
    if not recorded:
        materialize_(model)
    with pytest.raises(ValueError, match=said):
        lsuv_(model, X, device=device)
