"""within: the numbers that elements of a memory have in a tensor there, against counting each."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from fastinit.elements.strided import Strided
from fastinit.elements.within import covers, within

MEMORY = 96

TENSORS = {
    "contiguous": lambda memory: memory[:24].view(2, 3, 4),
    "at an offset": lambda memory: memory[7:31].view(2, 3, 4),
    "transposed": lambda memory: memory[:24].view(4, 6).t(),
    "permuted": lambda memory: memory[:24].view(4, 2, 3).permute(1, 2, 0),
    "of other order, at an offset": lambda memory: memory[5:29].view(3, 4, 2).permute(2, 0, 1),
    "columns of more": lambda memory: memory.view(12, 8)[:6, 2:6],
    "each second": lambda memory: memory[1:49:2].view(6, 4),
    "channels last": lambda memory: memory[:36].view(1, 2, 6, 3).permute(0, 3, 1, 2),
    "one element": lambda memory: memory[9:10].view(1, 1),
    "no dimension": lambda memory: memory[9],
}


@pytest.mark.parametrize("name", TENSORS)
def test_the_numbers_are_those_of_counting(name: str) -> None:
    """Whatever slices, permutations and flat ranges of the memory are asked for, from a fixed seed.

    What is given is right, and what is a view of the tensor itself is always given.
    """
    tensor = TENSORS[name](torch.arange(MEMORY))
    number = {int(place): index for index, place in enumerate(tensor.flatten())}
    chance = random.Random(name)
    views = []
    for _ in range(60):
        view = tensor
        for dim, size in enumerate(tensor.shape):
            start = chance.randrange(size)
            stop, step = chance.randint(start + 1, size), chance.randint(1, 2)
            view = view[(slice(None),) * dim + (slice(start, stop, step),)]
        views.append((view.permute(chance.sample(range(view.dim()), view.dim())), True))
        start = chance.randrange(MEMORY)
        views.append((torch.arange(MEMORY)[start : chance.randint(start + 1, MEMORY)], False))
    for view, is_its in views:
        some = Strided.of(view)._replace(offset=int(view.flatten()[0]))
        for form in (some, some.merged(), some.as_set()):
            for of in (Strided.of(tensor), Strided.merged_of(tensor)):
                found = within(form, of)
                assert found is not None or not is_its
                if found is None:
                    continue
                where, which = found
                places = where.numbers().flatten().tolist()
                assert places == form.numbers().flatten().tolist()
                assert where.sizes == which.sizes
                assert which.numbers().flatten().tolist() == [number[place] for place in places]


def test_what_is_not_all_of_a_tensor_is_refused() -> None:
    tensor = Strided.of(torch.empty(12, 8)[:6, 2:6])
    outside = [Strided.run(0, 3), Strided.run(6, 2), Strided.run(40, 4), Strided(2, (7,), (8,))]
    assert all(within(some, tensor) is None for some in outside)


def test_covers_asks_for_what_is_wanted_alone() -> None:
    """Against marking each element, for all pairs of a few regions."""
    some = [
        Strided.run(0, 4),
        Strided.run(4, 8),
        Strided(1, (3,), (4,)),
        Strided(0, (3, 2), (4, 1)),
    ]
    for one, two, wanted in itertools.product(some, repeat=3):
        marked = {*one.numbers().flatten().tolist(), *two.numbers().flatten().tolist()}
        expected = marked >= set(wanted.numbers().flatten().tolist())
        assert covers([one, two], 12, [wanted]) is expected
    assert covers([some[0]], 12, [Strided(0, (50,), (0,))])  # one element, asked for often
