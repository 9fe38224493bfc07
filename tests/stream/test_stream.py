"""The number stream, version 1: known answers, and the same bits from every backend and CPU build."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from same_bits import ISAS, TRITON, assert_same_everywhere, bits, forced, isa
from same_bits import reference as by_reference
from stream_laws import DTYPES, LAWS, pairs
from torch import Tensor

from fastinit.backends.choose import backend
from fastinit.fills.operator import Request, Window, fill_, fill_many_
from fastinit.stream import laws, reference
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law
from fastinit.stream.rounding import FLOAT8

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

VECTORS = Path(__file__).parents[1] / "vectors"

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
