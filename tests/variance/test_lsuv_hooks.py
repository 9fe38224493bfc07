"""lsuv_ among what else touches outputs: hooks, autocast's cache, forwards that differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fastinit import LSUVError, lsuv_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(3.0)


def inside_in_place(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.add_(1.0)


def through_data(module: nn.Module, args: Any, output: Tensor) -> None:
    output.data.mul_(3.0)


def by_address(module: nn.Module, args: Any, output: Tensor) -> None:
    output.detach().numpy()[:, :8] *= 3.0


CHANGING: dict[str, Callable[..., Any]] = {
    "another tensor": lambda module, args, output: output * 3,
    "clamped": lambda module, args, output: output.clamp(-2.0, 2.0),
    "clamped where it does not reach yet": lambda module, args, output: output.clamp(-3.0, 3.0),
    "of another shape": lambda module, args, output: output[:, :8].repeat(1, 2)[:-1],
    "written": in_place,
    "written and returned": inside_in_place,
    "written through .data": through_data,
    "written by its address": by_address,
    "a copy": lambda module, args, output: output.clone(),
}
LEAVING: dict[str, Callable[..., Any]] = {
    "nothing": lambda module, args, output: None,
    "itself": lambda module, args, output: output,
}


def renormed(module: Any, args: Any) -> None:
    """Behind torch's back, so that no version counts."""
    weight = module.weight.data
    weight.div_(weight.norm(dim=1, keepdim=True).clamp_min(1.0))


def of_all(hook: Callable[..., Any]) -> Callable[[nn.Module], Any]:
    def register(module: nn.Module) -> Any:
        def own(where: nn.Module, args: Any, output: Any) -> Any:
            return hook(where, args, output) if where is module else None

        return register_module_forward_hook(own)

    return register


