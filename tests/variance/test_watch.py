"""Watching: all numbers are those of plain torch, and what cannot be seen is named."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watching import assert_moments, hooks, mlp

from fastinit.variance.lsuv import schedules
from fastinit.variance.watch.record import FOLD
from fastinit.variance.watch.watch import Watch, watch


def test_all_numbers_are_those_of_plain_torch() -> None:
    model, x = mlp(), torch.randn(64, 32)
    before = hooks(model)
    with watch(model, gradients=True) as w:
        model(x).square().sum().backward()
    assert hooks(model) == before
    assert [layer.name for layer in w.layers] == ["0", "2", "4", "6"]
    h, outputs, product = x, [], 1.0
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            outputs.append(h)
    grads = torch.autograd.grad(h.square().sum(), outputs)
    for layer, module, output, grad in zip(w.layers, model[::2], outputs, grads):
        assert_moments(layer.forward, output)
        assert_moments(layer.backward, grad)
        assert_moments(layer.weight, module.weight)
        assert (layer.kind, layer.calls, layer.units) == ("Linear", 1, 32)
        assert (layer.fan_in, layer.fan_out) == (32, 32)
        assert layer.factor == pytest.approx(16 * module.weight.var().item())
        product *= layer.factor
        assert layer.product == pytest.approx(product)
        assert layer.dead == (grad == 0).all(0).sum().item()
        assert (layer.nonfinite, layer.note) == (0, "")
    assert w.product == w.layers[-1].product
    assert w.missing == {}


def test_a_schedule_can_be_sent_to_another_process() -> None:
    schedule = pickle.loads(pickle.dumps(schedules.alternating(1.25)))
    assert [schedule(place) for place in range(3)] == [1.25, 0.8, 1.25]


def test_an_alternating_schedule_has_product_1() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    schedule = schedules.alternating(1.25)
    with torch.no_grad():
        for place, module in enumerate(model):
            nn.init.normal_(module.weight)
            module.weight.mul_(math.sqrt(2 / 64 * schedule(place)) / module.weight.std())
    with watch(model) as w:
        model(torch.randn(8, 64))
    assert [layer.factor for layer in w.layers] == pytest.approx([1.25, 0.8] * 4, rel=1e-6)
    assert [layer.product for layer in w.layers] == pytest.approx([1.25, 1.0] * 4, rel=1e-6)
    assert w.product == pytest.approx(1.0, rel=1e-6)


def test_execution_order_decides_not_registration() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.idle, self.first = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    with watch(Net()) as w:
        Net()(torch.randn(4, 8))  # another one
    assert w.layers == []
    assert w.product == 1.0
    model = Net()
    with watch(model) as w:
        model(torch.randn(4, 8))
    assert [layer.name for layer in w.layers] == ["first", "last"]
    assert w.missing == {"idle": "did not run as a module, or was only traced"}


def test_passes_and_calls_are_taken_together() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                outputs.append(self.step(x))
                outputs[-1].retain_grad()
                x = torch.tanh(outputs[-1])
            return x

    outputs: list[Tensor] = []
    model = Loop()
    with watch(model, gradients=True) as w:
        for _ in range(FOLD):
            model(torch.randn(5, 16)).square().sum().backward()
    (layer,) = w.layers
    assert layer.calls == len(outputs) == 3 * FOLD
    assert_moments(layer.forward, *outputs)
    assert_moments(layer.backward, *(x.grad for x in outputs if x.grad is not None))
    assert layer.product == layer.factor


def test_only_the_block_counts() -> None:
    model, x = mlp(), torch.randn(8, 32)
    model(x)
    w = watch(model, gradients=True)
    with w:
        loss = model(x).sum()
    loss.backward()
    model(x)
    assert all(layer.calls == 1 and layer.backward is None for layer in w.layers)
    assert {layer.note for layer in w.layers} == {"no gradient, not reached by a backward pass"}
    with w:  # anew
        model(x)
        model(x)
    assert all(layer.calls == 2 for layer in w.layers)


def test_a_watch_inside_another_and_one_entered_twice() -> None:
    model, x = mlp(), torch.randn(8, 32)
    with watch(model) as outer, watch(model, layers=["2"]) as inner:
        model(x)
        with pytest.raises(RuntimeError, match="this watch is entered already"), inner:
            pass
        model(x)
    assert outer.layers[1].calls == inner.layers[0].calls == 2
    assert outer.layers[1].forward.raw.equal(inner.layers[0].forward.raw)


def test_there_is_nothing_to_read_before_the_end() -> None:
    w = watch(mlp())
    for read in (lambda: w.layers, lambda: w.missing, w.table, w.to_json, w.plot):
        with pytest.raises(RuntimeError, match="after the with block"):
            read()
    with w, pytest.raises(RuntimeError, match="after the with block"):
        w.table()


class Odd(nn.Module):
    """Gives its argument in some wrapping."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x @ self.weight)


