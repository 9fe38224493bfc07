"""sparse_: the places of its zeros are the same on every backend, and in every kind of tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from same_bits import bits
from torch import Tensor, nn

from fastinit import Part, init
from fastinit.backends.choose import backend, native

ROWS, COLUMNS = 9, 70

KINDS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.ones(ROWS, COLUMNS),
    "a parameter": lambda: nn.Parameter(torch.ones(ROWS, COLUMNS)),
    "turned": lambda: torch.ones(COLUMNS, ROWS).t(),
    "of every other": lambda: torch.ones(2 * ROWS, 2 * COLUMNS)[::2, 1::2],
    "of later rows": lambda: torch.ones(2 * ROWS, COLUMNS)[ROWS:],
    "float16": lambda: torch.ones(ROWS, COLUMNS, dtype=torch.float16),
    "float64": lambda: torch.ones(ROWS, COLUMNS, dtype=torch.float64),
    "float8": lambda: torch.ones(ROWS, COLUMNS).to(torch.float8_e5m2),
    "complex": lambda: torch.ones(ROWS, COLUMNS, dtype=torch.complex64),
    "conjugated": lambda: torch.ones(ROWS, COLUMNS, dtype=torch.complex64).conj(),
    "one column": lambda: torch.ones(ROWS, 1),
    "one row": lambda: torch.ones(1, COLUMNS),
}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", KINDS)
def test_the_reference_has_the_same_bits(name: str, sparsity: float) -> None:
    ours = init.sparse_(KINDS[name](), sparsity, seed=3)
    with backend("reference"):
        expected = init.sparse_(KINDS[name](), sparsity, seed=3)
    assert bits(ours.resolve_conj()).equal(bits(expected.resolve_conj()))


def test_parts_and_inference_have_the_bits_of_the_whole() -> None:
    whole = init.sparse_(torch.ones(ROWS, COLUMNS), 0.3, seed=3, name="w")
    with torch.inference_mode():
        assert bits(init.sparse_(torch.ones(ROWS, COLUMNS), 0.3, seed=3, name="w")).equal(
            bits(whole)
        )
    part = Part((ROWS, COLUMNS)).chunk(0, ranks=3, rank=1)
    its = init.sparse_(torch.ones(3, COLUMNS), 0.3, seed=3, name="w", part=part)
    assert bits(its).equal(bits(whole[3:6]))


@pytest.mark.skipif(native.module is None, reason="without the native module")
@pytest.mark.parametrize("zeros", [1, 77, 400])
@pytest.mark.parametrize("different", [1, 5, 1 << 24])  # as few keys as that: most are equal
@pytest.mark.parametrize("threads", [1, 2])
def test_of_equal_keys_the_first(zeros: int, different: int, threads: int) -> None:
    assert native.module is not None
    rows, columns = 400, 700  # enough for two threads
    generator = torch.Generator().manual_seed(zeros)
    keys = torch.randint(different, (columns, rows), generator=generator) / different
    expected = torch.ones(rows, columns)
    expected.t().scatter_(1, keys.argsort(dim=1, stable=True)[:, :zeros], 0)
    got = torch.ones(rows, columns)
    native.module.zero_smallest(
        keys.data_ptr(), rows, columns, zeros, got.data_ptr(), got.itemsize, threads
    )
    assert got.equal(expected)


@pytest.mark.skipif(native.module is None, reason="without the native module")
def test_zeros_that_cannot_be() -> None:
    assert native.module is not None
    for rows, zeros in ((2, 3), (2, -1), (1 << 32, 1)):
        with pytest.raises(ValueError, match="rows, 0 to all are zeros"):
            native.module.zero_smallest(1, rows, 1, zeros, 1, 4, 1)
    for keys, elements in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="4 elements has no address"):
            native.module.zero_smallest(keys, 2, 2, 1, elements, 4, 1)
