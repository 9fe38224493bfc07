"""A constructor may draw the whole of a parameter and keep a part: the law of the whole is its law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Part

FULL = (12, 8)


def drawn(dtype: torch.dtype = torch.float32) -> Tensor:
    return nn.init.normal_(torch.empty(FULL), std=0.5).to(dtype)


def in_turns(rank: int) -> Tensor:
    """As Megatron-Core's ``_initialize_affine_weight_cpu`` with a stride of two."""
    return torch.cat(torch.split(drawn(), 3, dim=0)[rank::2]).to_dense()


WHOLE = Part(FULL, name="full")
KEPT: dict[str, tuple[Callable[[int], Tensor], Callable[[int], Part]]] = {
    "rows in turns": (in_turns, lambda rank: WHOLE.split(0, 2, rank, stride=2)),
    "columns": (lambda rank: drawn().chunk(2, 1)[rank], lambda rank: WHOLE.chunk(1, 2, rank)),
    "rows, copied": (lambda rank: drawn()[rank * 6 :][:6].clone(), lambda r: WHOLE.chunk(0, 2, r)),
    "rounded": (lambda rank: drawn(torch.bfloat16)[rank::2], lambda rank: row(rank)),
}


def row(rank: int) -> Part:
    return WHOLE.cut(0, [(i, 1) for i in range(rank, 12, 2)])


class Layer(nn.Module):
    def __init__(self, values: Callable[[], Tensor]) -> None:
        super().__init__()
        made = values()
        self.weight = nn.Parameter(torch.empty(made.shape, dtype=made.dtype))
        with torch.no_grad():
            self.weight.copy_(made)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_kept_of_the_whole_is_a_part_of_it(kind: str, rank: int) -> None:
    values, part_of = KEPT[kind]
    part = part_of(rank)
    with fastinit.deferred(seed=4):
        layer = Layer(lambda: values(rank))
    plan = fastinit.recorded_plan(layer, parts={"weight": part})
    assert dict(plan) == {"full": Fill.normal(0.0, 0.5)}
    fastinit.materialize_(layer, parts={"weight": part})
    dtype = layer.weight.dtype
    whole = fastinit.init.normal_(torch.empty(FULL, dtype=dtype), std=0.5, seed=4, name="full")
    for piece in part.pieces(layer.weight.detach()):
        assert torch.equal(piece.tensor, piece.which.on(whole))


def many_times(_: int) -> Tensor:
    return drawn()[:1].expand(6, 8)


OTHERS: dict[str, Callable[[int], Tensor]] = {
    "one row six times": many_times,
    "changed": lambda rank: drawn().chunk(2)[rank] * 2.0 + torch.rand(6, 8),
    "of two draws": lambda _: torch.cat([drawn()[:3], drawn()[:3]]),
    "rounded before": lambda rank: drawn(torch.bfloat16).float().chunk(2)[rank],
    "of fewer elements than the whole": lambda _: nn.init.normal_(torch.empty(6, 9))[:, :8],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_made_of_the_whole_otherwise_is_refused(kind: str) -> None:
    with fastinit.deferred(seed=4):
        layer = Layer(lambda: OTHERS[kind](0))
    parts = {"weight": WHOLE.chunk(0, 2, 0)}
    for function in (fastinit.recorded_plan, fastinit.materialize_):
        with pytest.raises(
            ValueError, match=r"not filled by one law alone: parameter full \(weight\)"
        ):
            function(layer, parts=parts)
    assert layer.weight.is_meta
