"""Moments across ranks: those of the full tensor, whoever holds what of it; on real processes."""

import re
from collections.abc import Callable

import pytest
import torch
from dtensors import distributed

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks, pool
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard  # noqa: F401

import fastinit
from fastinit.base import ranks as group_of
from fastinit.elements.part import Part
from fastinit.statistics.tensor import ChannelMoments, Moments, moments, moments_many
from fastinit.stream.reference_moments import COUNT, MAX, MEAN, MIN, NONFINITE, ZEROS

WORLD = 4
EXACT = [COUNT, MIN, MAX, ZEROS, NONFINITE]


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same on every rank; with zeros, and a value that is not finite."""
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=generator).add_(0.5).to(dtype)
    flat = x.view(-1)
    flat[::5] = 0
    flat[3:4] = torch.inf
    return x


def raw(found: Moments | ChannelMoments) -> torch.Tensor:
    return found.raw.view(-1, found.raw.shape[-1])


def assert_alike(got: torch.Tensor, whole: torch.Tensor) -> None:
    """Sums in another order: to 1e-12 of float64, relative to the values, which are about 1."""
    assert torch.equal(got[:, EXACT], whole[:, EXACT])
    some = whole[:, COUNT] > 0
    torch.testing.assert_close(got[some, MEAN], whole[some, MEAN], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[some], whole[some], rtol=1e-12, atol=1e-12)


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# --- DTensors ------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[str], tuple[int, ...], int | None]:
    mesh = draw(st.sampled_from([(4,), (2, 2), (1, 4), (2, 1, 2)]))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    dims = st.integers(0, len(shape) - 1)
    strided = st.builds("_StridedShard({}, split_factor={})".format, dims, st.integers(2, 3))
    kinds = st.one_of(st.just("Replicate()"), dims.map("Shard({})".format), strided)
    placements = [draw(kinds) for _ in mesh]
    dim = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    return mesh, placements, shape, dim


def measured(
    mesh: tuple[int, ...], placements: list[str], shape: tuple[int, ...], dim: int | None
) -> torch.Tensor:
    x = distributed(values(shape), init_device_mesh("cpu", mesh), [eval(p) for p in placements])
    return raw(moments(x, dim=dim))


@settings(max_examples=15)
@given(layouts())
def test_a_dtensors_moments_are_the_full_tensors(layout) -> None:
    *_, shape, dim = layout
    first, *others = pool(WORLD).run(measured, *layout)
    assert_alike(first, raw(moments(values(shape), dim=dim)))
    for other in others:
        assert torch.equal(other, first)  # every rank merges alike


@on_ranks(WORLD)
def test_many_tensors_need_one_collective_for_each_dimension_that_cuts() -> None:
    square, row = init_device_mesh("cpu", (2, 2)), init_device_mesh("cpu", (4,))
    cut: list[tuple[DeviceMesh, list[Placement]]] = [
        (square, [Shard(0), Shard(1)]),
        (row, [Shard(0)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Replicate(), Replicate()]),
        (row, [Shard(1)]),
    ]
    full = [values((6 + i, 5)) for i in range(len(cut))]
    xs = [distributed(x, *where) for x, where in zip(full, cut)]
    plain = torch.full((3,), float(dist.get_rank()))
    asked = []
    gather = group_of.all_gather
    group_of.all_gather = lambda *a: (asked.append(len(a[0])), gather(*a))[1]
    try:
        *found, own = moments_many([*xs, plain])
        by_channel = moments_many(xs, dim=1)
    finally:
        group_of.all_gather = gather
    # Two dimensions of a mesh and one of another, twice; what does not fit in 64 words comes after.
    assert len(asked) in range(6, 13)
    for i, whole in enumerate(full):
        assert_alike(raw(found[i]), raw(moments(whole)))
        assert_alike(raw(by_channel[i]), raw(moments(whole, dim=1)))
    assert (own.mean, own.count) == (dist.get_rank(), 3)
    assert moments(xs[0].to_local()).count < moments(xs[0]).count  # the part alone


@on_ranks(WORLD)
def test_a_rank_outside_of_the_mesh_has_nothing_and_waits_for_nobody() -> None:
    mesh = DeviceMesh("cpu", [0, 2, 3])
    full = values((7, 2))
    x = distributed(full, mesh, [Shard(0)])
    whole, by_channel = moments(x), moments(x, dim=0)
    if dist.get_rank() == 1:
        assert (whole.count, whole.min) == (0, torch.inf)
        assert by_channel.count.tolist() == [0] * 7
    else:
        assert_alike(raw(whole), raw(moments(full)))
        assert_alike(raw(by_channel), raw(moments(full, dim=0)))


@pytest.mark.parametrize(
    "placements", [[Replicate()] * 2, [Replicate(), Shard(0)], [Shard(0), Replicate()]], ids=str
)
@pytest.mark.parametrize("dim", [None, 0, 1])
@on_ranks(WORLD)
def test_replicas_that_differ_are_an_error_on_all_ranks(placements, dim: int | None) -> None:
    mesh, rank = init_device_mesh("cpu", (2, 2)), dist.get_rank()
    local = torch.ones(2, 3)
    if rank == 3:
        local.view(-1)[4] += 1e-7  # one bit
    others = DTensor.from_local(torch.ones(2, 3), mesh, placements, run_check=False)
    differ = DTensor.from_local(local, mesh, placements, run_check=False)
    said = raised(lambda: moments_many([others, differ], dim=dim))
    assert re.search(
        r"ValueError: ranks that hold the same part must hold the same values, but ranks [0-2] / [1-3] "
        r"differ in the moments of DTensor number 1, with placements \(",
        said,
    )
    assert moments(others, dim=dim).parts == (Part(tuple(others.shape)),)


@on_ranks(WORLD)
def test_what_a_smaller_mesh_has_counts_where_it_is() -> None:
    full = values((7, 2))
    x = distributed(full, DeviceMesh("cpu", [2, 3]), [Shard(0)])
    for dim in (None, 0):
        assert_alike(raw(moments(x, dim=dim).all_merge()), raw(moments(full, dim=dim)))


@on_ranks(WORLD)
def test_what_cannot_be_measured_is_an_error_on_all_ranks_and_leaves_nobody_waiting() -> None:
    mesh, rank = init_device_mesh("cpu", (2, 2)), dist.get_rank()
    x = DTensor.from_local(torch.ones(2, 3), mesh, [Partial(), Shard(0)], run_check=False)
    assert re.match(r"NotImplementedError: .*Partial", raised(lambda: moments(x)))
    freed = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(1), Shard(0)], run_check=False)
    if rank == 2:
        freed.to_local().untyped_storage().resize_(0)
    said = raised(lambda: moments_many([freed, freed]))
    heard = "RuntimeError: x (number 0) has elements without memory"
    assert said.startswith(heard if rank == 2 else f"RanksError: rank 2 failed: {heard}"), said
    assert group_of.gathered(None, [rank]) == [[r] for r in range(WORLD)]


# --- merging -------------------------------------------------------------------------------------


def test_one_process_merges_with_nobody() -> None:
    x = values((6, 4))
    for found in (moments(x), moments(x, dim=1)):
        assert torch.equal(found.all_merge().raw, found.raw)
    part = Part((8, 4)).cut(0, [(2, 6)])
    whole = moments(x, dim=0, part=part).all_merge()
    assert whole.count.tolist() == [0, 0, *moments(x, dim=0).count.tolist()]


@on_ranks(WORLD)
def test_batches_add_up() -> None:
    rank = dist.get_rank()
    full = values((4 * WORLD, 3))
    mine = full.chunk(WORLD)[rank]
    micro = moments(mine[:1]).merge(moments(mine[1:]))
    for group, rows in (
        (None, full),
        (init_device_mesh("cpu", (2, 2)), full),
        (dist.group.WORLD, full),
        (
            DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("a", "b"))["b"],
            full.chunk(2)[rank // 2],
        ),
    ):
        assert_alike(raw(micro.all_merge(group)), raw(moments(rows)))
        assert_alike(raw(moments(mine, dim=1).all_merge(group)), raw(moments(rows, dim=1)))
    odd = moments(torch.ones(2, 3 + rank // 3), dim=1)
    assert "different numbers of channels: 3 on rank 0" in raised(odd.all_merge)


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Part]]:
    """Of each rank a part, so that some are the same and the others have nothing in common."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=3)))
    whole, dim = Part(shape), draw(st.integers(0, len(shape) - 1))
    pieces = draw(st.sampled_from([1, 2, 3, 4]))
    numel = whole.numel
    if draw(st.booleans()):
        ends = sorted(
            draw(st.lists(st.integers(0, numel), min_size=pieces - 1, max_size=pieces - 1))
        )
        bounds = list(zip([0, *ends], [*ends, numel]))
        some = [Part(shape, flat=(start, end - start)) for start, end in bounds]
    else:
        order = draw(st.permutations(range(shape[dim])))
        some = [whole.cut(dim, [(i, 1) for i in order[p::pieces]]) for p in range(pieces)]
    return shape, [some[draw(st.integers(0, pieces - 1))] for _ in range(WORLD)]


