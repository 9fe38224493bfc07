"""Parameters that are not the whole of their memory, in its order: an element's number is its index.

Where in memory elements are has no part in what is drawn: each case is held against the same model of a
contiguous parameter, or against what ``seed=, name=`` write.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import Plan, init

SHAPE = (4, 3, 2, 2)


def _flat(shape: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
    """In the middle of a larger memory, its dimensions in an order."""
    memory = torch.empty(math.prod(shape) + 7)[3:-4].view([shape[dim] for dim in order])
    return memory.permute([order.index(dim) for dim in range(len(shape))])


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.empty(3, 4, 2, 2).transpose(0, 1),
    "reversed": lambda: torch.empty(SHAPE[::-1]).permute(3, 2, 1, 0),
    "channels_last": lambda: torch.empty(SHAPE, memory_format=torch.channels_last),
    "made channels_last": lambda: torch.empty(SHAPE).to(memory_format=torch.channels_last),
    "empty_permuted": lambda: torch.empty_permuted(SHAPE, (2, 0, 3, 1)),
    "empty_strided": lambda: torch.empty_strided(SHAPE, (2, 11, 40, 90)),
    "like one that is": lambda: torch.empty_like(torch.empty(3, 4, 2, 2).transpose(0, 1)),
    "columns of more": lambda: torch.empty(4, 3, 2, 5)[..., 1:3],
    "each second": lambda: torch.empty(8, 3, 2, 2)[::2],
    "of a larger memory": lambda: _flat(SHAPE, (0, 1, 2, 3)),
    "of a larger memory, permuted": lambda: _flat(SHAPE, (1, 3, 0, 2)),
    "set to a transposed one": lambda: torch.empty(0).set_(
        torch.empty(48).untyped_storage(), 0, SHAPE, (4, 16, 2, 1)
    ),
    "resized": lambda: torch.empty(0).resize_(SHAPE),
}


def _by_method(weight: Tensor) -> None:
    with torch.no_grad():
        weight.normal_(0.0, 0.5).mul_(3.0)


def _as_timm(weight: Tensor) -> None:
    """The operations of timm's trunc_normal_, std=1, within ±2."""
    bound = math.erf(2.0 / math.sqrt(2.0))
    with torch.no_grad():
        weight.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2.0)).add_(0.0).clamp_(-2.0, 2.0)


def _rows(weight: Tensor) -> None:
    nn.init.normal_(weight[:1])
    nn.init.uniform_(weight[1:])


def _columns(weight: Tensor) -> None:
    nn.init.xavier_normal_(weight)
    nn.init.zeros_(weight[:, 1:2])


def _blocks(weight: Tensor) -> None:
    nn.init.orthogonal_(weight[:2])
    nn.init.orthogonal_(weight[2:])


DRAWS: dict[str, Callable[[Tensor], object]] = {
    "kaiming_uniform": lambda w: nn.init.kaiming_uniform_(w, a=2.0),
    "trunc_normal": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "dirac": nn.init.dirac_,
    "a method": _by_method,
    "timm's": _as_timm,
    "rows": _rows,
    "columns": _columns,
    "blocks": _blocks,
    "twice": lambda w: nn.init.normal_(nn.init.uniform_(w)),
}


class _Model(nn.Module):
    def __init__(self, empty: Callable[[], Tensor], draw: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(empty())
        draw(self.weight)
        self.register_buffer("twice", self.weight.detach() * 2)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_are_those_of_the_indices(layout: str, draw: str) -> None:
    """Also of what is computed of them, of the plan, and of the plan in a file."""
    with fastinit.deferred(seed=3):
        model = _Model(LAYOUTS[layout], DRAWS[draw])
        plain = _Model(lambda: torch.empty(SHAPE), DRAWS[draw])
    plan, expected = fastinit.recorded_plan(model), fastinit.recorded_plan(plain)
    fastinit.materialize_(model)
    fastinit.materialize_(plain)
    assert torch.equal(model.weight, plain.weight)
    assert torch.equal(model.get_buffer("twice"), 2 * model.weight)
    assert model.weight.stride() == LAYOUTS[layout]().stride()
    read = Plan.from_json(Plan(plan, seed=plan.seed).to_json())
    zeros = nn.Module()
    zeros.weight = nn.Parameter(torch.zeros(SHAPE))
    assert torch.equal(read.apply_(zeros).weight, plain.weight)
    assert str(plan["weight"]) == str(expected["weight"])


def test_they_are_what_seed_and_name_draw() -> None:
    for layout in LAYOUTS.values():
        for law in (init.normal_, init.sparse_):
            with fastinit.deferred(seed=9):
                model = nn.Module()
                model.weight = nn.Parameter(layout()[:, :, 0, 0])
                law(model.weight, *([0.25] if law is init.sparse_ else []))
            fastinit.materialize_(model)
            wanted = torch.empty(4, 3)
            law(wanted, *([0.25] if law is init.sparse_ else []), seed=9, name="weight")
            assert torch.equal(model.weight, wanted)


CUTS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]] = {
    "ranges, with others between": (
        lambda: torch.empty(50),
        lambda m: (m[:20].view(4, 5), m[23:43].view(4, 5)),
    ),
    "rows": (lambda: torch.empty(2, 4, 5), lambda m: (m[0], m[1])),
    "columns": (lambda: torch.empty(4, 5, 2), lambda m: (m[..., 0], m[..., 1])),
    "one of them transposed": (
        lambda: torch.empty(40),
        lambda m: (m[:20].view(5, 4).t(), m[20:].view(4, 5)),
    ),
}
WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "at once": lambda memory, a, b: nn.init.normal_(memory),
    "each": lambda memory, a, b: (nn.init.normal_(a), nn.init.normal_(b)),
    "the other first": lambda memory, a, b: (nn.init.normal_(b), nn.init.normal_(a)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", CUTS)
def test_parameters_of_one_memory_have_numbers_of_their_own(cut: str, way: str) -> None:
    """Those of their names, whether one call drew for both or each was drawn by itself."""
    empty, views = CUTS[cut]

    def build() -> nn.Module:
        model = nn.Module()
        memory = empty()
        model.a, model.b = map(nn.Parameter, views(memory))
        WAYS[way](memory, model.a, model.b)
        model.register_buffer("held", memory)
        model.register_buffer("twice", model.b.detach() * 2)
        return model

    with fastinit.deferred(seed=5):
        model = build()
    plan = fastinit.recorded_plan(model)
    assert Plan.from_json(Plan(plan, seed=5).to_json()) == Plan(plan, seed=5)
    fastinit.materialize_(model)
    for name in ("a", "b"):
        wanted = init.normal_(torch.empty(4, 5), seed=5, name=name)
        assert torch.equal(model.get_parameter(name), wanted)
    for parameter, held in zip((model.a, model.b), views(model.held)):
        assert torch.equal(held, parameter)
        assert held.data_ptr() == parameter.data_ptr()
    assert torch.equal(model.twice, 2 * model.b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_nobody_wrote_is_refused(layout: str) -> None:
    def build(draw: Callable[[Tensor], object]) -> nn.Module:
        with fastinit.deferred(seed=1):
            return _Model(LAYOUTS[layout], draw)

    for draw in (lambda w: None, lambda w: nn.init.normal_(w[:, :2])):
        with pytest.raises(ValueError, match="left unwritten, at least in part: parameter weight"):
            fastinit.materialize_(build(draw))
