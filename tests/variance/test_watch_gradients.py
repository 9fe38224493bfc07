"""Gradients, as backward gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from watching import assert_alike, assert_moments, mlp

from fastinit.variance.watch.watch import watch


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_says_so(mode: Callable[[], Any]) -> None:
    model = mlp()
    with watch(model, gradients=True) as w, mode():
        for _ in range(2):
            model(torch.randn(8, 32))
    assert all(layer.backward is None for layer in w.layers)
    assert w.layers[0].calls == 2
    assert "no gradient, it ran under no_grad: all 4 layers" in w.table()
    frozen = mlp().requires_grad_(False)
    with watch(frozen, gradients=True) as w:
        frozen(torch.randn(8, 32))
    assert {layer.note for layer in w.layers} == {"no gradient, its output needs none"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_measured_once(reentrant: bool) -> None:
    model, x = mlp(), torch.randn(8, 32, requires_grad=True)
    with watch(model, gradients=True) as plain:
        model(x).square().sum().backward()
    with watch(model, gradients=True) as w:
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert_alike(w, plain)


def test_half_precision_and_autocast() -> None:
    model, x = mlp(), torch.randn(64, 32)
    with watch(model, gradients=True) as w, torch.autocast("cpu", torch.bfloat16):
        out = model[0](x)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert_moments(w.layers[0].forward, out)
    assert_moments(w.layers[0].backward, (2 * out))


def test_an_activation_in_place() -> None:
    x = torch.randn(64, 32)
    reports = []
    for inplace in (False, True):
        torch.manual_seed(1)
        model = mlp(inplace=inplace)
        with watch(model, gradients=True) as w:
            model(x).square().sum().backward()
        reports.append(w)
    assert_alike(*reports)


class Scaled:
    """Another scaler than torch's: not a power of two, and other at each step."""

    def __init__(self) -> None:
        self.factor = 1000.0

    def scale(self, outputs: Tensor) -> Tensor:
        return outputs * self.factor

    def update(self, new_scale: float) -> None:
        self.factor = new_scale


SCALERS: dict[str, Callable[[], Any]] = {
    "GradScaler": lambda: torch.amp.GradScaler("cpu"),
    "one that is off": lambda: torch.amp.GradScaler("cpu", enabled=False),
    "another": Scaled,
}


@pytest.mark.parametrize("name", SCALERS)
def test_a_scale_of_the_loss_is_divided_out(name: str) -> None:
    """To some roundings of float32; whether a unit is dead is the same."""
    model, batches, scaler = mlp(), torch.randn(3, 64, 32), SCALERS[name]()
    with torch.no_grad():
        model[2].bias[:4] = -1e3
    with watch(model, gradients=True) as plain:
        for x in batches:
            model(x).square().mean().backward()
    with watch(model, gradients=True, scaler=scaler) as w:
        for i, x in enumerate(batches):
            scaler.scale(model(x).square().mean()).backward()
            scaler.update(1000.0 / 3**i)
    assert_alike(w, plain)
    assert w.layers[1].dead == 4


def test_gradients_that_do_not_fit_when_scaled_are_named_as_such() -> None:
    layer, scaler = nn.Linear(8, 8).half(), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with watch(layer, gradients=True, scaler=scaler) as w:
        scaler.scale(layer(torch.randn(4, 8).half()).float().sum() * 4).backward()
    assert w.layers[0].nonfinite == 32
    with pytest.raises(
        TypeError, match=r"scaler must have a method scale, as torch.amp.GradScaler"
    ):
        watch(layer, scaler=2.0)  # type: ignore[arg-type]


class Energy(nn.Module):
    """A force field: its output is a derivative, so that it turns gradients on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 16), nn.Linear(16, 1)
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            hidden = self.a(x)
            energy = self.b(hidden.tanh())
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        self.outputs[:] = hidden, energy
        return energy, force


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_models_that_turn_gradients_on(mode: Callable[[], Any]) -> None:
    """What counts is the gradient of the loss, not those of which it is made."""
    model, x = Energy(), torch.randn(5, 3)
    with watch(model, gradients=True) as w, mode():
        energy, force = model(x)
        if mode is torch.enable_grad:
            loss = energy.square().sum() + force.square().sum()
            loss.backward(retain_graph=True)
    for layer, output in zip(w.layers, model.outputs):
        assert_moments(layer.forward, output)
    if mode is torch.no_grad:
        note = "no gradient, passes with create_graph=True do not count"
        assert {layer.note for layer in w.layers} == {note}
        return
    for layer, grad in zip(w.layers, torch.autograd.grad(loss, model.outputs)):
        assert_moments(layer.backward, grad)


def test_a_penalty_on_gradients() -> None:
    model, x = mlp(), torch.randn(8, 32, requires_grad=True)
    outputs: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, out: outputs.append(out))
    with watch(model, gradients=True) as w:
        value = model(x).square().sum()
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        loss = value + grad.square().sum()
        loss.backward(retain_graph=True)
    assert_moments(w.layers[0].backward, *torch.autograd.grad(loss, outputs[0]))


def test_under_autocast_with_a_scaler() -> None:
    model, x, scaler = mlp()[:-1], torch.randn(64, 32), torch.amp.GradScaler("cpu")
    with watch(model, gradients=True, scaler=scaler) as w:
        with torch.autocast("cpu", torch.float16):
            out = model(x)
            assert out.equal(model(x))  # what autocast keeps of weights is what it was
        scaler.scale(out.float().square().mean()).backward()
    last = w.layers[-1]
    assert_moments(last.forward, out, out)
    expected = 2 * out.float() / out.numel()
    assert last.backward is not None
    # Each value is rounded to float16's 11 bits.
    assert last.backward.std == pytest.approx(expected.std(correction=0).item(), rel=2.0**-10)
