"""Strided: whatever it is asked for are the elements that torch's views have, in the same order."""

from itertools import product

import pytest
import torch

from fastinit.elements.pieces import Piece
from fastinit.elements.strided import Strided, runs

VIEWS = {
    "whole": lambda t: t,
    "an element": lambda t: t[1, 2, 0, 1],
    "a row": lambda t: t[1, 2, 0],
    "columns": lambda t: t[:, :, :, 1:3],
    "every other": lambda t: t[:, ::2, :, ::3],
    "permuted": lambda t: t.permute(3, 0, 2, 1),
    "a block": lambda t: t[1:, 1:3],
    "none": lambda t: t[:, :0],
}
"""Of a tensor [2, 3, 1, 4]."""


def places() -> torch.Tensor:
    return torch.arange(24).view(2, 3, 1, 4)


def elements(some: Strided) -> list[int]:
    """Which these are, in their order, also of a memory that begins elsewhere in its storage."""
    return some.on(torch.arange(-3, 40)[3:]).flatten().tolist()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view(view) -> None:
    tensor = view(places())
    some = Strided.of(tensor)
    in_order = tensor.flatten().tolist()
    assert elements(some) == elements(some.merged()) == in_order
    assert elements(some.in_memory_order()) == sorted(in_order)
    assert some.numel == len(in_order)
    if in_order:
        assert some.is_run == (in_order == list(range(some.offset, some.offset + some.numel)))
        assert some.end == max(in_order) + 1


def test_the_same_elements_in_the_same_order_are_equal_when_merged() -> None:
    t = places()
    assert Strided.of(t[1]).merged() == Strided.of(t.flatten()[12:]).merged() == Strided.run(12, 12)
    assert Strided.of(t[:, :, 0, 1]).merged() == Strided.of(t.flatten()[1::4]).merged()
    assert Strided.of(t[1, 1, :, 2:3]).merged() == Strided.run(18, 1) == Strided(18, (), ())
    assert Strided.of(t.mT).merged() != Strided.of(t.transpose(1, 3)).merged()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_elements_by_their_number_and_within_a_range(view) -> None:
    some = Strided.of(view(places()))
    in_order = elements(some)
    for start in range(25):
        for stop in range(start, 25):
            within = [i for part, _ in some.clipped(start, stop) for i in elements(part)]
            assert sorted(within) == sorted(i for i in in_order if start <= i < stop)
            if stop <= some.numel:
                numbered = [i for part in some.numbered(start, stop) for i in elements(part)]
                assert numbered == in_order[start:stop]


def test_a_block_has_the_elements_and_the_tensors_strides() -> None:
    found = 0
    dims = [((2,), (1,)), ((3, 2), (6, 1)), ((4,), (6,)), ((12,), (1,)), ((), ())]
    for shape, start, (sizes, strides) in product(
        ((4, 1, 6), (5, 6), (24,), (2, 3, 1, 4)), range(0, 24, 5), dims
    ):
        full = Strided.contiguous(shape)
        some = Strided(start, sizes, strides)
        block = some.merged().block(shape)
        # By looking: a block is what its corners span.
        where = torch.tensor(elements(some))
        corners = [(where // s % n) for s, n in zip(full.strides, shape)]
        spans = [int(c.max() - c.min()) + 1 for c in corners]
        is_block = some.end <= full.numel and torch.Size(spans).numel() == some.numel
        if some.end > full.numel:
            continue
        assert (block is not None) == is_block, (shape, some)
        if block is not None:
            found += 1
            assert elements(block) == elements(some)
            assert block.strides == full.strides
            assert block.start == tuple(int(c.min()) for c in corners)
    assert found > 20


def test_what_a_piece_has_in_common_with_a_block() -> None:
    full = places()
    for (a, b), (c, d) in product(product(range(2), range(1, 3)), product(range(3), range(1, 5))):
        view = full[a : a + b, 1:, :, 1:3]
        piece = Piece(view.clone().transpose(0, 1).contiguous().transpose(0, 1), Strided.of(view))
        other = full[:, : c + 1, :, c : c + d]
        common = piece.common(Strided.of(other))
        expected = sorted(set(view.flatten().tolist()) & set(other.flatten().tolist()))
        assert (common.tensor.flatten().tolist() if common else []) == expected
        assert (elements(common.which) if common else []) == expected


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_runs_are_neighbours_of_both_sets(view) -> None:
    tensor = view(places())
    if not tensor.numel():
        return
    for which in (Strided.of(tensor), Strided.contiguous(tensor.shape), Strided.of(tensor * 2)):
        dims, length, step = runs(Strided.of(tensor), which)
        found = {}
        for index in product(*(range(dim[0]) for dim in dims)):
            where, first = (sum(i * d[k] for i, d in zip(index, dims)) for k in (1, 2))
            for i in range(length):
                found[which.offset + first + i] = tensor.storage_offset() + where + i * step
        assert found == dict(zip(elements(which), tensor.flatten().tolist()))
