"""Storage: in which dtype or format each parameter is stored, by patterns of names.

One rule for parameters in memory (``storage=`` of :meth:`fastinit.Plan.apply_` and
:func:`fastinit.materialize_`) and in files (``dtype=`` of :func:`fastinit.checkpoint.write`): of the
patterns that a name has, the first counts. A dtype is for any floating-point parameter; a format, which
has packed values and scales, for the weights of linear layers and experts, as nothing else computes with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.elements.shards import is_dtensor
from fastinit.fills.blocks import Blocks
from fastinit.fills.wrapped import as_tensor, wrapped
from fastinit.plan.names import Model, Walk
from fastinit.stream.blocks import ELEMENTS

Format = torch.dtype | str
"""A dtype, or the name of a format."""

Formats = Mapping[str | tuple[str, ...], Format]
"""By patterns of names, one or several; the first that matches counts."""


class Storage:
    """Formats by pattern, checked.

    Args:
        argument: what the mapping was given as.
        formats: at least one.
        check: gives the format that a value stands for, or raises, given the argument and the value.

    Raises:
        TypeError: no mapping, or not of patterns. ValueError: an empty one. What ``check`` raises.
    """

    def __init__(
        self, argument: str, formats: Formats, check: Callable[[str, Any], Format]
    ) -> None:
        if not isinstance(formats, Mapping):
            raise TypeError(f"{argument} must be formats by patterns of names, but got {formats!r}")
        if not formats:
            raise ValueError(f"{argument} must be formats by patterns of names, but got {{}}")
        self._argument = argument
        self._chosen = [
            (Choice.given(argument, patterns), check(argument, its))
            for patterns, its in formats.items()
        ]

    def of(
        self,
        parameters: Iterable[Sequence[str]],
        linear: Collection[str],
        elsewhere: Collection[str] = (),
    ) -> dict[str, Format]:
        """The formats of those that are matched, by the first of their names.

        Args:
            parameters: all names of each that is floating-point; any of them may be matched.
            linear: the first names of those among them that are linear weights.
            elsewhere: names of what may be matched, too, but is not here.

        Raises:
            ValueError: a pattern that matches nothing of its kind.
        """
        parameters = list(parameters)
        found: dict[str, Format] = {}
        for choice, its in self._chosen:
            is_any = isinstance(its, torch.dtype)
            fits = [names for names in parameters if is_any or names[0] in linear]
            if idle := choice.idle([*(name for names in fits for name in names), *elsewhere]):
                kind = "floating-point parameter" if is_any else "linear weight"
                said = f"{self._argument}: no {kind} matches {listing('pattern', idle)}"
                left = [names for names in parameters if names[0] not in linear and not is_any]
                if others := [names[0] for names in left if any(name in choice for name in names)]:
                    said += (
                        f"; {listing('parameter', others)} would, but formats are for what only "
                    )
                    said += "a torch.nn.Linear has, and for experts that are used one by one"
                raise ValueError(said)
            for names in fits:
                if any(name in choice for name in names):
                    found.setdefault(names[0], its)
        return found


def in_memory(argument: str, given: Any) -> Format:
    """What a parameter in memory can be stored as: a floating-point dtype, or a format of Blocks.

    Raises:
        TypeError: neither dtype nor text. ValueError: another dtype or name.
    """
    if isinstance(given, torch.dtype) and given.is_floating_point:
        return given
    if not isinstance(given, (torch.dtype, str)):
        raise TypeError(
            f"{argument} must have a torch.dtype or a format's name for each pattern, but got {given!r}"
        )
    if given not in ELEMENTS:
        known = ", ".join(ELEMENTS)
        raise ValueError(
            f"{argument} must have a floating-point dtype or one of {known}, but got {given!r}"
        )
    return given


def is_linear(module: nn.Module) -> bool:
    """Whether loaders of quantised weights, and torchao, take a module for a linear layer.

    They ask for the class, and so does this: ``torch.nn.Linear`` and what inherits from it, but for the
    one with whose weight attention computes without calling it.
    """
    return isinstance(module, nn.Linear) and not isinstance(
        module, nn.modules.linear.NonDynamicallyQuantizableLinear
    )


def has_experts(module: nn.Module) -> bool:
    """Whether parameters of three dimensions are matrices [expert, out, in], used one by one.

    Mixtures say so themselves: how matrices lie, and by which implementation they are multiplied. The
    one called eager takes each by its index, which torchao's packed tensors have an operator for. The
    others transpose or gather all of them, for which they have none.
    """
    by = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return getattr(module, "is_transposed", None) is False and by == "eager"


def stored_as(
    formats: Formats | None,
    model: Model,
    parameters: Iterable[tuple[Sequence[str], Tensor]],
    elsewhere: Collection[str] = (),
) -> dict[int, Format]:
    """What ``storage=`` says of parameters, by the ``id`` of each.

    Args:
        parameters: those that are meant, with all their names.
        elsewhere: names of what other ranks may have.

    Raises:
        as :class:`Storage` and :func:`in_memory`.
    """
    if formats is None:
        return {}
    storage = Storage("storage", formats, in_memory)
    walk = model if isinstance(model, Walk) else Walk.of(model, others=False)
    linear: set[int] = set()
    others: set[int] = set()
    for _, _, module in walk.modules:
        weighs, mixes = is_linear(module), has_experts(module)
        for key, its in module._parameters.items():
            is_one = (weighs and key == "weight") or (mixes and its is not None and its.dim() == 3)
            (linear if is_one else others).add(id(its))
    floating = [(names, id(its)) for names, its in parameters if its.is_floating_point()]
    weights = {names[0] for names, its in floating if its in linear - others}
    found = storage.of([names for names, _ in floating], weights, elsewhere)
    return {its: found[names[0]] for names, its in floating if names[0] in found}


def is_in(tensor: Tensor, format: Format) -> bool:
    """Whether a tensor with memory has it in a format already."""
    held = wrapped(tensor)
    if isinstance(format, str):
        return held is not None and isinstance(held.held, Blocks) and held.held.format == format
    return held is None and tensor.dtype == format


def packed(
    name: str,
    parameter: nn.Parameter,
    format: str,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Parameter:
    """Memory for a parameter in a block format, unwritten: torchao's tensor, which needs no gradient.

    Args:
        dtype: in which it takes part in computations.

    Raises:
        ValueError: a shape that has no whole blocks, or is none of a matrix. NotImplementedError: a
            DTensor; torchao is not there.
    """
    if is_dtensor(parameter):
        raise NotImplementedError(
            f"{name} is a DTensor, whose parts FSDP2 cannot gather in {format}; pack it before it is "
            f"sharded, or write fastinit.Blocks of DTensors"
        )
    try:
        blocks = Blocks.empty(tuple(parameter.shape), format, device=device)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    made = nn.Parameter(as_tensor(blocks, dtype, name), requires_grad=False)
    made.__dict__ = {**parameter.__dict__, **made.__dict__}
    return made
