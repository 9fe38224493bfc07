"""Streams: the names that the random numbers of a recorded model are drawn with."""

from __future__ import annotations

from collections.abc import Sequence

from fastinit.plan.history import Contents, Origin, Source


def name_origins(memories: Sequence[tuple[str, Source, Contents]]) -> dict[Origin, str]:
    """The stream of each origin.

    A parameter's own numbers have its name; those drawn for parts of it at once the name and the part:
    ``w[64:128]``; earlier ones that are in use elsewhere a number: ``w@1``. Numbers of a memory that is
    no parameter have the name of the first that they went into, if that has none of its own, or that and
    a number: ``w#1``.

    Args:
        memories: (name, the source of its own numbers, contents), in the order of the model.
    """
    names: dict[Source, str] = {}
    for name, source, _ in memories:
        names.setdefault(source, name)
    found = [(name, source, list(contents.origins())) for name, source, contents in memories]
    used = {name for name, own, origins in found if any(o.source is own for o in origins)}
    for name, _, origins in found:
        count = 0
        for origin in origins:
            if origin.source in names:
                continue
            if name not in used:
                names[origin.source] = name
                used.add(name)
            else:
                count += 1
                names[origin.source] = f"{name}#{count}"
    every = dict.fromkeys(origin for _, _, origins in found for origin in origins)
    draws: dict[Source, set[int]] = {}
    for origin in every:
        draws.setdefault(origin.source, set()).add(origin.draw)
    named: dict[Origin, str] = {}
    for origin in every:
        later = sum(draw > origin.draw for draw in draws[origin.source])
        text = f"{names[origin.source]}{origin.own}" + (f"@{later}" if later else "")
        named[origin] = origin.source.names.get(origin, text)
    return named
