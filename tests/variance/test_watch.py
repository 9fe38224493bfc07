"""Watching: all numbers are those of plain torch, hooks go, and what cannot be seen is named."""

from __future__ import annotations

import copy
import gc
import io
import json
import math
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fastinit.statistics.tensor import Moments
from fastinit.variance import schedules
from fastinit.variance.watch import Watch, watch
from fastinit.variance.watch_block import FOLD


def mlp(depth: int = 4, width: int = 32, inplace: bool = False) -> nn.Sequential:
    pairs = ((nn.Linear(width, width), nn.ReLU(inplace)) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


def assert_moments(m: Moments | None, *values: Tensor) -> None:
    x = torch.cat([v.detach().flatten() for v in values]).double()
    assert m is not None
    assert m.count == x.numel()
    for name in ("mean", "var", "min", "max"):
        expected = getattr(x, name)().item()
        scale = x.abs().max().item()
        assert getattr(m, name) == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale), name
    assert (m.zeros, m.nonfinite) == ((x == 0).sum().item(), 0)


def assert_alike(a: Watch, b: Watch) -> None:
    """Two passes over the same: float32 sums of torch's own, up to some roundings."""
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    for one, other in zip(a.layers, b.layers):
        assert (one.calls, one.units, one.dead, one.note) == (
            *(other.calls, other.units, other.dead, other.note),
        )
        for seen, wanted in ((one.forward, other.forward), (one.backward, other.backward)):
            torch.testing.assert_close(seen.raw, wanted.raw, rtol=1e-5, atol=1e-6)


def hooks(model: nn.Module) -> list[Any]:
    """What a watch could leave behind."""
    modules = list(model.modules())
    tensors = [len(p._backward_hooks or ()) for p in model.parameters()]
    own = [[len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))] for m in modules]
    return own + tensors


def test_a_model_that_runs_in_several_threads() -> None:
    """As replicas do: no call is lost, also where moments are merged."""
    net, x, calls = mlp(2, 8), torch.randn(4, 8), 2 * FOLD

    def run() -> None:
        for _ in range(calls):
            net(x).sum().backward()

    with watch(net, gradients=True) as seen:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for layer in seen.layers:
        assert layer.backward is not None
        assert layer.calls == 4 * calls
        assert layer.forward.count == layer.backward.count == 4 * calls * x.numel()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_in_the_block_is_not_watched(how: str) -> None:
    net, x = nn.Sequential(mlp(2, 8), nn.MultiheadAttention(8, 2)), torch.randn(4, 8)
    before = hooks(net)
    with watch(net, gradients=True) as seen:
        net[0](x).sum().backward()
        other = COPIES[how](net)
        assert hooks(other) == before
        other[0](x)
        net[1](x, x, x)
    assert [layer.calls for layer in seen.layers] == [1] * 6
    assert hooks(net) == before


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


FANS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[float, float]]] = {
    "linear": (nn.Linear(6, 4), (5, 6), (6, 4)),
    "conv": (nn.Conv2d(6, 4, (3, 5)), (2, 6, 9, 9), (90, 60)),
    "grouped": (nn.Conv1d(6, 4, 3, groups=2), (2, 6, 9), (9, 6)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3), (2, 6, 9, 9), (54, 36)),
    "transposed, grouped": (nn.ConvTranspose1d(6, 4, 3, groups=2), (2, 6, 9), (9, 6)),
    "transposed, strided": (nn.ConvTranspose2d(6, 4, 4, stride=2), (2, 6, 9, 9), (24, 64)),
}


@pytest.mark.parametrize("kind", FANS)
def test_fans(kind: str) -> None:
    module, shape, fans = FANS[kind]
    with watch(module) as w:
        module(torch.randn(shape))
    (layer,) = w.layers
    assert (layer.fan_in, layer.fan_out) == fans
    assert layer.units == 4
    assert layer.factor == pytest.approx(fans[0] * module.weight.var().item() / 2)


