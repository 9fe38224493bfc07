"""Ops: what a fill checks, what it leaves alone, and that PyTorch's compiler and modes take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_bits import assert_same_everywhere, bits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastinit.elements.strided import Strided
from fastinit.fills.operator import Request, Window, check_writable, fill_, fill_many_
from fastinit.stream import laws

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

SLOW_WAY: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.zeros(6, 4),
    "transposed": lambda: torch.zeros(6, 4).t(),
    "complex": lambda: torch.zeros(6, 4, dtype=torch.complex64),
    "parameter": lambda: nn.Parameter(torch.zeros(6, 4)),
    "0-d": lambda: torch.zeros(()),
}


# --- what a fill does to a tensor ----------------------------------------------------------------


@pytest.mark.parametrize("name", SLOW_WAY)
def test_the_same_tensor_comes_back_with_a_new_version(name: str) -> None:
    tensor = SLOW_WAY[name]()
    assert fill_(tensor, laws.normal(), seed=1) is tensor
    assert tensor._version == 1
    assert bool((tensor != 0).all())
    fill_(tensor, laws.constant(3.0))
    assert tensor._version == 2
    assert bool(tensor.eq(3).all())
    fill_many_([Request(tensor, laws.normal(), 1), Request(tensor, laws.normal(), 2)])
    assert tensor._version == 4


@pytest.mark.parametrize("name", SLOW_WAY)
def test_no_gradient_history(name: str) -> None:
    tensor = SLOW_WAY[name]().requires_grad_()
    fill_(tensor, laws.normal(), seed=1)
    fill_many_([Request(tensor, laws.normal(), 1)])
    assert tensor.requires_grad
    assert tensor.grad_fn is None
    assert tensor.is_leaf


@pytest.mark.parametrize("transposed", [False, True])
def test_autograd_sees_that_a_saved_tensor_was_overwritten(transposed: bool) -> None:
    weight = torch.ones(3, 3, requires_grad=True)
    square = (weight * weight).sum()
    fill_(weight.detach().t() if transposed else weight, laws.normal(), seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


def test_inference_tensors() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(8)
        expected = fill_(torch.zeros(8), laws.normal(), seed=1)
        fill_(tensor, laws.normal(), seed=1)
        assert tensor.equal(expected)
        fill_many_([Request(tensor, laws.normal(), 2)])
    before = tensor.clone()
    for write in (
        lambda: fill_(tensor, laws.normal(), seed=1),
        lambda: fill_many_([Request(tensor, laws.normal(), 1)]),
    ):
        with pytest.raises(RuntimeError, match=r"inference tensor.*torch.inference_mode\(\)"):
            write()
    assert tensor.equal(before)


def test_an_ordinary_tensor_in_inference_mode() -> None:
    tensor, other = torch.zeros(8), torch.zeros(8, 2).t()
    with torch.inference_mode():
        fill_(tensor, laws.normal(), seed=1)
        fill_(other, laws.normal(), seed=1)
    assert tensor.any()
    assert other.any()


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOW_WAY)
def test_without_a_seed_the_generator_gives_one(name: str) -> None:
    torch.manual_seed(0)
    first = fill_(SLOW_WAY[name](), laws.normal()).clone()
    second = fill_(SLOW_WAY[name](), laws.normal()).clone()
    torch.manual_seed(0)
    assert bits(fill_(SLOW_WAY[name](), laws.normal())).equal(bits(first))
    assert not bits(first).equal(bits(second))
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    own = fill_(SLOW_WAY[name](), laws.normal(), generator=generator)
    assert bits(own).equal(bits(first))
    assert torch.get_rng_state().equal(state)


NOTHING_TO_DRAW: dict[str, Callable[[], Any]] = {
    "seed": lambda: fill_(torch.empty(8), laws.normal(), seed=1),
    "meta": lambda: fill_(torch.empty(8, device="meta"), laws.normal()),
    "empty": lambda: fill_(torch.empty(0), laws.normal()),
    "empty, strided": lambda: fill_(torch.empty(8, 6)[:, 2:2].t(), laws.normal()),
    "constant": lambda: fill_(torch.empty(8), laws.constant(1.0)),
    "constant, strided": lambda: fill_(torch.empty(8, 6).t(), laws.constant(1.0)),
}


@pytest.mark.parametrize("name", NOTHING_TO_DRAW)
def test_where_nothing_is_drawn_the_generator_stays(name: str) -> None:
    state = torch.get_rng_state()
    NOTHING_TO_DRAW[name]()
    assert torch.get_rng_state().equal(state)


def test_meta_tensors_come_back_as_they_are() -> None:
    tensor = torch.empty(8, device="meta")
    assert fill_(tensor, laws.normal()) is tensor
    fill_many_([Request(tensor, laws.normal(), 1)])


BAD_KEYS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"seed": 1, "generator": torch.Generator()},
        ValueError,
        "seed and generator exclude each other",
    ),
    ({"seed": -1}, ValueError, "seed must be in .*-1"),
    ({"seed": 1 << 64}, ValueError, "seed must be in .*18446744073709551616"),
    ({"seed": 1.5}, TypeError, "seed must be an int, but got 1.5"),
    ({"seed": True}, TypeError, "seed must be an int, but got True"),
]


@pytest.mark.parametrize("name", SLOW_WAY)
@pytest.mark.parametrize(("key", "error", "message"), BAD_KEYS)
def test_bad_keys(name: str, key: dict[str, Any], error: type[Exception], message: str) -> None:
    tensor, state = SLOW_WAY[name](), torch.get_rng_state()
    with pytest.raises(error, match=message):
        fill_(tensor, laws.normal(), **key)
    assert not tensor.detach().any()
    assert tensor._version == 0
    assert torch.get_rng_state().equal(state)


# --- windows and tensors that are refused ---------------------------------------------------------

BAD_WINDOWS = [
    (torch.float32, Window((1,)), "one entry for each of the tensor's 2 dimensions"),
    (torch.float32, Window((4, 1, 1)), "one entry for each of the tensor's 2 dimensions"),
    (torch.float32, Window((4, 1), -1), "offset=-1"),
    (torch.float32, Strided(0, (4, 6), (6, 1)), r"the tensor's shape \(6, 4\)"),
    (torch.float32, Window((-4, 1), 100), "-4"),
    (torch.float32, Window((4, 1), 2**63 - 23), r"\[0, 2\*\*63\)"),
    (torch.float32, Window((2**62, 1)), r"\[0, 2\*\*63\)"),
    (torch.complex64, Window((4, 1), 2**62 - 23), r"\[0, 2\*\*62\)"),
]


@pytest.mark.parametrize(("dtype", "window", "message"), BAD_WINDOWS)
def test_bad_windows(dtype: torch.dtype, window: Window | Strided, message: str) -> None:
    tensor = torch.zeros(6, 4, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        fill_(tensor, laws.normal(), seed=1, window=window)
    with pytest.raises(ValueError, match=message):
        fill_many_([Request(tensor, laws.normal(), 1, window=window)])
    assert not tensor.any()


def test_the_last_element_there_is() -> None:
    for dtype, end in ((torch.float32, 2**63), (torch.complex64, 2**62)):
        window = Window((4, 1), end - 24)
        assert_same_everywhere(
            lambda t: t.view(6, 4), 24, dtype, laws.normal(), seed=1, window=window
        )


UNWRITABLE: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("list", lambda: [1.0], TypeError, "must be a torch.Tensor, but got list"),
    ("int", lambda: torch.zeros(4, dtype=torch.int32), NotImplementedError, "torch.int32"),
    ("bool", lambda: torch.zeros(4, dtype=torch.bool), NotImplementedError, "torch.bool"),
    (
        "quantised",
        lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        NotImplementedError,
        "torch.qint8",
    ),
    ("coo", lambda: torch.zeros(4, 4).to_sparse(), NotImplementedError, "torch.sparse_coo"),
    (
        "expanded",
        lambda: torch.zeros(4, 1).expand(4, 3),
        RuntimeError,
        r"share memory \(shape \(4, 3\), strides \(1, 0\)\)",
    ),
    ("unfolded", lambda: torch.zeros(8).unfold(0, 4, 2), RuntimeError, "share memory"),
    ("as_strided", lambda: torch.zeros(9).as_strided((2, 3), (2, 2)), RuntimeError, "share memory"),
    ("uninitialised", nn.UninitializedParameter, ValueError, r"has no shape yet.*materialize\(\)"),
    ("uninitialised buffer", nn.UninitializedBuffer, ValueError, "has no shape yet"),
    (
        "float8",
        lambda: torch.zeros(4).to(torch.float8_e8m0fnu),
        NotImplementedError,
        "float8_e8m0fnu",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), [case[1:] for case in UNWRITABLE], ids=[c[0] for c in UNWRITABLE]
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_unwritable(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    tensor = make()
    with pytest.raises(error, match=f"weight .*{message}"):
        check_writable(tensor, "weight")
    with pytest.raises(error, match=f"tensor .*{message}"):
        fill_(tensor, laws.normal(), seed=1)
    good = torch.zeros(4)
    with pytest.raises(error, match=rf"requests\[1\].tensor .*{message}"):
        fill_many_([Request(good, laws.normal(), 1), Request(tensor, laws.normal(), 1)])
    assert not good.any()


def test_lazily_conjugated_and_negated_views_are_given_the_values() -> None:
    z = torch.zeros(4, dtype=torch.complex64)
    for view in (z.conj(), z.conj().imag, z.imag):
        plain = torch.empty(view.shape, dtype=view.dtype)
        for one in (view, plain):
            fill_(one, laws.uniform(1.0, 2.0), seed=1)
        assert view.resolve_conj().resolve_neg().equal(plain)
        fill_many_([Request(view, laws.normal(), 2)])
        assert view.resolve_conj().resolve_neg().equal(fill_(plain, laws.normal(), seed=2))


def test_views_without_overlap_pass() -> None:
    """as_strided can interleave dimensions so that no stride steps over the smaller ones' reach."""
    interleaved = torch.zeros(12).as_strided((2, 3), (3, 2))  # addresses 0 2 4 3 5 7
    for tensor in (interleaved, torch.zeros(4, 6)[::2, ::3], torch.zeros(1, 5).expand(1, 5)):
        check_writable(tensor)
        fill_(tensor, laws.uniform(1, 2), seed=1)
        assert bool((tensor >= 1).all())


