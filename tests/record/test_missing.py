"""fill_missing_: what a load left out is what the constructor gives, and all else stays."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from half_loaded import (
    FILE,
    FILLED,
    Net,
    assigned,
    assigned_unnamed,
    build,
    emptied,
    emptied_data,
    exchanged,
    half_emptied,
    patterns,
    whole,
)
from torch import Tensor, nn

import fastinit
from fastinit import (
    Plan,
    audit,
    deferred,
    fill_missing_,
    materialize_,
    recipes,
    recorded_plan,
)


@pytest.mark.parametrize(
    "load",
    [assigned, assigned_unnamed, emptied, emptied_data, half_emptied, exchanged, patterns],
)
def test_what_was_not_loaded_is_what_the_constructor_gives(load: Callable[[Net], Any]) -> None:
    expected, model = whole(), build()
    done = fill_missing_(model, load(model))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "num_" not in name:  # torch loads it from itself, so that it is whatever was there
            loaded = FILE.get(name)
            wanted = expected.state_dict(keep_vars=True).get(name, expected.table)
            assert torch.equal(tensor, wanted if loaded is None else loaded), name
    assert model.out.weight is model.embed.weight
    assert done.tied == {"out.weight": "embed.weight"}
    assert [name for name in done.filled if name in dict(model.named_parameters())] == FILLED
    assert not done.missing
    assert {each.name for each in done.tensors} == {
        *dict(model.named_parameters()),
        *dict(model.named_buffers()),
    }
    assert set(FILE) <= set(done.loaded + done.left)


def test_whole_or_by_a_plan_of_a_twin() -> None:
    expected, eager = whole(seed=3), Net()
    loaded = eager.load_state_dict(FILE, strict=False)
    before = eager.embed.weight
    done = fill_missing_(eager, loaded.missing_keys, plan=recorded_plan(build()), seed=3)
    assert torch.equal(eager.head.weight, expected.head.weight)
    assert torch.equal(eager.noise, expected.noise)
    assert eager.embed.weight is before
    assert done.loaded == [*FILE]
    assert "norm.num_batches_tracked" in done.names("made")
    assert set(done.filled) == {*FILLED, "noise"}


class Counted(nn.Module):
    """Loads what no file has, as BatchNorm does; the other buffer is missing like any."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}steps", self.steps)
        super()._load_from_state_dict(state, prefix, *rest)


class Failing(Counted):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}mean" not in state:
            raise KeyError("mean")
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize(
    ("make", "claimed"),
    [
        (lambda: nn.BatchNorm1d(3), ["num_batches_tracked"]),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), ["num_batches_tracked"]),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), []),
        (Counted, ["steps"]),
        (Failing, []),
    ],
)
@pytest.mark.parametrize("value", [0.0, -77.0])
def test_what_a_module_calls_loaded_is_not_said_to_be(
    make: Callable[[], nn.Module], claimed: list[str], value: float
) -> None:
    with deferred():
        model = make()
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(value)
    versions = [buffer._version for buffer in model.buffers()]
    done = fill_missing_(model, [name for name, _ in model.named_parameters()])
    assert done.names("changed" if value else "made") == claimed
    noted = [each.name for each in done.tensors if "its module calls it loaded" in each.note]
    assert noted == claimed
    assert set(done.loaded) == {name for name, _ in model.named_buffers()} - set(claimed)
    assert [buffer._version for buffer in model.buffers()] == versions


def test_a_recipe_fills_a_new_head() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plan = Plan.from_model(model, recipes.torch_default, seed=5)
    kept = model[0].weight.detach().clone()
    done = fill_missing_(model, "1.*", plan=plan)
    expected = plan.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert torch.equal(model[1].weight, expected[1].weight)
    assert torch.equal(model[0].weight, kept)
    assert (done.loaded, done.filled) == (["0.weight", "0.bias"], ["1.weight", "1.bias"])


def test_the_seed_device_and_dtype_are_as_asked() -> None:
    model = build()
    fill_missing_(model, assigned(model), seed=9, dtype=torch.bfloat16)
    assert torch.equal(model.head.weight, whole(seed=9).head.weight.bfloat16())
    assert model.embed.weight.dtype == torch.float32
    part = build()
    fill_missing_(part.head, prefix="head.")
    assert torch.equal(part.head.weight, whole().head.weight)
    with pytest.raises(ValueError, match="device must be one that holds values"):
        fill_missing_(build(), device="meta")