WRAPPINGS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x, x + 1),
    "list after another": lambda x: [torch.arange(3), None, x],
    "dict": lambda x: {"mask": x > 0, "hidden": x},
    "nested": lambda x: ({"deep": (x,)},),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_outputs_in_wrappings(wrapping: str) -> None:
    module, x = Odd(WRAPPINGS[wrapping]), torch.randn(7, 3)
    seen: list[Tensor] = []
    with watch(module, layers=Odd, gradients=True) as w:
        module.wrap = lambda x: (seen.append(x), WRAPPINGS[wrapping](x))[1]
        module(x)
        (seen[0] * 2).sum().backward()
    (layer,) = w.layers
    assert_moments(layer.forward, seen[0])
    assert layer.backward is not None
    assert (layer.backward.mean, layer.backward.var, layer.backward.count) == (2, 0, 21)


@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        (lambda x: None, "gives no floating-point tensor"),
        (lambda x: x.argmax(), "gives no floating-point tensor"),
        (lambda x: x.to_sparse(), "its output has layout torch.sparse_coo, not torch.strided"),
        (lambda x: x.to(torch.float8_e5m2), "gives torch.float8_e5m2"),
        (lambda x: x.to("meta"), "its output is on meta, which holds no values"),
    ],
)
def test_outputs_without_moments_are_named(wrap: Callable[[Tensor], Any], why: str) -> None:
    module = Odd(wrap)
    with watch(module, layers=Odd, gradients=True) as w:
        module(torch.randn(7, 3))
    assert w.layers == []
    assert w.missing == {"": why}
    assert json.loads(w.to_json())["layers"] == []
    assert why in w.table()


def test_dead_units_and_values_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        model[0].weight[:3] = 0  # never vary
        model[0].bias[3:5] = -1e3  # never pass the ReLU
        model[0].bias[3:5] += torch.arange(2.0)
    with watch(model, gradients=True) as w:
        model(torch.randn(256, 16)).square().sum().backward()
    first, last = w.layers
    assert first.backward is not None
    assert (first.units, first.dead) == (32, 5)
    assert (last.units, last.dead) == (8, 0)
    with watch(model) as w:
        model(torch.randn(256, 16))
    assert [layer.dead for layer in w.layers] == [3, 0]
    with watch(model) as w:  # one value of each unit does not tell
        model(torch.randn(1, 16))
    assert w.layers[0].dead == 0
    with watch(model) as w:
        x = torch.randn(256, 16)
        x[3] = math.nan
        x[4, 0] = math.inf
        model(x)
    assert [layer.nonfinite for layer in w.layers] == [32 + 29 + 3, 16]
    assert "inf/nan" in w.table()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_unit_is_alive_if_one_value_of_many_varies(channels_last: bool) -> None:
    module = nn.Conv2d(1, 6, 1, bias=False)
    x = torch.zeros(3, 1, 50, 50)
    x[1, 0, 31, 17] = 1.0
    if channels_last:
        x, module = x.to(memory_format=torch.channels_last), module.to(torch.float64).float()
    with torch.no_grad():
        module.weight[2] = 0
    with watch(module, gradients=True) as w:
        out = module(x)
        out[1, :5, 31, 17].sum().backward()
        module(torch.zeros(1, 1, 2, 2))
    assert (w.layers[0].units, w.layers[0].dead) == (6, 2)  # one never varies, one has no gradient


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got list"):
        watch([nn.Linear(3, 3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layers must be types, names or a predicate, but got 7"):
        watch(mlp(), layers=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers names modules that the model has not: nobody"):
        watch(mlp(), layers=["nobody"])
    with pytest.raises(ValueError, match="layers must choose at least one layer of the model"):
        watch(mlp(), layers=nn.Conv2d)
    assert repr(Watch(mlp())) == "Watch(4 layers, gradients=False)"
