"""The JSON form of a plan: exact, small, and strict when it is read.

Consecutive layers that are filled alike are written once, so that a 70B model's plan takes a few
kilobytes. What is read is what was written: every key is known, every value of its type, and nothing has
a default but what :func:`fill_to_json` leaves out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, TypeVar

from fastinit.base import number
from fastinit.base.text import listing
from fastinit.elements.strided import Strided
from fastinit.plan.distributions import PARAMETERS
from fastinit.plan.fill import Fill, FillPart
from fastinit.plan.steps import Step
from fastinit.stream.keys import STREAM_VERSION

FORMAT = "fastinit.plan"
FORMAT_VERSION = 1

MOST = 1 << 20
"""Parameters of one document. A few bytes can stand for any number of layers, and each of their
parameters becomes an object: these are ten times as many as the largest published models have."""

_Named = list[tuple[str, dict[str, Any]]]
_T = TypeVar("_T")
_D = TypeVar("_D")
_Read: TypeAlias = Callable[[str, Any], _T]
"""Of (where it is in the document, a JSON value): the value, or a ValueError that says where."""


def plan_to_json(fills: Mapping[str, Fill], seed: int, aliases: Mapping[str, str]) -> str:
    """The document of a Plan, of one line for each field; fills in their order.

    Raises:
        ValueError: more than ``MOST`` parameters.
    """
    _check_count(len(fills))
    document: dict[str, object] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "stream_version": STREAM_VERSION,
        "seed": seed,
        "parameters": fold_layers([(name, fill_to_json(fill)) for name, fill in fills.items()]),
    }
    if aliases:
        document["aliases"] = dict(aliases)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def plan_from_json(document: str) -> dict[str, Any]:
    """The arguments of a Plan, of which it checks the range of ``seed``, and ``aliases``, itself.

    Raises:
        ValueError: no JSON, or no plan; it says where.
    """
    try:
        value = json.loads(
            document,
            object_pairs_hook=_without_repeats,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'"format" is not "{FORMAT}"')
    fields = _Object("", value)
    fields.take("format", _text)
    for key, known in (("version", FORMAT_VERSION), ("stream_version", STREAM_VERSION)):
        if (version := fields.take(key, number.integer)) != known:
            raise ValueError(f"{key} is {version}, but this fastinit knows {known} only")
    seed = fields.take("seed", number.integer)
    fills = dict(unfold_layers(fields.take("parameters", _list_of(_entry))))
    aliases = fields.take_or("aliases", _names, None)
    fields.close()
    return {"fills": fills, "seed": seed, "aliases": aliases}


# --- a Fill ----------------------------------------------------------------------------------------


def fill_to_json(fill: Fill) -> dict[str, object]:
    """A Fill's fields, without those that have their default; infinities and NaN as text."""
    out: dict[str, object] = {"distribution": fill.distribution}
    for name, value in zip(PARAMETERS[fill.distribution], fill.parameters):
        out[name] = value if math.isfinite(value) else str(value)
    if fill.scale != 1.0:
        out["scale"] = fill.scale
    if fill.stream is not None:
        out["stream"] = fill.stream
    if fill.exact:
        out["exact"] = True
    if fill.steps:
        out["steps"] = [step.flat for step in fill.steps]
    if fill.parts:
        out["parts"] = [
            {**region._asdict(), **({"own": True} if own else {}), **fill_to_json(part)}
            for region, part, own in fill.parts
        ]
    return out


