"""Operations: what those of torch do to the tensors that they write, as far as a Fill can say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.base import torch_internals as internals
from fastinit.base.number import FLOAT32_MAX, FLOAT32_MIN
from fastinit.plan.fill import Fill
from fastinit.plan.steps import Step, steps_of
from fastinit.stream import laws


@cache
def makes_new(func: Any) -> bool:
    """Whether an operation makes a tensor of values that it takes from no other."""
    if internals.operator_name(func) not in _NEW:
        return False
    arguments = internals.schema_arguments(func)
    return not any(map(internals.is_written, arguments)) and not any(
        str(a.type) == "Tensor" for a in arguments[internals.operator_name(func) in _LIKE :]
    )


@cache
def is_reshaping(func: Any) -> bool:
    """Whether an operation changes of what shape its argument itself is, or of what storage."""
    return torch.Tag.inplace_view in func.tags


@cache
def is_random(func: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def is_of_any_dtype(func: Any) -> bool:
    """Whether autocast leaves the dtypes of an operation alone: copies, elementwise."""
    return torch.Tag.pointwise in func.tags or internals.operator_name(func) in (
        "clone",
        "_to_copy",
    )


def generator_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator | None:
    """The generator that an operation was given."""
    for argument in (*args, *kwargs.values()):
        if type(argument) is torch.Generator:
            return argument
    return None


def without_generators(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments of an operation that draws from torch's generator instead of those it was given."""

    def kept(argument: Any) -> Any:
        return None if isinstance(argument, torch.Generator) else argument

    return tuple(map(kept, args)), {key: kept(argument) for key, argument in kwargs.items()}


def shows_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether what an operation gives, or its shape, tells Python values of its tensors."""
    kinds = ("Tensor", "List[Tensor", "Optional[Tensor")
    if any(not str(r.type).startswith(kinds) for r in internals.schema_returns(func)):
        return internals.operator_name(func) not in _ABOUT_SHAPES
    if func is torch.ops.aten.index.Tensor:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags and func not in _OF_FULL_RANK


_ABOUT_SHAPES = frozenset(
    ("is_same_size", "is_set_to", "_has_compatible_shallow_copy_type", "is_pinned")
)
_OF_FULL_RANK = (torch.ops.aten.linalg_lstsq.default,)
"""Of these only what nobody asks for has another shape where a matrix has not full rank."""


def with_indices(
    func: Any, args: tuple[Any, ...], is_known: Callable[[Tensor], bool]
) -> tuple[Any, ...]:
    """The arguments, with known masks of an index as the indices that they stand for."""
    if func is not torch.ops.aten.index.Tensor:
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        if index is None or index.dtype not in (torch.bool, torch.uint8) or not is_known(index):
            indices.append(index)
        else:
            indices += index.nonzero(as_tuple=True)
    return (args[0], indices, *args[2:])


def honest(func: Any, args: tuple[Any, ...]) -> Any:
    """The operation, or one that says what it writes and does the same.

    The schema of ``native_batch_norm`` leaves out that it writes the running statistics.
    """
    if func is _BATCH_NORM and args[3] is not None:
        return internals.honest_batch_norm
    return func


@cache
def overwrites(func: Any) -> bool:
    """Whether what an operation writes has nothing to do with what was there."""
    is_out = any(a.is_out for a in internals.schema_arguments(func))
    return is_out or internals.operator_name(func) in ("zero_", "fill_", "copy_")


class OutOfPlace:
    """An operation that writes its arguments, as a function: gives what it gives, then what it writes.

    Args:
        func: the operation.
    """

    def __init__(self, func: Any) -> None:
        self.func = func
        self.__name__ = internals.operator_name(func)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        copies: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            return copies.setdefault(id(tensor), tensor.clone())

        targets = {id(t) for t in written(self.func, args, kwargs)}
        args, kwargs = internals.tree_map_only(
            Tensor, lambda t: copied(t) if id(t) in targets else t, (args, kwargs)
        )
        out = self.func(*args, **kwargs)
        given = out if isinstance(out, (list, tuple)) else () if out is None else (out,)
        return (*given, *written(self.func, args, kwargs))


def returned(func: Any, written: list[Tensor], results: Sequence[Any] = ()) -> Any:
    """What an operation returns that wrote these tensors, of which it returns some.

    Args:
        results: what it returned when it was run on others.
    """
    targets, ours = iter(written), _gives_written(func)
    out = [next(targets) if its else results[index] for index, its in enumerate(ours)]
    return tuple(out) if len(out) > 1 else (out[0] if out else None)


@cache
def _gives_written(func: Any) -> list[bool]:
    """Of each thing that an operation returns, whether it is what it wrote."""
    return [given.alias_info is not None for given in internals.schema_returns(func)]


_KINDS = ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm")
_NEW = frozenset(
    [
        *_KINDS,
        *(f"{kind}_like" for kind in _KINDS),
        *(f"new_{kind}" for kind in _KINDS),
        *("empty_strided", "empty_permuted", "new_empty_strided", "normal"),
        *("arange", "linspace", "logspace", "eye", "scalar_tensor"),
    ]
)
_LIKE = frozenset(name for name in _NEW if name.endswith("_like") or name.startswith("new_"))


def fill_of_new(func: Any, args: tuple[Any, ...], out: Tensor) -> Fill | None:
    """The Fill of a new tensor, if an operation gives it one.

    Args:
        args: its arguments by position; of ``full`` the value is the last.
        out: what it gave, of any shape; a Fill is real and floating-point.
    """
    if not out.is_floating_point():
        return None
    kind = internals.operator_name(func).removesuffix("_like").removeprefix("new_")
    if kind == "randn":
        return Fill.normal(0.0, 1.0)
    if kind == "rand":
        return Fill.uniform(0.0, 1.0)
    if kind == "normal":
        return Fill.normal(*args[:2])
    if kind in ("zeros", "ones"):
        return Fill.constant(float(kind == "ones"))
    if kind == "full" and isinstance(args[-1], (int, float)):
        return Fill.constant(float(args[-1]))
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
    name = internals.operator_name(func)
    if name not in _FILLS:
        return None
    given = arguments(func, args, kwargs)
    if func is _OURS:
        if given["seed"] is not None or given["strides"] is not None:
            return None
        law = laws.Law(given["kind"], *given["parameters"])
        return law_fill(law.name, *law.arguments, exact=bool(law.exact))
    if not args[0].is_floating_point():
        return None
    if name == "zero_":
        return law_fill("constant", 0.0)
    if name == "fill_":
        value = given["value"]
        if isinstance(value, Tensor):
            if not is_known(value):
                return None
            value = value.item()
        return law_fill("constant", float(value))  # torch writes True as 1
    if given["generator"] is not None:
        return None
    if name == "normal_":
        return law_fill("normal", given["mean"], given["std"])
    return law_fill("uniform", given["from"], given["to"])


def is_scaled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation writes values that are divided by a scale, which no Fill is."""
    if func is not _OURS:
        return False
    given = arguments(func, args, kwargs)
    return laws.Law(given["kind"], *given["parameters"]).scale != 1.0


