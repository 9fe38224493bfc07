"""Layers of DTensors: what their parameters are while they run, and which part of the output is here.

FSDP2 has what it gathered in the place of a module's parameters while that runs, and frees it before
other hooks see the output. Under tensor parallelism a layer's forward gives a DTensor, and its hooks
make a local tensor of it: of the whole output or of a part. So both are looked at after the forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastinit.base import ranks as base
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.statistics.product import linear_moments
from fastinit.statistics.tensor import Moments
from fastinit.variance.layers import Layer
from fastinit.variance.lsuv.ranks import Part, Seen

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Sharded:
    """A layer with a DTensor among its parameters, of which its last run is noted."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._owners = {
            id(parameter): (module, name)
            for module in layer.module.modules()
            for name, parameter in module._parameters.items()
        }
        self._gave: tuple[DeviceMesh, int] | None = None
        """The mesh, and how many elements all ranks have, of what forward gave."""
        self._bias: Tensor | None = None
        self._whole_bias: Tensor | None = None

    def present(self, parameter: nn.Parameter) -> Tensor:
        """What is in a parameter's place at the moment, without a gradient."""
        module, name = self._owners[id(parameter)]
        now: Tensor | None = getattr(module, name)  # FSDP1 has it beside the parameters
        return shard.detached(parameter if now is None else now)

    def in_use(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias as the module is about to use them, whole."""
        bias = self.layer.bias_in
        return self._own(self.layer.weight_in), None if bias is None else self._own(bias)

    def _own(self, parameter: nn.Parameter) -> Tensor:
        if shard.is_dtensor(now := self.present(parameter)):
            raise NotImplementedError(
                f"{self.layer.name} is computed inside {type(self.layer.module).__name__}, of a DTensor "
                f"with placements {now.placements}, which is not measured"
            )
        return self.layer.own(now)

    def gathered(self, parameter: nn.Parameter) -> Tensor | None:
        """A copy of what is in a parameter's place, if that is another one."""
        module, name = self._owners[id(parameter)]
        other = module._parameters[name] is not parameter
        return tensors.local(self.present(parameter)).clone() if other else None

    def hold(
        self, parameter: nn.Parameter, gathered: Tensor | None, scaled: float, factor: float
    ) -> None:
        """What is gathered has another scale from now on: each time from a copy, of a scale."""
        if gathered is not None:
            tensors.local(self.present(parameter)).copy_(gathered * (factor / scaled))

    def note(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook, to be run before others: takes down how the output and the bias lie."""
        given = output[0] if isinstance(output, tuple) else output
        self._gave = (given.device_mesh, given.numel()) if shard.is_dtensor(given) else None
        if self.layer.bias_in is None:
            return
        bias = self.present(self.layer.bias_in)
        if shard.is_part(bias) and self._whole_bias is None:
            self._whole_bias = bias.full_tensor()  # type: ignore[attr-defined]
        self._bias = tensors.local(bias).clone()

    def bias_of(self, output: Tensor) -> Tensor | None:
        """The bias of the output's channels, of which this rank has all or some."""
        if self._bias is None or len(self._bias) == output.shape[self.layer.channel_dim(output)]:
            return self._bias
        return self._whole_bias

    def part(self, here: Tensor) -> Part:
        """Which part of the output there is, where it is a local tensor."""
        if self._gave is None:
            return Part()
        mesh, numel = self._gave
        if here.numel() == numel:
            return Part(base.members(mesh)[0], 0)
        return Part(base.members(mesh)[0], mesh.get_local_rank()) if mesh.ndim == 1 else Part()


def part_of(given: Any, here: Tensor, sharded: Sharded | None) -> Part:
    """Which part of a layer's output this rank has.

    Args:
        given: what the module gave, if it did.
        here: the local tensor of that.
    """
    if given is None:
        return Part()
    if not shard.is_dtensor(given):
        return Part() if sharded is None else sharded.part(here)
    mesh, which = given.device_mesh, 0
    for dim, (placement, place) in enumerate(zip(given.placements, mesh.get_coordinate() or ())):
        which = which * mesh.size(dim) + (0 if placement.is_replicate() else place)
    return Part(base.members(mesh)[0], which)


def unbuilt_moments(
    seen: Seen,
    layer: Layer,
    sharded: Sharded | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Moments:
    """Those of the output of a Linear without a bias that is about to run, on all ranks."""
    x = args[0] if args else kwargs["input"]
    weight = layer.weight if sharded is None else sharded.present(layer.weight_in)
    if shard.is_dtensor(weight):
        cut = [p for p in weight.placements if not p.is_replicate()]
        whole = not shard.is_dtensor(x) or not shard.is_part(x)
        if weight.device_mesh.ndim > 1 or not whole or any(not p.is_shard(0) for p in cut):
            raise NotImplementedError(
                f"unbuilt: {layer.name} has a weight with placements {weight.placements}; it is only "
                f"measured where each rank has some of its rows, and the whole input"
            )
        mesh = weight.device_mesh
        seen.part = Part(base.members(mesh)[0], mesh.get_local_rank() if cut else 0)
    x = tensors.local(x)
    return seen.merged(linear_moments(x, tensors.local(weight)), x)


def lays_out(hook: Any) -> bool:
    """Whether a hook is torch's own, to gather parameters, or to bring tensors into another layout.

    One that ``distribute_module`` makes calls what it was given: that has to be torch's, too.
    """
    return _is_torchs(hook, "torch.distributed.", set())


def _is_torchs(function: Any, home: str, known: set[int]) -> bool:
    """Whether a function is defined in a package, and all that it holds, and so may call, in torch."""
    if id(function) in known:
        return True
    known.add(id(function))
    held: list[Any] = []
    while not isinstance(function, FunctionType):
        if isinstance(function, partial):
            held += (*function.args, *function.keywords.values())
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            return False
    held += [cell.cell_contents for cell in function.__closure__ or ()]
    return str(function.__globals__["__name__"]).startswith(home) and all(
        _is_torchs(one, "torch.", known)
        for one in held
        if callable(one) and not isinstance(one, type)
    )


def laid_out_first(module: nn.Module) -> None:
    """Of a module's forward hooks, torch's own that stand before others' run before ours as well."""
    others = list(module._forward_hooks.items())[1:]
    leading = [key for key, _ in takewhile(lambda item: lays_out(item[1]), others)]
    for key in reversed(leading):
        module._forward_hooks.move_to_end(key, last=False)  # type: ignore[attr-defined]
