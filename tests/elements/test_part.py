"""Part: every way in which a parameter is cut gives the values that the whole has there."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_rank_parts import FUNCTIONS as ALL_FUNCTIONS
from torch import Tensor, nn

import fastinit
from fastinit import Part, init, materialize_
from fastinit.base.number import NumberRangeError, NumberTypeError
from fastinit.elements.strided import Strided

FUNCTIONS = ALL_FUNCTIONS | {"eye_": (init.eye_, (6, 5)), "dirac_": (init.dirac_, (6, 5, 3))}
RANDOM = [name for name in FUNCTIONS if name not in ("constant_", "ones_", "zeros_")]


def taken(full: Tensor, part: Part) -> Tensor:
    """What the tensor of a part is, said by indexing."""
    if part.flat is not None:
        start, length = part.flat
        return full.flatten()[start : start + length]
    for dim, runs in enumerate(part.runs):
        which = [i for start, length in runs for i in range(start, start + length)]
        full = full.index_select(dim, torch.tensor(which, dtype=torch.int64))
    return full


# Of [12, 6, ...]: rows, columns, uneven and empty chunks, turns as of fused layers, GLU's halves, a
# block on two axes, an expert, runs out of order, flat ranges that begin and end within rows.
CUTS: dict[str, Callable[[tuple[int, ...]], Part]] = {
    "whole": lambda shape: Part(shape),
    "rows": lambda shape: Part(shape).chunk(0, 3, 1),
    "columns": lambda shape: Part(shape).chunk(1, 2, 1),
    "uneven": lambda shape: Part(shape).chunk(0, 5, 4),
    "empty": lambda shape: Part(shape).chunk(0, 24, 23),
    "turns": lambda shape: Part(shape).split(0, 2, 1, stride=3),
    "halves": lambda shape: Part(shape).cut(0, [(2, 2), (8, 2)]),
    "block": lambda shape: Part(shape).chunk(0, 2, 1).chunk(1, 3, 1),
    "of a part": lambda shape: Part(shape).split(0, 2, 1, stride=3).chunk(0, 2, 1),
    "one": lambda shape: Part(shape).select(0, 7),
    "out of order": lambda shape: Part(shape).cut(0, [(9, 2), (1, 3)]).cut(1, [(4, 2), (0, 1)]),
    "flat": lambda shape: Part(shape, flat=(7, 23)),
    "flat within a row": lambda shape: Part(shape, flat=(8, 2)),
    "flat, nothing": lambda shape: Part(shape, flat=(8, 0)),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", RANDOM)
def test_every_function_writes_its_part_of_the_whole(name: str, cut: str) -> None:
    function, shape = FUNCTIONS[name]
    shape = tuple([12, 6, *shape[2:]][: max(len(shape), 2)])
    whole = function(torch.empty(shape), **seeded(name))
    part = CUTS[cut](shape)
    local = function(torch.empty(part.local_shape), **seeded(name), part=part)
    assert torch.equal(local, taken(whole, part))
    strided = torch.empty(*part.local_shape, 2)[..., 0]
    assert torch.equal(function(strided, **seeded(name), part=part), local)


def seeded(name: str) -> dict[str, object]:
    return {} if name in ("eye_", "dirac_") else {"seed": 3, "name": "w"}


@given(st.data())
def test_any_cuts_of_any_shape(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4)))
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    part = Part(shape)
    for _ in range(data.draw(st.integers(0, 3))):
        dim = data.draw(st.integers(0, len(shape) - 1))
        places = data.draw(st.permutations(range(part.local_shape[dim])))
        places = places[: data.draw(st.integers(0, len(places)))]
        part = part.cut(dim, [(place, 1) for place in places])
    expected = taken(whole, part)
    assert part.local_shape == tuple(expected.shape)
    assert part.numel == expected.numel()
    local = torch.full(part.local_shape, -1.0)
    for view, which in part.pieces(local):
        view.copy_(which.on(whole))
    assert torch.equal(local, expected)
    assert part.is_whole == (torch.equal(expected, whole) if whole.numel() else part.is_whole)
    start = data.draw(st.integers(0, whole.numel()))
    flat = Part(shape, flat=(start, data.draw(st.integers(0, whole.numel() - start))))
    local = torch.full(flat.local_shape, -1.0)
    for view, which in flat.pieces(local):
        view.copy_(which.on(whole))
    assert torch.equal(local, taken(whole, flat))


def test_fans_are_of_the_full_shape() -> None:
    part = Part((512, 256)).chunk(1, 8, 3)
    local = init.xavier_normal_(torch.empty(512, 32), seed=0, part=part)
    assert torch.equal(local, init.xavier_normal_(torch.empty(512, 256), seed=0)[:, 96:128])


def test_an_expert_lacks_its_dimension() -> None:
    whole = init.normal_(torch.empty(8, 6, 4), seed=0, name="experts")
    part = Part((8, 6, 4), name="experts").select(0, 5)
    assert torch.equal(init.normal_(torch.empty(6, 4), seed=0, part=part), whole[5])
    assert torch.equal(init.normal_(torch.empty(1, 6, 4), seed=0, part=part), whole[5:6])


def test_the_name_is_the_parts_unless_given() -> None:
    a = init.normal_(torch.empty(4), seed=0, name="w", part=Part((4,)))
    b = init.normal_(torch.empty(4), seed=0, part=Part((4,), name="w"))
    c = init.normal_(torch.empty(4), seed=0, name="w", part=Part((4,)).named("w"))
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    with pytest.raises(ValueError, match=r"name is 'v', but part.name is 'w'"):
        init.normal_(torch.empty(4), seed=0, name="v", part=Part((4,), name="w"))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Part((4, -1)), NumberRangeError, r"shape\[1\]"),
        (lambda: Part((4.0,)), NumberTypeError, r"shape\[0\]"),  # type: ignore[arg-type]
        (lambda: Part(4), TypeError, "shape must be a sequence"),  # type: ignore[arg-type]
        (lambda: Part((4,), runs=()), ValueError, "runs must be of 1 dimensions"),
        (
            lambda: Part((4,), runs=(((0, 5),),)),
            NumberRangeError,
            r"runs\[0\]\[0\] must end within 4",
        ),
        (lambda: Part((4,), runs=(((0, 2), (1, 2)),)), ValueError, "index 1 twice"),
        (lambda: Part((4,), runs=(((0, 1, 2),),)), ValueError, r"runs\[0\]\[0\]"),  # type: ignore[arg-type]
        (lambda: Part((4,), flat=(3, 2)), NumberRangeError, "flat must end within 4"),
        (lambda: Part((4,), runs=(((0, 4),),), flat=(0, 1)), ValueError, "exclude each other"),
        (lambda: Part((4,), name=3), TypeError, "name must be a str"),  # type: ignore[arg-type]
        (lambda: Part((4,)).chunk(1, 2, 0), IndexError, "dim must be one of 1"),
        (lambda: Part((4,)).chunk(0, 2, 2), NumberRangeError, "rank must be one of 2"),
        (lambda: Part((4,)).chunk(0, 0, 0), NumberRangeError, "ranks"),
        (lambda: Part((6,)).split(0, 4, 0), NumberRangeError, "ranks x stride must divide"),
        (lambda: Part((6,)).split(0, 3, 0, stride=0), NumberRangeError, "stride"),
        (lambda: Part((6,)).select(0, 6), NumberRangeError, "index must be one of 6"),
        (lambda: Part((6,), flat=(0, 2)).cut(0, [(0, 1)]), ValueError, "no dimensions to cut"),
    ],
)
def test_what_is_no_part(make: Callable[[], Part], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("tensor", "part", "said"),
    [
        (torch.zeros(4, 4), Part((8, 4)), r"shape \(4, 4\), but its part of \(8, 4\) has \(8, 4\)"),
        (torch.zeros(4, 2).t(), Part((8, 4)).chunk(0, 2, 0).chunk(1, 2, 0), "shape"),
        (torch.zeros(3), Part((8, 4), flat=(0, 4)), "3 elements"),
        (torch.zeros(2, 2).t(), Part((8, 4), flat=(0, 4)), "contiguous"),
    ],
)
@pytest.mark.parametrize("name", RANDOM)
def test_a_tensor_that_the_part_does_not_fit(
    name: str, tensor: Tensor, part: Part, said: str
) -> None:
    function, _ = FUNCTIONS[name]
    if name.startswith(("dirac", "delta")):
        part = Part((*part.shape, 1), flat=part.flat) if part.flat else Part((*part.shape, 3))
        said = "shape|elements|contiguous"
    before = tensor.clone()
    with pytest.raises(ValueError, match=said):
        function(tensor, **seeded(name), part=part)
    assert torch.equal(tensor, before)


def test_a_part_needs_a_seed() -> None:
    for name in RANDOM:
        if seeded(name):
            function, shape = FUNCTIONS[name]
            with pytest.raises(ValueError, match="a part needs seed="):
                function(torch.empty(shape), part=Part(shape))


def test_within_deferred_a_part_is_recorded() -> None:
    part = Part((8, 4), name="whole").chunk(0, 2, 1)
    with fastinit.deferred(seed=3):
        net = nn.Linear(4, 4, bias=False)
        init.normal_(net.weight, seed=7, part=part)
    materialize_(net)
    assert torch.equal(net.weight, init.normal_(torch.empty(4, 4), seed=7, part=part))


def test_pieces_of_a_flat_range_are_blocks() -> None:
    local = torch.zeros(23)
    for view, which in Part((4, 3, 5), flat=(8, 23)).pieces(local):
        assert which.strides == Strided.contiguous((4, 3, 5)).strides
        assert view.dim() == 3