def held(shape: tuple[int, ...], part: Part) -> torch.Tensor:
    full = values(shape)
    if part.flat is not None:
        return full.reshape(-1)[part.flat[0] : sum(part.flat)]
    for dim, runs in enumerate(part.runs):
        index = [i for start, length in runs for i in range(start, start + length)]
        full = full.index_select(dim, torch.tensor(index, dtype=torch.int64))
    return full


def merged_parts(shape: tuple[int, ...], some: list[Part]) -> list[torch.Tensor]:
    part = some[dist.get_rank()]
    mine = held(shape, part)
    found = [moments(mine, part=part).all_merge()]
    found.append(found[0].all_merge())  # they are the whole parameter's by now
    if part.flat is None:
        found += [moments(mine, dim=d, part=part).all_merge() for d in range(len(shape))]
    return [raw(one) for one in found]


@settings(max_examples=15)
@given(parts())
def test_elements_that_are_held_by_several_ranks_count_once(case) -> None:
    shape, some = case
    seen = torch.full(shape, torch.nan)  # what all ranks together hold
    for part in set(some):
        for piece, which in part.pieces(held(shape, part)):
            which.on(seen).copy_(piece)
    total = torch.zeros(shape, dtype=torch.bool)
    for part in set(some):
        for _, which in part.pieces(held(shape, part)):
            which.on(total).fill_(True)
    first, *others = pool(WORLD).run(merged_parts, shape, some)
    assert_alike(first[0], raw(moments(seen[total])))
    assert torch.equal(first[0], first[1])
    for dim, by_channel in enumerate(first[2:]):
        rows = zip(seen.unbind(dim), total.unbind(dim))
        assert_alike(by_channel, torch.stack([moments(x[there]).raw for x, there in rows]))
    for other in others:
        assert all(map(torch.equal, other, first))


