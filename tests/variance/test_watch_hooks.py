"""What a watch does to a model that runs: nothing is left, kept or copied."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from watching import hooks, mlp, saved

from fastinit.variance.watch.record import FOLD
from fastinit.variance.watch.watch import Watch, watch


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


def train(model: nn.Module, x: Tensor) -> None:
    model(x).square().mean().backward()


def played(model: nn.Module, x: Tensor) -> None:
    """A step of a GAN: the model is a part of it, and runs twice."""
    judge = nn.Linear(8, 1)
    judge(model(x).detach()).mean().backward()
    judge(model(x)).mean().backward()


def piped(model: nn.Module, x: Tensor) -> None:
    """A pipeline calls the parts of a model, not the model."""
    for part in model.children():
        x = part(x)


def generated(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(3):
            x = torch.cat((x, model(x[-1:])))


STEPS: dict[str, tuple[Callable[[nn.Module, Tensor], None], int]] = {
    "training": (train, 1),
    "a GAN": (played, 2),
    "a pipeline": (piped, 1),
    "generation": (generated, 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_what_a_block_is(name: str) -> None:
    (step, calls), model, x = STEPS[name], mlp(2, 8), torch.randn(4, 8)
    before = hooks(model)
    seen = watch(model, gradients=True, step=lambda: step(model, x))
    assert hooks(model) == before
    with watch(model, gradients=True) as w:
        step(model, x)
    assert [layer.calls for layer in seen.layers] == [calls] * 2
    for one, other in zip(seen.layers, w.layers):
        assert one.forward.raw.equal(other.forward.raw)
        assert (one.backward is None) == (other.backward is None) == (name in list(STEPS)[2:])


def test_a_step_that_fails_leaves_nothing() -> None:
    model = mlp(2, 8)
    before = hooks(model)
    with pytest.raises(RuntimeError, match="shapes"):
        watch(model, step=lambda: model(torch.randn(3, 3)))
    assert hooks(model) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_copy_of_a_watch_has_what_was_seen(copied: Callable[[Watch], Watch]) -> None:
    model, x = mlp(2, 8), torch.randn(4, 8)
    w = watch(model, gradients=True)
    with pytest.raises(RuntimeError, match="nothing to read yet"):
        copied(w).table()
    with w:
        model(x).sum().backward()
        with pytest.raises(RuntimeError, match="nothing to read yet"):
            copied(w).table()
    other = copied(w)
    assert other.table() == w.table()
    assert other.to_json() == w.to_json()
    with other:  # it has a model of its own
        model(x)
    assert other.layers == []


def test_a_model_that_has_a_watch_of_its_own() -> None:
    """Its copy has one of the copy."""
    model, x = mlp(2, 8), torch.randn(4, 8)
    model.seen = watch(model)  # type: ignore[assignment]
    with model.seen:
        other = copy.deepcopy(model)
        model(x)
    with other.seen:
        other(x)
        other(x)
    assert [layer.calls for layer in model.seen.layers] == [1, 1]
    assert [layer.calls for layer in other.seen.layers] == [2, 2]


class Operations(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


ASKED: dict[str, dict[str, Any]] = {
    "outputs": {},
    "all signals": {"gradients": True, "inputs": True, "higher": True, "attention": True},
    "counts": {"gradients": True, "formats": ["nvfp4", "e4m3"], "histogram": True},
    "scaled": {"gradients": True, "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)},
}


@pytest.mark.parametrize("asked", ASKED)
def test_modes_see_what_the_model_does_alone(asked: str) -> None:
    """Selective checkpointing keeps it by its number; others count it, or make graphs of it."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8)

    def run() -> list[str]:
        model.zero_grad()
        with Operations() as seen:
            model(x).square().sum().backward()
        return seen.ran

    plain = run()
    with watch(model, **ASKED[asked]) as w:
        assert run() == plain
    assert {layer.calls for layer in w.layers} == {1}


def _kept(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if "mm" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE


def test_selective_checkpointing_keeps_what_is_the_models() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8)
    contexts = partial(create_selective_checkpoint_contexts, _kept)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        out = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
        out.square().sum().backward()
        return [p.grad for p in model.parameters()]

    plain = gradients()
    with watch(model, gradients=True):
        seen = gradients()
    torch.testing.assert_close(seen, plain, rtol=0, atol=0)


def test_a_traced_graph_has_nothing_of_it() -> None:
    model, x = mlp(1, 8), torch.randn(3, 8)
    plain = torch.jit.trace(model, x, check_trace=False)
    with watch(model, gradients=True) as w:
        traced = torch.jit.trace(model, x, check_trace=False)
    assert [n.kind() for n in traced.inlined_graph.nodes()] == [
        n.kind() for n in plain.inlined_graph.nodes()
    ]
    assert not w.layers
    assert all("only traced" in why for why in w.missing.values())
