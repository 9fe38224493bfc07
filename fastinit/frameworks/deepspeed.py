"""DeepSpeed's ZeRO stage 3: what its ranks hold of a model's parameters.

Each rank has a flat range of every parameter, ceil(elements / ranks) of them, in a tensor that the
parameter keeps (``ds_tensor``); the parameter itself is empty meanwhile. Nothing is communicated.

Stages 1 and 2 cut no parameters, but float32 copies that the optimizer makes of them, and steps: write
the model before ``deepspeed.initialize``, and the copies (:func:`masters`) after it.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastinit.elements import partitioned
from fastinit.elements.part import Part
from fastinit.plan.fit import Held
from fastinit.plan.parameters import distinct_parameters


def parts(model: nn.Module) -> dict[str, list[Held]]:
    """What this rank holds of each parameter, for ``parts=`` (:meth:`fastinit.Plan.apply_`).

    Args:
        model: built within ``deepspeed.zero.Init``, or given to it, and not to ``deepspeed.initialize``
            yet.

    Returns:
        By the parameters' names; those that ZeRO does not keep are left out, and so are whole.

    Raises:
        RuntimeError: the model was given to ``deepspeed.initialize``, whose optimizer has made copies of
            the parameters; or parameters are gathered.
        NotImplementedError: parameters in a quantized form, on disk, or cut a second time (ZeRO++).
    """
    found = {}
    for names, module, parameter in distinct_parameters(model):
        if hasattr(parameter, "ds_id"):
            found[names[0]] = [_held(names[0], module, parameter)]
    return found


def masters(model: nn.Module) -> list[tuple[Tensor, Part]]:
    """What this rank's optimizer keeps in float32 of each parameter, for :func:`fastinit.master_`.

    Args:
        model: given to ``deepspeed.initialize``, of stage 1 or 2.

    Returns:
        The pieces, each of one parameter, of which other ranks have the rest.

    Raises:
        ValueError: the model has none: it was not given, or is of another stage.
    """
    found, is_linked = [], False
    for names, _, parameter in distinct_parameters(model):
        is_linked |= hasattr(parameter, "_hp_mapping")
        if (piece := getattr(parameter, "_hp_mapping", None)) is not None:
            first, length = piece.lp_fragment_address.start, piece.lp_fragment_address.numel
            part = Part(tuple(parameter.shape), flat=(first, length), name=names[0])
            found.append((piece.hp_fragment, part))
    if not is_linked:
        raise ValueError(
            "model has no master weights of ZeRO 1 or 2: deepspeed.initialize makes them"
        )
    return found


def _held(name: str, module: nn.Module, parameter: nn.Parameter) -> Held:
    partitioned.check_stays(parameter, name)
    status = parameter.ds_status.name  # type: ignore[attr-defined]
    if status != "NOT_AVAILABLE":
        raise RuntimeError(
            f"{name} is gathered ({status}); within deepspeed.zero.GatheredParameters(parameters, "
            f"modifier_rank=0) it is whole and needs no parts"
        )
    kept: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    second = parameter.ds_secondary_tensor  # type: ignore[attr-defined]
    if second is not None or hasattr(kept, "ds_quant_scale"):
        raise NotImplementedError(f"{name} is quantized, or is cut a second time (ZeRO++)")
    if kept.status.name != "AVAILABLE":  # type: ignore[attr-defined]
        raise NotImplementedError(f"{name} is on disk ({kept.status.name})")  # type: ignore[attr-defined]
    shape = tuple(parameter.ds_shape)  # type: ignore[attr-defined]
    size = int(kept.ds_numel)  # type: ignore[attr-defined]
    numel = int(parameter.ds_numel)  # type: ignore[attr-defined]
    first = min(size * int(parameter.ds_zero_partition_rank), numel)  # type: ignore[attr-defined]
    length = min(size, numel - first)  # the last ones are padded
    return Held(kept[:length], Part(shape, flat=(first, length), name=name), module)