OVERLAPS = {
    "rows": [Part((8, 2)).cut(0, [(0, 3)]), Part((8, 2)).cut(0, [(2, 3)])],
    "rows and columns": [Part((8, 2)).cut(0, [(0, 3)]), Part((8, 2)).cut(1, [(0, 1)])],
    "a range and rows": [Part((8, 2), flat=(3, 6)), Part((8, 2)).cut(0, [(4, 1)])],
    "ranges": [Part((8, 2), flat=(3, 6)), Part((8, 2), flat=(8, 6))],
    "all and some": [Part((8, 2)), Part((8, 2)).cut(1, [(1, 1)])],
}
DISJOINT = {
    "a range and rows": [Part((8, 2), flat=(3, 5)), Part((8, 2)).cut(0, [(4, 1)])],
    "blocks": [
        Part((8, 2)).cut(0, [(0, 3)]).cut(1, [(0, 1)]),
        Part((8, 2)).cut(0, [(2, 3)]).cut(1, [(1, 1)]),
    ],
    "of two parameters": [Part((8, 2), name="a"), Part((8, 2), name="b")],
    "of two shapes": [Part((8, 2), name="a"), Part((8, 3), name="b")],
    "of none": [Part((8, 2)).cut(0, []), Part((8, 2))],
}


def merge_said(some: list[Part | None], other: int = -1, dim: int | None = None) -> str:
    part = some[min(dist.get_rank(), 1)]
    x = torch.ones(part.local_shape) if part else torch.ones(3)
    x.view(-1)[:1] += 1e-7 * (dist.get_rank() == other)  # a bit
    found = moments(x, dim=dim, part=part)
    message = raised(found.all_merge)
    return message or str(found.all_merge().count)


