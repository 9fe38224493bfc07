"""The comparator itself: mistakes of each kind, put into a made-up model, are seen and said."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from as_eager import compare, differences
from torch import Tensor, nn


class Made(nn.Module):
    """Something of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.experts = nn.Parameter(torch.randn(4, 8, 8) * 0.1)
        self.square = nn.Parameter(torch.empty(8, 8))
        nn.init.orthogonal_(self.square)
        self.embedding = nn.Embedding(10, 8, padding_idx=0)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.teacher = copy.deepcopy(self.layers[0])
        self.register_buffer("mask", (torch.rand(16, 16) < 0.5).float())
        self.masked = nn.Parameter(torch.randn(16, 16) * self.mask)
        self.register_buffer("positions", torch.arange(8.0), persistent=False)
        self.counts = torch.rand(40)
        self.flat = torch.randn(64)
        self.part = nn.Parameter(self.flat[16:32].view(4, 4))
        self.device, self.size, self.name = self.square.device, 1.5, "made"
        self.held = {"list": [self.square], "ids": {id(self.square): "square"}}
        self.reference = weakref.ref(self.square)
        self.norm = partial(torch.norm, self.square)
        self.optimizer = torch.optim.SGD([self.square], lr=0.1)
        self.called: list[int] = []
        self.square.register_hook(lambda g: self.called.append(1))
        self.square.register_post_accumulate_grad_hook(lambda p: self.called.append(2))
        self.layers[1].register_forward_hook(lambda *args: None)
        self.square.lr_scale = 0.5
        self.unwritten = torch.empty(8)


