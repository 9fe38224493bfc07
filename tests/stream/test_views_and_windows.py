"""Every view, shard and window of a tensor, drawn too: the bits of the whole, from all backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_bits import ISAS, assert_same_everywhere, bits
from stream_laws import DTYPES, EVERYWHERE, LAWS, pairs
from torch import Tensor

from fastinit.fills.operator import Window, fill_
from fastinit.stream import laws
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


# --- every window --------------------------------------------------------------------------------

VIEWS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "contiguous": (4096, lambda t: t),
    "odd start and length": (5000, lambda t: t[3:4890]),
    "one element": (3, lambda t: t[1:2]),
    "0-d": (3, lambda t: t[1]),
    "no elements": (64, lambda t: t[32:32].view(0, 5)),
    "no elements, strided": (64, lambda t: t.view(8, 8)[:, 4:4]),
    "every third element": (3000, lambda t: t[1::3]),
    "transposed": (61 * 47, lambda t: t.view(61, 47).t()),
    "transposed, with a margin": (64 * 70, lambda t: t.view(64, 70)[1:-1, 3:-2].t()),
    "channels last": (
        4 * 6 * 5 * 7,
        lambda t: t.view(4, 5, 7, 6).permute(0, 3, 1, 2),
    ),
    "channels last 3d": (
        2 * 3 * 4 * 5 * 6,
        lambda t: t.view(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3),
    ),
    "rows of 300 columns in 317": (90 * 317, lambda t: t.view(90, 317)[:, 5:305]),
    "inner block of three dimensions": (
        12 * 15 * 18,
        lambda t: t.view(12, 15, 18)[2:9, 3:14, 5:16],
    ),
    "reversed order of dimensions": (
        2 * 3 * 4 * 5,
        lambda t: t.view(2, 3, 4, 5).permute(3, 2, 1, 0),
    ),
    "ten dimensions that do not merge": (
        3**10,
        lambda t: t.view([3] * 10)[(slice(0, 2),) * 10].permute(*range(9, -1, -1)),
    ),
    "dimensions of size one": (
        2 * 6 * 10,
        lambda t: t.view(2, 1, 6, 1, 10, 1, 1).permute(5, 4, 1, 0, 6, 2, 3),
    ),
}


@pytest.mark.parametrize(("name", "dtype", "names"), pairs(VIEWS, DTYPES))
def test_every_view(name: str, dtype: torch.dtype, names: tuple[str, ...]) -> None:
    numel, view = VIEWS[name]
    law, stream = laws.normal(0.25, 0.7), stream_id(name)
    values = assert_same_everywhere(view, numel, dtype, law, seed=7, stream=stream, names=names)
    flat = torch.empty(values.numel(), dtype=dtype)
    fill_(flat, law, seed=7, stream=stream)
    assert bits(values).equal(bits(flat))  # the layout in memory does not matter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_transposed_tensor(dtype: torch.dtype) -> None:
    """In several tasks of the CPU builds. To Triton its program is one of the small ones, many times."""
    law = laws.uniform(-0.1, 0.1)
    assert_same_everywhere(lambda t: t.view(1500, 1000).t(), 1500 * 1000, dtype, law, names=ISAS)


@pytest.mark.parametrize(("law", "dtype", "names"), pairs(LAWS, laws.WRITTEN))
def test_every_law_in_the_views_with_an_inner_loop_of_their_own(
    law: Law, dtype: torch.dtype, names: tuple[str, ...]
) -> None:
    for name in ("odd start and length", "transposed", "every third element"):
        numel, view = VIEWS[name]
        assert_same_everywhere(view, numel, dtype, law, names=names)


Slices = tuple[slice, ...]
SHARDS: dict[str, tuple[tuple[int, ...], Slices]] = {
    "rows": ((40, 33), (slice(13, 29), slice(None))),
    "columns": ((40, 133), (slice(None), slice(17, 101))),
    "one column": ((1000, 24), (slice(None), slice(7, 8))),
    "five columns": ((1000, 24), (slice(None), slice(9, 14))),
    "every second column": ((50, 64), (slice(None), slice(1, None, 2))),
    "inner block": ((9, 14, 25), (slice(2, 7), slice(3, 11), slice(6, 23))),
    "middle dimension": ((9, 14, 25), (slice(None), slice(4, 9), slice(None))),
    "last rows, uneven": ((11, 6), (slice(9, 11), slice(None))),
    "none": ((8, 6), (slice(8, 8), slice(None))),
    "all": ((8, 6), (slice(None), slice(None))),
}


def shard_window(full: Tensor, part: Tensor) -> Window:
    """A slice's window: the strides and offset that it has in the whole, contiguous tensor."""
    return Window(part.stride(), part.storage_offset() - full.storage_offset())