# --- PyTorch's modes and compiler ------------------------------------------------------------------

Arguments = tuple[Tensor, int, list[float], int | None, int, None, list[int] | None, int]
CALLS: dict[str, Callable[[], Arguments]] = {
    "seed": lambda: (torch.empty(10), 1, [0.0, 1.0, 0.0, 0.0], 3, 0, None, None, 0),
    "no seed": lambda: (torch.empty(10), 1, [0.0, 1.0, 0.0, 0.0], None, 0, None, None, 0),
    "window": lambda: (torch.empty(5, 4).t(), 0, [0.0, 1.0, 0.0, 0.0], 3, -1, None, [9, 1], 7),
    "complex": lambda: (
        torch.empty(5, dtype=torch.complex64),
        2,
        [0.0, 1.0, -2.0, 2.0],
        3,
        0,
        None,
        None,
        0,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(torch.ops.fastinit.fill_.default, CALLS[name]())


def test_fake_tensors() -> None:
    state = torch.get_rng_state()
    with FakeTensorMode():
        for make in SLOW_WAY.values():
            tensor = make()
            assert fill_(tensor, laws.normal()) is tensor
            fill_(tensor, laws.normal(), seed=1)
    assert torch.get_rng_state().equal(state)


def weights(tensor: Tensor, other: Tensor) -> Tensor:
    fill_(tensor, laws.normal(0.5, 2.0), seed=2**64 - 1, stream=2**63)
    fill_(other.t(), laws.uniform(-1.0, 1.0), seed=1, window=Window((100, 1), 2**40))
    return tensor.sum() + other.sum()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_compiled(compiler: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    expected = [torch.zeros(6, 4, dtype=dtype), torch.zeros(5, 3, dtype=dtype)]
    total = weights(*expected)
    got = [torch.zeros(6, 4, dtype=dtype), torch.zeros(5, 3, dtype=dtype)]
    compiled = torch.compile(weights, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(*got), total)  # a sum of torch's
    for one, other in zip(got, expected):
        assert bits(one).equal(bits(other))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_without_a_seed(compiler: str) -> None:
    torch._dynamo.reset()

    def draw(tensor: Tensor) -> Tensor:
        return fill_(tensor, laws.normal()) + 1

    torch.manual_seed(0)
    expected = [draw(torch.empty(9)) for _ in range(2)]
    compiled = torch.compile(draw, fullgraph=True, backend=compiler)
    torch.manual_seed(0)
    for values in expected:
        assert compiled(torch.empty(9)).equal(values)


def test_compiled_with_dynamic_shapes() -> None:
    torch._dynamo.reset()

    def draw(tensor: Tensor) -> Tensor:
        return fill_(tensor, laws.uniform(), seed=4) * 2

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 9, 130):
        assert compiled(torch.empty(n, 3)).equal(draw(torch.empty(n, 3)))


def test_under_no_grad_and_a_dispatch_mode() -> None:
    seen: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    expected = fill_(torch.empty(12), laws.normal(), seed=1)
    with torch.no_grad(), Log():
        tensor = fill_(torch.empty(12), laws.normal(), seed=1)
    assert tensor.equal(expected)
    assert "fastinit.fill_.default" in seen
