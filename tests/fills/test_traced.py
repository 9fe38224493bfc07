"""torch.jit.trace: a fill is in the graph and is run by it, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_bits import assert_values, bits
from torch import Tensor, nn

from fastinit import Blocks, Fill, Part, Plan, init
from fastinit.fills import operator as ops
from fastinit.stream import laws

pytestmark = pytest.mark.filterwarnings("ignore:.*jit|Converting a tensor|ComplexHalf")

HALF = Part((8, 4)).chunk(0, 2, 1)


def made(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(4, 4, dtype=dtype)


FILLS: dict[str, Callable[..., Tensor]] = {
    "normal_": lambda **k: init.normal_(made(), **k),
    "uniform_": lambda **k: init.uniform_(made(), -1.0, 1.0, **k),
    "trunc_normal_": lambda **k: init.trunc_normal_(made(), **k),
    "kaiming_uniform_": lambda **k: init.kaiming_uniform_(made(), **k),
    "lecun_normal_": lambda **k: init.lecun_normal_(made(), **k),
    "sparse_": lambda **k: init.sparse_(made(), 0.5, **k),
    "of a name": lambda **k: init.normal_(made(), **k, name="w"),
    "turned": lambda **k: init.normal_(made().t(), **k),
    "float16": lambda **k: init.normal_(made(torch.float16), **k),
    "float8": lambda **k: init.normal_(made(torch.float8_e5m2), **k, scale=0.5).float(),
    "complex": lambda **k: torch.view_as_real(init.normal_(made(torch.complex64), **k)),
    "exact": lambda **k: init.normal_(made(torch.float64), **k, exact=True),
    "eye_": lambda **_: init.eye_(made()),
    "constant_": lambda **_: init.constant_(made(), 2.0),
}


def graph(fill: Callable[..., Tensor], **key: Any) -> Callable[[], Tensor]:
    traced = torch.jit.trace(lambda one: fill(**key) * one, torch.ones(()), check_trace=False)
    return lambda: traced(torch.ones(()))


@pytest.mark.parametrize("name", FILLS)
def test_the_graph_fills(name: str) -> None:
    run, state = graph(FILLS[name], seed=7), torch.get_rng_state()
    assert bits(run()).equal(bits(FILLS[name](seed=7)))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", FILLS)
def test_the_graph_draws_a_seed_in_each_run(name: str) -> None:
    run = graph(FILLS[name])
    torch.manual_seed(3)
    first, second = run(), run()
    torch.manual_seed(3)
    assert bits(first).equal(bits(FILLS[name]()))
    assert bits(first).equal(bits(second)) == (name in ("eye_", "constant_"))


WHOLE: dict[str, Callable[[], Tensor]] = {
    "orthogonal_": lambda: init.orthogonal_(made(), seed=7),
    "delta_orthogonal_": lambda: init.delta_orthogonal_(torch.empty(4, 4, 3), seed=7),
    "a part of orthogonal_": lambda: init.orthogonal_(made(), seed=7, part=HALF),
    "a part of sparse_": lambda: init.sparse_(made(), 0.5, seed=7, part=HALF),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_graph_makes_whole_matrices(name: str) -> None:
    assert_values(graph(WHOLE[name])(), WHOLE[name](), name)


def planned() -> Tensor:
    layer = nn.Linear(4, 4, bias=False).requires_grad_(False)
    Plan({"weight": Fill.normal()}, seed=1).apply_(layer)
    return layer.weight


def many() -> Tensor:
    tensor = made()
    ops.fill_many_([ops.Request(tensor, laws.normal(), 1)])
    return tensor


@pytest.mark.parametrize(
    "fill",
    [
        lambda: init.normal_(made(), seed=7, part=HALF),
        lambda: ops.fill_(made(), laws.normal(), seed=7, window=ops.Window((8, 1))),
        lambda: init.normal_(made(torch.complex64).conj(), seed=1).real,
        lambda: init.normal_(Blocks.empty((4, 32), "mxfp8"), seed=1).data.float(),
        planned,
        many,
    ],
    ids=["a part", "a window", "conjugated", "Blocks", "Plan.apply_", "fill_many_"],
)
def test_what_the_graph_would_not_see(fill: Callable[..., Tensor]) -> None:
    fill()
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace would not see"):
        graph(fill)