@pytest.mark.parametrize(("name", "dtype", "names"), pairs(SHARDS, DTYPES))
def test_a_shard_is_a_slice_of_the_whole(
    name: str, dtype: torch.dtype, names: tuple[str, ...]
) -> None:
    shape, slices = SHARDS[name]
    law = laws.truncated_normal(0.1, 0.5, -1.0, 1.5)
    full = fill_(torch.empty(shape, dtype=dtype), law, seed=3, stream=9)
    part = full[slices]
    window = shard_window(full, part)
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda t: t[2:-1].view(part.shape),
        lambda t: t[2:-1].view(part.mT.shape).mT,
    ]
    for view in layouts:
        numel = part.numel() + 3
        got = assert_same_everywhere(view, numel, dtype, law, 3, 9, window, names)
        assert bits(got).equal(bits(part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_windows_beyond_what_memory_holds(dtype: torch.dtype) -> None:
    """A few elements of tensors with more than 2^32: the offset and each stride is 64 bits wide."""
    law = laws.normal()
    last = (1 << (62 if dtype.is_complex else 63)) - 1
    windows = [
        Window((1,), (1 << 32) - 150),
        Window((1,), (1 << 34) - 150),
        Window((1,), (1 << 36) - 151),
        Window((1,), (1 << 62) - 1000),
        Window((1,), last - 299),
        Window(((1 << 33) + 1,), (1 << 34) - 5),
        Window((3,), (1 << 34) - 451),
    ]
    for window in windows:
        got = assert_same_everywhere(lambda t: t, 300, dtype, law, window=window)
        for i in (0, 149, 150, 151, 299):
            one = torch.empty((), dtype=dtype)
            fill_(one, law, seed=1, window=Window((), window.offset + i * window.strides[0]))
            assert bits(one).equal(bits(got[i]))
    # Rows 2^33 elements apart, as in a column shard of a tensor of 2^40 elements.
    window = Window((1 << 33, 1), (1 << 39) + 12345)
    got = assert_same_everywhere(lambda t: t.view(7, 300), 2100, dtype, law, window=window)
    row = torch.empty(300, dtype=dtype)
    fill_(row, law, seed=1, window=Window((1,), window.offset + 5 * (1 << 33)))
    assert bits(row).equal(bits(got[5]))


@pytest.mark.parametrize("lead", range(0, 200, 7))
def test_the_carry_of_the_block_counter_anywhere_in_a_group(lead: int) -> None:
    window = Window((1,), (1 << 34) - lead)
    names = EVERYWHERE if lead % 4 == 0 else ISAS
    assert_same_everywhere(lambda t: t, 400, torch.float32, laws.uniform(), 1, 0, window, names)


# --- any view, any window ------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> tuple[int, Callable[[Tensor], Tensor], tuple[int, ...]]:
    """A view made by slicing and permuting: elements of the base, how it is taken, its shape."""
    dims = draw(st.integers(0, 5))
    most = {0: 1, 1: 3000, 2: 90, 3: 20, 4: 8, 5: 5}[dims]
    sizes = draw(st.lists(st.integers(0, most), min_size=dims, max_size=dims))
    steps = draw(st.lists(st.sampled_from((1, 1, 1, 2, 3)), min_size=dims, max_size=dims))
    before = draw(st.lists(st.integers(0, 2), min_size=dims, max_size=dims))
    after = draw(st.lists(st.integers(0, 2), min_size=dims, max_size=dims))
    order = draw(st.permutations(range(dims)))
    margin = draw(st.integers(0, 5))
    whole = [b + n * s + a for b, n, s, a in zip(before, sizes, steps, after)]

    def view(base: Tensor) -> Tensor:
        tensor = base[margin:].view(whole)
        for dim in range(dims):
            tensor = tensor.narrow(dim, before[dim], sizes[dim] * steps[dim])
        tensor = tensor[tuple(slice(None, None, step) for step in steps)]
        return tensor.permute(order)

    return margin + math.prod(whole), view, tuple(sizes[d] for d in order)


def some_laws() -> st.SearchStrategy[Law]:
    number = st.floats(-4.0, 4.0)
    std = st.sampled_from((0.0, 1e-3, 0.02, 0.5, 1.0, 3.0))
    pairs = st.tuples(number, number).map(sorted)
    return st.one_of(
        pairs.map(lambda p: laws.uniform(*p)),
        st.builds(laws.normal, number, std),
        st.tuples(number, st.sampled_from((0.5, 1.0, 3.0)), pairs)
        .filter(lambda t: max((t[2][0] - t[0]) / t[1], (t[0] - t[2][1]) / t[1]) < 8.5)
        .map(lambda t: laws.truncated_normal(t[0], t[1], *t[2])),
        st.floats(width=32, allow_nan=False).map(laws.constant),
    )


def is_writable(what: tuple[torch.dtype, Law]) -> bool:
    """Constants beyond the range of 8 bits are refused."""
    dtype, law = what
    return dtype not in FLOAT8 or law.kind != laws.CONSTANT or abs(law.p0) <= torch.finfo(dtype).max


DTYPES_AND_LAWS = st.tuples(st.sampled_from(DTYPES), some_laws()).filter(is_writable)
WORDS = st.one_of(st.sampled_from((0, 1, 2**32, 2**64 - 1)), st.integers(0, 2**64 - 1))
NEAR = st.sampled_from((0, 2**32, 2**34, 2**36, 2**61))
# The interpreter has one example of ten.
SOMEWHERE = st.sampled_from((*[ISAS] * 9, EVERYWHERE))
OFTEN = [SOMEWHERE, pytest.param(st.just(EVERYWHERE), marks=pytest.mark.slow)]
OFFSETS = st.builds(lambda near, more: max(near + more, 0), NEAR, st.integers(-4000, 4000))


@pytest.mark.parametrize("where", OFTEN)
@settings(max_examples=60)
@given(views(), DTYPES_AND_LAWS, WORDS, WORDS, st.data())
def test_any_view(
    where: st.SearchStrategy[tuple[str, ...]],
    view: Any,
    what: tuple[torch.dtype, Law],
    seed: int,
    stream: int,
    data: st.DataObject,
) -> None:
    numel, make, _ = view
    assert_same_everywhere(make, numel, *what, seed, stream, names=data.draw(where))


@pytest.mark.parametrize("where", OFTEN)
@settings(max_examples=60)
@given(views(), DTYPES_AND_LAWS, WORDS, WORDS, OFFSETS, st.data())
def test_any_window(
    where: st.SearchStrategy[tuple[str, ...]],
    view: Any,
    what: tuple[torch.dtype, Law],
    seed: int,
    stream: int,
    offset: int,
    data: st.DataObject,
) -> None:
    """Global strides that have nothing to do with the local ones: contiguous, broadcast, sparse."""
    numel, make, shape = view
    runs = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    one = st.one_of(st.sampled_from((0, 1, 2, 2**32, 2**34)), st.integers(0, 2**40))
    lists = st.lists(one, min_size=len(shape), max_size=len(shape))
    strides = data.draw(st.one_of(st.just(runs), st.permutations(runs), lists))
    window = Window(tuple(strides), offset)
    assert_same_everywhere(make, numel, *what, seed, stream, window, data.draw(where))
