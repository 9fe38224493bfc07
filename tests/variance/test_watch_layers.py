"""Which modules are watched, and what is known of each kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from watching import assert_moments, hooks, mlp

from fastinit.variance.watch.watch import watch
from tests.running_models import differences, everything
from tests.variance.test_layers import AFFINE, COMPUTED, OTHER

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


KINDS = AFFINE | OTHER | COMPUTED


@pytest.mark.parametrize("name", KINDS)
def test_what_follows_from_a_kind_is_so_or_left_blank(name: str) -> None:
    model = nn.Sequential(KINDS[name](8, 8))
    images = isinstance(model[0], (nn.Conv2d, nn.ConvTranspose2d))
    x = torch.randn((3, 8, 6, 6) if images else (5, 8))
    if isinstance(model[0], nn.Embedding):
        x = torch.randint(0, 8, (5, 7))
    with watch(model) as w:
        out = model(x)
    layer = next(layer for layer in w.layers if layer.name == "0")
    assert_moments(layer.forward, out)
    if name in AFFINE:
        assert_moments(layer.weight, model[0].weight)
        assert layer.units == 8
        assert layer.note == ""
    if name in AFFINE and name != "embedding":
        assert layer.factor == pytest.approx(layer.fan_in * model[0].weight.var().item() / 2)
    else:
        assert all(map(math.isnan, (layer.fan_in, layer.fan_out, layer.factor)))
    if name in COMPUTED:
        assert (layer.weight, layer.note) == (None, "its weight is computed")
    if name in OTHER:
        assert layer.units == 0
        assert layer.note == "without nVar[W]/2: not known to be affine in its weight"


@pytest.mark.parametrize("name", ["Linear", "convolution", "embedding"])
def test_a_layer_that_runs_with_another_weight(name: str) -> None:
    model = nn.Sequential(AFFINE[name](8, 8))
    x = torch.randint(0, 8, (5, 8)) if name == "embedding" else torch.randn(5, 8, 8, 8)
    others = {n: p.detach() * 3 for n, p in model.named_parameters()}
    with watch(model) as w:
        out = torch.func.functional_call(model, others, (x,))
    (layer,) = w.layers
    assert_moments(layer.forward, out)
    assert layer.weight is None
    assert math.isnan(layer.factor)
    assert layer.note == "its weight is not the one it ran with"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("which", [None, ["0"], lambda name, module: True])
def test_to_look_for_layers_runs_nothing(name: str, which: Any) -> None:
    with torch.no_grad():
        model = nn.Sequential(KINDS[name](8, 8))
    before = everything(model)
    with watch(model, layers=which):
        pass
    assert differences(before, everything(model)) == []


class Backwards(nn.GRU):
    """A forward of its own, whose output still is what it is."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.flip(0))


def packed(x: Tensor) -> Any:
    return nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2]), enforce_sorted=False)


RECURRENT: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Any]]] = {
    "RNN": (lambda: nn.RNN(4, 6, nonlinearity="relu"), lambda x: x),
    "GRU, stacked": (lambda: nn.GRU(4, 6, 2), lambda x: x),
    "LSTM": (lambda: nn.LSTM(4, 6, batch_first=True), lambda x: x),
    "LSTM, both ways": (lambda: nn.LSTM(4, 6, bidirectional=True), lambda x: x),
    "LSTM, projected": (lambda: nn.LSTM(4, 6, proj_size=2), lambda x: x),
    "LSTM, packed": (lambda: nn.LSTM(4, 6), packed),
    "GRU, packed, both ways": (lambda: nn.GRU(4, 6, bidirectional=True), packed),
    "RNN cell": (lambda: nn.RNNCell(4, 6), lambda x: x[0]),
    "GRU cell": (lambda: nn.GRUCell(4, 6, bias=False), lambda x: x[0]),
    "LSTM cell": (lambda: nn.LSTMCell(4, 6), lambda x: x[0]),
    "not batched": (lambda: nn.LSTM(4, 6), lambda x: x[0]),
    "a forward of its own": (lambda: Backwards(4, 6), lambda x: x),
    "under weight_norm": (
        lambda: parametrizations.weight_norm(nn.GRU(4, 6), "weight_hh_l0"),
        lambda x: x,
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("chosen", [False, True])
def test_recurrent_layers_are_seen_by_their_output(name: str, chosen: bool) -> None:
    make, given = RECURRENT[name]
    model = nn.ModuleDict({"read": make(), "head": nn.Linear(3, 3)})
    kinds = (nn.RNNBase, nn.RNNCellBase)
    with watch(model, layers=kinds if chosen else None, gradients=True) as w:
        out = model["read"](given(torch.randn(5, 3, 4)))
        out = out[0] if isinstance(out, tuple) else out
        out = out.data if isinstance(out, nn.utils.rnn.PackedSequence) else out
        loss = out.square().sum()
        loss.backward()
    (layer,) = w.layers
    assert layer.name == "read"
    assert_moments(layer.forward, out)
    assert_moments(layer.backward, 2 * out)
    assert layer.weight is None
    assert all(map(math.isnan, (layer.fan_in, layer.fan_out, layer.factor)))
    assert layer.note == "recurrent: its output follows from no one weight"
    assert list(w.missing) == ([] if chosen else ["head"])
    assert layer.note in w.table()


def test_weights_of_no_known_kind_are_named() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay, self.inside = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x) @ self.decay

    model = nn.Sequential(Mixer(), nn.LayerNorm(4), nn.ReLU())
    with watch(model) as w:
        model(torch.randn(3, 4))
    assert [layer.name for layer in w.layers] == ["0.inside"]
    assert w.missing == {"0": "no known kind of layer: it has decay"}
    with watch(model, layers=["0"]) as w:
        out = model[0](torch.randn(3, 4))
    assert_moments(w.layers[0].forward, out)


SCRIPTED = "scripted: no hooks run in it"


class Loss(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean()


def closed() -> dict[str, nn.Module]:
    return {
        "traced": torch.jit.trace(mlp(1), torch.zeros(1, 32)),
        "scripted": torch.jit.script(mlp(1)),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["traced", "scripted"])
def test_what_hooks_do_not_reach_is_left_out_and_named(name: str) -> None:
    inner = closed()[name]
    model = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Sequential(inner)})
    model["loss"] = torch.jit.script(Loss())
    before, x = hooks(inner), torch.randn(8, 32)
    missing = {
        None: {"b.0": SCRIPTED},
        ("a", "b.0.0", "loss"): {"b.0": SCRIPTED, "loss": SCRIPTED},
    }
    for which, left_out in missing.items():
        with watch(model, layers=which, gradients=True) as w:
            assert hooks(inner) == before
            model["loss"](model["b"](model["a"](x))).backward()
        assert [layer.name for layer in w.layers] == ["a"]
        assert_moments(w.layers[0].forward, model["a"](x))
        assert w.layers[0].backward is not None
        assert w.missing == left_out
    with pytest.raises(
        ValueError, match=f"can be watched, but None does not; the model: {SCRIPTED}"
    ):
        watch(inner)
    with pytest.raises(ValueError, match=f"does not; b.0: {SCRIPTED}"):
        watch(model, layers=["b.0"])