def test_the_fan_of_a_strided_transposed_convolution_is_the_one_that_counts() -> None:
    module = nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, bias=False)
    nn.init.normal_(module.weight, std=0.1)
    with watch(module) as w:
        module(torch.randn(8, 32, 32, 32))
    (layer,) = w.layers
    assert layer.forward.var == pytest.approx(2 * layer.factor, rel=0.1)


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_hooks_are_gone_and_what_ran_is_there(
    error: type[BaseException],
) -> None:
    class Fault(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error("at its turn")

    model = nn.Sequential(nn.Linear(8, 8), Fault(), nn.Linear(8, 8))
    before = hooks(model)
    w = watch(model, gradients=True)
    with pytest.raises(error, match="at its turn"), w:
        model(torch.randn(4, 8))
    assert hooks(model) == before
    assert [layer.name for layer in w.layers] == ["0"]
    assert list(w.missing) == ["2"]


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


def test_outputs_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    kept: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda module, args, out: kept.append(weakref.ref(out)))
    gc.disable()
    try:
        with watch(model, gradients=True):
            model(torch.randn(4, 8)).sum().backward()
            assert kept[0]() is None
    finally:
        gc.enable()


def test_a_parameter_that_is_returned_keeps_no_hook() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 5))

        def forward(self) -> Tensor:
            return self.weight

    module = Constant()
    with watch(module, layers=Constant, gradients=True) as w:
        (module() * torch.arange(5.0)).sum().backward()
    assert w.layers[0].backward is not None
    assert w.layers[0].backward.mean == 2.0
    assert not module.weight._backward_hooks


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


def test_tied_weights_count_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 40, bias=False)
            self.b.weight, self.head.weight = self.a.weight, self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.b(self.a(self.embed(tokens))))

    model = Net()
    with watch(model) as w:
        model(torch.randint(0, 40, (8, 8)))
    by_name = {layer.name: layer for layer in w.layers}
    assert math.isnan(by_name["embed"].factor)
    assert math.isnan(by_name["embed"].fan_in)
    assert by_name["b"].note == "weight tied to a, counted there"
    assert by_name["b"].product == by_name["a"].product == by_name["a"].factor
    assert w.product == pytest.approx(by_name["a"].factor * by_name["head"].factor)


def test_attention_and_encoders() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2
    )
    x = torch.randn(4, 10, 32)
    with watch(model, gradients=True) as w:
        model(x).square().sum().backward()
    names = [layer.name for layer in w.layers]
    each = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")] + ["linear1", "linear2"]
    assert names == [f"layers.{i}.{name}" for i in range(2) for name in each]
    attention = w.layers[3]
    assert_moments(attention.forward, model.layers[0].self_attn(x, x, x)[0])
    assert attention.backward is not None
    assert (attention.fan_in, attention.units) == (32, 32)
    assert w.missing == {}
    model.eval()
    with watch(model) as w, torch.no_grad():  # where torch would take its fused path
        model(x)
    assert [layer.name for layer in w.layers] == names


WIDTHS: dict[str, tuple[int, int]] = {"fused": (32, 32), "separate": (24, 16)}


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_input_projections_of_attention(widths: str) -> None:
    kdim, vdim = WIDTHS[widths]
    model = nn.MultiheadAttention(32, 4, kdim=kdim, vdim=vdim)
    inputs = [torch.randn(shape) for shape in ((20, 8, 32), (30, 8, kdim), (30, 8, vdim))]
    nn.init.normal_(model.in_proj_bias)
    if widths == "fused":
        weights = list(model.in_proj_weight.detach().chunk(3))
    else:
        weights = [model.q_proj_weight, model.k_proj_weight, model.v_proj_weight]
    with torch.no_grad():
        weights[1][:5] = 0  # five keys that never vary
    before = hooks(model)
    plain = model(*inputs)[0]
    plain.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with watch(model, gradients=True) as w:
        out = model(inputs[0], inputs[1], value=inputs[2])[0]
        out.square().sum().backward()
    assert hooks(model) == before
    torch.testing.assert_close(out, plain)
    for parameter, grad in zip(model.parameters(), grads):
        torch.testing.assert_close(parameter.grad, grad)
    assert [layer.name for layer in w.layers] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    product = 1.0
    for layer, x, weight, bias in zip(w.layers, inputs, weights, model.in_proj_bias.chunk(3)):
        assert_moments(layer.forward, x @ weight.T + bias)
        assert_moments(layer.weight, weight)
        assert (layer.calls, layer.units) == (1, 32)
        assert (layer.fan_in, layer.fan_out) == (x.shape[-1], 32)
        assert layer.factor == pytest.approx(x.shape[-1] * weight.var().item() / 2)
        assert layer.dead == (5 if layer.name == "k_proj" else 0)
        product *= layer.factor
        assert layer.product == pytest.approx(product)
        assert layer.backward is None
        assert layer.note == "no gradient, computed inside MultiheadAttention"
    assert_moments(w.layers[3].forward, out)
    assert w.layers[3].note == ""
    with watch(model, layers=["k_proj"]) as w:
        model(*inputs)
    assert [layer.name for layer in w.layers] == ["k_proj"]


