"""Operations: what those of torch do to the tensors that they write, as far as a Fill can say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastinit.base import torch_internals as internals
from fastinit.base.number import FLOAT32_MAX, FLOAT32_MIN
from fastinit.plan.fill import Fill
from fastinit.stream import laws


def makes_new(func: Any) -> bool:
    """Whether an operation makes a tensor of values that it takes from no other."""
    name = internals.operator_name(func)
    return name in _NEW and not any(map(internals.is_written, internals.schema_arguments(func)))


_KINDS = ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm")
_NEW = frozenset(
    [
        *_KINDS,
        *(f"{kind}_like" for kind in _KINDS),
        *(f"new_{kind}" for kind in _KINDS),
        "empty_strided",
        "new_empty_strided",
        "normal",
    ]
)


def fill_of_new(name: str, args: tuple[Any, ...], out: Tensor) -> Fill | None:
    """The Fill of a new tensor, if an operation draws it from a law.

    Args:
        name: of the operation, without its overload.
        args: its arguments by position; of ``normal`` mean and std come first, which may be tensors.
        out: what it gave, of any shape; a Fill is real and floating-point.
    """
    if not out.is_floating_point():
        return None
    if name in ("randn", "randn_like"):
        return Fill.normal(0.0, 1.0)
    if name in ("rand", "rand_like"):
        return Fill.uniform(0.0, 1.0)
    if name == "normal" and all(isinstance(a, (int, float)) for a in args[:2]):
        return Fill.normal(*args[:2])
    return None


def fill_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_known: Callable[[Tensor], bool]
) -> Fill | None:
    """The Fill that an operation writes over all of its first argument, if it writes one.

    Args:
        func: an operation in place, of torch's or ``fastinit.fill_`` without a key of its own.
        args: the tensor that is written, of any shape and a floating-point dtype, and more.
        is_known: whether a tensor's values are there, and were not drawn.
    """
    given = arguments(func, args, kwargs)
    name = internals.operator_name(func)
    if func is torch.ops.fastinit.fill_.default:
        if given["seed"] is not None or given["strides"] is not None:
            return None
        law = laws.Law(given["kind"], *given["parameters"])
        return Fill(law.name, law.arguments)
    if not args[0].is_floating_point():
        return None
    if name == "zero_":
        return Fill.constant(0.0)
    if name == "fill_":
        value = given["value"]
        if isinstance(value, Tensor):
            if not is_known(value):
                return None
            value = value.item()
        return Fill.constant(float(value))  # torch writes True as 1
    if name == "normal_":
        return Fill.normal(given["mean"], given["std"])
    if name == "uniform_":
        return Fill.uniform(given["from"], given["to"])
    return None


def affine_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_known: Callable[[Tensor], bool]
) -> tuple[float, float] | None:
    """(factor, shift), if an operation is ``factor * x + shift`` with x its first argument.

    The operation's number is real, given as it is or as a tensor of no dimensions, and 0 or of a normal
    float32's size; a division by 0 has none.

    Args:
        is_known: whether a tensor's values are there, and were not drawn.
    """
    name = internals.operator_name(func).rstrip("_")
    if name == "neg":
        return -1.0, 0.0
    if name not in ("mul", "div", "add", "sub") or len(args) != 2:
        return None
    if kwargs.get("rounding_mode") is not None:
        return None
    number = args[1]
    if isinstance(number, Tensor):
        if number.dim() or not is_known(number):
            return None
        number = number.item()
    if isinstance(number, (bool, complex)):
        return None
    if number and not FLOAT32_MIN <= abs(number) <= FLOAT32_MAX:
        return None
    alpha = kwargs.get("alpha", 1)
    if name == "mul":
        return float(number), 0.0
    if name == "div":
        return (1.0 / number, 0.0) if number else None
    return 1.0, float(number) * alpha * (1 if name == "add" else -1)


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, defaults included."""
    given = {
        a.name: a.default_value for a in internals.schema_arguments(func) if a.has_default_value()
    }
    given.update((a.name, value) for a, value in zip(internals.schema_arguments(func), args))
    return {**given, **kwargs}


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes, in the order of its schema; those of lists one by one."""
    given = arguments(func, args, kwargs)
    found = []
    for argument in internals.schema_arguments(func):
        if internals.is_written(argument):
            value = given.get(argument.name)
            found += [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return [t for t in found if isinstance(t, Tensor)]


def is_view(func: Any) -> bool:
    """Whether an operation gives a tensor that shares memory with what it takes, and writes none."""
    returns = internals.schema_returns(func)
    return any(r.alias_info is not None and not internals.is_written(r) for r in returns)
