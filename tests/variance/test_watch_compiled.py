"""Watching models that run compiled: measured inside the graph, as eagerly."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from selection import cases
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from watching import assert_alike, hooks, mlp, saved

from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import Watch, watch


@pytest.fixture(autouse=True)
def _dynamo_begins_anew() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def left(model: nn.Module) -> list[Any]:
    """Hooks, and forwards of a module's own."""
    own = ("_forward_hooks", "_forward_pre_hooks", "forward", "__reduce_ex__")
    return [vars(m)[name] for m in model.modules() for name in own if vars(m).get(name)]


def train(model: Callable[..., Any], *given: Tensor) -> None:
    out = model(*given)
    out = out[0] if isinstance(out, tuple) else getattr(out, "logits", out)
    out.square().mean().backward()


def assert_same(a: Watch, b: Watch) -> None:
    """To the bit."""
    assert [layer.name for layer in a.layers] == [
        layer.name.removeprefix("_orig_mod").removeprefix(".") for layer in b.layers
    ]
    for one, other in zip(a.layers, b.layers):
        assert (one.calls, one.units, one.dead, one.note) == (
            *(other.calls, other.units, other.dead, other.note),
        ), one.name
        assert one.signals().keys() == other.signals().keys(), one.name
        for signal, wanted in other.signals().items():
            assert one.signals()[signal].raw.equal(wanted.raw), f"{signal} of {one.name}"
    assert a.missing.values() == b.missing.values() or list(a.missing.values()) == list(
        b.missing.values()
    )


class Twice(nn.Module):
    """A layer that runs twice, one whose output is written in place, one whose units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.dead = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.dead.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.a(x)).relu_()).mul_(2)
        return torch.cat([x, self.dead(x)], dim=-1)


class Residual(nn.Module):
    """As ResNet-18 has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + x)


def resnet() -> tuple[nn.Module, Tensor]:
    stem = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return nn.Sequential(*stem, Residual(8), up, *head), torch.randn(4, 3, 12, 12)


def gpt2() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
    config.use_cache = False
    return transformers.GPT2LMHeadModel(config).eval(), torch.randint(40, (2, 8))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = mlp(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.inner, x, use_reentrant=False))
        return out


