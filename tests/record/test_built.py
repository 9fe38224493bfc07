"""What a block built is known later: modules that were copied in it, numbers that Python had, loads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastinit import Fill, Plan, deferred, fill_missing_, materialize_, recorded_plan


class Target(nn.Module):
    """A network and the copy of it that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.target = copy.deepcopy(self.online)


class Rotary(nn.Module):
    """Only a buffer, that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 100.0 ** -torch.linspace(0, 1, 4), persistent=False)


class OwnState(nn.Linear):
    """A layer that says itself how it is copied."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.is_copy = True


COPIES: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2
    ),
    "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2),
    "target": Target,
    "copy": lambda: nn.Sequential(nn.Linear(4, 4), copy.copy(nn.Linear(4, 3))),
    "whole": lambda: copy.deepcopy(nn.Sequential(nn.Linear(4, 4), Rotary())),
    "own": lambda: copy.deepcopy(OwnState(4, 3)),
}


@pytest.mark.parametrize("way", ["empty", "assign"])
@pytest.mark.parametrize("name", COPIES)
def test_modules_that_were_copied_in_the_block_are_filled(name: str, way: str) -> None:
    with deferred(seed=1):
        model = COPIES[name]()
    with deferred(seed=1):
        whole = materialize_(COPIES[name]())
    loaded = next(iter(model.state_dict()))
    if way == "empty":
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.fill_(7)
    file = {loaded: torch.full_like(whole.state_dict()[loaded], 3.0)}
    missing = set(model.state_dict()) - {loaded}
    model.load_state_dict(file, strict=False, assign=way == "assign")
    fill_missing_(model, missing)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        expected = whole.get_parameter(name) if name in dict(whole.named_parameters()) else None
        expected = whole.get_buffer(name) if expected is None else expected
        assert torch.equal(tensor, file.get(name, expected)), name


def test_copies_made_after_the_block_are_not_seen_by_it() -> None:
    before = nn.Module.__setstate__
    with deferred():
        assert nn.Module.__setstate__ is not before
    assert nn.Module.__setstate__ is before
    with pytest.raises(ZeroDivisionError), deferred():
        raise ZeroDivisionError
    assert nn.Module.__setstate__ is before


