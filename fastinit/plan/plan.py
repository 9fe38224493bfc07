"""Plan: what every parameter of a model shall be, apart from where and how it is stored.

A :class:`Plan` maps parameter names to :class:`Fill` and adds a seed. It knows no device, dtype,
shape or sharding: element ``i`` of a parameter is a function of (seed, name, i) and of its Fill, so
one plan gives the same values wherever it is applied, in whatever order, and saves as small JSON. Of
another dtype they are rounded, within the bounds of their law.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from fastinit.base import html, number
from fastinit.base.files import write_text
from fastinit.base.patterns import Choice
from fastinit.base.text import listing
from fastinit.plan import groups
from fastinit.plan.applied import write_plan_
from fastinit.plan.buffers import Known, Mode
from fastinit.plan.difference import Difference
from fastinit.plan.fill import Fill
from fastinit.plan.fit import Parts, Scope
from fastinit.plan.json_form import plan_from_json, plan_to_json
from fastinit.plan.parameters import distinct_parameters, reshard_
from fastinit.plan.replay import Computed
from fastinit.plan.ruled import Rule, by_rule
from fastinit.plan.storage import Formats
from fastinit.plan.write import Progress
from fastinit.stream.keys import STREAM_VERSION, check_seed

M = TypeVar("M", bound=nn.Module)


class Plan(html.InNotebooks, Mapping[str, Fill | Computed]):
    """An ordered map from parameter name to :class:`Fill`, with the seed of its numbers.

    Two plans are equal if they write the same bits: the same fills by name, seed, aliases and
    stream version. Immutable.

    Args:
        fills: parameter name to Fill, in the order of the model.
        seed: an int in [0, 2^64).
        aliases: further names of tied parameters, each to the name under which it is filled.
        stream_version: of the number stream; 1 is the only one there is.
        buffers: what a constructor put in the model's buffers, by name, for :meth:`apply_`. It is not
            saved, and has no part in equality.

    Raises:
        TypeError: seed is no whole number, or a value of ``fills`` not a Fill.
        ValueError: seed out of range, an alias that is itself filled or stands for no parameter, or
            an unknown stream version.
    """

    def __init__(
        self,
        fills: Mapping[str, Fill | Computed],
        *,
        seed: int = 0,
        aliases: Mapping[str, str] | None = None,
        stream_version: int = STREAM_VERSION,
        buffers: Known | None = None,
    ) -> None:
        self._fills = dict(fills)
        self._buffers = dict(buffers or {})
        self._aliases = dict(aliases or {})
        self._seed = check_seed(seed)
        if number.integer("stream_version", stream_version) != STREAM_VERSION:
            number.out_of_range("stream_version", str(STREAM_VERSION), stream_version)
        for name, fill in self._fills.items():
            if not isinstance(fill, (Fill, Computed)):
                raise TypeError(f"fills[{name!r}] must be a Fill, but got {fill!r}")
        for alias, name in self._aliases.items():
            if alias in self._fills or name not in self._fills:
                raise ValueError(
                    f"aliases must lead from a name without a fill to one with a fill, "
                    f"but got {alias!r}: {name!r}"
                )

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        rule: Rule,
        seed: int = 0,
        config: Any = None,
        *,
        parts: Parts | None = None,
    ) -> Plan:
        """The plan that ``rule`` makes for every parameter of ``model``, which may be on meta.

        A tied parameter is planned once, under the first of its names; the others are aliases.

        Args:
            model: its parameters have shapes.
            rule: one of :mod:`fastinit.recipes`, or one's own.
            seed: in [0, 2^64).
            config: given to the rule; by default ``model.config``, where there is one.
            parts: as of :meth:`apply_`: the rule is asked with full names and shapes, and the plan is of
                those that the model holds parts of.

        Raises:
            ValueError: the rule has no Fill for some parameters (all are listed), or is not made for
                this model (a pattern of names that fits none), or fills parts of one parameter
                differently.
            NotImplementedError: a parameter that is a part of one
                (``fastinit.elements.shards.check_held``).
            TypeError: a rule that cannot be called, or that gives something else than a Fill or None.
        """
        fills, aliases = by_rule(model, rule, config, parts)
        return cls(fills, seed=seed, aliases=aliases)

    @property
    def seed(self) -> int:
        """The seed, in [0, 2^64)."""
        return self._seed

    @property
    def stream_version(self) -> int:
        """The version of the number stream."""
        return STREAM_VERSION

    @property
    def aliases(self) -> dict[str, str]:
        """Further names of tied parameters, each to the name under which it is filled."""
        return dict(self._aliases)

    @property
    def buffers(self) -> Known:
        """What a constructor put in the model's buffers, by name; of recorded plans alone."""
        return self._buffers

    def __getitem__(self, name: str) -> Fill | Computed:
        return self._fills[self._aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fills)

    def __len__(self) -> int:
        return len(self._fills)

    def __contains__(self, name: object) -> bool:
        return name in self._fills or name in self._aliases

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self._fills, self._seed, self._aliases) == (
            other._fills,
            other._seed,
            other._aliases,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Plan({len(self)} parameters, seed={self.seed})"

    def apply_(
        self,
        model: M,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        storage: Formats | None = None,
        only: str | Iterable[str] | None = None,
        prefix: str = "",
        parts: Parts | None = None,
        progress: Progress | None = None,
        buffers: Mode = "check",
    ) -> M:
        """Writes every parameter of ``model``, or those that are asked for, and returns it.

        All parameters are written in one launch or parallel region for each device that they are on,
        each tied one once, with the stream of the name under which the plan has it; shapes are the
        model's. Nothing is written unless everything can be.

        Of parameters that are DTensors (FSDP2's ``fully_shard``, tensor parallelism) each rank writes
        its shard, with the values that the whole parameter has there. Two numbers are communicated: all
        ranks of a device mesh compare seed and plan (:mod:`fastinit.agreement`) before they write. On
        meta they get memory for the shard only. What no element has by itself (distributions of whole
        tensors, values that a constructor computed) takes the memory of one whole parameter at a time.

        The plan of a recorded model (:func:`fastinit.recorded_plan`) knows what the constructor put in
        buffers, also in those that are not persistent. Buffers on meta get it back with ``device``.
        Others must have it, or nobody could tell emptied ones (``model.to_empty``) from values. Other
        plans know of no buffers, and leave real ones alone, whatever is in them.

        Args:
            model: its parameters are exactly those of the plan, by name.
            device: where parameters on meta get memory; those that have some stay where they are.
                The model gets them when all are written.
            dtype: floating-point, of the floating-point parameters on meta; by default that which each
                has on meta, as with :func:`fastinit.materialize_`. It is the dtype of shards too, and
                so of what an optimizer steps: FSDP2 casts what it gathers to its policy's
                ``param_dtype`` whatever it is, and wants one dtype within each module that it shards.
            storage: of parameters on meta, by patterns of names as in ``only``, of which the first that
                matches counts: a floating-point dtype, or "mxfp8", "mxfp8_e5m2", "mxfp4" or "nvfp4" for
                weights of ``torch.nn.Linear`` and of experts that transformers holds in one parameter,
                [expert, out, in], and uses one by one (``set_experts_implementation("eager")``). These
                become tensors of torchao's, which has to be there, and need no gradient; ``dtype`` is
                then that in which they take part in computations.
                Parameters with memory have to be stored so already.
            only: shell-style patterns (or names) of parameters and buffers, one or several; ``*``
                matches dots too. What none matches is left alone, and may be on meta, unwritable or
                unknown to the plan; what one matches has to fit as a whole model does. A tied
                parameter goes by any of its names.
            prefix: what the plan's names begin with where the model is a part of the plan's, such as
                ``"model.layers.4."``: the plan's parameters with other beginnings are left out. Names
                in ``only`` are the plan's, and so are the streams: the part gets the values that it has
                in the whole model. Of what the plan ties, a part may have one name alone.
            parts: of parameters and buffers that are plain tensors, but parts of the plan's: a map from
                the name in the model, or a function of that and the tensor, to a
                :class:`fastinit.Part`, which says the elements and the name in the plan. The modules of
                ``fastinit.frameworks`` give such maps, also of what is kept elsewhere. Others (None)
                are the plan's of their names. What the plan has beyond these is then taken to be on
                other ranks; a pattern in ``only`` that matches nothing else is a UserWarning.
            progress: called with (elements written, elements in all) after each of several batches,
                in which the parameters are then written; the values are the same.
            buffers: of those that are not as the constructor made them (to 2^-7 of their largest
                element, as dtypes and devices may differ): "check" is an error that names them,
                "restore" writes exactly what it put there, "keep" leaves all buffers alone.

        Raises:
            ValueError: a parameter on meta without a ``device``, or one of another ``dtype`` that has
                memory; a buffer on meta that the plan does not know, or without a ``device``; buffers
                that are not as they were made; parameters that the plan lacks or the model lacks;
                parameters that the plan ties and the model does not, or the other way round; a pattern
                that matches nothing of the plan or, without ``parts``, of the model, or in ``storage``
                nothing of its kind; a format that is not known, or of a shape without whole blocks; a
                prefix without its dot; a dtype that is not floating-point; a Part of another shape than
                the tensor's, or two of one name that say two full shapes.
            TypeError: a dtype that is none, patterns or a prefix that are no text.
            RuntimeError: ranks with DTensors on one mesh apply different plans, or one of them failed.
            NotImplementedError, RuntimeError: a parameter that cannot be written
                (``fastinit.ops.check_writable``), or of which nobody knows the elements: parts of
                FSDP1, ZeRO-3 and Megatron, Partial DTensors (``fastinit.elements.shards.check_held``); a
                DTensor in a block format, or one of more than one law, or no torchao.

        >>> plan = Plan({f"h.{i}.weight": Fill.normal() for i in range(3)})
        >>> whole = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))})
        >>> layer = plan.apply_(nn.Linear(2, 2, bias=False), prefix="h.1.")
        >>> torch.equal(plan.apply_(whole, only="h.1.*")["h"][1].weight, layer.weight)
        True
        """

        def scope() -> Scope:
            return Scope(prefix, None if only is None else Choice.given("only", only), parts)

        reshard_(model)
        return write_plan_(self, model, scope, device, dtype, buffers, progress, storage)

    def diff(self, other: Plan) -> list[Difference]:
        """The parameters that the other plan would initialise otherwise, or lacks, or has beyond this.

        Seeds are not compared. An empty list means that both say the same of every parameter: a recipe
        that was silently not applied shows here.

        >>> plan = Plan({"weight": Fill.normal(std=0.02), "bias": Fill.constant(0.0)})
        >>> for difference in plan.diff(Plan({"weight": Fill.normal(std=0.01), "bias": plan["bias"]})):
        ...     print(difference)
        weight: normal, std 0.02; other: normal, std 0.01
        """
        names = [*self, *(name for name in other if name not in self)]
        pairs = [(name, self.get(name), other.get(name)) for name in names]
        return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]

    def scaled(self, factors: Mapping[str, float]) -> Plan:
        """This plan with the values of some parameters multiplied by positive numbers.

        Raises:
            KeyError: a name that the plan lacks.
            NumberTypeError, NumberRangeError: what is no number; not positive and finite.
        """
        fills = dict(self._fills)
        for name, factor in factors.items():
            own = self._aliases.get(name, name)
            fills[own] = fills[own].scaled(number.positive(f"factors[{name!r}]", factor))
        return Plan(fills, seed=self.seed, aliases=self._aliases, buffers=self._buffers)

    def groups(self, model: nn.Module | None = None) -> list[groups.Group]:
        """The parameters that are called and filled alike, in the order in which each first appears.

        Args:
            model: where the numbers of elements are taken from; it may be on meta.

        Raises:
            ValueError: the model lacks parameters of the plan.
        """
        sizes: dict[str, int] = {}
        if model is not None:
            for names, _, parameter in distinct_parameters(model):
                if not isinstance(parameter, UninitializedParameter):
                    sizes.update(dict.fromkeys(names, parameter.numel()))
            if lacking := [name for name in self if name not in sizes]:
                raise ValueError(f"the model has no {listing('parameter', lacking)}")
        return groups.groups(self._fills, sizes)

    def table(self, model: nn.Module | None = None) -> html.Table:
        """The plan as a text table of 80 columns: one line for each pattern of names and Fill.

        Args:
            model: gives the numbers of elements, which a plan does not know; it may be on meta.
        """
        return groups.plan_table(self.groups(model), with_elements=model is not None)

    def to_json(self) -> str:
        """The plan as JSON, from which :meth:`from_json` makes an equal one.

        Numbers are written with the digits that give the same double again (infinities and NaN as
        strings), and consecutive layers that are filled alike once.

        Raises:
            ValueError: parameters that a constructor computed or was given values for (all are listed);
                more than 2^20 parameters.
        """
        computed = [f"{n} ({f})" for n, f in self.items() if isinstance(f, Computed)]
        if computed:
            raise ValueError(f"JSON cannot hold the values of {listing('parameter', computed)}")
        fills = {n: f for n, f in self.items() if isinstance(f, Fill)}
        return plan_to_json(fills, self.seed, self._aliases)

    @classmethod
    def from_json(cls, document: str) -> Plan:
        """The plan that :meth:`to_json` wrote. Nothing is guessed.

        Raises:
            ValueError: not JSON, not a plan, a version that this fastinit does not know, a key that is
                unknown, missing or there twice, a value of another type or no good, layers that are
                more than 2^20 parameters, or any part of a parameter that has an element twice; the
                message says where.
            TypeError: document is no str.
        """
        if not isinstance(document, str):
            raise TypeError(f"document must be a str, but got {type(document).__name__}")
        try:
            return cls(**plan_from_json(document))
        except ValueError as error:
            raise ValueError(f"not a plan: {error}") from None
        except RecursionError:
            raise ValueError("not a plan: nested too deeply") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Writes :meth:`to_json` to a file. One that is there is replaced when all is on disk.

        Raises:
            OSError: what the system says, such as a full disk; the file is then as it was.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Reads a file that :meth:`save` wrote; its errors name the path."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a plan: not text in UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
