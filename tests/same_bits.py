"""What the tests of the stream share: the backends, one at a time, and equality of bits.

To the bit, a test asserts what our own text decides: values of the stream, moments, and what is only
moved or left alone. What torch, its BLAS or its LAPACK sums, multiplies, decomposes or takes the
logarithm of has other last digits on another CPU, with other threads, or in another call: such numbers
agree within a tolerance, beside which stands where it comes from. ``make everywhere`` looks for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.fills.operator import Window, fill_
from fastinit.stream.laws import Law, normal

_module = backends.native.module
ISAS: tuple[str, ...] = (
    tuple(name for name, usable in _module.isas().items() if usable) if _module else ()
)
"""The CPU builds that this machine runs; none where there is no native module."""


TRITON = ("triton",) if backends.triton.serves(torch.device("cpu")) is None else ()
"""Triton's interpreter, where triton is installed and no GPU is there."""


def drawn(*shape: int, seed: int, reach: int = 0) -> Tensor:
    """float32 normals of our own stream, times 2^-reach to 2^reach in turn.

    torch's have other last digits on another CPU. float64 sums of values that are alike are nearly
    exact, so that their order does not show; with a reach of 12 it does.
    """
    x = fill_(torch.empty(shape), normal(), seed=seed)
    powers = [2.0 ** (i % (2 * reach + 1) - reach) for i in range(x.numel())]
    return x.mul_(torch.tensor(powers).view(shape))


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Native with the CPU build ``name`` within the block."""
    assert _module is not None
    before = _module.isa()
    _module.force_isa(name)
    try:
        with backends.backend("native"):
            yield
    finally:
        _module.force_isa(before)


def forced(name: str) -> AbstractContextManager[None]:
    """The backend, or native with the CPU build, ``name`` within the block."""
    if name == "reference":
        return reference()
    return isa(name) if name in ISAS else backends.backend(name)


@contextmanager
def reference() -> Iterator[None]:
    """The reference within the block, on one thread.

    It is many small operations, at each of which torch's other threads would spin: on a machine with
    other work that costs a hundred times the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with backends.backend("reference"):
            yield
    finally:
        torch.set_num_threads(before)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order: NaNs and the signs of zeros count."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_values(got: Tensor, expected: Tensor, distribution: str, what: object = "") -> None:
    """Equal bits; of what is orthogonal, since torch decomposes it, the promised 1e-5 and a rounding."""
    if "orthogonal" in distribution:
        eps = torch.finfo(got.dtype).eps
        torch.testing.assert_close(
            got, expected, rtol=eps, atol=max(1e-5, eps), msg=str(what) or None
        )
    else:
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
        assert bits(got).equal(bits(expected)), what


def sentinel(numel: int, dtype: torch.dtype) -> Tensor:
    """Memory that no fill here leaves behind: every byte is 0xa5."""
    return torch.full((numel * dtype.itemsize,), 0xA5, dtype=torch.uint8).view(dtype)


def assert_same_everywhere(
    view: Callable[[Tensor], Tensor],
    numel: int,
    dtype: torch.dtype,
    law: Law,
    seed: int = 1,
    stream: int = 0,
    window: Window | None = None,
    names: Sequence[str] = (*ISAS, *TRITON),
) -> Tensor:
    """Every backend and CPU build writes a view as the reference does, and not a byte beside it.

    ``view`` takes one out of ``numel`` elements. Returns the view that the reference wrote.
    """
    key: dict[str, Any] = {"seed": seed, "stream": stream, "window": window}
    base = sentinel(numel, dtype)
    expected = base.clone()
    with reference():
        fill_(view(expected), law, **key)
    for name in names:
        got = base.clone()
        with forced(name):
            fill_(view(got), law, **key)
        assert bits(got).equal(bits(expected)), f"{name} differs from the reference"
    # The reference itself writes nothing beside the view.
    beside = expected.clone()
    view(beside).copy_(view(base))
    assert bits(beside).equal(bits(base))
    return view(expected)