NUMBERS: dict[str, Callable[[], Tensor]] = {
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "of one number": lambda: torch.tensor(2.5),
    "computed with": lambda: torch.tensor([1.0, 2.0]) * 2 + torch.arange(2),
    "as_tensor": lambda: torch.as_tensor([1.0, 2.0]),
    "asarray": lambda: torch.asarray([1.0, 2.0]),
    "of an array": lambda: torch.tensor(torch.tensor([1.0, 2.0], device="cpu").numpy()),
    "new_tensor": lambda: torch.ones(1).new_tensor([1.0, 2.0]),
    "dtype": lambda: torch.tensor([1, 2], dtype=torch.float64),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_python_had_are_known_where_a_loader_builds_on_meta(name: str) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(NUMBERS[name]())
            self.register_buffer("table", NUMBERS[name]() + 1, persistent=False)

    with deferred(), torch.device("meta"):
        model = Holder()
        assert model.scale.device.type == "meta"
    fill_missing_(model, device="cpu")
    eager = Holder()
    assert torch.equal(model.scale, eager.scale)
    assert model.scale.dtype == eager.scale.dtype
    assert torch.equal(model.table, eager.table)


def test_an_array_that_is_written_later_is_not_what_was_known() -> None:
    array = torch.ones(2).numpy()
    with deferred(), torch.device("meta"):
        model = nn.Module()
        model.weight = nn.Parameter(torch.as_tensor(array))
    array[:] = 7
    assert torch.equal(fill_missing_(model, device="cpu") and model.weight, torch.ones(2))


class Head(nn.Module):
    """What a loader builds: tied parameters, a norm, a bias; and a head that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.norm = nn.LayerNorm(3)
        self.out = nn.Linear(3, 4)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(3, 2)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "any": lambda like: torch.arange(float(like.numel())).view(like.shape),
    "one number": lambda like: torch.full(like.shape, 0.0),
}
LOADS: dict[str, Callable[[nn.Module, str, Tensor], None]] = {
    "registered": lambda module, key, values: setattr(module, key, nn.Parameter(values)),
    "assigned": lambda module, key, values: _assign(module, key, values),
    "in data": lambda module, key, values: _in_data(module, key, values),
    "converted": lambda module, key, values: (
        setattr(module, key, nn.Parameter(values.double()))
        or module._apply(lambda t: t.float() if t.dtype == torch.float64 else t)
    ),
}


def _assign(module: nn.Module, key: str, values: Tensor) -> None:
    module.load_state_dict({key: values}, strict=False, assign=True)


def _in_data(module: nn.Module, key: str, values: Tensor) -> None:
    setattr(module, key, nn.Parameter(values))
    parameter = module.get_parameter(key)
    parameter.data = nn.functional.pad(parameter.data, (0, 0))


NAMES = ["embed.weight", "norm.weight", "norm.bias", "out.bias"]


def loaded_within(values: str, load: str) -> tuple[nn.Module, dict[str, Tensor]]:
    file = {name: VALUES[values](p) for name, p in Head().named_parameters() if name in NAMES}
    with deferred(seed=1):
        model = Head()
        for name, its in file.items():
            path, _, key = name.rpartition(".")
            LOADS[load](model.get_submodule(path), key, its.clone())
        model.out.weight = model.embed.weight
    return model, file


@pytest.mark.parametrize("told", ["names", "no names", "names and a plan", "the same plan"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("load", LOADS)
def test_what_was_loaded_within_the_block_is_loaded(load: str, values: str, told: str) -> None:
    """Also where a plan has something else, and where the file has one number everywhere."""
    model, file = loaded_within(values, load)
    with deferred(seed=1):
        twin = Head()
    plan = recorded_plan(twin)
    materialize_(twin)
    missing = ["head.weight", "head.bias"]
    if told == "the same plan":
        plan = Plan({**plan, **{n: recorded_plan(model)[n] for n in file}}, seed=1)
    done = fill_missing_(
        model,
        missing if "names" in told and told != "no names" else None,
        plan=plan if "plan" in told else None,
    )
    assert done.loaded == NAMES
    assert done.filled == missing
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, file.get(name, twin.get_parameter(name))), name
    assert model.out.weight is model.embed.weight


def test_a_plan_without_names_takes_nothing_that_was_loaded_within_the_block() -> None:
    model, _ = loaded_within("any", "registered")
    plan = Plan.from_model(Head(), lambda name, module, shape, config: Fill.constant(5.0))
    with pytest.raises(ValueError, match=r"say missing=: tensors embed\.weight, norm\.weight"):
        fill_missing_(model, plan=plan)
    assert all(parameter.is_meta for parameter in model.parameters())
    done = fill_missing_(model, ["norm.*", "head.*"], plan=plan)
    assert done.loaded == ["embed.weight", "out.bias"]
    assert torch.equal(model.norm.weight, torch.full((3,), 5.0))


def test_a_plan_knows_what_the_constructor_left_unwritten() -> None:
    with deferred():
        model = nn.Linear(3, 2)
        model.scale = nn.Parameter(torch.empty(2))
    with pytest.raises(ValueError, match="left unwritten by its constructor: tensor scale"):
        fill_missing_(model)
    fills = {"weight": Fill.constant(1.0), "bias": Fill.constant(2.0), "scale": Fill.constant(3.0)}
    fill_missing_(model, plan=Plan(fills))
    assert [float(p.detach().mean()) for p in model.parameters()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("way", ["empty", "assign"])
def test_tied_parameters_of_a_file_with_both_names_are_tied_again(way: str) -> None:
    """As ``torch.save(model.state_dict())`` has them; each with values of its own stays apart."""
    for other, is_tied in ((2.0, True), (3.0, False)):
        with deferred(seed=1):
            model = Head()
        if way == "empty":
            model.to_empty(device="cpu")
        file = {"embed.weight": torch.full((4, 3), 2.0), "out.weight": torch.full((4, 3), other)}
        result = model.load_state_dict(file, strict=False, assign=way == "assign")
        done = fill_missing_(model, result.missing_keys)
        assert (model.out.weight is model.embed.weight) == is_tied
        assert bool(done.tied) == is_tied
        assert ("out.weight" in done.loaded) != is_tied
        assert ("not tied to embed.weight" in str(done)) != is_tied


def _new_data(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data - nn.Linear(4, 4).weight.data


def _its_dict(layer: nn.Linear) -> None:
    layer._parameters["weight"] = nn.Linear(4, 4).weight


@pytest.mark.parametrize("change", [_new_data, _its_dict])
def test_what_a_block_left_in_modules_of_before_is_known(change: Callable[[Any], None]) -> None:
    """PiSSA computes weights of the base from those of adapters; no module registers them."""

    def made() -> nn.Module:
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            layer.weight.fill_(2.0)
        with deferred(seed=1):
            change(layer)
        return layer

    model, expected = made(), materialize_(made())
    assert model.weight.is_meta
    assert fill_missing_(model).filled == ["weight"]
    assert torch.equal(model.weight, expected.weight)