def test_attention_in_half_precision_checkpointed_and_nested() -> None:
    model, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(4, 10, 32)
    with watch(model) as w, torch.autocast("cpu", torch.bfloat16):
        model(x, x, x)
        expected = nn.functional.linear(x, model.in_proj_weight[:32], model.in_proj_bias[:32])
    assert expected.dtype == torch.bfloat16
    assert_moments(w.layers[0].forward, expected)

    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    with watch(layer, gradients=True) as w:
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert [seen.calls for seen in w.layers] == [1] * 6

    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[1, 6:] = True
    encoder = nn.TransformerEncoder(layer, 1).eval()
    with watch(encoder) as w, torch.no_grad():
        encoder(x, src_key_padding_mask=mask)
    assert w.layers == []
    assert set(w.missing.values()) == {"its output is a nested tensor"}


def test_attention_whose_weight_is_computed_is_seen_by_its_output() -> None:
    model, x = nn.MultiheadAttention(32, 4), torch.randn(10, 4, 32)
    parametrizations.weight_norm(model, "in_proj_weight")
    parametrizations.weight_norm(model.out_proj)
    with watch(model, layers=nn.MultiheadAttention) as w:
        out = model(x, x, x)[0]
    (layer,) = w.layers
    assert_moments(layer.forward, out)
    assert layer.note == "its weight is computed"
    assert w.missing == {f"{n}_proj": "its weight is computed" for n in "qkv"}


def test_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 100, (4, 32))
    with watch(model, gradients=True) as w:
        model(input_ids=tokens, labels=tokens).loss.backward()
    names = [layer.name for layer in w.layers]
    assert names[:2] == ["transformer.wte", "transformer.wpe"]
    assert names[2:6] == [
        f"transformer.h.0.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert names[-1] == "lm_head"
    by_name = {layer.name: layer for layer in w.layers}
    assert_moments(by_name["lm_head"].forward, model(input_ids=tokens).logits)
    widening = by_name["transformer.h.0.mlp.c_fc"]
    assert (widening.fan_in, widening.fan_out, widening.units) == (32, 128, 128)
    assert all(layer.backward is not None for layer in w.layers)
    with watch(model, layers=[""]) as w:  # its output is a mapping
        model(input_ids=tokens)
    assert w.layers[0].forward.count == 4 * 32 * 100
    assert_moments(w.layers[0].forward, model(input_ids=tokens).logits)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_residual_nets(memory_format: torch.memory_format) -> None:
    model = nn.Sequential(Residual(3, 8, 1), Residual(8, 16, 2), nn.Flatten(), nn.Linear(400, 5))
    model = model.to(memory_format=memory_format)
    x = torch.randn(6, 3, 10, 10).to(memory_format=memory_format)
    plain = {n: b.clone() for n, b in model.named_buffers()}
    model(x).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    stats = {n: b.clone() for n, b in model.named_buffers()}
    model.load_state_dict(plain, strict=False)
    model.zero_grad()
    chosen = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    with watch(model, layers=chosen, gradients=True) as w:
        model(x).sum().backward()
    for n, b in model.named_buffers():
        torch.testing.assert_close(b, stats[n])
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[n])
    order = ["conv1", "norm1", "conv2", "norm2", "short"]
    assert [layer.name for layer in w.layers] == [f"{i}.{n}" for i in (0, 1) for n in order] + ["3"]
    by_name = {layer.name: layer for layer in w.layers}
    assert_moments(by_name["0.conv1"].forward, model[0].conv1(x))
    assert by_name["0.norm1"].forward.var == pytest.approx(1.0, abs=1e-2)
    assert math.isnan(by_name["0.norm1"].factor)
    assert by_name["1.conv1"].fan_in == 72


def test_activations_and_computed_weights_are_seen_without_weights() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 16)), nn.ReLU())
    with watch(model, layers=(nn.Linear, nn.ReLU), gradients=True) as w:
        out = model(torch.randn(64, 16))
        out.sum().backward()
    normed, relu = w.layers
    assert_moments(relu.forward, out)
    assert relu.backward is not None
    assert (relu.backward.count, relu.backward.mean) == (64 * 16, 1.0)
    assert (normed.note, relu.note) == ("its weight is computed", "has no weight")
    assert normed.weight is None
    assert w.product == 1.0


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


