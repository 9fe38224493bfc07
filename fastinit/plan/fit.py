"""Fit: the one check that a plan and a model, or a part of it, have the same parameters, tied alike.

A model may hold parts of the plan's parameters, and under other names: a rank's of tensor, pipeline and
expert parallelism. Whoever passes it says which (:data:`Parts`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.elements.part import Part, check_part, one_shape
from fastinit.elements.shards import is_dtensor
from fastinit.plan.names import Model, Walk, joined, named_buffers, walked, without_wrappers
from fastinit.plan.parameters import distinct_parameters


class Held(NamedTuple):
    """A part of a full parameter, in memory that is not the model's parameter itself."""

    tensor: Tensor
    part: Part
    """With its full parameter's name."""
    module: nn.Module
    """That the full parameter would be in."""


class Place(NamedTuple):
    """A parameter of a model, or one that a model's parameter holds something of."""

    names: list[str]
    """In the plan."""
    module: nn.Module
    tensor: Tensor
    part: Part | None
    """Of the full parameter, where the tensor does not say it itself."""


Said = Part | Sequence[Held]
Parts = Mapping[str, Said] | Callable[[str, Tensor], Said | None]
"""Of a parameter, buffer or attribute, by its name in the model (and itself): what it holds of which.

None, or a name that is not there: all of it, under its own name. So also of a Part without a name. Of a
parameter that only stands for parts kept elsewhere, or is several in one: all these.
"""


class Scope(NamedTuple):
    """Which of a plan's parameters and buffers are meant, by their names in the plan."""

    prefix: str = ""
    """What the plan's names have before the model's."""
    only: Choice | None = None
    """Of names in the plan; by default all."""
    parts: Parts | None = None
    """What the model's tensors are parts of; the plan may have others, which other ranks hold."""

    def planned(self, names: Sequence[str], tensor: Tensor) -> tuple[list[str], Part | None]:
        """(its names in the plan, the part of it that the tensor is unless it says so itself).

        Args:
            names: of the tensor in the model.
            tensor: a parameter or buffer.

        Raises:
            TypeError: ``parts`` gives something else than a Part or None. ValueError: parts of a
                DTensor, or of one tensor under several names that are not the same.
        """
        if self.parts is None:
            return [self.prefix + name for name in names], None
        full, part = [], None
        for name in names:
            its = self._part(name, tensor)
            full.append(self.prefix + name if its is None or its.name is None else its.name)
            if its is None:
                continue
            if part is not None and (part.shape, part.runs, part.flat) != (
                its.shape,
                its.runs,
                its.flat,
            ):
                raise ValueError(f"{names[0]} and {name} are one tensor, but {part} and {its}")
            part = its
        if part is not None and is_dtensor(tensor):
            if not part.is_whole or part.shape != tuple(tensor.shape):
                raise ValueError(
                    f"{names[0]} is a DTensor, which says itself what it holds, but got {part}"
                )
            part = None
        return list(dict.fromkeys(full)), part

    def places(self, model: Model) -> Iterator[Place]:
        """A model's parameters, tied ones once, and for those that hold others these, in their order.

        Raises:
            as :meth:`planned`; TypeError: what is held is no Held, or has no name.
            ValueError: parts of parameters of several shapes that have one name.
        """
        if self.parts is None:
            for names, module, parameter in distinct_parameters(model):
                full = [self.prefix + name for name in names] if self.prefix else names
                yield Place(full, module, parameter, None)
            return
        shapes: dict[str, Sequence[int]] = {}
        for place in self._parts(model):
            note_shape(shapes, place.names, place.tensor, place.part)
            yield place

    def _parts(self, model: Model) -> Iterator[Place]:
        for names, module, parameter in distinct_parameters(model):
            said = self._said(names[0], parameter)
            if not isinstance(said, (list, tuple)):
                full, part = self.planned(names, parameter)
                yield Place(full, module, parameter, part)
                continue
            for its in said:
                if not isinstance(its, Held) or its.part.name is None:
                    raise TypeError(
                        f"parts: {names[0]} must be a fastinit.Part, or all that is kept elsewhere, "
                        f"with names, but got {said!r}"
                    )
                yield Place([its.part.name], its.module, its.tensor, its.part)

    def _part(self, name: str, tensor: Tensor) -> Part | None:
        said = self._said(name, tensor)
        if isinstance(said, (list, tuple)):
            raise TypeError(
                f"parts: {name} is kept elsewhere, where fastinit.Plan.apply_ alone can write it"
            )
        return said if said is None else check_part(said, f"parts: {name}")  # type: ignore[arg-type]

    def _said(self, name: str, tensor: Tensor) -> Said | None:
        if self.parts is None:
            return None
        if isinstance(self.parts, Mapping):
            return self.parts.get(name)
        return self.parts(name, tensor)

    def check(self, model: Model, planned: Iterable[str]) -> None:
        """Raises unless the prefix ends with its dot and each pattern matches something.

        Args:
            model: its parameters can be matched, too.
            planned: all names that the plan has.

        Raises:
            ValueError: they do not, or parts are of names that the model lacks. TypeError: a prefix
                that is no text, parts that are neither map nor function.
        """
        if isinstance(self.parts, Mapping):
            own = {name for names, _, _ in distinct_parameters(model) for name in names}
            own |= {name for name, _ in named_buffers(model)}
            if idle := [name for name in self.parts if name not in own]:
                plain = without_wrappers(model)
                said = [f"{n} (say {plain[n]})" if n in plain else n for n in idle]
                raise ValueError(f"parts has {listing('tensor', said)} that the model lacks")
        elif self.parts is not None and not callable(self.parts):
            raise TypeError(
                f"parts must be a map of names, or a function of name and parameter, "
                f"but got {self.parts!r}"
            )
        check_prefix(self.prefix)
        if self.only is None:
            return
        names = [name for name in planned if name.startswith(self.prefix)]
        for place in self.places(model):
            names += place.names
        if idle := self.only.idle(names):
            under = f" under {self.prefix}" if self.prefix else ""
            raise ValueError(f"no parameter{under} matches {listing('pattern', idle)}")

    def check_met(self, model: Model, aliases: Mapping[str, str]) -> None:
        """Each pattern, of which the plan has something, has to meet something of the model.

        With ``parts`` other ranks may have it, which a UserWarning says. Otherwise it is a ValueError.

        Args:
            aliases: of tied parameters of the plan, which go by any of their names.
        """
        if self.only is None:
            return
        names = {name for place in self.places(model) for name in place.names}
        planned = {aliases.get(name, name) for name in names}
        names |= planned.union(alias for alias, name in aliases.items() if name in planned)
        for name, buffer in named_buffers(model):
            names.update(self.planned([name], buffer)[0])
        for path, _, module in model.modules if isinstance(model, Walk) else walked(model):
            own = (key for key, value in vars(module).items() if isinstance(value, Tensor))
            names.update(self.prefix + joined(path, key) for key in own)
        if not (idle := self.only.idle(names)):
            return
        said = f"the model has nothing of what matches {listing('pattern', idle)}"
        if self.parts is None:
            raise ValueError(said)
        warnings.warn(
            f"{said}; by parts= others are taken to hold it, and here nothing of it is written",
            stacklevel=5,  # of Plan.apply_, by way of a function that is decorated
        )

    def has(self, *names: str) -> bool:
        """Whether what goes by these names is meant."""
        return self.only is None or any(name in self.only for name in names)


