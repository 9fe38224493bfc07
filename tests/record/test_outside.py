"""What is outside of a model, and depends on numbers of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import Part, deferred, fill_missing_, init, materialize_


def linear() -> nn.Linear:
    return nn.Linear(3, 4, bias=False)


OF_EARLIER: dict[str, Callable[[Tensor], Tensor]] = {
    "copied": lambda w: w.clone(),
    "a number": lambda w: w.abs().mean(),
    "computed": lambda w: w.cos() @ w.T,
    "of both": lambda w: torch.cat([w, w.normal_()]),
}


@pytest.mark.parametrize("kind", OF_EARLIER)
def test_what_is_made_of_numbers_that_no_model_has_stays_recorded(kind: str) -> None:
    with deferred(seed=5):
        model = linear()
        outside = OF_EARLIER[kind](model.weight.detach())
        nn.init.normal_(model.weight)
        of_last = model.weight.detach() * 2.0
    materialize_(model)
    assert torch.equal(model.weight, init.normal_(torch.empty(4, 3), seed=5, name="weight"))
    assert torch.equal(of_last, 2.0 * model.weight)
    assert outside.is_meta


def test_memory_that_waits_and_that_gradients_lead_from_is_refused() -> None:
    """It is real, and cannot be put on meta; what it holds is not what was written."""
    with deferred(seed=5):
        model = linear()
        outside = torch.zeros(4, 3)
        outside.copy_(model.weight)
        nn.init.normal_(model.weight)
    with pytest.raises(
        ValueError, match=r"nothing tells the values .*: tensor outside of the model"
    ):
        materialize_(model)
    assert model.weight.is_meta
    del outside
    assert not materialize_(model).weight.is_meta


OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda a, b: a * b,
    "sum written": lambda a, b: torch.zeros(4, 3).copy_(a).add_(b),
    "function of one": lambda a, b: torch.cat([a.exp(), b]),
}


@pytest.mark.parametrize("kind", OF_TWO)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("write", [materialize_, fill_missing_])
def test_what_is_made_of_two_models_is_written_with_the_last(
    kind: str, first: int, write: Callable[[nn.Module], object]
) -> None:
    with deferred(seed=5):
        models = linear(), nn.Sequential(linear())
        of_both = OF_TWO[kind](models[0].weight.detach(), models[1][0].weight.detach())
    write(models[first])
    assert of_both.is_meta
    write(models[1 - first])
    a, b = models[0].weight.detach(), models[1][0].weight.detach()
    torch.testing.assert_close(
        of_both, OF_TWO[kind](a, b)
    )  # float32's default: the same operations


def test_what_is_made_of_numbers_of_two_seeds_stays_recorded() -> None:
    with deferred(seed=5):
        first, second = linear(), nn.Sequential(linear())
        of_both = first.weight.detach() * second[0].weight.detach()
    fill_missing_(first, seed=6)
    materialize_(second)
    assert of_both.is_meta


def test_what_is_made_of_a_part_and_of_another_model_is_refused() -> None:
    with deferred(seed=5):
        first, second = linear(), nn.Sequential(linear())
        of_both = first.weight.detach() * second[0].weight.detach()
    parts = {"weight": Part((8, 3)).chunk(0, 2, 1)}
    with pytest.raises(ValueError, match=r"not only of those .*: tensor made at .*test_outside.py"):
        materialize_(first, parts=parts)
    assert first.weight.is_meta
    del of_both
    materialize_(first, parts=parts)
    whole = init.kaiming_uniform_(torch.empty(8, 3), a=5**0.5, seed=5, name="weight")
    assert torch.equal(first.weight, whole[4:])


def bytes_of_one() -> dict[str, Tensor]:
    return {"w": torch.empty(64, dtype=torch.uint8)[:32].view(torch.float32)}


def bytes_of_two() -> dict[str, Tensor]:
    memory = torch.empty(64, dtype=torch.uint8)
    return {"w": memory[:32].view(torch.float32), "v": memory[32:48].view(torch.bfloat16)}


def shorts() -> dict[str, Tensor]:
    return {"w": torch.empty(24, dtype=torch.int16).view(torch.bfloat16)[4:]}


def longs() -> dict[str, Tensor]:
    return {"w": torch.empty(6, dtype=torch.int64).view(torch.complex64)}


def bools() -> dict[str, Tensor]:
    return {"w": torch.zeros(32, dtype=torch.bool).view(torch.float64)}


OTHER_MEMORY = (bytes_of_one, bytes_of_two, shorts, longs, bools)


@pytest.mark.parametrize("memory", OTHER_MEMORY)
@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.ones_])
@pytest.mark.parametrize("write", [materialize_, fill_missing_])
def test_parameters_may_be_of_memory_that_holds_no_numbers(
    memory: Callable[[], dict[str, Tensor]],
    draw: Callable[[Tensor], Tensor],
    write: Callable[[nn.Module], object],
) -> None:
    def build() -> nn.ParameterDict:
        model = nn.ParameterDict({k: nn.Parameter(v) for k, v in memory().items()})
        for parameter in model.values():
            draw(parameter)
        return model

    with deferred(seed=3):
        model, same = build(), build()
    write(model)
    fastinit.recorded_plan(same).apply_(same, device="cpu")
    assert len({p.untyped_storage().data_ptr() for p in model.values()}) == 1
    for name, parameter in model.items():
        assert torch.equal(parameter, same[name])
        size = float(parameter.detach().abs().float().pow(2).mean())
        assert (
            0.1 < size < 4.0
        )  # 1 of a few numbers: wide enough to never fail, zeros or garbage do


def test_a_copy_of_the_memory_of_a_parameter_is_one() -> None:
    import copy

    with deferred(seed=3):
        model = nn.ParameterList([torch.empty(12)])
        nn.init.normal_(model[0])
        plain = model[0].detach()
        model.append(copy.deepcopy(plain))
    materialize_(model)
    assert torch.equal(model[0], model[1])
    assert model[0].data_ptr() != model[1].data_ptr()


class Flat(nn.Module):
    """Two modules with parameters in one memory, and one that has all of it."""

    def __init__(self, memory: Callable[[], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        a, b = memory()
        self.a, self.b = nn.Module(), nn.Module()
        self.a.w, self.b.w = nn.Parameter(a), nn.Parameter(b)
        nn.init.normal_(self.a.w)
        nn.init.normal_(self.b.w)


def side_by_side() -> tuple[Tensor, Tensor]:
    memory = torch.empty(25)
    return memory[:12].view(3, 4), memory[12:24].view(4, 3).t()


def in_turns() -> tuple[Tensor, Tensor]:
    memory = torch.empty(12, 2)
    return memory[:, 0], memory[:, 1]


def as_bytes() -> tuple[Tensor, Tensor]:
    memory = torch.empty(64, dtype=torch.uint8)
    return memory[:32].view(torch.float32), memory[32:].view(torch.float32)


def one_in_the_other() -> tuple[Tensor, Tensor]:
    memory = torch.empty(12)
    return memory[:6], memory


@pytest.mark.parametrize("memory", [side_by_side, in_turns, as_bytes, one_in_the_other])
@pytest.mark.parametrize("write", [materialize_, fill_missing_])
def test_a_module_is_not_written_without_its_neighbour_in_memory(
    memory: Callable[[], tuple[Tensor, Tensor]], write: Callable[[nn.Module], object]
) -> None:
    with deferred(seed=1):
        whole, model = Flat(memory), Flat(memory)
    materialize_(whole)
    with pytest.raises(ValueError, match=r"not in the model, .* all: parameter w of a Module"):
        write(model.a)
    assert model.a.w.is_meta
    assert model.b.w.is_meta
    write(model)
    assert torch.equal(model.a.w, whole.a.w)
    assert torch.equal(model.b.w, whole.b.w)


def test_who_has_but_elements_of_a_module_is_no_neighbour() -> None:
    """Nor is a parameter that no module has, which gets what is written."""
    with deferred(seed=1):
        model = Flat(lambda: one_in_the_other()[::-1])
        tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        tied[1].weight = tied[0].weight
        loose = nn.Parameter(tied[0].bias.detach())
    materialize_(model.a)
    assert torch.equal(model.b.w, model.a.w[:6])
    materialize_(tied[1])
    assert not tied[0].weight.is_meta
    materialize_(tied[0])
    assert torch.equal(loose, tied[0].bias)


def of_all(memory: Tensor) -> Tensor:
    return memory


def of_the_rest(memory: Tensor) -> Tensor:
    return memory[8:]


def of_one(memory: Tensor) -> Tensor:
    return memory[:8].view(2, 4).t()


@pytest.mark.parametrize("part", [of_all, of_the_rest, of_one])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_plan_writes_a_buffer_in_the_memory_of_parameters(
    part: Callable[[Tensor], Tensor], at_once: bool
) -> None:
    def build() -> nn.Module:
        model, memory = nn.Module(), torch.empty(12)
        model.a, model.b = nn.Parameter(memory[:8].view(2, 4)), nn.Parameter(memory[8:])
        for each in [memory] if at_once else [model.a, model.b]:
            nn.init.uniform_(each)
        model.register_buffer("c", part(memory))
        return model

    with deferred(seed=1):
        model, planned = build(), build()
    fastinit.recorded_plan(model).apply_(planned, device="cpu")
    materialize_(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(planned.state_dict()[name], tensor), name
