"""lsuv_ among what else touches outputs: hooks, autocast's cache, forwards that differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastinit import LSUVError, lsuv_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(3.0)


def inside_in_place(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.add_(1.0)


CHANGING: dict[str, Callable[..., Any]] = {
    "another tensor": lambda module, args, output: output * 3,
    "of another shape": lambda module, args, output: output[:, :8].repeat(1, 2)[:-1],
    "written": in_place,
    "written and returned": inside_in_place,
}
LEAVING: dict[str, Callable[..., Any]] = {
    "nothing": lambda module, args, output: None,
    "itself": lambda module, args, output: output,
    "a copy": lambda module, args, output: output.clone(),
    "another dtype": lambda module, args, output: output.double().float(),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_a_hook_that_changes_the_output_is_named(kind: str) -> None:
    model = net()
    model[0].register_forward_hook(CHANGING[kind])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LSUVError, match="a forward hook of 0 changes its output"):
        lsuv_(model, torch.randn(64, 16))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", LEAVING)
def test_a_hook_that_leaves_the_output_alone_changes_nothing(kind: str) -> None:
    model, plain, x = net(), net(), torch.randn(64, 16)
    model[0].register_forward_hook(LEAVING[kind])
    assert lsuv_(model, x).scales == lsuv_(plain, x).scales


def test_a_frozen_layer_may_have_any_hook() -> None:
    model = net()
    model[0].requires_grad_(False).register_forward_hook(CHANGING["another tensor"])
    result = lsuv_(model, torch.randn(64, 16))
    assert result.layers[1].std == pytest.approx(1.0)


@pytest.mark.parametrize("activation", [None, torch.relu])
def test_what_autocast_made_of_weights_before_is_not_used_after(
    activation: Callable[[Tensor], Tensor] | None,
) -> None:
    """Autocast keeps its copies of weights until its block ends."""
    model, x = net(), torch.randn(512, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x)
        lsuv_(model, x, activation=activation)
        out = model(x) if activation is None else activation(model(x))
        assert torch.is_autocast_cache_enabled()
    # bfloat16 rounds a weight and an output by 2^-9 each; the variance may be off by tol = 0.02.
    assert out.float().std().item() == pytest.approx(1.0, rel=0.02)


class Slope(nn.Module):
    """Its output has its layer's gradient in it, as a forward that computes forces has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.layer(x).square().sum(), x)
        return slope


def test_a_forward_that_differentiates_sees_the_scaled_layer() -> None:
    torch.manual_seed(0)
    model, x, seen = Slope(), torch.randn(64, 16), []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    lsuv_(model, x)
    # Of float32 sums over 16 values, relative to the largest.
    torch.testing.assert_close(seen[0], model(x), rtol=0.0, atol=1e-5 * float(seen[0].abs().max()))
    assert model.layer(x).std().item() == pytest.approx(1.0, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [8, 1000, 4096])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_a_layer_that_gives_only_its_bias_is_dead(
    shift: float, rows: int, dtype: torch.dtype
) -> None:
    """Also where the sums that say so have been rounded."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.add_(shift)
    with pytest.raises(LSUVError, match="dead but for its bias"):
        lsuv_(nn.Sequential(layer.to(dtype)), torch.randn(rows, 16, dtype=dtype))
