"""The number stream, version 1: known answers, and the same bits from every backend and CPU build."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_bits import ISAS, TRITON, assert_same_everywhere, bits, forced, isa
from same_bits import reference as by_reference
from torch import Tensor

from fastinit.backends.choose import backend
from fastinit.fills.operator import Request, Window, fill_, fill_many_
from fastinit.stream import laws, reference
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

VECTORS = Path(__file__).parents[1] / "vectors"
DTYPES = (*laws.WRITTEN, *laws.COMPLEX)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LAWS = (
    laws.uniform(),
    laws.uniform(-0.1, 0.3),
    laws.normal(),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(),
    laws.truncated_normal(0.1, 0.02, -2.0, 2.0),
    laws.truncated_normal(a=3.0, b=9.0),
    laws.constant(0.1),
    laws.constant(math.nan),
)


# --- known answers -------------------------------------------------------------------------------


def test_published_philox_vectors() -> None:
    lines = (VECTORS / "philox.txt").read_text().splitlines()
    answers = [[int(word, 16) for word in line.split()] for line in lines if line[0] != "#"]
    assert len(answers) == 3
    for words in answers:
        counter, key, output = words[:4], words[4:6], words[6:]
        got = reference.philox(torch.tensor(counter), (key[0], key[1]))
        assert got.tolist() == output


def test_a_word_of_the_stream_is_a_word_of_philox() -> None:
    """Where seed, stream and element stand in the key and the counter, from the third vector."""
    seed, stream, block = 0x299F31D0_A4093822, 0x03707344_13198A2E, 0x85A308D3_243F6A88
    words = reference.philox_words(seed, stream, torch.tensor(block - (1 << 64)))
    assert words.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def known_answers() -> Iterator[dict[str, str]]:
    for name in ("stream.csv", "float8.csv", "float8_scaled.csv"):
        with (VECTORS / name).open(newline="") as file:
            yield from csv.DictReader(file)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, 1) for name in ("reference", *ISAS)),
        *((name, 11) for name in TRITON),  # whose interpreter takes a tenth of a second for each
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in TRITON),
    ],
)
def test_known_answers(name: str, step: int) -> None:
    with forced(name):
        count = 0
        for line in islice(known_answers(), 0, None, step):
            count += 1
            law = Law(
                laws.CODES[line["law"]],
                *(float.fromhex(p) for p in line["parameters"].split()),
                scale=float.fromhex(line.get("scale", "0x1p+0")),
            )
            words = line["bits"].split()
            tensor = torch.empty(len(words), dtype=getattr(torch, line["dtype"]))
            window = Window((1,), int(line["start"]))
            seed, stream = int(line["seed"], 16), int(line["stream"], 16)
            fill_(tensor, law, seed=seed, stream=stream, window=window)
            digits = 2 * tensor.element_size()
            mask = (1 << 4 * digits) - 1
            integers = tensor.view(INTEGERS[tensor.element_size()]).tolist()
            assert [f"{word & mask:0{digits}x}" for word in integers] == words, line
        assert count == math.ceil(580 / step)


EVERYWHERE = (*ISAS, *TRITON)


def pairs(names: Iterable[Any], dtypes: Sequence[torch.dtype]) -> list[Any]:
    """Each name with each dtype, on each build.

    In Triton's interpreter always each name with one dtype, in turn: where a value goes, what it is
    and how it is stored are apart in its program. The other pairs are slow.
    """
    found = []
    for i, name in enumerate(names):
        for j, dtype in enumerate(dtypes):
            where, id_ = EVERYWHERE if i % len(dtypes) == j else ISAS, f"{name}-{dtype}"
            found.append(pytest.param(name, dtype, where, id=id_))
            if where != EVERYWHERE:
                slow = pytest.param(name, dtype, TRITON, id=f"{id_}-triton", marks=pytest.mark.slow)
                found.append(slow)
    return found


# --- every CPU build against the reference ---------------------------------------------------------

MANY = {
    "uniform": LAWS[0:2],
    "normal": LAWS[2:4],
    "truncated normal": (
        *LAWS[4:7],
        laws.truncated_normal(a=-math.inf, b=1.5),
        laws.truncated_normal(a=-100.0, b=100.0),
        laws.truncated_normal(a=-0.01, b=0.01),
    ),
}


@pytest.mark.parametrize("size", [1 << 16, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MANY)
def test_millions_of_values_of_every_law(name: str, size: int) -> None:
    """In ten pieces: one begins the stream, one crosses 2^34, the rest lie anywhere."""
    starts = [0, (1 << 34) - size // 2 - 3, *(k * 0x1_2345_6789 for k in range(1, 9))]
    for k, start in enumerate(starts):
        law = MANY[name][k % len(MANY[name])]
        seed, stream = 0x9E37_79B9_7F4A_7C15 * k % 2**64, stream_id(f"piece {k}")
        window = Window((1,), start)
        expected, got = torch.empty(size), torch.empty(size)
        with by_reference():
            fill_(expected, law, seed=seed, stream=stream, window=window)
        for build in ISAS:
            with isa(build):
                fill_(got, law, seed=seed, stream=stream, window=window)
            assert bits(got).equal(bits(expected)), (build, law, start)


# Values at the ends of a dtype's range, where its rounding has cases: ties, subnormals, overflow.
EXTREME = [
    *((torch.float16, laws.normal(0.0, std)) for std in (1e-7, 2e-6, 6e-5, 3e4)),
    *((torch.bfloat16, laws.normal(0.0, std)) for std in (1e-40, 2e-38, 2e38)),
    *((dtype, laws.normal(0.0, std)) for dtype in FLOAT8 for std in (1e-5, 0.01, 100.0, 1e5)),
    *((torch.float32, laws.normal(0.0, std)) for std in (1e-45, 1e-40, 2e38)),
    *((torch.float64, laws.normal(0.0, std)) for std in (1e-45, 2e38)),
    *((dtype, laws.uniform(-1.0, 1.0)) for dtype in laws.WRITTEN),
    *(
        (dtype, laws.scaled(law, scale))
        for dtype, scale in zip(FLOAT8, (0.3, 2.0**-7, 2.0**-126, 3e38))
        for law in (laws.normal(1.0, scale), laws.truncated_normal(0.0, scale, -scale, scale))
    ),
    *((dtype, laws.uniform(-1e-50, 1e-44)) for dtype in laws.DTYPES),
    *((torch.float32, laws.uniform(-x, 2 * x)) for x in (1e-45, 1e-40, 1e-32, 1e38)),
]


@pytest.mark.parametrize(("dtype", "law"), EXTREME)
def test_extreme_values_are_rounded_as_by_torch(dtype: torch.dtype, law: Law) -> None:
    assert_same_everywhere(lambda t: t, 20_000, dtype, law)


# Elements of the stream of seed 7 whose words have no bit, and all bits, of the 24 that are used. In
# float32 only such have to be clamped: where an end of the interval is no float32, or the last value
# becomes it.
FIRST, LAST = 24_428_758, 26_590_058


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0.0, 1.0),
        (-0.1, 0.3),
        (-0.3, 0.1),
        (0.1, 0.3),
        (-1.0, 0.0),
        (1.0, 1.0 + 2.0**-22),
        (0.5, 0.5),
        (0.0, 0.0),
        (-(2.0**24 - 1) * 2.0**-149, 1e-46),  # the last one is 0, and -0 in float32
    ],
)
def test_the_first_and_the_last_uniform_value(a: float, b: float, dtype: torch.dtype) -> None:
    law = laws.uniform(a, b)
    params = laws.kernel_params(law, dtype)
    for at, extreme in ((FIRST, params.lo), (LAST, params.hi)):
        window = Window((1,), at - 200)
        got = assert_same_everywhere(lambda t: t, 400, dtype, law, 7, window=window, names=ISAS)
        value = got[200].item()
        assert a <= value < b or a == b == value
        assert (got >= got[200]).all() if at == FIRST else (got <= got[200]).all()
        step = max(abs(a), abs(b)) * torch.finfo(torch.float32).eps
        assert abs(value - extreme) <= max(step, (b - a) * torch.finfo(dtype).eps)


# Truncated normals that have one value, or hardly more: NaN or a far bound would be easy mistakes.
NARROW = [
    (0.5, 0.0, -2.0, 2.0),
    (5.0, 0.0, -2.0, 2.0),
    (0.5, 0.0, -math.inf, math.inf),
    (0.0, 1.0, 0.25, 0.25),
    (0.0, 1.0, 1.0, 1.0 + 1e-12),
    (0.0, 1.0, 8.8, 8.8001),
    (0.0, 1.0, -8.85, -8.8),
    (0.0, 1e-45, -2.0, 2.0),
]


@pytest.mark.parametrize(("parameters", "dtype", "names"), pairs(NARROW, laws.WRITTEN))
def test_narrow_truncated_normals(
    parameters: tuple[float, float, float, float], dtype: torch.dtype, names: tuple[str, ...]
) -> None:
    law = laws.truncated_normal(*parameters)
    values = assert_same_everywhere(lambda t: t, 3000, dtype, law, names=names)
    mean, std, a, b = parameters
    if std == 0.0:
        value = torch.full_like(values, min(max(mean, a), b))
        assert values.equal(value)


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


# --- threads and many tensors ----------------------------------------------------------------------


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def requests(of: Callable[[int, torch.dtype], Tensor]) -> list[Request]:
    """Many tensors of all laws, dtypes and layouts, one of them much larger than the rest."""
    some = [Request(of(700_001, torch.float32), laws.normal(), 5, 6)]
    for k, law in enumerate(LAWS):
        for dtype in DTYPES:
            some.append(Request(of(101 * 51, dtype).view(101, 51).t(), law, k, stream_id(law.name)))
            window = Window((1000, 1), 2**34 - 500)
            some.append(Request(of(60, dtype).view(5, 12), law, k, 1, window))
            some.append(Request(of(0, dtype), law, k))
    return some


@pytest.mark.parametrize("build", ISAS)
def test_many_tensors_are_written_as_each_alone(
    build: str, set_threads: Callable[[int], None]
) -> None:
    with isa(build):
        expected = requests(lambda n, dtype: torch.empty(n, dtype=dtype))
        set_threads(1)
        for tensor, law, seed, stream, window in expected:
            fill_(tensor, law, seed=seed, stream=stream, window=window)
        for threads in (1, 2, 3):
            set_threads(threads)
            got = requests(lambda n, dtype: torch.empty(n, dtype=dtype))
            fill_many_(got)
            for one, other in zip(got, expected):
                assert bits(one.tensor).equal(bits(other.tensor))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_number_of_threads_does_not_matter(
    law: Law, transposed: bool, set_threads: Callable[[int], None]
) -> None:
    shape = (997, 1013)
    results = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        tensor = torch.empty(shape)
        results.append(fill_(tensor.t() if transposed else tensor, law, seed=11))
    for result in results[1:]:
        assert bits(result).equal(bits(results[0]))


@pytest.mark.parametrize("name", ["native", "reference"])
def test_a_bad_request_leaves_every_tensor_as_it_was(name: str) -> None:
    if name == "native" and not ISAS:
        pytest.skip("no native module")
    first, last = torch.zeros(8), torch.zeros(8)
    bad: list[tuple[Request, type[Exception], str]] = [
        (
            Request(torch.zeros(4, dtype=torch.int64), laws.normal(), 1),
            NotImplementedError,
            "int64",
        ),
        (Request(torch.zeros(1).expand(4), laws.normal(), 1), RuntimeError, "share memory"),
        (Request(torch.zeros(4), laws.normal(), -1), ValueError, "seed"),
        (Request(torch.zeros(4), laws.normal(), 1, 0, Window((1, 1))), ValueError, "window"),
        (Request(torch.zeros(4), laws.normal(), 1, 0, Window((1,), -1)), ValueError, "window"),
    ]
    for request, error, message in bad:
        good = [Request(t, laws.normal(), 1) for t in (first, last)]
        with (
            backend(name),
            pytest.raises(error, match=message),
        ):
            fill_many_([good[0], request, good[1]])
        assert not first.any()
        assert not last.any()
        assert first._version == last._version == 0