def test_others_that_hold_what_is_filled_hold_it_with_values() -> None:
    model = build()
    held = [model.head.weight]
    optimizer = torch.optim.SGD([model.copy])
    fill_missing_(model, assigned(model))
    assert held[0] is model.head.weight
    assert optimizer.param_groups[0]["params"][0] is model.copy
    assert not model.copy.is_meta


def test_all_that_was_loaded_leaves_nothing_to_fill() -> None:
    model = build()
    result = model.load_state_dict(whole().state_dict(), assign=True)
    done = fill_missing_(model, result.missing_keys)
    assert not done.filled
    assert not done.missing
    assert model.out.weight is model.embed.weight  # one memory in the file, one parameter again


def test_a_copy_has_the_numbers_of_what_was_loaded_elsewhere() -> None:
    """What it was copied from had numbers of its own name, and these are the copy's too."""
    model = build()
    fill_missing_(model, assigned(model))
    assert torch.equal(model.copy, whole().embed.weight)
    assert torch.equal(model.copy[1], torch.zeros(3))  # the padding row


def test_a_buffer_that_is_nearly_as_it_was_is_put_back() -> None:
    """Rotary frequencies end in small numbers; an allocator may give the same memory again, in part."""
    model = build()
    model.table = model.table.clone()
    model.table[1] += 1e-6
    assert audit(model).names("changed") == ["table"]
    fill_missing_(model, assigned(model))
    assert torch.equal(model.table, whole().table)


def test_modules_that_are_equal_or_have_no_hash_are_told_apart() -> None:
    @dataclasses.dataclass(unsafe_hash=True)
    class Same(nn.Module):
        size: int = dataclasses.field(compare=True)

        def __post_init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(self.size) * next(scales))

    class NoHash(nn.Module):
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    scales = iter((1.0, 10.0))
    with deferred():
        one, other = Same(64), Same(64)
        NoHash()
    assert one == other
    for module in (one, other):
        module.to_empty(device="cpu")
        fill_missing_(module, ["weight"])
    assert other.weight.std() > 5 * one.weight.std()


def test_what_was_built_is_forgotten_with_its_module() -> None:
    from fastinit.record import built

    before = len(built._BUILT)
    model = build()
    assert len(built._BUILT) > before
    del model
    gc.collect()
    assert len(built._BUILT) == before


class Derived(nn.Module):
    """What is computed from a parameter, wherever a module keeps it."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("average", self.weight.detach() * 2)
        self.plain = self.weight.detach() + 1
        self.kept = [self.weight.detach().clone()]


@pytest.mark.parametrize("way", ["assign", "empty"])
def test_what_was_computed_from_a_loaded_parameter_is_the_constructor_s(way: str) -> None:
    with deferred():
        model = Derived()
    with deferred():
        expected = materialize_(Derived())
    if way == "empty":
        model.to_empty(device="cpu")
        model.average.fill_(77)
    file = {"weight": torch.ones(4)}
    result = model.load_state_dict(file, strict=False, assign=way == "assign")
    done = fill_missing_(model, result.missing_keys)
    assert (done.loaded, done.filled) == (["weight"], ["average", "plain"])
    assert torch.equal(model.average, expected.average)
    assert torch.equal(model.plain, expected.plain)
    if way == "assign":  # what the record is written to, it is written to for whoever holds it
        assert torch.equal(model.kept[0], expected.kept[0])


def test_extra_state_is_of_no_tensor() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with deferred():
        model = Extra(2, 2)
    result = model.load_state_dict({"weight": torch.ones(2, 2)}, strict=False, assign=True)
    assert "_extra_state" in result.missing_keys
    assert fill_missing_(model, result.missing_keys).filled == ["bias"]


@pytest.mark.parametrize("way", ["in place", "assign"])
def test_wrapped_models_go_by_names_with_and_without_wrappers(way: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    expected, model = whole(), build()
    for key in ("head", "out", "embed"):
        setattr(model, key, checkpoint_wrapper(getattr(model, key)))
    if way == "in place":
        missing = emptied(model)  # as state_dict has them
    else:
        assigned(model)
        missing = [name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta]
        assert any("_checkpoint_wrapped_module" in name for name in missing)
        missing.append("noise")
    done = fill_missing_(model, missing)
    for one, other in zip(model.head.parameters(), expected.head.parameters(), strict=True):
        assert torch.equal(one, other)
    assert done.tied == {"out.weight": "embed.weight"}
    assert done.filled[: len(FILLED)] == FILLED


def test_public_names() -> None:
    assert fastinit.fill_missing_ is fill_missing_
    assert isinstance(audit(nn.Linear(1, 1)), fastinit.Audit)
