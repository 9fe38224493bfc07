"""What random tensors of a model have in common with those of the same model drawn with other seeds."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fastinit.plan.groups import pattern

SLICES, LENGTH, SAMPLE = 1024, 4096, 1 << 14
"""At most so many slices of a dimension, elements of a slice, and elements of a tensor are looked at."""
MOST = 12.0  # bits of an element that differs from all others
BITS = 40  # of chance: what agrees in so many does not by accident
NEAR = 1e-6  # of a vector of length 1: sixteen times a float32's rounding, 6e-8, of its elements


def digest(values: Tensor) -> str:
    """The same for the same bits, of any shape."""
    data = values.detach().contiguous().reshape(-1)
    return hashlib.blake2b(data.view(torch.uint8).numpy(), digest_size=16).hexdigest()


def spread(size: int, most: int) -> slice:
    """At most so many indices below ``size``, at equal distances, whole blocks of rows apart."""
    return slice(0, size, max(1, -(-size // most)))


class Numbers:
    """Random tensors of one model, by path.

    Args:
        values: dense, real and on the CPU.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values
        self.facts = {(path, *fact): x for path, v in values.items() for *fact, x in facts(v)}
        self.shared = _shared(values)

    @functools.cached_property
    def pools(self) -> dict[str, np.ndarray]:
        """Numbers of each tensor, and of those together whose paths differ in numbers of layers."""
        pooled: dict[str, list[Tensor]] = {}
        for path, values in self.values.items():
            flat = values.reshape(-1)
            sample = flat[spread(len(flat), SAMPLE)].double()
            sample = sample[~sample.isnan()]
            pooled[path] = [sample]
            if (group := pattern(path)) != path:
                pooled.setdefault(group, []).append(sample)
        return {key: torch.cat(samples).numpy() for key, samples in pooled.items()}


def differences(eager: Sequence[Numbers], ours: Numbers, level: float) -> list[str]:
    """What holds of all eager models, and not of ours.

    Args:
        eager: two or more, of different seeds.
        ours: of the same paths and shapes.
        level: of all two-sample Kolmogorov-Smirnov tests together.
    """
    return [
        *_other_laws(eager, ours, level),
        *_other_facts(eager, ours),
        *_other_relations(eager, ours),
        *_other_constants(eager, ours),
    ]


def _other_laws(eager: Sequence[Numbers], ours: Numbers, level: float) -> Iterator[str]:
    for key, drawn in ours.pools.items():
        theirs = np.concatenate([numbers.pools[key] for numbers in eager[:2]])
        if not len(drawn) or not len(theirs):
            if len(drawn) != len(theirs):
                yield f"{key}: of {len(drawn)} numbers, eagerly of {len(theirs)}"
            continue
        test = _ks(drawn, theirs)
        if test.pvalue > level / len(ours.pools):
            continue
        # Elements that hang together (one number for all of a tensor) are no sample of as many. How far
        # eager models are from each other tells: a model like them is not half as far again.
        usual = max((_ks(n.pools[key], theirs).statistic for n in eager[2:]), default=0.0)
        if test.statistic > 1.5 * usual:
            yield (
                f"{key}: of another distribution, p = {test.pvalue:.1g}: "
                f"{_law(drawn)}, eagerly {_law(theirs)}"
            )


def _ks(one: np.ndarray, other: np.ndarray) -> Any:
    return stats.ks_2samp(one, other, method="auto" if len(one) < 500 else "asymp")


def _law(drawn: np.ndarray) -> str:
    return f"mean {drawn.mean():.4g}, std {drawn.std():.4g}, {drawn.min():.4g} to {drawn.max():.4g}"


def _other_facts(eager: Sequence[Numbers], ours: Numbers) -> Iterator[str]:
    for key, fact in eager[0].facts.items():
        found = [numbers.facts.get(key) for numbers in (*eager[1:], ours)]
        # What is only near 1 among many uniform numbers is no fact: eager models agree much closer.
        if all(_alike(fact, f, 1e-6) for f in found[:-1]) and not _alike(fact, found[-1], 1e-4):
            path, *what = key
            yield f"{path}: {' '.join(map(str, what))} {_say(found[-1])}, eagerly {_say(fact)}"


