"""A watch's rows: what one rank saw of each layer, and what all ranks saw together.

Ranks have batches of their own, parts of one output (tensor parallelism), the same output once more, or
other layers (pipeline stages). What they have in common shows in the numbers: where two ranks hold the
same part of a layer's output and their moments differ in a bit, they saw different batches. Of the ranks
that saw one batch each part counts once; different parts and different batches add up. Layers go by
their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fastinit.base import ranks
from fastinit.statistics.formats import merged_rows
from fastinit.statistics.tensor import Moments
from fastinit.stream.formats import NOTHING, Counting
from fastinit.stream.reference_moments import COUNT, NONFINITE
from fastinit.variance.watch.cuts import UNCUT, Cut
from fastinit.variance.watch.result import Watched


@dataclass(slots=True)
class Seen:
    """A layer's outputs, or their gradients, over all calls.

    Attributes:
        raw: their raw moments.
        values: how many there were of each unit, if it is known which units there are.
        still: units whose values were all the same, of gradients all 0, and that value.
        cut: which part of all this rank has, and of the units: the same texts for the same parts.
    """

    calls: int
    raw: list[float]
    values: int = 0
    still: dict[int, float] = field(default_factory=dict)
    cut: Cut = UNCUT

    @property
    def is_empty(self) -> bool:
        return self.raw[COUNT] + self.raw[NONFINITE] == 0


@dataclass(slots=True)
class Row:
    """What one rank knows of a layer.

    Attributes:
        input: as ``forward``, of what came in.
        weight: raw moments, of what this rank holds.
        weight_gradient: those of its gradient, and as cut the text of that part.
        part: which elements of the weight these are: the same text for the same elements; None if
            nobody says.
        partial: whether other ranks have other parts of the output or the weight.
        tied: the first layer with this weight.
        units: of its output, on this rank; 0 if it is not known which they are.
    """

    name: str
    kind: str
    forward: Seen
    backward: Seen | None
    input: Seen | None
    weight: list[float] | None
    weight_gradient: Seen | None
    part: str | None
    partial: bool
    fan_in: float
    fan_out: float
    tied: str
    units: int
    notes: list[str]
    counted: Counting = NOTHING  # what the last fields of raw moments count

    def dead(self) -> set[int]:
        """Units whose output never varied, or whose gradient was 0 throughout."""
        still = set(self.forward.still) if self.forward.values > 1 else set()
        return still | set({} if self.backward is None else self.backward.still)


Rows = tuple[list[Row], dict[str, str]]
"""The layers that ran, and by name why others did not."""


def watched(rows: Sequence[Row]) -> list[Watched]:
    """The rows of a table."""
    raws = [
        raw
        for row in rows
        for raw in (
            row.forward.raw,
            *(seen.raw for seen in (row.backward, row.input, row.weight_gradient) if seen),
            *([] if row.weight is None else [row.weight]),
        )
    ]
    numbers = torch.tensor(raws, dtype=torch.float64, device="cpu")
    moments = iter(Moments.of_rows(numbers, rows[0].counted) if raws else ())
    layers: list[Watched] = []
    product, first = 1.0, dict[str, str]()
    for row in rows:
        forward = next(moments)
        backward, came, gradient = (
            None if seen is None else next(moments)
            for seen in (row.backward, row.input, row.weight_gradient)
        )
        weight = None if row.weight is None else next(moments)
        factor = math.nan if weight is None else row.fan_in * weight.var / 2
        notes = list(row.notes)
        if row.partial:
            notes.append("this rank's part")
        if not math.isnan(factor):
            tied = first.setdefault(row.tied, row.name)
            if tied == row.name:
                product *= factor
            else:
                notes.append(f"weight tied to {tied}, counted there")
        layers.append(
            Watched(
                row.name,
                row.kind,
                row.forward.calls,
                forward,
                backward,
                came,
                weight,
                gradient,
                row.fan_in,
                row.fan_out,
                factor,
                product,
                row.units,
                len(row.dead()),
                "; ".join(notes),
            )
        )
    return layers


# --- several ranks -------------------------------------------------------------------------------


def all_merged(rows: list[Row], missing: dict[str, str], group: ranks.Group) -> Rows:
    """What all ranks of a group saw, the same on each; a collective.

    Raises:
        ValueError: on all ranks: weights that differ where they should be one; none has any layer.
        and as :func:`fastinit.base.ranks.gathered`.
    """
    said = json.dumps([[asdict(row) for row in rows], missing])
    of_ranks: dict[int, Rows] = {}
    texts = ranks.gathered_texts(group, said, "merging what ranks watched")
    for rank, text in zip(ranks.members(group), texts):
        heard, why = json.loads(text)
        of_ranks[rank] = [_row(one) for one in heard], why
    if not any(some or why for some, why in of_ranks.values()):
        raise ValueError("layers must choose at least one layer of a rank's model, but do on none")
    batches = _batches({rank: some for rank, (some, _) in of_ranks.items()})
    by_name: dict[str, dict[int, Row]] = {}
    for rank, (some, _) in of_ranks.items():
        for row in some:
            by_name.setdefault(row.name, {})[rank] = row
    order = _order([[row.name for row in some] for some, _ in of_ranks.values()])
    together = [_merged_row(by_name[name], batches) for name in order]
    for row in together:
        for rank, (_, why) in of_ranks.items():
            if row.name in why:
                row.notes.append(f"rank {rank}: {why[row.name]}")
    unseen = {n: w for _, why in reversed(of_ranks.values()) for n, w in why.items()}
    return together, {name: why for name, why in unseen.items() if name not in by_name}


def _batches(rows: Mapping[int, list[Row]]) -> dict[int, int]:
    """By rank the number of its batch: the same for those in whose numbers nothing differs."""
    known: list[dict[tuple[str, str], list[list[float]]]] = []
    found: dict[int, int] = {}
    for rank, some in rows.items():
        seen = {
            (row.name, row.forward.cut.values): _numbers(row)
            for row in some
            if not row.forward.is_empty
        }
        same = (
            number
            for number, batch in enumerate(known)
            if all(batch.get(key, numbers) == numbers for key, numbers in seen.items())
        )
        found[rank] = next(same, len(known))
        if found[rank] == len(known):
            known.append({})
        known[found[rank]].update(seen)
    return found


def _numbers(row: Row) -> list[list[float]]:
    return [row.forward.raw, [] if row.backward is None else row.backward.raw]


def _order(sequences: Iterable[Sequence[str]]) -> list[str]:
    """All names, each sequence's in its order; those that only a later one has come after."""
    order: list[str] = []
    for names in sequences:
        known, at = set(order), len(order)
        if known.issuperset(names):
            continue
        for name in reversed(names):
            if name in known:
                at = order.index(name)
            else:
                order.insert(at, name)
    return order