ALL = Scope()


def note_shape(
    known: dict[str, Sequence[int]], names: Sequence[str], tensor: Tensor, part: Part | None
) -> None:
    """Keeps a tensor's full shape. Raises ValueError if another is known of one of its names."""
    if not is_lazy(tensor):
        shape = tensor.shape if part is None else part.shape
        for name in names:
            one_shape(name, (known.setdefault(name, shape), shape))


def check_prefix(prefix: str) -> None:
    """Raises TypeError for what is no text, ValueError for one without its dot."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, but got {prefix!r}")
    if prefix and not prefix.endswith("."):
        raise ValueError(
            f"prefix must be all that stands before the names, as in '{prefix}.', but got {prefix!r}"
        )


class Fitted(NamedTuple):
    """A model's parameter, and what it is in a plan."""

    name: str
    """Under which it is planned."""
    parameter: Tensor
    part: Part | None
    """Of the planned one, where the parameter does not say it itself."""


def fitted(
    model: Model,
    planned: Collection[str],
    aliases: Mapping[str, str],
    *,
    given: bool = False,
    scope: Scope = ALL,
) -> list[Fitted]:
    """Each of a model's parameters, tied ones once.

    A parameter of the plan is found by any of its names. With ``scope.parts`` it may be there several
    times, in parts, or not at all.

    Args:
        planned: names of the plan's parameters.
        aliases: further names of tied ones, each to the name under which it is planned.
        given: parameters that have values may be missing in the plan, and are left out here.
        scope: others are left out, of the plan and of the model, and may be whatever they are.

    Raises:
        ValueError: parameters that the plan lacks, or the model; parameters that the plan ties and the
            model does not, or the other way round (all are listed).
    """
    others: dict[str, list[str]] = {}  # of tied ones the further names
    for alias, name in aliases.items():
        others.setdefault(name, []).append(alias)
    planned_as = {**dict(zip(planned, planned)), **aliases}
    fits: list[Fitted] = []
    found: dict[str, str] = {}  # name in the plan to that in the model
    missing, problems = [], []
    for names, _, parameter, part in scope.places(model):
        here = list(dict.fromkeys(filter(None, map(planned_as.get, names))))
        if scope.only is not None and not scope.has(
            *names, *here, *(other for name in here for other in others.get(name, ()))
        ):
            continue
        if not here:
            if not given or parameter.is_meta:
                missing.append(names[0])
        elif scope.parts is None and not found.keys().isdisjoint(here):
            pair = (next(found[name] for name in here if name in found), names[0])
            problems.append(f"tied in the plan but not in the model: {', '.join(pair)}")
        else:
            if len(here) > 1:
                problems.append(f"tied in the model but not in the plan: {', '.join(here)}")
            for name in here:
                found[name] = names[0]
            fits.append(Fitted(here[0], parameter, part))
    if missing:
        problems.insert(0, f"the plan has no {listing('parameter', missing)}")
    extra = [
        own
        for own in (planned if scope.parts is None else ())
        if own not in found
        and scope.has(own, *others.get(own, ()))
        and any(name.startswith(scope.prefix) for name in (own, *others.get(own, ())))
    ]
    if extra:
        problems.append(f"the model has no {listing('parameter', extra)}")
    if problems:
        raise ValueError("the plan does not fit the model: " + "; ".join(problems))
    return fits