@lru_cache(maxsize=4096)
def law_fill(name: str, *numbers: float, exact: bool = False) -> Fill:
    """The Fill of a law. A model is initialised with few of them, each asked for many times."""
    return Fill(name, numbers, exact=exact)


_OURS, _BATCH_NORM = torch.ops.fastinit.fill_.default, torch.ops.aten.native_batch_norm.default
_FILLS = frozenset(("zero_", "fill_", "normal_", "uniform_"))


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


def change_of(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_known: Callable[[Tensor], bool],
    mirrors: bool,
) -> Callable[[Fill], Fill | None] | None:
    """What an operation on every value of its first argument makes of their Fill, if it makes one.

    Args:
        is_known: whether a tensor's values are there, and were not drawn.
        mirrors: whether values of the mirrored law do for the negatives of values.
    """
    factors = affine_of(func, args, kwargs, is_known)
    if factors is not None and all(map(math.isfinite, factors)) and (mirrors or factors[0] >= 0.0):
        return lambda fill: fill.affine(*factors)
    numbers = [
        a.item() if isinstance(a, Tensor) and not a.dim() and is_known(a) else a for a in args[1:]
    ]
    steps = steps_of(internals.operator_name(func), *numbers, **kwargs)
    return None if steps is None else partial(_then, steps)


def _then(steps: tuple[Step, ...], fill: Fill) -> Fill | None:
    try:
        for step in steps:
            fill = fill.then(*step.flat)
    except ValueError:  # too many, NaN of some values, or a distribution of whole tensors
        return None
    return fill


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, defaults included."""
    names, defaults = _names_and_defaults(func)
    return {**defaults, **dict(zip(names, args)), **kwargs}


@cache
def _names_and_defaults(func: Any) -> tuple[list[str], dict[str, Any]]:
    taken = internals.schema_arguments(func)
    defaults = {a.name: a.default_value for a in taken if a.has_default_value()}
    return [a.name for a in taken], defaults


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes, in the order of its schema; those of lists one by one."""
    found: list[Any] = []
    for place, name in _written(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        found += value if isinstance(value, list) else [value]
    return [t for t in found if isinstance(t, Tensor)]


@cache
def _written(func: Any) -> list[tuple[int, str]]:
    """Place and name of each argument that an operation writes."""
    taken = enumerate(internals.schema_arguments(func))
    return [(place, a.name) for place, a in taken if internals.is_written(a)]


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operation's arguments, out of lists."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            found.append(value)
        elif kind not in _NO_TENSORS:
            found += [leaf for leaf in internals.tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


_NO_TENSORS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device))


def is_conversion(func: Any) -> bool:
    """Whether an operation copies a tensor to another dtype, or another device."""
    return internals.operator_name(func) == "_to_copy"


@cache
def is_view(func: Any) -> bool:
    """Whether an operation gives a tensor that shares memory with what it takes, and writes none."""
    returns = internals.schema_returns(func)
    return any(r.alias_info is not None and not internals.is_written(r) for r in returns)
