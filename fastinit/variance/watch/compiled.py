"""Measuring in compiled code: an operator that graphs keep.

torch.compile compiles the hooks of a module with it. The hook that is set here puts ``fastinit::seen_``
into the graph: it adds the moments of a tensor to an :class:`Account`, plain memory that the graph is
given. So one graph serves all blocks and steps. Nothing of it is waited for, and it does not ask what
step it is.

Which graph runs is up to dynamo's guards. It compiles a module with hooks once more when they are gone.
That they have come it does not see by default (pytorch#173452), but that a module has a ``forward`` of
its own: a watched module has one meanwhile, which is its class's. So there are two graphs, one of them
without any trace of this, and switching between them compiles nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fastinit.base.hooks import OwnForward, Uncopied
from fastinit.base.torch_internals import is_exporting, is_transforming
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.fills.layer_kinds import kind_of
from fastinit.statistics.tensor import moments
from fastinit.stream.reference_moments import ALL_FIELDS, FIELDS, LEAST, MAX, MIN, merged
from fastinit.variance.watch.outputs import runs_again
from fastinit.variance.watch.targets import Target
from fastinit.variance.watch.units import Units

CALLS, VALUES, FIRST, ALIVE, FAILED, GRAPHED = range(6)
"""What is counted beside moments: calls, values of each unit, the place of the first call among all
layers' (from 1), whether all units are known to be alive, calls that could not be measured, gradients of
passes with create_graph=True, which are not."""
COUNTED = 6

_library = torch.library.Library("fastinit", "FRAGMENT")
_library.define(
    "seen_(Tensor x, Tensor(a!) raw, Tensor(b!) counts, Tensor(c!) extremes, Tensor(d!)? clock, "
    "int dim) -> ()"
)


def _seen_(
    x: Tensor, raw: Tensor, counts: Tensor, extremes: Tensor, clock: Tensor | None, dim: int
) -> None:
    if not runs_again():
        _add(x, Account(raw, counts, extremes), clock, dim, gradient=False)


_library.impl("seen_", _seen_, "CompositeExplicitAutograd")
torch.library.register_fake("fastinit::seen_", lambda *args: None, lib=_library)

_ran = False
"""Whether there was ever a graph with one of the operators."""
_adding = threading.Lock()  # replicas run in threads


def _add(x: Tensor, account: Account, clock: Tensor | None, dim: int, gradient: bool) -> None:
    global _ran
    _ran = True
    account = account.unversioned()
    with _adding, torch.no_grad():
        try:
            here = tensors.values(x)
            if gradient and 0 in here.stride():
                here = here.contiguous()
            new = moments(here, higher=len(account.raw) == ALL_FIELDS).raw
            account.add(new, here, None if clock is None else clock.data, dim, gradient)
        except Exception:  # the user's own step goes on
            account.counts[FAILED] += 1


def place_outside(accounts: Mapping[str, Accounts]) -> Tensor | None:
    """The place, [1], of a layer that begins outside of graphs; None as long as no graph has run."""
    if not _ran or not accounts:
        return None
    return next(iter(accounts.values())).clock.add_(1).clone()


@dataclass
class Account:
    """What graphs have seen of one signal of a layer in a block.

    Attributes:
        raw: raw moments, float64 [fields].
        counts: float64 [6].
        extremes: each unit's largest and smallest value, float64 [2, units]; [2, 0] if it is not known
            which they are.
    """

    raw: Tensor
    counts: Tensor
    extremes: Tensor

    @classmethod
    def of(cls, units: int, higher: bool, device: torch.device) -> Account:
        sizes = (ALL_FIELDS if higher else FIELDS,), (COUNTED,), (2, units)
        account = cls(*(torch.zeros(s, dtype=torch.float64, device=device) for s in sizes))
        account.begin()
        return account

    def begin(self) -> None:
        """Begins anew."""
        raw, counts, extremes = vars(self.unversioned()).values()
        raw.zero_()
        raw[MAX] = -torch.inf
        for least in (MIN, LEAST)[: 1 if len(raw) == FIELDS else 2]:
            raw[least] = torch.inf
        counts.zero_()
        extremes[0].fill_(-torch.inf)
        extremes[1].fill_(torch.inf)

    def unversioned(self) -> Account:
        """The same memory, of which no version goes up when it is written: what a graph keeps of an
        account for its backward pass is where it is, not its values."""
        return Account(self.raw.data, self.counts.data, self.extremes.data)

    def add(self, new: Tensor, x: Tensor, clock: Tensor | None, dim: int, gradient: bool) -> None:
        """Adds a tensor and its raw moments. Nothing but the CPU's is read to do so.

        Args:
            new: [fields], of x.
            clock: [1], how many layers have begun; of gradients, None.
            dim: x's dimension of units, if there are extremes of them.
        """
        counts, extremes = self.counts, self.extremes
        known = counts.tolist() if counts.device.type == "cpu" else None
        self.raw.copy_(merged(self.raw, new) if known is None or known[CALLS] else new)
        alive = known is not None and known[ALIVE] == 1
        units = Units(gradient, extremes[0], extremes[1], alive=alive)
        if extremes.shape[1]:
            units.add(x, dim)
            if not units.alive:
                assert units.high is not None
                assert units.low is not None
                extremes[0].copy_(units.high)
                extremes[1].copy_(units.low)
        if clock is not None:
            clock += 1
        if known is None:
            if clock is not None:
                counts[FIRST] = torch.where(counts[CALLS] > 0, counts[FIRST], clock[0])
            counts[CALLS] += 1
            counts[VALUES] += units.values
            return
        if clock is not None and not known[CALLS]:
            known[FIRST] = clock.item()
        known[CALLS] += 1
        known[VALUES] += units.values
        known[ALIVE] = float(units.alive)
        # At once, as each operator here takes longer than what it computes.
        counts.copy_(torch.tensor(known, dtype=counts.dtype, device="cpu"))

    @property
    def is_alive(self) -> bool:
        """Whether all units are known to be alive, as far as is known without waiting for a device."""
        return self.counts.device.type == "cpu" and self.counts[ALIVE].item() == 1

    @property
    def may_be_used(self) -> bool:
        """Whether a graph has written it, as far as is known without waiting for a device."""
        return _ran and (self.counts.device.type != "cpu" or bool(self.counts.any()))


# Its gradient is measured. It is a copy (which inductor leaves out), as what comes next may write it in
# place: that autograd does not let it do with a view. As an operator, not as a torch.autograd.Function,
# whose backward dynamo runs under no_grad, so that nobody could tell a pass with create_graph=True.
_library.define("passed(Tensor x, Tensor raw, Tensor counts, Tensor extremes, int dim) -> Tensor")
_library.impl("passed", lambda x, *_: x.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("fastinit::passed", lambda x, *_: torch.empty_like(x), lib=_library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.account, ctx.dim = inputs


def _measure(ctx: Any, grad: Tensor) -> Any:
    if torch.is_grad_enabled():  # with create_graph: a gradient that a loss is made of
        Account(*ctx.account).unversioned().counts[GRAPHED] += 1
    else:
        grad = torch.ops.fastinit.graded(grad, *ctx.account, ctx.dim, next(_gradients))
    return grad, None, None, None, None


torch.library.register_autograd("fastinit::passed", _measure, setup_context=_keep, lib=_library)

# It writes the account, and does not say so: of what a backward pass is said to write, autograd would
# refuse the values that a second forward has kept for its own. What nobody is said to write is left out
# where nobody needs what it gives, and done once where it is asked for twice alike: so it gives a copy,
# and each has a number of its own. A CUDA graph would write copies of its inputs, so it is kept out.
_library.define(
    "graded(Tensor grad, Tensor raw, Tensor counts, Tensor extremes, int dim, int number) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
_gradients = itertools.count()


def _graded(
    grad: Tensor, raw: Tensor, counts: Tensor, extremes: Tensor, dim: int, number: int
) -> Tensor:
    _add(grad, Account(raw, counts, extremes), None, dim, gradient=True)
    return grad.clone()


_library.impl("graded", _graded, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastinit::graded", lambda grad, *_: torch.empty_like(grad), lib=_library
)


@dataclass
class Accounts:
    """What graphs have seen of a layer in a block.

    Attributes:
        backward: None where gradients are not measured.
        clock: [1], how many layers have begun; one for all of a watch.
        dim: the dimension of units in an output, from the last on.
    """

    target: Target
    forward: Account
    backward: Account | None
    input: Account | None
    clock: Tensor
    dim: int

    def begin(self) -> None:
        """Begins anew, where anything was written."""
        for account in (self.forward, self.backward, self.input):
            if account is not None and account.may_be_used:
                account.begin()

    def hooks(self) -> list[Uncopied | OwnForward]:
        """From now on code that is compiled for the target writes these."""
        module = self.target.module
        before = module.register_forward_pre_hook(self._input_hook(), with_kwargs=True)
        after = module.register_forward_hook(self._forward_hook())
        return [OwnForward(module), Uncopied(before), Uncopied(after)]

    # What hooks hold is what dynamo guards: tensors, whose values it does not look at, and constants.
    # That there are none it does not guard. So both are there whatever is asked, and hold what that is.

    def _forward_hook(self) -> Callable[[Any, Any, Any], Any]:
        one, clock, dim = self.forward, self.clock, self.dim
        raw, counts, extremes = one.raw, one.counts, one.extremes
        back = None if self.backward is None else vars(self.backward).values()
        graded = back is not None
        back_raw, back_counts, back_extremes = back or (None, None, None)

        def hook(module: Any, args: Any, output: Any) -> Any:
            if not is_traced():
                return None
            x = _plain(output)
            if x is None:
                return None
            torch.ops.fastinit.seen_(x, raw, counts, extremes, clock, dim)
            if not graded or not torch.is_grad_enabled() or not x.requires_grad:
                return None
            passed: Tensor = torch.ops.fastinit.passed(x, back_raw, back_counts, back_extremes, dim)
            if type(output) is tuple:  # of MultiheadAttention
                return tuple([passed if part is x else part for part in output])
            return passed

        return hook

    def _input_hook(self) -> Callable[[Any, Any, Any], None]:
        one = self.input
        asked = one is not None
        raw, counts, extremes = (None,) * 3 if one is None else (one.raw, one.counts, one.extremes)

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if is_traced() and asked and (x := _plain((args, kwargs))) is not None:
                torch.ops.fastinit.seen_(x, raw, counts, extremes, None, -1)

        return hook


def is_traced() -> bool:
    """Whether dynamo makes a graph here that will run in this process, of values that can be read."""
    compiling = torch.compiler.is_dynamo_compiling()
    return compiling and not is_exporting() and not is_transforming()


def _plain(output: Any) -> Tensor | None:
    """As :func:`fastinit.variance.watch.outputs.tensor_in`, but None of DTensors and their like."""
    if isinstance(output, Tensor):
        return output if type(output) is Tensor and output.is_floating_point() else None
    parts = output.values() if isinstance(output, dict) else output
    if isinstance(parts, (tuple, list)) or isinstance(output, dict):
        for part in parts:
            if (x := _plain(part)) is not None:
                return x
    return None


def accounts_of(
    targets: Sequence[Target], gradients: bool, inputs: bool, higher: bool
) -> dict[str, Accounts]:
    """By name, the accounts of those that can be measured in compiled code (:func:`refused`)."""
    found: dict[str, Accounts] = {}
    clocks: dict[torch.device, Tensor] = {}
    for target in targets:
        if refused(target) is not None:
            continue
        own = next(target.module.parameters(), None)
        device = torch.device("cpu") if own is None else own.device
        if device not in clocks:
            clocks[device] = torch.zeros(1, dtype=torch.float64, device=device)
        units, dim = _units(target)
        found[target.name] = Accounts(
            target,
            Account.of(units, higher, device),
            Account.of(units, higher, device) if gradients and _gives_its_own(target) else None,
            Account.of(0, higher, device) if inputs else None,
            clocks[device],
            dim,
        )
    return found


def refused(target: Target) -> str | None:
    """Why a target is not measured where it runs compiled, or None."""
    if target.inside:
        return "it is computed inside MultiheadAttention"
    if any(map(shard.is_dtensor, target.module.parameters())):
        return "its weight is a DTensor"
    if OwnForward.is_replaced(target.module):
        return "its forward is replaced"
    return None


def _gives_its_own(target: Target) -> bool:
    """Whether its output is known to be nobody else's tensor, so that a copy does for it."""
    return target.layer is not None and target.layer.affine


def _units(target: Target) -> tuple[int, int]:
    """How many units its output has, and their dimension in it; 0 if that is not known."""
    layer = target.layer
    if layer is None or not layer.affine or is_lazy(layer.weight_in):
        return 0, -1
    kind = kind_of(layer.module)
    assert kind is not None
    if kind.weight == "out in":
        return layer.shape[0], -1 - kind.spatial
    return layer.shape[1] * getattr(layer.module, "groups", 1), -1 - kind.spatial