@pytest.mark.parametrize("case", OVERLAPS)
def test_parts_that_overlap_are_an_error_on_all_ranks(case: str) -> None:
    for said in pool(3).run(merge_said, OVERLAPS[case]):
        assert said.startswith(
            "ValueError: parts of one parameter must be the same or have no element"
        )
        assert "rank 0 has Part(shape=(8, 2)" in said
        assert "rank 1 has Part(shape=(8, 2)" in said


@pytest.mark.parametrize("case", DISJOINT)
def test_parts_without_common_elements_are_none(case: str) -> None:
    count = float(sum(part.numel for part in DISJOINT[case]))
    assert pool(3).run(merge_said, DISJOINT[case]) == [str(count)] * 3


COPIES = {
    "all of it": Part((8, 2)),
    "of a name": Part((8, 2), name="w"),
    "rows": Part((8, 2)).cut(0, [(1, 3)]),
    "interleaved columns": Part((2, 8)).cut(1, [(0, 2), (4, 2)]),
    "a flat range": Part((8, 2), flat=(3, 6)),
}


@pytest.mark.parametrize("case", COPIES)
def test_copies_of_a_part_that_differ_are_an_error_on_all_ranks(case: str) -> None:
    part = COPIES[case]
    for dim in (None, 0, 1)[: 1 if part.flat else 3]:
        for said in pool(4).run(merge_said, [part, part], other=2, dim=dim):
            assert said.startswith(
                "ValueError: ranks that hold the same part must hold the same values, but ranks "
                f"0, 1, 3 / 2 differ in the moments of {part}"
            )


@pytest.mark.parametrize("shape", [(8, 3), (2, 8), (16,)])
def test_parts_without_a_name_are_of_the_same_parameters(shape: tuple[int, ...]) -> None:
    """As of pipeline stages, of which nobody says that they are two."""
    for said in pool(3).run(merge_said, [Part((8, 2)), Part(shape)]):
        assert said.startswith("ValueError: parts without a name must be of the same parameters")
        assert f"are (8, 2) on rank 0 and {shape} on rank 1: name them" in said
    for said in pool(3).run(merge_said, [Part((8, 2)), Part(shape, name="w")]):
        assert "are (8, 2) on rank 0 and none on rank 1" in said


def test_parts_of_one_name_are_of_one_shape() -> None:
    rows, others = (Part(shape, name="w") for shape in [(8, 2), (8, 3)])
    for said in pool(3).run(merge_said, [rows.chunk(0, 2, 0), others.chunk(0, 2, 1)]):
        assert said == "ValueError: parts of w are of several shapes: [(8, 2), (8, 3)]"


def test_parts_on_some_ranks_only_are_an_error_on_all() -> None:
    for said in pool(3).run(merge_said, [Part((8, 2)), None]):
        assert said.startswith("ValueError: moments of parts do not merge with moments of which no")


@on_ranks(2)
def test_several_parts_of_one_rank_are_one_thing() -> None:
    """As the parameters of a layer, whose replicas are on another rank."""
    rows, other = Part((4, 3)).cut(0, [(0, 2)]), Part((4, 3)).cut(0, [(2, 2)])
    both = moments(torch.ones(2, 3), part=rows).merge(moments(torch.zeros(2, 3), part=other))
    assert (both.all_merge().count, both.all_merge().mean) == (12, 0.5)
    if dist.get_rank():
        both = moments(torch.ones(2, 3), part=rows)
    assert "must be the same" in raised(both.all_merge)


def test_what_a_part_does_not_fit_is_refused() -> None:
    part = Part((8, 2)).cut(0, [(2, 3)])
    with pytest.raises(ValueError, match=r"x \(number 0\) has shape \(4, 2\), but its part"):
        moments(torch.ones(4, 2), part=part)
    with pytest.raises(TypeError, match=r"part must be a fastinit\.Part"):
        moments(torch.ones(4, 2), part=(8, 2))
    with pytest.raises(ValueError, match="flat range, which has no channels"):
        moments(torch.ones(3), dim=0, part=Part((8, 2), flat=(1, 3)))
    with pytest.raises(ValueError, match="parts must be of 2 tensors, but got 1"):
        moments_many([torch.ones(2)] * 2, parts=[None])
    assert fastinit.moments(torch.ones(3, 1, 2), part=part).count == 6
