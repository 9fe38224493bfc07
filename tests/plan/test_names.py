"""A weight is called the same whatever wraps its module, and so has the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import get_model_state_dict

import fastinit
from fastinit import Fill, Part, Plan
from fastinit.plan.names import named_buffers, named_modules


def net() -> nn.Module:
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(2, 3))


def _checkpointed(model: nn.Module) -> nn.Module:
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, nn.Linear))
    return model


def _compiled_within(model: nn.Module) -> nn.Module:
    model[0] = checkpoint_wrapper(torch.compile(model[0], backend="eager"))  # type: ignore[operator]
    return model


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "each layer checkpointed": _checkpointed,
    "checkpointed": checkpoint_wrapper,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "a part compiled and checkpointed": _compiled_within,
    "compiled and checkpointed": lambda model: checkpoint_wrapper(torch.compile(model)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_have_no_part_in_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = net(), wrap(net())
    assert set(dict(named_modules(wrapped))) == set(dict(plain.named_modules()))
    assert [n for n, _ in named_buffers(wrapped)] == [n for n, _ in plain.named_buffers()]
    assert set(Plan.from_model(wrapped, lambda *_: Fill.normal())) == set(
        dict(plain.named_parameters())
    )


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_numbers_are_those_of_the_model_without_wrappers(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    with fastinit.deferred(seed=3):
        plain = net()
    plan = fastinit.recorded_plan(plain)
    fastinit.materialize_(plain)
    with fastinit.deferred(seed=3):
        wrapped = wrap(net())
    assert fastinit.recorded_plan(wrapped) == plan
    values = (plan.apply_(wrap(net()).to("meta"), device="cpu"), fastinit.materialize_(wrapped))
    for model in values:
        for ours, theirs in zip(model.parameters(), plain.parameters()):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(model.buffers(), plain.buffers()):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["each layer checkpointed", "compiled"])
def test_distributed_checkpoints_have_the_same_names(kind: str) -> None:
    """Of one wrapper in another torch removes the outer one only."""
    wrapped = WRAPPED[kind](net())
    assert set(get_model_state_dict(wrapped)) == {
        *(name for name, _ in named_buffers(wrapped)),
        *Plan.from_model(wrapped, lambda *_: Fill.normal()),
    }


class Replicated(CheckpointWrapper):
    """A wrapper with something of its own beside what it wraps."""

    def __init__(self, key: str, its: nn.Module | nn.Parameter | None) -> None:
        super().__init__(checkpoint_wrapper(nn.ModuleDict({"head": net(), "body": net()})))
        held = self._parameters if isinstance(its, nn.Parameter) else self._modules
        held[key] = its  # type: ignore[index]


OWN: dict[str, tuple[str, Callable[[], nn.Module | nn.Parameter | None]]] = {
    "a module": ("head", lambda: nn.Linear(2, 2)),
    "a parameter": ("body", lambda: nn.Parameter(torch.ones(2))),
    "another name": ("tail", lambda: nn.Linear(2, 2)),
    "nothing": ("head", lambda: None),
}


@pytest.mark.parametrize("own", OWN)
def test_no_two_tensors_have_one_name(own: str) -> None:
    key, make = OWN[own]
    with fastinit.deferred(seed=3):
        model = Replicated(key, make())
    if own in ("a module", "a parameter"):
        before = list(model.parameters())
        meta = [p.is_meta for p in before]
        with pytest.raises(
            ValueError, match=f"Replicated has {key} of its own, and so has what it"
        ):
            fastinit.materialize_(model)
        with pytest.raises(
            ValueError, match=f"Replicated has {key} of its own, and so has what it"
        ):
            Plan.from_model(model, lambda *_: Fill.normal())
        assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
        assert [p.is_meta for p in before] == meta
    else:
        assert len(fastinit.recorded_plan(model)) == len(list(model.parameters()))


def test_what_only_looks_like_a_wrapper_keeps_its_name() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self._orig_mod = nn.Linear(2, 2)

    names = [name for name, _ in Holder().named_parameters()]
    assert list(Plan.from_model(Holder(), lambda *_: Fill.normal())) == names


def test_parts_go_by_names_without_wrappers() -> None:
    plan = Plan({"w.weight": Fill.normal(), "w.bias": Fill.normal()})
    model = checkpoint_wrapper(nn.Linear(2, 2))
    parts = {
        name: Part(p.shape, name=f"w.{name}") for name, p in nn.Linear(2, 2).named_parameters()
    }
    plan.apply_(model, parts=parts)
    other = plan.apply_(nn.Linear(2, 2), prefix="w.")
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_map_of_parts_by_names_with_wrappers_is_told_the_others() -> None:
    model = nn.Sequential(checkpoint_wrapper(nn.BatchNorm1d(4)))
    plan = Plan.from_model(model, fastinit.recipes.torch_default)
    own = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert own[0] == "0._checkpoint_wrapped_module.weight"
    for name in own:
        plain = name.replace("_checkpoint_wrapped_module.", "")
        with pytest.raises(ValueError, match=rf"{re.escape(name)} \(say {plain}\) that the model"):
            plan.apply_(model, parts={name: Part((4,))})


def test_ties_are_found_through_wrappers() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["b"] = checkpoint_wrapper(model["b"])
    plan = Plan.from_model(model, lambda *_: Fill.normal())
    assert plan.aliases == {"b.weight": "a.weight"}


def test_a_module_within_itself_is_an_error() -> None:
    model = net()
    model[0].add_module("whole", model)
    assert len(list(named_modules(model))) == len(list(net().named_modules()))
    with pytest.raises(RecursionError, match="leads back"):
        Plan.from_model(model, lambda *_: Fill.normal())
