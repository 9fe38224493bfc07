"""The JSON form of a plan: exact, small, and strict when it is read.

Consecutive layers that are filled alike are written once, so that a 70B model's plan takes a few
kilobytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastinit.base import number
from fastinit.elements.strided import Strided
from fastinit.plan.fill import PARAMETERS, Fill, Part
from fastinit.stream.keys import STREAM_VERSION

FORMAT = "fastinit.plan"
FORMAT_VERSION = 1

_Named = list[tuple[str, dict[str, Any]]]


def plan_to_json(fills: Mapping[str, Fill], seed: int, aliases: Mapping[str, str]) -> str:
    """The document of a Plan, of one line for each field; fills in their order."""
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
    """The arguments of a Plan, of which it checks ``seed`` and ``aliases`` itself.

    Raises:
        ValueError: no JSON, no plan, another version, or a parameter that is no Fill.
        KeyError, TypeError, AttributeError: a part of the document that is missing, or no good.
    """
    try:
        fields = json.loads(document, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a plan: not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'not a plan: "format" is not "{FORMAT}"')
    for key, known in (("version", FORMAT_VERSION), ("stream_version", STREAM_VERSION)):
        if fields.get(key) != known:
            raise ValueError(
                f'plan with "{key}" {fields.get(key)!r}: this fastinit knows {known} only'
            )
    fills = {n: fill_from_json(n, f) for n, f in unfold_layers(fields["parameters"])}
    return {"fills": fills, "seed": fields["seed"], "aliases": fields.get("aliases")}


def fill_to_json(fill: Fill) -> dict[str, object]:
    """A Fill's fields, without those that have their default; infinities and NaN as text."""
    out: dict[str, object] = {"distribution": fill.distribution}
    for name, value in zip(PARAMETERS[fill.distribution], fill.parameters):
        out[name] = value if math.isfinite(value) else str(value)
    if fill.scale != 1.0:
        out["scale"] = fill.scale
    if fill.stream is not None:
        out["stream"] = fill.stream
    if fill.parts:
        out["parts"] = [{**r._asdict(), **fill_to_json(part)} for r, part in fill.parts]
    return out


def fill_from_json(name: str, fields: dict[str, Any]) -> Fill:
    """The Fill of a parameter; raises ValueError, with its name, for fields that are none."""
    rest = dict(fields)
    try:
        distribution = rest.pop("distribution")
        scale, stream = rest.pop("scale", 1.0), rest.pop("stream", None)
        if stream is not None and not isinstance(stream, str):
            raise TypeError(f"stream is no name: {stream!r}")
        parts = tuple(_part_from_json(name, part) for part in rest.pop("parts", ()))
        names = PARAMETERS[distribution]
        if tuple(rest) != names:
            raise ValueError(f"expected {', '.join(names)}, but got {', '.join(rest)}")
        parameters = tuple(_number(name, value) for name, value in rest.items())
        return Fill(distribution, parameters, scale, parts, stream)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"parameter {name}: no Fill ({error}): {fields}") from None


def _number(key: str, value: Any) -> float:
    """JSON has no infinities and no NaN: they are written as text."""
    return float(value) if value in ("inf", "-inf", "nan") else number.real(key, value)


def _part_from_json(name: str, fields: dict[str, Any]) -> Part:
    rest = dict(fields)
    offset, sizes, strides = (rest.pop(key) for key in Strided._fields)
    if len(sizes) != len(strides):
        raise ValueError(f"{len(sizes)} sizes, {len(strides)} strides")
    for count in (offset, *sizes, *strides):
        number.integer("an element count", count, least=0)
    return Part(Strided(offset, tuple(sizes), tuple(strides)), fill_from_json(name, rest))


def fold_layers(named: _Named) -> list[dict[str, object]]:
    """Entries ``{"name", ...fill}``, and ``{"layers", "first", "last", "parameters"}`` for runs of
    layers ``layers.first`` to ``layers.last`` that hold the same parameters with the same fills.
    """
    entries: list[dict[str, Any]] = []
    for layer, members in _layers(named):
        previous = entries[-1] if entries else {}
        if layer is None:
            entries += [{"name": name, **fill} for name, fill in members]
            continue
        parameters = [{"name": name, **fill} for name, fill in members]
        stem, index = layer
        if (previous.get("layers"), previous.get("last")) == (stem, index - 1) and (
            previous["parameters"] == parameters
        ):
            previous["last"] = index
        else:
            entries.append(
                {"layers": stem, "first": index, "last": index, "parameters": parameters}
            )
    return entries


def _layers(named: _Named) -> Iterator[tuple[tuple[str, int] | None, _Named]]:
    """Consecutive parameters of one layer ``stem.index``, with their names in it; None for no layer."""
    current: tuple[str, int] | None = None
    members: _Named = []
    for name, fill in named:
        match = re.match(r"(.*?)\.(0|[1-9]\d*)\.(.+)", name)
        layer = (match[1], int(match[2])) if match else None
        if layer != current and members:
            yield current, members
            members = []
        current = layer
        members.append((match[3] if match else name, fill))
    if members:
        yield current, members


def unfold_layers(entries: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, fields) of each parameter that :func:`fold_layers` folded, in their order.

    Raises:
        ValueError: a parameter that appears twice. KeyError, TypeError: an entry that is none.
    """
    names = set()
    for entry in entries:
        if "layers" in entry:
            first, last = (number.integer(key, entry[key], least=0) for key in ("first", "last"))
            indices = range(first, last + 1)
            prefixes = [f"{entry['layers']}.{index}." for index in indices]
            members = entry["parameters"]
        else:
            prefixes, members = [""], [entry]
        for prefix in prefixes:
            for member in members:
                fields = dict(member)
                name = prefix + fields.pop("name")
                if name in names:
                    raise ValueError(f"not a plan: parameter {name} appears twice")
                names.add(name)
                yield name, fields


def without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's items as a dict; raises ValueError for a key that appears twice."""
    fields = dict(items)
    if len(fields) != len(items):
        raise ValueError(f"not a plan: a key appears twice among {', '.join(k for k, _ in items)}")
    return fields
