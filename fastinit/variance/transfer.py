"""Moving a scale from one layer's weight to the next one's."""

from __future__ import annotations

import torch
from torch import nn

from fastinit.base import number
from fastinit.elements import tensors


def transfer_scale_(layer: nn.Module, following: nn.Module, factor: float) -> None:
    """Multiplies one layer's weight and divides the next one's: the function stays the same.

    It does where nothing stands between them that is not homogeneous (He et al. 2015, section 2.2:
    ReLU is), and where ``layer`` has no bias or its bias is multiplied too, as it is here.

    Args:
        layer: such as an embedding. Its bias, if it has one, is multiplied too.
        following: a module with a ``weight``.
        factor: positive and finite.

    Raises:
        NumberTypeError, NumberRangeError: a factor that is no number; not positive and finite.
        ValueError: a module without a weight.
        NotImplementedError, RuntimeError: a parameter without plain memory, before any is written
            (``fastinit.elements.tensors.memory``).
    """
    factor = number.positive("factor", factor)
    for name, module in (("layer", layer), ("following", following)):
        if not isinstance(getattr(module, "weight", None), nn.Parameter):
            raise ValueError(f"{name} has no weight: {module!r}")
    if layer.weight is following.weight:
        raise ValueError("layer and following have the same weight")
    own = {"layer.weight": layer.weight, "layer.bias": getattr(layer, "bias", None)}
    multiplied = {name: p for name, p in own.items() if isinstance(p, nn.Parameter)}
    divided = following.get_parameter("weight")
    for name, parameter in {**multiplied, "following.weight": divided}.items():
        tensors.memory(parameter, name)
    with torch.no_grad():
        for parameter in multiplied.values():
            parameter.mul_(factor)
        divided.div_(factor)
