"""Whether a recorded constructor gives what it gives eagerly: all differences, said in words.

The eager model is the reference. Built twice with different seeds it shows what is random in it. The
rest has to be equal, and of what is random the laws and what holds whatever the seed.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from random_numbers import BITS, Numbers, chance, digest
from random_numbers import differences as random_differences
from reachable import Held, values_of
from torch import Tensor, nn

from fastinit import deferred, materialize_

LEVEL = 1e-4
MORE = range(3, 11)
"""Seeds of further eager models, asked only if two of them and ours differ in what is random."""
NUMBERS = (bool, int, float, complex, np.ndarray, torch.Generator)
RAISES = "raises "
"""What a difference begins with if there is no model to compare."""


def differences(
    build: Callable[[], nn.Module], *, seed: int = 0, level: float = LEVEL
) -> list[str]:
    """What is different in a model that is recorded and then written; nothing if it is as eager.

    Args:
        build: makes the model, each time another one.
        seed: of ``deferred``, in [0, 2^64 - 1).
        level: of all tests of distributions together: how often one would be found different that isn't.

    Returns:
        One sentence each. Building that fails is one that begins with ``raises`` or ``eager raises``.
    """

    def ours(seed: int) -> nn.Module:
        with deferred(seed):
            model = build()
        return materialize_(model)

    return compare(build, ours, seed=seed, level=level)


def compare(
    build: Callable[[], nn.Module],
    ours: Callable[[int], nn.Module],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> list[str]:
    """As :func:`differences`, of a model that is made in any way.

    Args:
        ours: makes the model whose random numbers follow from a seed.
    """
    with _world_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pair = [_eager(build, 1), _eager(build, 2)]
        except Exception as error:
            return [f"eager {RAISES}{_said(error)}"]
        shared = {
            key
            for key in pair[0].held.objects.keys() & pair[1].held.objects.keys()
            if not isinstance(pair[0].held.objects[key], (Tensor, nn.Module))
        }
        one, two = (_Model(eager.held.model, shared) for eager in pair)
        try:
            _seed(3)
            with _deterministic(fills=False):
                before = torch.get_rng_state()
                mine = _Model(ours(seed), shared)
                moved = not torch.equal(before, torch.get_rng_state())
                _seed(4)
                again = _Model(ours(seed), shared)
                _seed(3)
                other = _Model(ours(seed + 1), shared)
        except Exception as error:
            return [RAISES + _said(error)]
        found = [*_names(one, mine), *_objects(one, two, mine), *_memory(one, two, mine)]
        found += [*_constants(one, two, mine), *_hooks(one, mine)]
        if moved:
            found.append("torch's generator is not where it was")
        found += _seeds(one, two, mine, again, other)
        drawn = _drawn(one, two, mine)
        eager = [_numbers(model, drawn) for model in (one, two)]
        theirs = _numbers(mine, drawn)
        if random_differences(eager, theirs, level):
            for number in MORE:
                model = _eager(build, number)
                if all(path in model.values for path in drawn):
                    eager.append(_numbers(model, drawn))
            found += random_differences(eager, theirs, level)
        return found


class _Model:
    """A model with all that can be reached from it, and the values of its tensors.

    Args:
        outside: ids of objects that are not its own.
    """

    def __init__(self, model: nn.Module, outside: set[int] | None = None) -> None:
        self.held = Held(model, outside or set())
        self.values = {
            path: values
            for path, tensor in self.held.tensors.items()
            if (values := values_of(tensor)) is not None
        }
        self.digests = {path: digest(values) for path, values in self.values.items()}


# --- building -----------------------------------------------------------------------------------------


@contextmanager
def _world_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    """Seeds torch; Python's and numpy's numbers are the constructor's own, and always the same."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(seed)


def _eager(build: Callable[[], nn.Module], seed: int) -> _Model:
    """A model in which memory that nobody wrote is NaN, and integers there are the largest."""
    _seed(seed)
    with _deterministic(fills=True):
        return _Model(build())


@contextmanager
def _deterministic(fills: bool) -> Iterator[None]:
    """Algorithms are the same for all models: constructors ask for that, and keep the answer.

    Args:
        fills: whether new memory is filled.
    """
    # torch.use_deterministic_algorithms does the same, and imports all of inductor.
    switch, switch_fills = (
        torch._C._set_deterministic_algorithms,
        torch._C._set_deterministic_fill_uninitialized_memory,
    )
    was = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch._C._get_deterministic_fill_uninitialized_memory()
    switch(True, warn_only=True)
    switch_fills(fills)
    try:
        yield
    finally:
        switch(was, warn_only=only_warns)
        switch_fills(filled)


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


