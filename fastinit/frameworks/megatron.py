"""Megatron-Core: what its ranks hold of a model's parameters.

Megatron keeps plain tensors: some rows or columns (tensor parallelism), some of the layers (pipelining),
some of the experts. Its checkpoints can be loaded with other numbers of ranks, and for these each module
says where its tensors belong, ``sharded_state_dict()``: that is asked here, of interleaved halves of
gated layers, and of vocabularies and experts too. Nothing is communicated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastinit.base.text import listing
from fastinit.base.torch_internals import storage_id
from fastinit.elements.part import Part
from fastinit.elements.shards import is_dtensor
from fastinit.plan.parameters import distinct_parameters

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])|\d+$")
"""In a name, a part that is a number, or at the end: ``layers.0.weight``, ``weight0``."""


def parts(model: nn.Module) -> dict[str, Part]:
    """The part that this rank holds of each parameter, for ``parts=`` (:meth:`fastinit.Plan.apply_`).

    The full parameters' names and shapes are those that the model has in one process, without any
    parallelism: layers and experts are counted through. An output layer that shares the word embeddings
    of another pipeline stage has their name. Where a vocabulary is padded to another size for another
    number of ranks, its rows have the same numbers, unless their law asks for fans.

    Args:
        model: of Megatron-Core, with or without its wrappers, on meta or with values; of a virtual
            pipeline one of its chunks.

    Returns:
        By the parameters' names.

    Raises:
        TypeError: the model has no ``sharded_state_dict``.
        NotImplementedError: parameters of which that tells nothing, or more than a
            :class:`fastinit.Part` can say, such as those that FSDP has cut again.
    """
    inner: Any = model
    while not hasattr(inner, "sharded_state_dict"):  # data parallelism's wrappers have none
        inner = getattr(inner, "module", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(
                f"model must be one of Megatron-Core, but {type(model).__name__} has no "
                f"sharded_state_dict"
            )
    known: dict[int, tuple[str, Any]] = {}
    for key, said in inner.sharded_state_dict().items():
        if isinstance(data := getattr(said, "data", None), Tensor):
            known.setdefault(id(data), (key, said))
    found, unknown = {}, []
    for names, _, parameter in distinct_parameters(model):
        if id(parameter) in known:
            part = _part(names[0], parameter, *known[id(parameter)])
            found.update(dict.fromkeys(names, part))
        else:
            unknown.append(names[0])
    if unknown:
        raise NotImplementedError(
            f"Megatron's sharded_state_dict does not say which elements these hold: "
            f"{listing('parameter', unknown)}"
        )
    return found


def _part(name: str, parameter: nn.Parameter, key: str, said: Any) -> Part:
    """What a ShardedTensor, or a factory of several, says of a parameter.

    Args:
        key: the parameter's name on this rank, without wrappers.
    """
    if is_dtensor(parameter):
        raise NotImplementedError(
            f"{name} is a DTensor, of a tensor that Megatron may have split too"
        )
    held = list(_blocks(said))
    dim, at = _cut_along(parameter, held), 0
    bases: dict[
        str, int
    ] = {}  # where each full tensor begins in the parameter's, which is all of them
    size = 0
    shape: list[int] = []
    runs: list[list[tuple[int, int]]] = [[] for _ in parameter.shape]
    for block in held:
        first = block.prepend_axis_num
        sizes, offsets = block.global_shape[first:], block.global_offset[first:]
        data = block.data
        is_here = storage_id(data) == storage_id(parameter) and (
            data.storage_offset() == parameter.storage_offset() + at * parameter.stride(dim)
            if parameter.dim()
            else True
        )
        if not is_here or (data.dim() and data.stride() != parameter.stride()):
            raise NotImplementedError(
                f"{name}: Megatron's checkpoints have it in another order ({block.key})"
            )
        if block.key not in bases:
            bases[block.key], size = size, size + (sizes[dim] if sizes else 0)
        for d, (start, length) in enumerate(zip(offsets, data.shape)):
            run = (start + bases[block.key] if d == dim else start, length)
            if d == dim or not runs[d]:
                runs[d].append(run)
            elif runs[d] != [run]:
                raise NotImplementedError(f"{name}: Megatron cuts it along several dimensions")
        shape = list(sizes)
        at += data.shape[dim] if data.dim() else 0
    if shape:
        shape[dim] = size
    indices = held[0].global_offset[: held[0].prepend_axis_num]
    return Part(tuple(shape), tuple(map(tuple, runs)), name=_full_name(key, said, indices))


def _blocks(said: Any) -> Iterator[Any]:
    """The ShardedTensors that a parameter is, each a view of it."""
    if not hasattr(said, "build"):
        yield said
        return

    def leaves(item: Any) -> Iterator[Any]:
        if isinstance(item, dict):
            item = list(item.values())
        if isinstance(item, (list, tuple)):
            for each in item:
                yield from leaves(each)
        elif hasattr(item, "global_offset"):
            yield item

    with torch.no_grad():
        yield from leaves(said.build())


def _cut_along(parameter: Tensor, held: Sequence[Any]) -> int:
    """The dimension along which a parameter is several blocks."""
    if len(held) < 2:
        return 0
    dims = {
        dim
        for block in held
        for dim, (its, size) in enumerate(zip(block.data.shape, parameter.shape))
        if its != size
    }
    return dims.pop() if len(dims) == 1 else 0


def _full_name(name: str, said: Any, indices: Sequence[int]) -> str:
    """What a parameter is called in a model that is whole.

    The key that it has in checkpoints has the numbers of layers in the whole model, or leaves them out,
    as those of experts, and gives the tensor a dimension for each instead. Else the two differ where
    layers of several kinds share a key.

    Args:
        indices: along the dimensions that the key's tensor has and the parameter has not.
    """
    replica = said.replica_id
    if isinstance(replica, tuple) and replica[0]:  # of another stage's
        return str(said.key)
    words, begin = name.split("."), []
    for mine, its in zip(words, said.key.split(".")):
        if mine != its and not (mine.isdigit() and its.isdigit()):
            break
        begin.append(its)
    rest = ".".join(words[len(begin) :])
    if len(_NUMBER.findall(rest)) != len(indices):
        raise NotImplementedError(
            f"{name} is {said.key} at {tuple(indices)} in Megatron's checkpoints, which does not tell "
            f"what it is called in the whole model"
        )
    numbers = iter(indices)
    rest = _NUMBER.sub(lambda _: str(next(numbers)), rest)
    return ".".join([*begin, rest] if rest else begin)