def compared(change: Callable[[Any, int], object], build: Callable[[], Any] = Made) -> list[str]:
    def ours(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            model = build()
            with torch.no_grad():
                change(model, seed)
        return model

    return compare(build, ours)


def nothing(m: Any, seed: int) -> None:
    """No mistake."""


def test_eager_models_do_not_differ() -> None:
    assert compared(nothing) == []


def _set(path: str, name: str, value: Callable[[Any], Any]) -> Callable[[Any, int], object]:
    return lambda m, seed: setattr(m.get_submodule(path) if path else m, name, value(m))


def _parameter(values: Callable[[Any], Tensor]) -> Callable[[Any], nn.Parameter]:
    return lambda m: nn.Parameter(values(m))


def _another_square(m: Any, seed: int) -> None:
    m.square = nn.Parameter(m.square.detach().clone())


def _drop(path: str, name: str) -> Callable[[Any, int], object]:
    return lambda m, seed: delattr(m.get_submodule(path), name)


def _hooks_gone(m: Any, seed: int) -> None:
    m.square._backward_hooks.clear()


def _hooks_dead(m: Any, seed: int) -> None:
    """They are listed, and no gradient reaches them."""
    hooks = m.square._backward_hooks
    m.square._backward_hooks = None
    m.square.__dict__["_backward_hooks"] = hooks


def _order(m: Any, seed: int) -> None:
    m._parameters["experts"] = m._parameters.pop("experts")


def _persistent(m: Any, seed: int) -> None:
    m._non_persistent_buffers_set.discard("positions")


def _same_experts(m: Any, seed: int) -> None:
    m.experts[3] = -2.0 * m.experts[1]


def _same_layers(m: Any, seed: int) -> None:
    m.layers[2].weight[:8] = m.layers[1].weight[:8]


def _generator(m: Any, seed: int) -> None:
    torch.random.fork_rng().__enter__()


def _once(m: Any, seed: int) -> None:
    m.flat.copy_(torch.randn(64, generator=torch.Generator().manual_seed(torch.seed() % 2**62)))


def _no_seed(m: Any, seed: int) -> None:
    m.layers[0].weight.copy_(
        torch.nn.init.kaiming_uniform_(
            torch.empty(16, 16), a=5**0.5, generator=torch.Generator().manual_seed(7)
        )
    )
    m.teacher.weight.copy_(m.layers[0].weight)


MISTAKES: dict[str, tuple[Callable[[Any, int], object], str]] = {
    "a module is missing": (_drop("", "teacher"), "modules: missing ['teacher']"),
    "a parameter is missing": (_drop("layers.0", "bias"), "missing ['layers.0.bias']"),
    "a parameter more": (_set("", "more", _parameter(lambda m: torch.ones(2))), "added ['more']"),
    "another order": (_order, "parameters: in the order"),
    "a buffer is saved": (_persistent, "state_dict: missing [], added ['positions']"),
    "an untied head": (
        _set("head", "weight", _parameter(lambda m: m.head.weight.detach().clone())),
        "head.weight: the same object as 'head.weight', eagerly the same object as 'embedding",
    ),
    "a dead parameter in lists": (_another_square, "held['list'][0]: the same object as"),
    "a dead parameter in an optimizer": (_another_square, "optimizer.param_groups[0]['params'][0]"),
    "a dead parameter's id": (_another_square, "held['ids'][#0].key"),
    "a dead parameter in a weak reference": (_another_square, "reference()"),
    "a dead parameter in a partial": (_another_square, "norm.args[0]"),
    "another class": (_set("", "layers", lambda m: nn.Sequential(*m.layers)), "Sequential'"),
    "another shape": (_set("", "counts", lambda m: m.counts[:31]), "counts: shape (31,)"),
    "another dtype": (_set("", "flat", lambda m: m.flat.double()), "flat: dtype torch.float64"),
    "on meta": (_set("", "flat", lambda m: m.flat.to("meta")), "flat: device meta, eagerly cpu"),
    "no gradient": (lambda m, _: m.experts.requires_grad_(False), "experts: requires_grad False"),
    "other strides": (
        _set("", "masked", lambda m: nn.Parameter(m.masked.detach().t().contiguous().t())),
        "masked: stride [1, 16]",
    ),
    "a device that is kept": (
        _set("", "device", lambda m: torch.device("meta")),
        "device: device(",
    ),
    "a number": (_set("", "size", lambda m: 1.6), "size: 1.6, eagerly 1.5"),
    "a text": (_set("", "name", lambda m: "Made"), "name: 'Made', eagerly 'made'"),
    "an attribute of a parameter": (lambda m, _: vars(m.square).clear(), "square.lr_scale"),
    "no hooks": (_hooks_gone, "square: hooks [0, 1], eagerly [1, 1]"),
    "a hook that never fires": (_hooks_dead, "square: 1 hooks fire, eagerly 2"),
    "no hook of a module": (
        lambda m, _: m.layers[1]._forward_hooks.clear(),
        "layers.1._forward_hooks",
    ),
    "memory of its own": (
        _set("", "flat", lambda m: m.flat.clone()),
        "flat: in memory its own, eagerly of part, -64 bytes on",
    ),
    "memory that is shared": (
        lambda m, _: setattr(m.layers[1].bias, "data", m.layers[0].bias.data),
        "layers.1.bias: in memory of layers.0.bias",
    ),
    "a constant": (lambda m, _: m.positions[3].add_(1e-3), "positions: 1 of 8 constant elements"),
    "a constant row": (lambda m, _: m.embedding.weight[0].fill_(0.1), "8 elements that are const"),
    "another law": (lambda m, _: m.layers[2].weight.mul_(2.0), "layers.2.weight: of another distr"),
    "another law in small": (lambda m, _: m.layers[2].bias.zero_(), "layers.2.bias"),
    "the same numbers in two experts": (_same_experts, "experts slices of dimension 0: 2 have the"),
    "the same numbers in two layers": (_same_layers, "layers.2.weight slices of dimension 0: 8 h"),
    "a copy that isn't": (
        lambda m, _: m.teacher.weight.uniform_(-0.25, 0.25),
        "teacher.weight slices as a whole: 0 have the same numbers",
    ),
    "a mask that isn't": (
        lambda m, _: m.masked.copy_(torch.randn(16, 16) * (torch.rand(16, 16) < 0.5)),
        "zeros as a whole: 0 have the same numbers as one in masked zeros",
    ),
    "not orthogonal": (lambda m, _: m.square.add_(0.01), "orthogonal rows times the root of"),
    "infinite": (lambda m, _: m.experts[0, 0].fill_(float("inf")), "experts: infinite 8"),
    "by nobody's seed": (_once, "flat: recorded again with the same seed it has other values"),
    "by no seed": (_no_seed, "layers.0.weight: recorded with another seed it has the same values"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str) -> None:
    change, said = MISTAKES[mistake]
    found = compared(change)
    assert any(said in difference for difference in found), found


def test_generators_that_move_are_seen() -> None:
    def ours(seed: int) -> nn.Module:
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        model = nn.Linear(4, 4)
        torch.set_rng_state(state)
        torch.rand(1)
        return model

    assert compare(lambda: nn.Linear(4, 4), ours) == ["torch's generator is not where it was"]


def test_the_world_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    assert compared(nothing) == []
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_no_permutation_is_seen() -> None:
    class Order(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = torch.randperm(32)

    found = compared(_set("", "order", lambda m: torch.randint(32, (32,))), Order)
    assert any("order: sorted values" in difference for difference in found)


class OneNumber(nn.Module):
    """Its elements hang together: they are no sample of a law."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(1) * torch.ones(64, 64))
        self.rows = nn.Parameter(self.w.detach()[torch.randint(64, (64,))])
        self.picked = nn.Parameter(torch.randn(8, 8)[torch.randint(8, (8,))])
        self.dropped = nn.Parameter(nn.functional.dropout(torch.randn(16, 16), 0.3))


def test_what_differs_between_eager_models_too_is_no_difference() -> None:
    assert compared(nothing, OneNumber) == []


@pytest.mark.parametrize("build", [OneNumber, lambda: nn.GRU(16, 16)])
def test_false_alarms_are_rare(build: Callable[[], nn.Module]) -> None:
    """Of eager models of other seeds."""
    noisy = []
    for start in range(0, 40, 10):

        def ours(seed: int, start: int = start) -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(10_000 + start + seed)
                return build()

        noisy += compare(build, ours)
    assert noisy == []


def test_what_raises_is_said() -> None:
    def broken() -> nn.Module:
        raise ValueError("nothing to build\nat all")

    assert differences(broken) == ["eager raises ValueError: nothing to build"]

    def reads() -> nn.Module:
        layer = nn.Linear(4, 4)
        layer.bound = float(layer.weight.abs().max())
        return layer

    (said,) = differences(reads)
    assert said.startswith("raises DeferredError: ")


def test_a_recorded_model_is_as_eager() -> None:
    assert differences(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))) == []


def test_a_recorded_constructor_is_asked_in_the_same_world() -> None:
    class Asks(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.same_each_time = torch.are_deterministic_algorithms_enabled()

    assert differences(Asks) == []
