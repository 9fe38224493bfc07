"""FullyShardedDataParallel (FSDP1): what its ranks hold of a model's parameters.

FSDP1 lays the parameters of a wrapped module end to end, pads, and gives each rank an equal range.
Nothing is communicated.
"""

from __future__ import annotations

from torch import nn

from fastinit.base import distributed_internals as distributed
from fastinit.elements.part import Part
from fastinit.elements.strided import Strided
from fastinit.plan.fit import Held
from fastinit.plan.names import joined, named_modules
from fastinit.plan.parameters import distinct_parameters


def parts(model: nn.Module) -> dict[str, Part | list[Held]]:
    """What this rank holds of each parameter, for ``parts=`` (:meth:`fastinit.Plan.apply_`).

    Args:
        model: wrapped by ``torch.distributed.fsdp.FullyShardedDataParallel``, with or without
            ``use_orig_params``, of any sharding strategy, within ``summon_full_params`` or not.

    Returns:
        By the parameters' names: the part that is there, or all that a flat parameter holds. Those that
        FSDP1 leaves alone are not among them, and are whole.

    Raises:
        RuntimeError: parameters are gathered for computing, and what is written now would be dropped.
        NotImplementedError: parameters that FSDP1 cut in another order than row-major, or that something
            else had cut before.
    """
    names = {id(m): name for name, m in reversed([*named_modules(model)])}
    views: dict[int, Part] = {}
    flats: dict[int, list[Held]] = {}
    for flat in distributed.fsdp1_flats(model):
        flats[id(flat.tensor)] = held = []
        for its in flat.ranges:
            name = joined(names[id(its.module)], its.key)
            if flat.is_lost:
                raise RuntimeError(
                    f"FSDP1 has gathered {name} for computing, and will drop what is written to it; "
                    f"write the model before its forward, or after its backward"
                )
            if its.is_extended:
                raise NotImplementedError(f"{name} was cut before FSDP1 cut it, as a DTensor")
            if Strided(0, its.shape, its.strides).merged() != Strided.run(0, its.numel):
                raise NotImplementedError(
                    f"{name} has strides {its.strides}, in whose order FSDP1 cut it; write the model "
                    f"before it is wrapped"
                )
            part = Part(its.shape, flat=(its.start, its.length), name=name)
            if its.view is not None:
                views[id(its.view)] = Part(its.shape, name=name) if flat.is_whole else part
            memory = flat.tensor.detach()[its.offset : its.offset + its.length]
            held.append(Held(memory, part, its.module))
    found: dict[str, Part | list[Held]] = {}
    for own, _, parameter in distinct_parameters(model):
        for name in own:
            if id(parameter) in flats:
                found[name] = flats[id(parameter)]
            elif id(parameter) in views:
                found[name] = views[id(parameter)]
    return found