def test_json_is_strict_and_complete() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with watch(model, gradients=True) as w:
        model(torch.arange(9)).sum().backward()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(w.to_json(), parse_constant=refuse)
    embedding, linear = report["layers"]
    assert embedding["forward"]["nonfinite"] == embedding["nonfinite"] == 36
    assert embedding["forward"]["mean"] is None
    assert embedding["forward"]["min"] == "Infinity"
    assert embedding["factor"] is None
    assert linear["fan_in"] == 4
    assert linear["backward"]["mean"] == 1.0
    assert linear["weight"]["var"] == pytest.approx(model[1].weight.var().item())
    assert report["product"] == pytest.approx(linear["factor"])
    assert report["missing"] == {}


def deep(name: str, levels: int) -> nn.Module:
    module: nn.Module = nn.Linear(300, 300)
    for _ in range(levels):
        module = nn.ModuleDict({name: module})
    return module


@pytest.mark.parametrize("gradients", [False, True])
def test_the_table_fits_a_terminal(gradients: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleList(
                nn.ModuleDict({"attention": nn.ModuleDict({"projection": nn.Linear(300, 300)})})
                for _ in range(12)
            )
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.transformer:
                x = block["attention"]["projection"](x) * 1e-5
            return x * math.inf

    model = Net()
    with watch(model, gradients=gradients) as w:
        model(torch.randn(8, 300)).sum().backward()
    table = w.table().splitlines()
    assert all(len(line) <= 80 for line in table)
    assert ("grad std" in table[0]) == gradients
    firsts = [line.split()[0] for line in table[2:14]]
    assert len(set(firsts)) == 12  # the block's number is not what is left out
    assert table[-1] == "not measured: did not run as a module, or was only traced: unused"


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = mlp(20)
    with watch(model, gradients=True) as w:
        model(torch.randn(64, 32)).square().sum().backward()
    path = tmp_path / "depth.png"
    ax = w.plot(path, label="default")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert ax.get_yscale() == "log"
    target, forward, backward = ax.lines
    assert list(target.get_ydata()) == [1.0, 1.0]
    assert list(forward.get_ydata()) == [layer.forward.var for layer in w.layers]
    last = w.layers[-1].backward
    assert last is not None
    assert backward.get_ydata()[-1] == 1.0
    assert backward.get_ydata()[0] == w.layers[0].backward.var / last.var
    with torch.no_grad():
        model[4].weight.zero_()
        model[4].bias.zero_()
    with watch(model) as w:
        model(torch.randn(64, 32))
    assert w.plot(ax=ax, label="dead") is ax
    assert [line.get_label() for line in ax.lines].count("dead: no variance") == 1
    assert sum(line.get_gid() == target.get_gid() for line in ax.lines) == 1


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    with watch(model) as w:
        model(torch.randn(8, 32))
    loaded = [name for name in sys.modules if name.split(".")[0] == "matplotlib"]
    for name in {*loaded, "matplotlib", "matplotlib.figure"}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        w.plot()


def test_models_that_have_no_hooks_are_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4))
    with pytest.raises(TypeError, match="its module '1' is a ScriptModule"):
        watch(nn.Sequential(nn.Linear(4, 4), scripted))
    with pytest.raises(TypeError, match="it is a ScriptModule"):
        watch(scripted)
    with pytest.raises(TypeError, match=r"it is compiled; watch the model before torch.compile"):
        watch(torch.compile(mlp()))
    compiled = mlp()
    compiled[2].compile()
    with pytest.raises(TypeError, match="its module '2' is compiled"):
        watch(compiled)


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


def test_the_lightning_callback(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from fastinit.lightning import VarianceMonitor

    logged: list[dict[str, float]] = []

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(2)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            if index == 5:
                raise KeyError("at its turn")
            return self.net(batch).square().mean()

        def log_dict(self, values: Any, *args: Any, **kwargs: Any) -> None:
            logged.append(dict(values))
            super().log_dict(values, *args, **kwargs)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Net()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[VarianceMonitor(every_n_batches=5)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(KeyError, match="at its turn"):
        trainer.fit(model, torch.utils.data.DataLoader(torch.randn(24, 32), batch_size=4))
    (values,) = logged  # of batch 0; batch 5 failed
    assert set(values) == {f"{k}_std/net.{i}" for k in ("forward", "gradient") for i in (0, 2)}
    assert all(value > 0 for value in values.values())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="every_n_batches must be at least 1, but got 0"):
        VarianceMonitor(0)