# --- what is not random -------------------------------------------------------------------------------


def _names(eager: _Model, ours: _Model) -> Iterator[str]:
    asked: dict[str, Callable[[nn.Module], list[Any]]] = {
        "modules": lambda m: [n for n, _ in m.named_modules(remove_duplicate=False)],
        "parameters": lambda m: [n for n, _ in m.named_parameters(remove_duplicate=False)],
        "distinct parameters": lambda m: [n for n, _ in m.named_parameters()],
        "buffers": lambda m: [n for n, _ in m.named_buffers(remove_duplicate=False)],
        "distinct buffers": lambda m: [n for n, _ in m.named_buffers()],
        "state_dict": lambda m: list(m.state_dict()),
    }
    for what, names in asked.items():
        try:
            theirs = names(eager.held.model)
        except Exception:
            continue
        try:
            mine = names(ours.held.model)
        except Exception as error:
            yield f"{what}: {RAISES}{_said(error)}"
            continue
        if mine != theirs:
            missing = [name for name in theirs if name not in set(mine)]
            added = [name for name in mine if name not in set(theirs)]
            if missing or added:
                yield f"{what}: missing {missing}, added {added}"
            else:
                yield f"{what}: in the order {mine}, eagerly {theirs}"


def _objects(one: _Model, two: _Model, ours: _Model) -> Iterator[str]:
    """Which objects there are, which places have the same one, and what they are."""
    changed: set[str] = set()
    for what in ("places", "classes", "leaves"):
        theirs, again, mine = (getattr(m.held, what) for m in (one, two, ours))
        for path, value in theirs.items():
            if path not in again:
                continue
            alike, at = _same(value, again[path]), ""
            if path not in mine:
                said, eagerly = "not there", _short(value)
            elif alike and not _same(value, mine[path]):
                at = "the same object as " if what == "places" else ""
                said, eagerly = _short(mine[path]), _short(value)
            elif not alike and type(value) is type(again[path]) is not type(mine[path]):
                said, eagerly = _short(mine[path]), f"like {_short(value)}"
            else:
                continue
            if not _behind(path, changed):
                yield f"{path}: {at}{said}, eagerly {at}{eagerly}"
            changed.add(path)
        for path, value in mine.items():
            if path not in theirs and path not in again:
                if not _behind(path, changed):
                    yield f"{path}: {_short(value)}, eagerly not there"
                changed.add(path)