def _fill(fields: _Object) -> Fill:
    """A Fill, of an object that has no other keys left."""
    distribution = fields.take("distribution", _text)
    if distribution not in PARAMETERS:
        fields.refuse("distribution", f"one of {', '.join(PARAMETERS)}", distribution)
    parameters = [fields.take(name, _number) for name in PARAMETERS[distribution]]
    scale = fields.take_or("scale", number.real, 1.0)
    if "stream_in_layer" in fields:
        stream: str | None = _InLayer(fields.take("stream_in_layer", _text))
    else:
        stream = fields.take_or("stream", _text, None)
    steps = fields.take_or("steps", _list_of(_step), ())
    exact = fields.take_or("exact", _flag, False)
    parts = fields.take_or("parts", _list_of(_part), ())
    fields.close()
    try:
        return Fill(
            distribution, tuple(parameters), scale, tuple(parts), stream, tuple(steps), exact
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{fields.where}{error}") from None


class _InLayer(str):
    """The name of a stream, within the layer that it is read for."""


def _part(where: str, value: Any) -> FillPart:
    fields = _Object(f"{where}.", value)
    offset = fields.take("offset", _count)
    sizes, strides = (tuple(fields.take(key, _list_of(_count))) for key in ("sizes", "strides"))
    own = fields.take_or("own", _flag, False)
    return FillPart(Strided(offset, sizes, strides), _fill(fields), own)


def _step(where: str, value: Any) -> Step:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{where} must be a list of a name and its arguments, but got {number.said(value)}"
        )
    arguments = _list_of(number.real)(where, value[1:])
    return Step(_text(where, value[0]), tuple(arguments))


# --- layers ----------------------------------------------------------------------------------------


def fold_layers(named: _Named) -> list[dict[str, object]]:
    """Entries ``{"name", ...fill}``, and ``{"layers", "first", "last", "parameters"}`` for runs of
    layers ``layers.first`` to ``layers.last`` that hold the same parameters with the same fills.

    Streams of the layer's own are ``stream_in_layer`` there, without its name.
    """
    entries: list[dict[str, Any]] = []
    for layer, members in _layers(named):
        previous = entries[-1] if entries else {}
        if layer is None:
            entries += [{"name": name, **fill} for name, fill in members]
            continue
        stem, index = layer
        parameters = [{"name": name, **_within(f"{stem}.{index}.", fill)} for name, fill in members]
        if (previous.get("layers"), previous.get("last")) == (stem, index - 1) and (
            previous["parameters"] == parameters
        ):
            previous["last"] = index
        else:
            entries.append(
                {"layers": stem, "first": index, "last": index, "parameters": parameters}
            )
    return entries