class Normed(nn.Module):
    """Attention, and what is asked for by name: a norm, whose gradient in a graph is not had."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.read = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.attend(x, x, x)[0])
        return out


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "an MLP": lambda: (mlp(2, 8), torch.randn(4, 8)),
    "written in place": lambda: (mlp(2, 8, inplace=True), torch.randn(4, 8)),
    "one layer": lambda: (nn.Linear(8, 8), torch.randn(4, 8)),
    "twice": lambda: (Twice(), torch.randn(4, 8)),
    "ResNet": resnet,
    "GPT-2": gpt2,
    "checkpointed": lambda: (Checkpointed(), torch.randn(4, 8)),
}
WAYS: dict[str, Callable[[nn.Module, str], Callable[..., Any]]] = {
    "compiled": lambda model, backend: torch.compile(model, fullgraph=True, backend=backend),
    "in place": lambda model, backend: model.compile(fullgraph=True, backend=backend) or model,
    "in a function": lambda model, backend: torch.compile(
        lambda x: model(x), fullgraph=True, backend=backend
    ),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("twice", "aot_eager"),
        ("checkpointed", "eager"),
        *(
            pytest.param(name, "aot_eager", marks=pytest.mark.slow)
            for name in MODELS
            if name != "twice"
        ),
    ],
)
def test_what_a_graph_measures_is_what_eager_measures(name: str, backend: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    asked = {"gradients": True, "inputs": True, "higher": True}
    with watch(model, **asked) as eager:
        train(model, x)
    with watch(model, **asked) as inside:
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        train(compiled, x)
    assert_same(eager, inside)
    made = graphs()
    train(compiled, x)  # without a measurement
    train(compiled, x)
    made_plain = graphs()
    for watched in (model, compiled):
        with watch(watched, **asked) as again:
            train(compiled, x)
        assert_same(eager, again)
    assert graphs() == made_plain > made
    assert left(model) == []


@pytest.mark.parametrize("way", cases(WAYS, ["in place"]))
def test_what_was_compiled_and_run_before_is_measured(way: str) -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(4, 8)
    with watch(model, gradients=True) as eager:
        train(model, x)
    compiled = WAYS[way](model, "aot_eager")
    train(compiled, x)
    with watch(model, gradients=True) as inside:
        train(compiled, x)
    assert_same(eager, inside)


INPUTS, BOTH = {"inputs": True}, {"gradients": True, "inputs": True}
ONE_AFTER_ANOTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, INPUTS),
    (INPUTS, {}),
    ({"gradients": True}, BOTH),
    (INPUTS, {"gradients": True}),
    ({}, {"higher": True}),
]


@pytest.mark.parametrize("both", ONE_AFTER_ANOTHER)
def test_no_watch_takes_a_graph_that_measures_something_else(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    model, x = mlp(1, 8), torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for asked in both:
        with watch(model, **asked) as eager:
            train(model, x)
        with watch(model, **asked) as inside:
            train(compiled, x)
        assert_same(eager, inside)


@pytest.mark.parametrize("compiled", [(2,), (0, 4)])
def test_layers_that_run_compiled_and_others_are_in_their_order(compiled: tuple[int, ...]) -> None:
    """As where each block is compiled by itself."""
    model, x = mlp(3, 8), torch.randn(4, 8)
    for i in compiled:
        model[i].compile(fullgraph=True, backend="eager")
    for _ in range(2):
        with watch(model, gradients=True) as w:
            train(model, x)
        assert [layer.name for layer in w.layers] == ["0", "2", "4"]


TRANSFORMED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "vmap": lambda model, x: torch.func.vmap(model)(x),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    "vmap of grad": lambda model, x: torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(x),
}


@pytest.mark.parametrize("way", TRANSFORMED)
def test_compiled_transforms_run_unmeasured(way: str) -> None:
    """As they do eagerly."""
    model, x = mlp(1, 8), torch.randn(4, 8)
    wanted = TRANSFORMED[way](model, x)
    compiled = torch.compile(
        lambda x: TRANSFORMED[way](model, x), fullgraph=True, backend="aot_eager"
    )
    with watch(model, gradients=True) as w:
        assert torch.allclose(compiled(x), wanted)
    assert w.layers == []


def test_no_step_of_a_training_compiles_anew() -> None:
    model, told = mlp(2), list[Measured]()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with watch(model, gradients=True, every=3, to=told.append) as w:
        for step in range(8):
            train(compiled, torch.randn(8, 32))
            w.step()
            if step == 1:
                made = graphs()
    assert graphs() == made == 2
    assert [measured.step for measured in told] == [0, 3, 6]
    assert all(layer.calls == 1 for measured in told for layer in measured.layers)
    assert len({measured.layers[0].forward.mean for measured in told}) == 3
    assert left(model) == []


def test_any_shape_is_measured_by_one_graph() -> None:
    model = mlp(2, 8)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    batches = [torch.randn(n, 8) for n in (4, 7, 12)]
    with watch(model, gradients=True) as eager:
        for x in batches:
            train(model, x)
    with watch(model, gradients=True) as inside:
        train(compiled, batches[0])
        made = graphs()
        for x in batches[1:]:
            train(compiled, x)
    assert graphs() == made
    assert inside.layers[0].calls == 3
    assert_alike(eager, inside)  # merged in another order


@pytest.mark.slow
@mock.patch.dict(os.environ)  # where inductor says where it is,
@mock.patch.object(sys, "path", list(sys.path))  # and from where it imports what it wrote
def test_inductor_measures_the_same() -> None:
    torch.manual_seed(0)
    model, x = mlp(2, 16, inplace=True), torch.randn(4, 16)
    with watch(model, gradients=True) as eager:
        train(model, x)
    compiled = torch.compile(model, fullgraph=True)
    with watch(model, gradients=True) as inside:
        train(compiled, x)
    assert_alike(eager, inside)  # it may fuse and order sums as it likes


def test_a_forward_without_gradients_says_so() -> None:
    model, x = mlp(2, 8), torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with watch(model, gradients=True) as w, torch.no_grad():
        compiled(x)
    for layer in w.layers:
        assert layer.backward is None
        assert "no gradient" in layer.note
    with watch(model, gradients=True) as w:
        pass
    assert w.layers == []
    assert set(w.missing.values()) == {"did not run as a module, or was only traced"}


def test_attention_and_norms_say_what_is_not_measured() -> None:
    model, x = nn.Sequential(Normed(), nn.LayerNorm(8)), torch.randn(2, 5, 8)
    with watch(model, layers=lambda name, module: True, gradients=True) as eager:
        train(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with watch(model, layers=lambda name, module: True, gradients=True) as inside:
        train(compiled, x)
    by_name = {layer.name: layer for layer in eager.layers}
    for layer in inside.layers:
        other = by_name[layer.name]
        torch.testing.assert_close(layer.forward.raw, other.forward.raw, rtol=1e-5, atol=1e-6)
        if layer.name in ("0.attend.out_proj", "0.read"):
            assert layer.backward is not None
        else:
            assert layer.backward is None
            assert "in compiled code only known kinds of layers have" in layer.note
    assert {layer.name for layer in inside.layers} == {
        *("0.attend.out_proj", "0.read", "1"),
        *(layer.name for layer in inside.layers if layer.name in ("", "0", "0.attend")),
    }
    for part in "qkv":
        why = inside.missing[f"0.attend.{part}_proj"]
        assert "not measured: it is computed inside MultiheadAttention" in why


def test_a_scale_is_divided_out() -> None:
    torch.manual_seed(0)
    model, x = mlp(2, 8), torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(net: Callable[[Tensor], Tensor]) -> None:
        scaler.scale(net(x).square().mean()).backward()

    seen = [watch(model, gradients=True, scaler=scaler) for _ in range(2)]
    for w, net in zip(seen, (model, compiled)):
        with w:
            step(net)
    assert_same(*seen)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copies_made_in_the_block_have_a_forward_as_before(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    model, x = mlp(2, 8), torch.randn(4, 8)
    before = hooks(model)
    with watch(model) as w, watch(model) as inner:
        other = copied(model)
        assert hooks(other) == before
        assert other(x).equal(model(x))
    assert hooks(model) == before
    assert_same(w, inner)


def test_nothing_is_measured_of_what_is_exported() -> None:
    model, x = mlp(1, 8), torch.randn(4, 8)
    with watch(model):
        exported = torch.export.export(model, (x,), strict=True)
    assert "seen_" not in str(exported.graph)


def test_who_has_another_forward_is_named() -> None:
    model, x = mlp(1, 8), torch.randn(4, 8)
    plain = model[0].forward
    model[0].forward = lambda x: plain(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with watch(model) as w:
        compiled(x)
    assert "in compiled code it is not measured: its forward is replaced" in w.missing["0"]
    with watch(model) as w:
        model(x)
    assert [layer.name for layer in w.layers] == ["0"]
