"""How a coordinate check trains a model at one width, and what it measures of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastinit.base.text import listing
from fastinit.plan.parameters import distinct_parameters
from fastinit.plan.plan import Plan
from fastinit.plan.ruled import Rule
from fastinit.record.block import deferred
from fastinit.record.materialize import recorded_plan
from fastinit.statistics.tensor import Moments, moments
from fastinit.variance.layers import Which
from fastinit.variance.watch.outputs import hook_output, immeasurable, runs_again
from fastinit.variance.watch.targets import Target, targets

MakeOptimizer = Callable[[nn.Module], Optimizer]
Loss = Callable[[Any], Tensor]


@dataclass
class Training:
    """How a model is trained, the same at every width."""

    batch: Any
    steps: int
    optimizer: MakeOptimizer
    loss: Loss
    norm: str
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        parts = self.batch.values() if isinstance(self.batch, Mapping) else self.batch
        several = isinstance(self.batch, (Mapping, tuple, list))
        found = [x for x in (parts if several else [parts]) if isinstance(x, Tensor)]
        self.device = found[0].device if found else torch.device("cpu")

    @contextmanager
    def generators_kept(self) -> Iterator[None]:
        """In the block torch's generators may be seeded: afterwards they are as before."""
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
            yield

    def run(self, model: nn.Module, seed: int, outputs: Outputs) -> None:
        """All steps. What a model draws in its forward is the same at each."""
        optimizer = self.optimizer(model)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must make a torch.optim.Optimizer, but got {type(optimizer).__name__}"
            )
        with torch.enable_grad(), outputs.hooked():
            for step in range(self.steps):
                torch.manual_seed(seed)
                outputs.begin()
                given = self._called(model)
                if step == self.steps - 1:
                    return
                loss = self.loss(given)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise TypeError(
                        f"loss must be a scalar tensor that depends on parameters, but got {loss!r:.60}"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    def _called(self, model: nn.Module) -> Any:
        if isinstance(self.batch, Mapping):
            return model(**self.batch)
        return model(*self.batch) if isinstance(self.batch, (tuple, list)) else model(self.batch)


class Outputs:
    """The outputs of one model's layers, over all steps of one training."""

    def __init__(self, found: list[Target], norm: str) -> None:
        self.found, self.norm = found, norm
        self.sizes: dict[str, list[list[Moments]]] = {}  # by layer and step, of each call
        self.changes: dict[str, list[list[Moments]]] = {}
        self.counts: dict[str, int] = {}
        self.unseen: dict[str, str] = {}
        self._first: dict[tuple[str, int], Tensor] = {}
        self._step = -1

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target in self.found:
                stack.callback(hook_output(target, self._measure, self._fail).remove)
            yield

    def begin(self) -> None:
        """The next step."""
        self._step += 1

    def _fail(self, target: Target, why: str) -> None:
        self.unseen.setdefault(target.name, why)

    def _measure(self, target: Target, x: Tensor | None) -> None:
        if runs_again():
            return
        if why := immeasurable(x):
            self.unseen[target.name] = why
            return
        assert x is not None
        with torch.no_grad():
            x = x.detach()
            sizes = self.sizes.setdefault(target.name, [])
            changes = self.changes.setdefault(target.name, [])
            for steps in (sizes, changes):
                steps += [[] for _ in range(self._step + 1 - len(steps))]
            call = len(sizes[self._step])
            sizes[self._step].append(self._moments(x))
            if self._step == 0:
                self._first[target.name, call] = x.clone()
                self.counts[target.name] = self.counts.get(target.name, 0) + x.numel()
            first = self._first.get((target.name, call))
            if first is not None and first.shape == x.shape:
                wide = torch.promote_types(x.dtype, torch.float32)
                changes[self._step].append(self._moments(x.to(wide) - first.to(wide)))

    def _moments(self, x: Tensor) -> Moments:
        return moments(x.abs() if self.norm == "l1" else x, correction=0)

    def read(self, name: str, steps: int) -> tuple[list[float], list[float]] | None:
        """A layer's sizes and changes at each step; None if it did not run at each."""
        sizes, changes = self.sizes.get(name, []), self.changes.get(name, [])
        if len(sizes) < steps or not all(sizes):
            return None
        alike = [
            self._size(after) if len(after) == len(before) else float("nan")
            for before, after in zip(sizes, changes)
        ]
        return [self._size(calls) for calls in sizes], alike

    def _size(self, calls: list[Moments]) -> float:
        """Of all calls together; infinite if not all values are finite."""
        whole = calls[0].merge(*calls[1:])
        if whole.nonfinite:
            return float("inf")
        if self.norm == "l1":
            return whole.mean
        return float((whole.var + whole.mean**2) ** 0.5)


@dataclass
class OfLayer:
    """One layer at one width: sizes and changes, float64 [seeds, steps], and values of its output."""

    kind: str
    sizes: Tensor
    changes: Tensor
    count: int


@dataclass
class Measured:
    """The layers of one width by name, in the order in which they ran, and why others are not there."""

    layers: dict[str, OfLayer]
    missing: dict[str, str]


def built(
    build: Callable[[int], nn.Module], widths: Sequence[int], device: torch.device
) -> list[nn.Module]:
    """The models of some widths, on meta, and what they need beside parameters on the device.

    Raises:
        TypeError, ValueError: as of :func:`fastinit.coord_check`.
    """
    models = []
    with nullcontext() if device.type == "cpu" else device, deferred():
        for width in widths:
            model = build(width)
            if not isinstance(model, nn.Module):
                raise TypeError(
                    f"build({width}) must be a torch.nn.Module, but is {type(model).__name__}"
                )
            if written := [names[0] for names, _, p in distinct_parameters(model) if not p.is_meta]:
                raise ValueError(
                    f"build({width}) must make its model when it is called, but there are values "
                    f"already in {listing('parameter', written)}"
                )
            models.append(model)
    return models


def trained(
    model: nn.Module,
    recipe: Rule | Plan | None,
    layers: Which,
    seeds: int,
    training: Training,
) -> Measured:
    """Writes a model that was built, trains it for each seed, and measures it.

    Raises:
        TypeError, ValueError: as of :func:`fastinit.coord_check`.
    """
    plan = _plan(model, recipe)
    chosen, passed = targets(model, layers)
    runs = []
    for seed in range(seeds):
        own = Plan(plan, seed=seed, aliases=plan.aliases, buffers=plan.buffers)
        own.apply_(model, device=training.device, buffers="restore")
        runs.append(Outputs(chosen, training.norm))
        training.run(model.train(), seed, runs[-1])
    kinds = {target.name: type(target.module).__name__ for target in chosen}
    found, missing = {}, dict(passed)
    for name in dict.fromkeys([*runs[0].sizes, *kinds]):  # in the order in which they ran
        read = [run.read(name, training.steps) for run in runs]
        if None in read:
            missing[name] = runs[0].unseen.get(name, "did not run as a module at each step")
            continue
        sizes, changes = torch.tensor(read, dtype=torch.float64, device="cpu").unbind(dim=1)
        found[name] = OfLayer(kinds[name], sizes, changes, runs[0].counts[name])
    return Measured(found, missing)


def _plan(model: nn.Module, recipe: Rule | Plan | None) -> Plan:
    """What a model shall be; its buffers are as its constructor made them."""
    recorded = recorded_plan(model)
    if recipe is None:
        return recorded
    plan = recipe if isinstance(recipe, Plan) else Plan.from_model(model, recipe)
    return Plan(plan, aliases=plan.aliases, buffers=recorded.buffers)