PLACES: dict[str, Callable[[Callable[..., Any]], Callable[[nn.Module], Any]]] = {
    "the layer's": lambda hook: lambda module: module.register_forward_hook(hook),
    "all modules'": of_all,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", CHANGING)
def test_a_hook_that_changes_the_output_is_part_of_the_layer(kind: str, place: str) -> None:
    model, x = net(), torch.randn(64, 16)
    handle = PLACES[place](CHANGING[kind])(model[0])
    try:
        result = lsuv_(model, x, verify=True)
        out = model[:1](x) if place == "all modules'" else model[0](x)
        assert out.var().item() == pytest.approx(1.0, abs=0.02)  # lsuv_'s tol
        assert result.layers[0].iterations > 1
        assert result.layers[1].std == pytest.approx(1.0, rel=1e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", LEAVING)
def test_a_hook_that_leaves_the_output_alone_changes_nothing(kind: str, place: str) -> None:
    model, plain, x = net(), net(), torch.randn(64, 16)
    handle = PLACES[place](LEAVING[kind])(model[0])
    try:
        assert lsuv_(model, x).scales == lsuv_(plain, x).scales
    finally:
        handle.remove()


def test_a_hook_that_writes_the_weight_is_part_of_the_layer() -> None:
    model, x = net(), torch.randn(64, 16) / 3
    nn.init.normal_(model[0].weight)  # longer than the hook leaves it
    model[0].register_forward_pre_hook(renormed)
    before = model[0].weight.detach().clone()
    result = lsuv_(model, x, layers=["0", "2"])
    assert result.layers[0].note == "its std does not follow its weight's scale"
    assert result.layers[1].std == pytest.approx(1.0, rel=1e-5)
    assert model[0].weight.equal(before)


class Two(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, 2 * y


class Both(nn.Module):
    """The first result is measured, and the second goes on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[1].tanh())


def hooked_to_two() -> nn.Module:
    layer = nn.Linear(16, 16)
    layer.register_forward_hook(lambda module, args, output: (output, 2 * output))
    return layer


@pytest.mark.parametrize("make", [lambda: Two(16, 16), hooked_to_two])
@pytest.mark.parametrize("options", [{}, {"reuse": "pool"}])
def test_all_that_a_layer_gives_follows_its_scale(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    result = lsuv_(Both(make()), torch.randn(64, 16), verify=True, **options)
    assert [m.note for m in result.layers] == ["", ""]
    assert result.layers[0].scale != 1.0


class Ranged(nn.Linear):
    """Clamps to a range that its own first outputs decide, as a fake quantisation's observer does."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.seen.numel():
            self.seen.resize_(y.shape[1]).copy_(y.abs().amax(0))
        return y.minimum(self.seen / 2).maximum(-self.seen / 2)


class Replaced(Ranged):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.Linear.forward(self, x)
        self.seen = y.abs().amax(0) if not self.seen.numel() else self.seen
        return y.minimum(self.seen / 2).maximum(-self.seen / 2)


class Inside(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.range = Ranged(sizes[1], sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.range(super().forward(x))


@pytest.mark.parametrize("kind", [Ranged, Replaced, Inside])
def test_a_layer_runs_again_from_the_buffers_that_it_was_called_with(kind: type) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(kind(16, 16), nn.Linear(16, 4)), torch.randn(64, 16)
    names = ["0", "1"]
    result = lsuv_(model, x, layers=names, verify=True)
    assert [m.note for m in result.layers] == ["", ""]
    assert [m.std for m in result.layers] == pytest.approx([1.0, 1.0], abs=0.01)  # half of tol
    assert not any(len(buffer) for buffer in model.buffers())


def written(block: Any, args: Any) -> None:
    with torch.no_grad():
        block[0].weight.div_(block[0].weight.norm() / 3)


def data_written(block: Any, args: Any) -> None:
    block[0].weight.data.clamp_(-0.1, 0.1)


def data_given(block: Any, args: Any) -> None:
    block[0].weight.data = block[0].weight.data.clamp(-0.1, 0.1)


def one_row_written(block: Any, args: Any) -> None:
    block[0].weight.data[3] = 2.0


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("kind", [nn.Linear, Scaled])
@pytest.mark.parametrize("write", [written, data_written, data_given, one_row_written])
def test_a_weight_that_the_model_writes_before_its_layer_runs_is_left(
    write: Callable[..., Any], kind: type, batches: int
) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(kind(16, 16), nn.ReLU())
    block.register_forward_pre_hook(write)
    model = nn.Sequential(block, nn.Linear(16, 4))
    weight, place = block[0].weight.detach().clone(), block[0].weight.data_ptr()
    result = lsuv_(model, batches=[torch.randn(64, 16) for _ in range(batches)], verify=True)
    said = "the model writes its weight before it runs: left as it is"
    assert [m.note for m in result.layers] == [said, ""]
    assert block[0].weight.equal(weight)
    assert block[0].weight.data_ptr() == place


def test_a_head_that_is_tied_to_a_renormalised_embedding_is_left() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mid = nn.Embedding(20, 8, max_norm=1.0), nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.mid(self.embed(tokens)))

    torch.manual_seed(0)
    result = lsuv_(Tied(), torch.randint(20, (16, 8)), verify=True)
    assert [m.scale == 1.0 for m in result.layers] == [False, True]
    assert result.layers[1].note.startswith("the model writes its weight before it runs")


def test_a_weight_that_gets_other_memory_with_the_same_values_is_scaled() -> None:
    def moved(block: Any, args: Any) -> None:
        block[0].weight.data = block[0].weight.data.clone()

    model, x = net(), torch.randn(64, 16)
    model.register_forward_pre_hook(moved)
    assert [m.note for m in lsuv_(model, x, verify=True).layers] == ["", ""]


def test_a_layer_that_runs_with_another_weight_is_left_as_it_is() -> None:
    class Generated(nn.Module):
        """A hypernetwork's layer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
            self.register_buffer("made", torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.func.functional_call(self.layer, {"weight": self.made}, (x,)))

    torch.manual_seed(0)
    model = Generated()
    weight = model.layer.weight.detach().clone()
    result = lsuv_(model, torch.randn(64, 16), verify=True)
    said = "it runs with another weight than its own: left as it is"
    assert [m.note for m in result.layers] == [said, ""]
    assert model.layer.weight.equal(weight)


def test_a_layer_that_writes_its_inputs_is_left_as_it_is() -> None:
    class Adds(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(super().forward(x))

    model = nn.Sequential(nn.Linear(8, 8), Adds(8, 8), nn.Linear(8, 8))
    weight, x = model[1].weight.detach().clone(), torch.randn(64, 8)
    result = lsuv_(model, x, verify=True)
    said = "writes its inputs, so that it is not run again: left as it is"
    assert [m.note for m in result.layers] == ["", said, ""]
    assert model[1].weight.equal(weight)


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
        lsuv_(model, x, activation=activation, verify=True)
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


@pytest.mark.parametrize("kind", ["affine", "attention", "repeated"])
def test_a_forward_that_needs_gradients_of_its_inputs(kind: str) -> None:
    """A force field: what it gives is a gradient, recorded on what layers gave as scaled."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = {
                "affine": lambda: nn.Linear(16, 16),
                "attention": lambda: nn.MultiheadAttention(16, 2),
                "repeated": lambda: Squashed(16, 16),
            }[kind]()
            self.energy = nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                h = self.inside(x, x, x)[0] if kind == "attention" else self.inside(x)
                energy = self.energy(h.tanh()).sum()
                return torch.autograd.grad(energy, x, create_graph=True)[0]

    torch.manual_seed(0)
    model, x, seen = Field(), torch.randn(8, 4, 16), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    result = lsuv_(model, x, verify=True)
    assert result.passes == 1
    # Sums over 16 values in float32, relative to the largest.
    torch.testing.assert_close(seen[0], model(x), rtol=0.0, atol=1e-5 * float(seen[0].abs().max()))


class Squashed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sinh()


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
