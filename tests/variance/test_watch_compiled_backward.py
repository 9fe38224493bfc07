"""Watching compiled backward passes: in any order, each counted once, and only the loss's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_watch_compiled import _dynamo_begins_anew
from torch import Tensor, nn
from watching import mlp

from fastinit.variance.watch import compiled as watch_compiled
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch

__all__ = ["_dynamo_begins_anew"]


@pytest.mark.parametrize("gradient", [False, True])
def test_on_a_gpu_the_operator_would_not_wait(gradient: bool) -> None:
    """Of tensors on meta there are no values either: to read one is an error."""
    x, new = torch.empty(4, 8, device="meta"), torch.empty(7, dtype=torch.float64, device="meta")
    account = watch_compiled.Account.of(8, False, x.device)
    clock = None if gradient else torch.empty(1, dtype=torch.float64, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        x.sum().item()
    account.add(new, x, clock, -1, gradient)


ORDERS: dict[str, Callable[[Callable[..., Any], Tensor], object]] = {
    "two forwards first": lambda model, x: [
        loss.backward() for loss in [model(x).sum(), model(2 * x).square().sum()]
    ],
    "one loss of two": lambda model, x: (model(x) * model(model(x))).sum().backward(),
    "backward twice": lambda model, x: [
        loss.backward(retain_graph=True) for loss in [model(x).square().sum()] * 2
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_backward_passes_come_in_any_order(order: str) -> None:
    """What a graph keeps of an account is where it is, not its values."""
    model, x = mlp(2, 8), torch.randn(4, 8)
    train = ORDERS[order]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with watch(model, gradients=True) as eager:
        train(model, x)
    plain = [p.grad for p in model.parameters()]
    model.zero_grad()
    with watch(model, gradients=True) as graphs:
        train(compiled, x)
    torch.testing.assert_close([p.grad for p in model.parameters()], plain)
    for one, other in zip(graphs.layers, eager.layers, strict=True):
        assert one.backward is not None
        assert other.backward is not None
        assert (one.calls, one.backward.count) == (other.calls, other.backward.count)
        assert one.backward.std == pytest.approx(other.backward.std, rel=1e-6)  # float32 sums


def test_gradients_that_are_one_tensor_count_each() -> None:
    model, x = mlp(1, 8), torch.randn(4, 8)
    with watch(model, gradients=True) as w:
        twice = torch.compile(lambda x: model(x) + model(-x), backend="aot_eager")
        twice(x).sum().backward()
    assert w.layers[0].calls == 2
    assert w.layers[0].backward is not None
    assert w.layers[0].backward.count == 2 * x.numel()


@pytest.mark.filterwarnings("ignore:.*lr")
@pytest.mark.parametrize("of", ["an optimizer", "the watch"])
@pytest.mark.parametrize("compiled", ["the step", "all"])
def test_a_step_that_ends_in_compiled_code(compiled: str, of: str) -> None:
    model, told = mlp(1, 8), list[Measured]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ended = optimizer if of == "an optimizer" else None
    asked = {"gradients": True, "weight_gradients": ended is not None}
    with watch(model, every=2, to=told.append, optimizer=ended, **asked) as w:

        def step() -> None:
            optimizer.step()
            if ended is None:
                w.step()

        def whole(x: Tensor) -> None:
            model(x).sum().backward()
            step()

        if compiled == "all":
            whole = torch.compile(whole, backend="eager")
        else:
            step = torch.compile(step, backend="eager")
        for _ in range(3):
            optimizer.zero_grad()
            whole(torch.randn(4, 8))
    assert [measured.step for measured in told] == [0, 2]
    for measured in told:
        (layer,) = measured.layers
        assert (layer.calls, layer.note) == (1, "")
        assert layer.backward is not None
        assert layer.backward.count == 32


def _penalty(model: Callable[..., Any], x: Tensor) -> None:
    value = model(x).square().sum()
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (value + grad.square().sum()).backward()


def _force(model: Callable[..., Any], x: Tensor) -> None:
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()


def _thrice(model: Callable[..., Any], x: Tensor) -> None:
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (grad,) = torch.autograd.grad(grad.square().sum(), x, create_graph=True)
    grad.square().sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize(
    "of",
    [
        _penalty,
        _force,
        _thrice,
        lambda model, x: torch.autograd.grad(model(x).square().sum(), x, create_graph=True),
        lambda model, x: model(x).square().sum().backward(create_graph=True),
    ],
    ids=["a penalty", "a force", "a force of forces", "of no loss", "a graph that nobody uses"],
)
def test_gradients_that_a_loss_is_made_of_do_not_count(of: Callable[..., object]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    with watch(model, gradients=True) as eager:
        of(model, x.clone().requires_grad_())
    with watch(model, gradients=True) as graphs:
        of(torch.compile(model, backend="eager", fullgraph=True), x.clone().requires_grad_())
    assert [layer.note for layer in graphs.layers] == [layer.note for layer in eager.layers]
    for one, other in zip(graphs.layers, eager.layers):
        assert (one.backward is None) == (other.backward is None)
        if one.backward is not None and other.backward is not None:
            assert one.backward.count == other.backward.count
            assert one.backward.std == pytest.approx(other.backward.std, rel=1e-6)  # float32 sums