def _within(prefix: str, fill: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Fill with the streams of a layer as they are called in it."""
    fields: dict[str, Any] = {}
    for key, value in fill.items():
        if key == "stream" and value.startswith(prefix):
            fields["stream_in_layer"] = value.removeprefix(prefix)
        else:
            fields[key] = [_within(prefix, p) for p in value] if key == "parts" else value
    return fields


def _of_layer(fill: Fill, prefix: str) -> Fill:
    """A Fill as it was read, of one layer."""
    parts = tuple([part._replace(fill=_of_layer(part.fill, prefix)) for part in fill.parts])
    stream = prefix + fill.stream if isinstance(fill.stream, _InLayer) else fill.stream
    return replace(fill, stream=stream, parts=parts)


def _is_of_layer(fill: Fill) -> bool:
    """Whether it is another in every layer."""
    streams = (fill.stream, *(part.fill.stream for part in fill.parts))
    return any(isinstance(stream, _InLayer) for stream in streams)


# An index has no more digits than are read as a count (below 2^63).
_IN_LAYER = re.compile(r"(.*?)\.(0|[1-9][0-9]{0,17})\.(.+)", re.DOTALL)


def _layers(named: _Named) -> Iterator[tuple[tuple[str, int] | None, _Named]]:
    """Consecutive parameters of one layer ``stem.index``, with their names in it; None for no layer."""
    current: tuple[str, int] | None = None
    members: _Named = []
    for name, fill in named:
        match = _IN_LAYER.fullmatch(name)
        layer = (match[1], int(match[2])) if match else None
        if layer != current and members:
            yield current, members
            members = []
        current = layer
        members.append((match[3] if match else name, fill))
    if members:
        yield current, members


_Entry = tuple[str | None, range, list[tuple[str, Fill]]]
"""The layers' name and indices, and what each has; None for parameters of no layer."""


def _entry(where: str, value: Any) -> _Entry:
    fields = _Object(f"{where}.", value)
    if "layers" not in fields:
        name, fill = _parameter(where, value)
        if _is_of_layer(fill):
            raise ValueError(f"{where}, parameter {name}: stream_in_layer is for layers")
        return None, range(1), [(name, fill)]
    stem = fields.take("layers", _text)
    first, last = fields.take("first", _count), fields.take("last", _count)
    if last < first:
        fields.refuse("last", f"at least first, {first}", last)
    members = fields.take("parameters", _list_of(_parameter))
    fields.close()
    return stem, range(first, last + 1), members


def _parameter(where: str, value: Any) -> tuple[str, Fill]:
    fields = _Object(f"{where}.", value)
    name = fields.take("name", _text)
    fields.where = f"{where}, parameter {name}: "
    return name, _fill(fields)


def unfold_layers(entries: list[_Entry]) -> Iterator[tuple[str, Fill]]:
    """(name, Fill) of each parameter that :func:`fold_layers` folded, in their order.

    Raises:
        ValueError: more than ``MOST`` parameters, or one that appears twice.
    """
    _check_count(sum(len(indices) * len(members) for _, indices, members in entries))
    names = set()
    for stem, indices, members in entries:
        each = [(own, fill, _is_of_layer(fill)) for own, fill in members]
        for index in indices:
            prefix = "" if stem is None else f"{stem}.{index}."
            for own, fill, is_of_layer in each:
                name = prefix + own
                if name in names:
                    raise ValueError(f"parameter {name} appears twice")
                names.add(name)
                yield name, _of_layer(fill, prefix) if is_of_layer else fill


def _check_count(parameters: int) -> None:
    if parameters > MOST:
        raise ValueError(f"{parameters:,} parameters, but the JSON of a plan has at most {MOST:,}")


# --- JSON values -----------------------------------------------------------------------------------


class _Object:
    """An object of the document, taken key by key; a key that nobody takes is an error."""

    def __init__(self, where: str, value: Any) -> None:
        """``where`` is what comes before a key in a message."""
        if not isinstance(value, dict):
            raise ValueError(f"{where.rstrip('.')} must be an object, but got {number.said(value)}")
        self.where = where
        self._left = dict(value)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, read: _Read[_T]) -> _T:
        """The value of a key that has to be there."""
        if key not in self._left:
            raise ValueError(f"{self.where}{key} is missing")
        return read(self.where + key, self._left.pop(key))

    def take_or(self, key: str, read: _Read[_T], default: _D) -> _T | _D:
        """The value of a key, or what it is where it was left out."""
        return self.take(key, read) if key in self._left else default

    def close(self) -> None:
        if self._left:
            raise ValueError(f"{self.where}nobody knows the {listing('key', list(self._left))}")

    def refuse(self, key: str, wanted: str, value: Any) -> NoReturn:
        number.out_of_range(self.where + key, wanted, value)


def _list_of(read: _Read[_T]) -> _Read[list[_T]]:
    def read_all(where: str, value: Any) -> list[_T]:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, but got {number.said(value)}")
        return [read(f"{where}[{place}]", item) for place, item in enumerate(value)]

    return read_all


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, but got {number.said(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is no text that UTF-8 has: {value!a}") from None
    return value


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, but got {number.said(value)}")
    return value


def _names(where: str, value: Any) -> dict[str, str]:
    fields = _Object(f"{where}.", value)
    return {_text(where, key): fields.take(key, _text) for key in value}


def _number(where: str, value: Any) -> float:
    """JSON has no infinities and no NaN: they are written as text."""
    return float(value) if value in ("inf", "-inf", "nan") else number.real(where, value)


def _count(where: str, value: Any) -> int:
    return number.integer(where, value, least=0)


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits} is beyond float64")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's items as a dict; raises ValueError for a key that appears twice."""
    fields: dict[str, Any] = {}
    for key, value in items:
        if key in fields:
            raise ValueError(f"the key {key} appears twice beside {', '.join(k for k, _ in items)}")
        fields[key] = value
    return fields