def _merged_row(of_rank: Mapping[int, Row], batches: Mapping[int, int]) -> Row:
    """One layer, as all ranks that have it saw it together."""
    first = next(iter(of_rank.values()))
    width = first.counted.width
    if any(row.counted != first.counted for row in of_rank.values()):
        raise ValueError(f"ranks have counted different things of {first.name or 'the model'}")
    for row in of_rank.values():
        if row.weight is not None and row.part is None:
            row.notes.append("without Var[W]: it is not known which part of the weight this is")
    forwards = _counting({rank: row.forward for rank, row in of_rank.items()}, batches)
    backwards = _counting({rank: row.backward for rank, row in of_rank.items()}, batches)
    inputs = _counting({rank: row.input for rank, row in of_rank.items()}, batches)
    gradients = _unlike(row.weight_gradient for row in of_rank.values())
    forward, backward = _merged_seen(forwards, width), _merged_if_any(backwards, width)
    units: dict[str, int] = {}
    for row in of_rank.values():
        units[row.forward.cut.units] = max(units.get(row.forward.cut.units, 0), row.units)
    ahead = 0  # units before those of one part of them
    for cut, count in units.items():
        forward.still |= _still(forwards, cut, ahead, least=2)
        if backward is not None:
            backward.still |= _still(backwards, cut, ahead, least=1)
        ahead += count
    return Row(
        first.name,
        first.kind,
        forward,
        backward,
        _merged_if_any(inputs, width),
        _merged_weight(of_rank),
        _merged_if_any(gradients, width),
        "",
        False,
        first.fan_in,
        first.fan_out,
        first.tied,
        ahead,
        _merged_notes({rank: row.notes for rank, row in of_rank.items()}),
        first.counted,
    )