def _say(fact: Any) -> str:
    return f"{fact:.6g}" if isinstance(fact, float) else str(fact)


def _alike(one: Any, other: Any, near: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=near, abs_tol=near / 100)
    return bool(one == other)


def _other_relations(eager: Sequence[Numbers], ours: Numbers) -> Iterator[str]:
    for key in dict.fromkeys((*eager[0].shared, *ours.shared)):
        counts = {numbers.shared.get(key, 0) for numbers in eager}
        got = ours.shared.get(key, 0)
        if len(counts) == 1 and got not in counts:
            one, other = (f"{path} {what}" for path, what in key)
            if one == other:
                what = f"{one}: {got} have the same numbers as another"
            else:
                what = f"{one}: {got} have the same numbers as one in {other}"
            yield f"{what}, eagerly {counts.pop()}"


def _other_constants(eager: Sequence[Numbers], ours: Numbers) -> Iterator[str]:
    """Elements that are no random ones, in tensors of which others are."""
    first = eager[0].values
    for path, values in first.items():
        same = eager[1].values[path] == values
        matches = int(same.count_nonzero())
        expected = values.numel() * 2.0 ** -chance(values) if chance(values) < MOST else 0.0
        if matches <= 3 * expected:
            continue
        for numbers in eager[2:]:
            same &= numbers.values[path] == values
        got, wanted = ours.values[path][same].double(), values[same].double()
        wrong = int((~torch.isclose(got, wanted, rtol=1e-5, atol=1e-6)).count_nonzero())
        by_chance = (matches - len(wanted)) / values.numel()
        often = values.numel() * math.sqrt(by_chance) ** (len(eager) - 1) >= 1e-3
        if wrong and (len(eager) == 2 or not often):
            yield f"{path}: {wrong} elements that are constant eagerly are not those"


def facts(values: Tensor) -> Iterator[tuple[Any, ...]]:
    """What may be true of a random tensor whatever the seed: what, and the number or bits."""
    if not values.numel():
        return
    if zeros := values.numel() - int(values.count_nonzero()):
        yield "zeros at", digest(values == 0)
    yield "zeros, more than a hundredth", zeros > 3 + values.numel() / 100
    yield "infinite", int(values.isinf().count_nonzero())
    yield "smallest", float(values.min())
    yield "largest", float(values.max())
    if values.numel() <= 1 << 20 and chance(values) > 4:  # not how many ones there are in a mask
        yield "sorted values", digest(values.reshape(-1).sort().values)
    if not values.is_floating_point():
        return
    numbers = values.double() if values.numel() <= 1 << 22 else values.float()
    if values.dim() == 2 and values.shape[0] == values.shape[1]:
        yield "symmetric", bool(torch.allclose(numbers, numbers.T, rtol=1e-5, atol=1e-7))
    few = SLICES if values.numel() <= 1 << 22 else 64
    for dim in range(values.dim()) if values.dim() > 1 else ():
        rows = numbers.movedim(dim, 0)
        rows = rows[spread(len(rows), few)].flatten(1).double()
        norms, sums = rows.norm(dim=1), rows.sum(1)
        if norms.max() - norms.min() <= 1e-4 * norms.mean():
            yield f"norm of each slice of dimension {dim}", float(norms.mean())
        if (sums.abs() <= 1e-5 * norms * math.sqrt(rows.shape[1])).all():
            yield f"sum of each slice of dimension {dim}", 0.0
    if values.dim() > 1:
        yield from _orthogonal("rows", numbers.flatten(1))
    if values.dim() > 2:
        yield from _orthogonal("last two dimensions", numbers)


def _orthogonal(what: str, matrices: Tensor) -> Iterator[tuple[Any, ...]]:
    """If all of them are multiples of orthogonal matrices, by which factor: seen on one vector each."""
    short = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    if short.shape[-2] < 2:
        return
    vector = directions(short.shape[-2])[:, :1].to(short.dtype)
    image = short @ (short.mT @ vector)
    factors = (image * vector).sum((-2, -1)) / (vector * vector).sum()
    apart = (image - factors[..., None, None] * vector).norm(dim=(-2, -1))
    if (apart <= 1e-3 * factors * vector.norm()).all():
        yield f"orthogonal {what} times the root of", float(factors.mean())


