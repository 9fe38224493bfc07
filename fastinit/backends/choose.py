"""The choice: which backend serves a tensor, by its device, and how to force one.

It is the first of ``BACKENDS`` that can, whatever is asked: to fill, to measure, or to measure products
that are not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from fastinit.backends.contract import Backend
from fastinit.backends.native_module import Native
from fastinit.backends.slow import Reference
from fastinit.backends.triton.backend import Triton

_forced: ContextVar[Backend | None] = ContextVar("fastinit_backend", default=None)
forced = _forced.get
"""The backend that a block of :func:`backend` forces, or None."""


def choose(device: torch.device, exact: bool = False) -> Backend:
    """The backend that fills tensors on ``device``: the forced one, or the first that can.

    Args:
        exact: with values that are drawn in float64.

    Raises:
        RuntimeError: a backend is forced that cannot.
    """
    return _chosen("fill", device, lambda b: _why_unfilled(b, device, exact))


def _why_unfilled(backend: Backend, device: torch.device, exact: bool) -> str | None:
    return backend.serves(device) or (backend.serves_exact(device) if exact else None)


def choose_blocks(device: torch.device) -> Backend:
    """The backend that fills block formats on ``device``: the forced one, or the first that can.

    Raises:
        RuntimeError: a backend is forced that cannot.
    """
    return _chosen("fill blocks of", device, lambda b: _why_no_blocks(b, device))


def _why_no_blocks(backend: Backend, device: torch.device) -> str | None:
    return backend.serves(device) or backend.serves_blocks(device)


def choose_measuring(device: torch.device, higher: bool = False) -> Backend:
    """The backend that measures tensors on ``device``: the forced one, or the first that can.

    Args:
        higher: the higher moments too.

    Raises:
        RuntimeError: a backend is forced that cannot.
    """
    return _chosen("measure", device, lambda b: _why_unmeasured(b, device, higher))


def _why_unmeasured(backend: Backend, device: torch.device, higher: bool) -> str | None:
    return backend.serves_moments(device) or (backend.serves_higher(device) if higher else None)


def choose_multiplying(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The backend that measures products of tensors without making them, if one does.

    On a CPU it is none but a forced one: there an interpreter would serve, and torch is faster.

    Raises:
        RuntimeError: a backend is forced that cannot measure tensors on the device at all.
    """
    if forced() is not None:
        candidates = [choose_measuring(device)]
    else:
        candidates = BACKENDS if device.type != "cpu" else []
    return next((b for b in candidates if b.serves_products(device, dtype) is None), None)


def _chosen(doing: str, device: torch.device, why_not: Callable[[Backend], str | None]) -> Backend:
    """The forced backend, or the first against which nothing stands."""
    only = forced()
    if only is None:
        return next(b for b in BACKENDS if why_not(b) is None)
    if (reason := why_not(only)) is not None:
        raise RuntimeError(f"backend {only.name!r} cannot {doing} a tensor on {device}: {reason}")
    return only


def native_is_chosen() -> bool:
    """Whether ``choose`` gives the native backend for the CPU, for what is called often."""
    return (forced() or BACKENDS[0]) is native and native.missing is None


def explain(device: torch.device, higher: bool = False, blocks: bool = False) -> str:
    """The backend that fills (or measures higher moments, or fills blocks), and why not others."""
    passed: list[str] = []
    for candidate in BACKENDS:
        if blocks:
            reason = _why_no_blocks(candidate, device)
        else:
            reason = (
                _why_unmeasured(candidate, device, True) if higher else candidate.serves(device)
            )
        if reason is None:
            return str(candidate.name) + "".join(f"; {text}" for text in passed)
        passed.append(f"not {candidate.name}: {reason}")
    raise AssertionError("the reference serves every device")


def _why_reference(device: torch.device, higher: bool, blocks: bool) -> str | None:
    """Why nobody before the reference serves a device; None where that is forced."""
    return explain(device, higher, blocks) if forced() is None else None


native = Native()
triton = Triton()
BACKENDS: list[Backend] = [native, triton, Reference(_why_reference)]
"""In the order in which they are asked whether they serve a device."""


def register(new: Backend, before: str) -> None:
    """Adds a backend, which is asked before the one named (docs/backends.md shows how to write one).

    Raises:
        TypeError: ``new`` is no :class:`fastinit.backends.Backend`.
        ValueError: no backend is named ``before``, or one has the new one's name already.
    """
    if not isinstance(new, Backend):
        raise TypeError(f"new must be a fastinit.backends.Backend, but got {new!r}")
    names = [b.name for b in BACKENDS]
    if before not in names:
        raise ValueError(f"before must be one of {', '.join(names)}, but got {before!r}")
    if new.name in names:
        raise ValueError(f"new has a name that is taken: {new.name!r}")
    BACKENDS.insert(names.index(before), new)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend within the block: ``"native"``, ``"triton"``, ``"reference"`` or another's name.

    The values written are the same bits with each of them; moments are equal to 1e-12.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: at a fill, if the backend cannot serve the tensor's device.
    """
    chosen = next((b for b in BACKENDS if b.name == name), None)
    if chosen is None:
        known = ", ".join(repr(b.name) for b in BACKENDS)
        raise ValueError(f"name must be one of {known}, but got {name!r}")
    token = _forced.set(chosen)
    try:
        yield
    finally:
        _forced.reset(token)