def _counting(of_rank: Mapping[int, Seen | None], batches: Mapping[int, int]) -> list[Seen]:
    """Of each batch each part once."""
    found: dict[tuple[int, str], Seen] = {}
    for rank, seen in of_rank.items():
        if seen is not None:
            found.setdefault((batches[rank], seen.cut.values), seen)
    return list(found.values())


def _unlike(some: Iterable[Seen | None]) -> list[Seen]:
    """Each part once, and again where its numbers are others: nobody has averaged these gradients."""
    found = {(seen.cut.values, *seen.raw): seen for seen in some if seen is not None}
    return list(found.values())


def _merged_if_any(some: Sequence[Seen], counted: int) -> Seen | None:
    return _merged_seen(some, counted) if some else None


def _merged_seen(some: Sequence[Seen], counted: int) -> Seen:
    raw = _merged_raws([seen.raw for seen in some], counted)
    calls, values = max(seen.calls for seen in some), sum(seen.values for seen in some)
    return Seen(calls, raw, values)


def _merged_raws(raws: Sequence[list[float]], counted: int) -> list[float]:
    first, *others = (torch.tensor(raw, dtype=torch.float64, device="cpu") for raw in raws)
    for other in others:
        first = merged_rows(first, other, counted)
    numbers: list[float] = first.tolist()
    return numbers


def _still(some: Sequence[Seen], cut: str, ahead: int, least: int) -> dict[int, float]:
    """Units of one part of them that are still on all ranks, and alike.

    Args:
        ahead: how many there are before these.
        least: values there must be of each.
    """
    some = [seen for seen in some if seen.cut.units == cut and not seen.is_empty]
    if not some or sum(seen.values for seen in some) < least:
        return {}
    first, *others = [seen.still for seen in some]
    alike = {u: v for u, v in first.items() if all(other.get(u) == v for other in others)}
    return {ahead + u: v for u, v in alike.items()}


def _merged_weight(of_rank: Mapping[int, Row]) -> list[float] | None:
    """All parts of the weight, each once."""
    parts: dict[str, tuple[int, list[float]]] = {}
    for rank, row in of_rank.items():
        if row.weight is None:
            continue
        if row.part is None:
            return None
        known, weight = parts.setdefault(row.part, (rank, row.weight))
        if weight != row.weight:
            raise ValueError(
                f"ranks {known} and {rank} have different weights in {row.name or 'the model'}: they "
                f"should be the same, or these are two layers of one name, as of pipeline stages, "
                f"which need the names that they have in the whole model (full_name=)"
            )
    if not parts:
        return None
    width = next(iter(of_rank.values())).counted.width
    return _merged_raws([weight for _, weight in parts.values()], width)


def _merged_notes(of_rank: Mapping[int, list[str]]) -> list[str]:
    """Each once, with the ranks where not all say it."""
    found: dict[str, list[int]] = {}
    for rank, notes in of_rank.items():
        for note in notes:
            found.setdefault(note, []).append(rank)
    return [
        note if len(said) == len(of_rank) else f"rank {ranks.listing(said)}: {note}"
        for note, said in found.items()
    ]


def _row(said: dict[str, Any]) -> Row:
    for signal in ("forward", "backward", "input", "weight_gradient"):
        if (one := said[signal]) is not None:
            still = {int(unit): value for unit, value in one["still"].items()}
            said[signal] = Seen(**{**one, "still": still, "cut": Cut(*one["cut"])})
    formats, histogram = said["counted"]
    return Row(**{**said, "counted": Counting(tuple(formats), histogram)})
