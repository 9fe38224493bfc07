"""materialize_ and fill_missing_ of parts of larger parameters, whoever shares or reads their memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Part, deferred, fill_missing_, materialize_, recorded_plan

SEED = 4
LAW = Fill.uniform(-0.5, 0.25)
WHOLE = Part((6, 8), name="whole")
OTHER = Part((6, 8), name="other")
PARTS = {"w": WHOLE.chunk(0, 2, 1), "v": OTHER.chunk(1, 2, 1)}


def values(part: Part, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a part of a whole that is drawn by LAW has."""
    made = torch.empty(part.local_shape, dtype=dtype)
    full = torch.empty(part.shape, dtype=dtype)
    assert part.name is not None
    fastinit.init.uniform_(full, -0.5, 0.25, seed=SEED, name=part.name)
    for piece in part.pieces(made):
        piece.tensor.copy_(piece.which.on(full))
    return made


def flat() -> tuple[Tensor, Tensor]:
    memory = torch.empty(50)
    return memory[:24].view(3, 8), memory[26:].view(6, 4)


def interleaved() -> tuple[Tensor, Tensor]:
    memory = torch.empty(24, 2)
    return memory[:, 0].unflatten(0, (3, 8)), memory[:, 1].unflatten(0, (6, 4))


def turned() -> tuple[Tensor, Tensor]:
    memory = torch.empty(48)
    return memory[24:].view(8, 3).t(), memory[:24].view(4, 6).t()


MEMORY: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "apart": lambda: (torch.empty(3, 8), torch.empty(6, 4)),
    "flat": flat,
    "interleaved": interleaved,
    "turned": turned,
}


class Two(nn.Module):
    def __init__(self, memory: Callable[[], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        w, v = memory()
        self.w, self.v = nn.Parameter(w), nn.Parameter(v)
        nn.init.uniform_(self.w, -0.5, 0.25)
        nn.init.uniform_(self.v, -0.5, 0.25)


WAYS: dict[str, Callable[..., object]] = {
    "materialize_": materialize_,
    "fill_missing_": fill_missing_,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("which", ["w", "v", "wv"])
def test_each_part_is_written_whatever_its_memory(
    memory: str, way: str, dtype: torch.dtype | None, which: str
) -> None:
    with deferred(SEED):
        model = Two(MEMORY[memory])
    WAYS[way](model, dtype=dtype, parts={name: PARTS[name] for name in which})
    for name, parameter in model.named_parameters():
        part = PARTS[name] if name in which else Part(tuple(parameter.shape), name=name)
        assert torch.equal(parameter, values(part, dtype or torch.float32)), name


READERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "twice": (lambda v: v.detach() * 2.0, lambda v: v * 2.0),
    "copied": (lambda v: v.detach().clone(), lambda v: v),
    "the same": (lambda v: v.detach(), lambda v: v),
    "turned": (lambda v: v.detach().t().contiguous(), lambda v: v.t()),
    "a row of a function": (lambda v: v.detach().cos()[1], lambda v: v.cos()[1]),
    "written": (lambda v: torch.zeros(6, 4).copy_(v.detach()).add_(1.0), lambda v: v + 1.0),
    "of two": (lambda v: v.detach().norm() * v.detach().cos(), lambda v: v.norm() * v.cos()),
    "with a gradient": (lambda v: v * 2.0, lambda v: v * 2.0),
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_computed_from_a_part_is_computed_from_what_is_written(
    memory: str, reader: str
) -> None:
    def build() -> nn.Module:
        model = Two(MEMORY[memory])
        model.register_buffer("of_v", READERS[reader][0](model.v))
        if reader != "with a gradient":
            model.p = nn.Parameter(READERS[reader][0](model.v).clone())
        return model

    for dtype in (None, torch.bfloat16):
        with deferred(SEED):
            model = build()
        materialize_(model, dtype=dtype, parts=PARTS)
        assert torch.equal(model.v, values(PARTS["v"], dtype or torch.float32))
        expected = READERS[reader][1](values(PARTS["v"]))
        for name in {"of_v", "p"} & set(model.state_dict()):
            its = model.state_dict()[name]
            reach = 2.0**-7 if its.dtype == torch.bfloat16 or reader == "with a gradient" else 1e-6
            assert torch.allclose(its.float(), expected, rtol=reach, atol=reach), name
        assert (model.of_v.grad_fn is not None) == (reader == "with a gradient")


def test_what_is_recorded_of_a_part_is_no_plan_of_what_is_made_of_it() -> None:
    """The plan is of the whole model, in which that is larger."""
    with deferred(SEED):
        model = Two(flat)
        model.register_buffer("of_v", model.v.detach() * 2.0)
    plan = recorded_plan(model, parts=PARTS)
    assert dict(plan) == {"whole": LAW, "other": LAW}
    assert "of_v" not in plan.buffers
    with pytest.raises(ValueError, match="buffer of_v on meta"):
        plan.apply_(model, device="cpu", parts=PARTS)
    fill_missing_(model, parts=PARTS)
    assert torch.equal(model.of_v, 2.0 * model.v)
    with deferred(SEED):
        model = Two(flat)
        model.p = nn.Parameter(model.v.detach() * 2.0)
    with pytest.raises(
        ValueError, match=r"nothing is known where it is made of one .* parameter p"
    ):
        recorded_plan(model, parts=PARTS)


def earlier(model: Two) -> dict[str, Part]:
    model.register_buffer("b", model.v.detach().cos())
    nn.init.uniform_(model.v, -0.5, 0.25)
    return {}


def of_the_whole(model: Two) -> dict[str, Part]:
    whole = nn.init.uniform_(torch.empty(6, 8), -0.5, 0.25)
    model.v = nn.Parameter(whole[:, 4:].clone())
    model.register_buffer("b", whole.cos().sum() + model.v.detach().sum())
    return {}


def drawn(model: Two) -> dict[str, Part]:
    model.register_buffer("b", torch.randn(2))
    return {"b": Part((4,)).chunk(0, 2, 1)}


def overlapping(model: Two) -> dict[str, Part]:
    model.b = nn.Parameter(model.v.detach()[2:])
    return {"b": Part((12, 4)).chunk(0, 3, 1)}


REFUSED: dict[str, tuple[Callable[[Two], dict[str, Part]], str]] = {
    "of earlier numbers": (earlier, "not only of those that they have at last: tensor b"),
    "of the whole and a part": (of_the_whole, "not only of those that they have at last: tensor b"),
    "drawn, no parameter": (drawn, "drawn, but are no parameters: tensor b"),
    "of two wholes at once": (overlapping, "not filled by one law alone: parameter b"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_before_anything_is_written(case: str, way: str) -> None:
    change, message = REFUSED[case]
    with deferred(SEED):
        model = Two(MEMORY["apart"])
        parts = change(model)
    with pytest.raises(ValueError, match=message):
        WAYS[way](model, parts={**PARTS, **parts})
    assert model.w.is_meta
    assert model.v.is_meta
