"""What a watch measures beside outputs: inputs and the gradients of weights, at the right moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watching import assert_moments, hooks, mlp

from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch


def test_inputs_are_those_that_came() -> None:
    model, x = mlp(), torch.randn(16, 32)
    before = hooks(model)
    with watch(model, inputs=True) as w:
        model(x)
    assert hooks(model) == before
    h = x
    came = []
    for module in model:
        came.append(h)
        h = module(h)
    for layer, value in zip(w.layers, came[::2]):
        assert layer.input is not None
        assert_moments(layer.input, value)
        assert (layer.weight_gradient, layer.note) == (None, "")


class Named(nn.Module):
    """Its input has a name, and is what a pre-hook of its own makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.table = nn.Embedding(5, 4)
        self.inner.register_forward_pre_hook(lambda module, args: (args[0] * 3,))

    def forward(self, *, ids: Tensor) -> Tensor:
        h = self.table(ids)
        for _ in range(2):
            h = self.inner(h)
        return h


def test_inputs_by_name_of_all_calls_and_none_of_an_embedding() -> None:
    model, ids = Named(), torch.arange(5)
    with watch(model, layers=(nn.Linear, nn.Embedding), inputs=True) as w:
        out = model(ids=ids)
    assert out.shape == (5, 4)
    by_name = {layer.name: layer for layer in w.layers}
    h = model.table(ids)
    middle = nn.functional.linear(h * 3, model.inner.weight, model.inner.bias)
    inner = by_name["inner"].input
    assert inner is not None
    assert_moments(inner, torch.cat([h * 3, middle * 3]))
    assert by_name["table"].input is None


def test_inputs_of_checkpointed_layers_count_once() -> None:
    model, x = nn.Linear(6, 6), torch.randn(3, 6, requires_grad=True)
    with watch(model, inputs=True, gradients=True) as w:
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    (layer,) = w.layers
    assert layer.input is not None
    assert (layer.input.count, layer.forward.count) == (18, 18)
    assert layer.backward is not None


def test_weight_gradients_are_those_at_the_end_of_the_block() -> None:
    model = mlp()
    model[2].weight.requires_grad_(False)
    with watch(model, weight_gradients=True) as w:
        for _ in range(2):
            model(torch.randn(16, 32)).square().mean().backward()
    for layer, module in zip(w.layers, model[::2]):
        if module is model[2]:
            assert layer.weight_gradient is None
            assert layer.note == "no weight gradient: it has none"
        else:
            assert layer.weight_gradient is not None
            assert_moments(layer.weight_gradient, module.weight.grad)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "two parts have one each"),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
            "its weight is computed",
        ),
        (lambda: nn.Embedding(9, 4, sparse=True), "sparse"),
    ],
    ids=["weight_norm", "spectral_norm", "sparse"],
)
def test_weight_gradients_that_nobody_can_measure_are_named(
    layer: Callable[[], nn.Module], why: str
) -> None:
    model = nn.Sequential(layer())
    x = torch.arange(9) if isinstance(model[0], nn.Embedding) else torch.randn(8, 4)
    with watch(model, weight_gradients=True) as w:
        model(x).square().sum().backward()
    said = [layer.note for layer in w.layers] + list(w.missing.values())
    assert w.layers == [] or w.layers[0].weight_gradient is None
    assert why in "".join(said)


def test_projections_have_the_gradients_of_their_own_rows() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    with watch(attention, weight_gradients=True, inputs=True) as w:
        attention(x, x, x)[0].square().sum().backward()
    by_name = {layer.name: layer for layer in w.layers}
    rows = attention.in_proj_weight.grad.chunk(3)
    for name, own in zip(("q_proj", "k_proj", "v_proj"), rows):
        gradient = by_name[name].weight_gradient
        assert gradient is not None
        assert_moments(gradient, own)


def test_an_optimizer_ends_the_steps_and_its_gradients_are_those_of_its_step() -> None:
    model, told = mlp(), list[Measured]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    hooked = len(optimizer._optimizer_step_post_hooks)
    with watch(
        model, weight_gradients=True, every=2, to=told.append, optimizer=optimizer, gradients=True
    ) as w:
        with pytest.raises(RuntimeError, match="the optimizer= that is given ends the steps"):
            w.step()
        for _ in range(3):
            for _ in range(2):  # of which the gradients add up
                model(torch.randn(4, 32)).square().mean().backward()
            gradients.append(model[0].weight.grad.clone())
            optimizer.step()
            optimizer.zero_grad()
    assert len(optimizer._optimizer_step_post_hooks) == hooked
    assert [measured.step for measured in told] == [0, 2]
    for measured, gradient in zip(told, gradients[::2]):
        layer = measured.layers[0]
        assert (layer.calls, layer.note) == (2, "")
        assert layer.weight_gradient is not None
        assert_moments(layer.weight_gradient, gradient)
        assert {name.split("/")[0] for name in measured.scalars()} == {
            "forward_std",
            "gradient_std",
            "weight_std",
            "weight_gradient_std",
            "dead",
        }


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "once at the beginning": (torch.optim.SGD, {"lr": 0.1}),
    "and decays weights": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "foreach": True}),
    "several times": (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}),
}


@pytest.mark.parametrize("given", ["closure", "closure by its name"])
@pytest.mark.parametrize("calls", OPTIMIZERS)
def test_gradients_that_a_closure_makes_within_the_step_are_measured(
    calls: str, given: str
) -> None:
    model, told, gradients = mlp(), list[Measured](), list[torch.Tensor]()
    kind, options = OPTIMIZERS[calls]
    optimizer = kind(model.parameters(), **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 32)).square().mean()
        loss.backward()
        assert model[0].weight.grad is not None
        gradients.append(model[0].weight.grad.clone())
        return loss

    with watch(model, weight_gradients=True, every=1, to=told.append, optimizer=optimizer):
        last = []
        for _ in range(2):
            optimizer.step(closure) if given == "closure" else optimizer.step(closure=closure)
            last.append(gradients[-1])
    for measured, gradient in zip(told, last, strict=True):
        assert_moments(measured.layers[0].weight_gradient, gradient)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_weight_gradients_are_without_the_scale_whoever_takes_it_out(
    fused: bool, unscaled: bool
) -> None:
    """GradScaler does before the step, or leaves it to the optimizer."""
    model, told = mlp(), list[Measured]()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, weight_gradients=True, every=1, to=told.append, optimizer=optimizer):
        scaler.scale(model(torch.randn(4, 32)).square().mean()).backward()
        gradient = model[0].weight.grad / 1024
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    assert_moments(told[0].layers[0].weight_gradient, gradient)


def test_what_is_counted_is_not_of_scaled_gradients() -> None:
    model, told = mlp(), list[Measured]()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    asked = {"weight_gradients": True, "histogram": True}
    with watch(model, every=1, to=told.append, optimizer=optimizer, **asked):
        scaler.scale(model(torch.randn(4, 32)).square().mean()).backward()
        scaler.step(optimizer)
    assert told[0].layers[0].weight_gradient is None
    assert "no weight gradient: a loss scale is in it" in told[0].layers[0].note


def test_an_optimizer_is_one_of_torch() -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        watch(mlp(), every=1, optimizer=3)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(mlp().parameters())
    with pytest.raises(TypeError, match="optimizer is of a watch with every="):
        watch(mlp(), optimizer=optimizer)