@functools.lru_cache(maxsize=64)
def directions(length: int) -> Tensor:
    """Three fixed random vectors, [length, 3]."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(length, 3, dtype=torch.float64, generator=generator)


Block = tuple[str, str]  # a path, and which of its slices
Relation = tuple[Block, Block]


def _shared(values: dict[str, Tensor]) -> dict[Relation, int]:
    """How many slices of one tensor are multiples of some of another, or of others of its own.

    Slices are vectors, along any dimension, so a transposed copy has those of what it is copied from;
    the whole tensor is one too. So is where it is zero, which a mask has in common with what it masks.
    """
    by_length: dict[int, list[tuple[Block, Tensor]]] = {}
    for path, tensor in values.items():
        for what, view in _views(tensor):
            for dim in (None, *(range(view.dim()) if view.dim() > 1 else ())):
                length = view.numel() if dim is None else view.numel() // max(view.shape[dim], 1)
                if length * chance(view) < BITS:
                    continue
                name = f"{what} as a whole" if dim is None else f"{what} of dimension {dim}"
                by_length.setdefault(length, []).append(((path, name), _projected(view, dim)))
    found: dict[Relation, int] = {}
    for blocks in by_length.values():
        for relation, count in _related(blocks):
            found[relation] = found.get(relation, 0) + count
    return found


def _views(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    others = int(tensor.count_nonzero())
    if 0 < others < tensor.numel():
        yield "zeros", (tensor != 0).float()
    if others and others != int((tensor == 1).count_nonzero()):
        yield "slices", tensor


def chance(view: Tensor) -> float:
    """Bits of chance in each element, from how often two of them are equal; at most MOST."""
    flat = view.reshape(-1)
    flat = flat[spread(len(flat), LENGTH)]
    if len(flat) < 2:
        return 0.0
    counts = flat.unique(return_counts=True)[1].double()
    equal = float((counts * (counts - 1)).sum()) / (len(flat) * (len(flat) - 1))
    return min(-math.log2(equal), MOST) if equal else MOST


def _projected(view: Tensor, dim: int | None) -> Tensor:
    """Each slice's direction, by its components in three others: [slices, 3]."""
    rows = view.reshape(1, -1)
    if dim is not None:
        rows = view.movedim(dim, 0)
        rows = rows[spread(len(rows), SLICES)].flatten(1)
    rows = rows[:, spread(rows.shape[1], LENGTH)].double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    components = rows @ directions(rows.shape[1])
    components = components * components[:, :1].sign()  # a negative multiple is one too
    # Vectors of one or two elements that are not zero are often alike.
    return components[components.isfinite().all(1) & ((rows != 0).sum(1) > 3)]


def _related(blocks: list[tuple[Block, Tensor]]) -> Iterator[tuple[Relation, int]]:
    owner = np.repeat(np.arange(len(blocks)), [len(p) for _, p in blocks])
    if len(owner) < 2:
        return
    components = torch.cat([p for _, p in blocks]).numpy()
    cluster = np.zeros(len(owner), dtype=np.int64)
    for column in components.T:
        order = np.lexsort((column, cluster))
        apart = (np.diff(cluster[order]) != 0) | (np.diff(column[order]) > NEAR)
        cluster[order] = np.concatenate(([0], np.cumsum(apart)))
    _, sizes = np.unique(cluster, return_counts=True)
    several = sizes[cluster] > 1
    members: dict[int, dict[int, int]] = {}
    for group, block in zip(cluster[several].tolist(), owner[several].tolist()):
        counts = members.setdefault(group, {})
        counts[block] = counts.get(block, 0) + 1
    for counts in members.values():
        first = min(counts)
        for block, count in counts.items():
            if count > 1:
                yield (blocks[block][0], blocks[block][0]), count
            if block != first:
                yield (blocks[block][0], blocks[first][0]), count