def _behind(path: str, changed: set[str]) -> bool:
    """Whether a path leads on from a place that is another already, or is such a place."""
    return bool(changed) and any(
        path[: match.start()] in changed for match in re.finditer(r"[.\[<({]|$", path)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if isinstance(one, np.ndarray):
        return repr(one) == repr(other) and one.tobytes() == other.tobytes()
    if isinstance(one, (float, np.floating)):
        return bool(np.isclose(one, other, rtol=1e-5, atol=1e-8, equal_nan=True))
    return bool(one == other)


def _memory(one: _Model, two: _Model, ours: _Model) -> Iterator[str]:
    """What tensors are, and which share memory."""
    theirs, again, mine = (_sharing(model.held.tensors) for model in (one, two, ours))
    for path, tensor in one.held.tensors.items():
        got, like = ours.held.tensors.get(path), two.held.tensors.get(path)
        if got is None or like is None:
            continue
        expected, same, seen = (_is(t) for t in (tensor, like, got))
        for what, value in expected.items():
            if value == same[what] != seen[what]:
                yield f"{path}: {what} {seen[what]}, eagerly {value}"
        if theirs[path] == again.get(path) != mine.get(path):
            yield f"{path}: in memory {mine.get(path)}, eagerly {theirs[path]}"


def _is(tensor: Tensor) -> dict[str, Any]:
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return {"dtype": tensor.dtype, "device": tensor.device}
    strided = tensor.layout is torch.strided and tensor.numel()
    return {
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "device": tensor.device,
        "layout": tensor.layout,
        "stride": [s for s, n in zip(tensor.stride(), tensor.shape) if n > 1] if strided else None,
        "requires_grad": tensor.requires_grad,
        "is_leaf": tensor.is_leaf,
        "is_conj": tensor.is_conj(),
        "gradient": tensor.grad is not None if tensor.is_leaf else None,
        "hooks": [len(hooks) for hooks in _hooks_of(tensor)],
    }


def _sharing(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Of each tensor which memory it is in, said by the first one in it, and where."""
    first: dict[int, tuple[str, int]] = {}
    found = {}
    for path, tensor in tensors.items():
        try:
            storage, address = tensor.untyped_storage()._cdata, tensor.data_ptr()
        except (RuntimeError, NotImplementedError, ValueError):
            found[path] = "of no storage"
            continue
        owner, start = first.setdefault(storage, (path, address))
        found[path] = "its own" if owner == path else f"of {owner}, {address - start} bytes on"
    return found


def _unwritten(values: Tensor) -> Tensor:
    """Elements that nobody wrote, in an eager model."""
    if values.is_floating_point():
        return values.isnan()
    return values == (2 if values.dtype is torch.bool else torch.iinfo(values.dtype).max)


def _near(got: Tensor, wanted: Tensor) -> Tensor:
    """Where computed numbers are equal: torch and a BLAS may round, up to a hundred last places."""
    eps = torch.finfo(wanted.dtype).eps if wanted.is_floating_point() else 0.0
    size = float(wanted.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) if wanted.numel() else 0.0
    return torch.isclose(got.double(), wanted.double(), 100 * eps, 100 * eps * size)


def _constants(one: _Model, two: _Model, ours: _Model) -> Iterator[str]:
    for path, wanted in one.values.items():
        if one.digests[path] != two.digests.get(path) or path not in ours.values:
            continue
        got = ours.values[path]
        if ours.digests[path] == one.digests[path] or got.shape != wanted.shape:
            continue
        wrong = ~(_near(got, wanted) | _unwritten(wanted))
        if wrong.any():
            yield (
                f"{path}: {int(wrong.sum())} of {wrong.numel()} constant elements differ, such as "
                f"{got[wrong][0].item():.6g}, eagerly {wanted[wrong][0].item():.6g}"
            )


def _hooks_of(tensor: Tensor) -> list[dict[int, Any]]:
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [getattr(tensor, name, None) or {} for name in names]


def _hooks(eager: _Model, ours: _Model) -> Iterator[str]:
    """Hooks of tensors run when there is a gradient."""
    for path, tensor in eager.held.tensors.items():
        got = ours.held.tensors.get(path)
        if got is None or not tensor.is_leaf or not any(_hooks_of(tensor)):
            continue
        mine, theirs = _fired(got), _fired(tensor)
        if mine != theirs:
            yield f"{path}: {mine} hooks fire, eagerly {theirs}"


def _fired(tensor: Tensor) -> int:
    fired: list[None] = []
    kept = [(hooks, dict(hooks)) for hooks in _hooks_of(tensor)]
    gradient = tensor.grad
    try:
        for hooks, _ in kept:
            for key in hooks:
                hooks[key] = lambda _: fired.append(None)
        with torch.enable_grad():
            total = tensor.sum()
            (total.real if total.is_complex() else total).backward()
    except RuntimeError:
        return 0
    finally:
        for hooks, before in kept:
            hooks.update(before)
        tensor.grad = gradient
    return len(fired)


# --- what is random -----------------------------------------------------------------------------------


def _drawn(one: _Model, two: _Model, ours: _Model) -> list[str]:
    """The paths of random tensors that ours has as well."""
    return [
        path
        for path, values in one.values.items()
        if path in two.values
        and two.digests[path] != one.digests[path]
        and path in ours.values
        and ours.values[path].shape == values.shape == two.values[path].shape
    ]


def _numbers(model: _Model, paths: list[str]) -> Numbers:
    return Numbers({path: model.values[path] for path in paths})


def _seeds(one: _Model, two: _Model, ours: _Model, again: _Model, other: _Model) -> Iterator[str]:
    """The same seed gives the same bits, wherever torch's generator is, and another gives others."""
    for path, values in ours.values.items():
        if again.digests.get(path) == ours.digests[path]:
            continue
        written, repeated = one.values.get(path, values), again.values.get(path, values[:0])
        alike = values.shape == repeated.shape == written.shape
        if not alike or not (_near(repeated, values) | _unwritten(written)).all():
            yield f"{path}: recorded again with the same seed it has other values"
    for path, leaf in ours.held.leaves.items():
        unstable = path not in one.held.leaves or path not in two.held.leaves
        if unstable or path not in again.held.leaves or path.endswith(".key"):
            continue
        by_seed = not _same(one.held.leaves[path], two.held.leaves[path])
        if by_seed and isinstance(leaf, NUMBERS) and not _same(leaf, again.held.leaves[path]):
            yield f"{path}: recorded again with the same seed it is another number"
    for path in _drawn(one, two, ours):
        values = one.values[path]
        enough = values.numel() * chance(values) >= BITS
        if enough and other.digests.get(path) == ours.digests[path]:
            yield f"{path}: recorded with another seed it has the same values"
