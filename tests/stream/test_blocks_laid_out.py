"""Block formats in any strides, parts, threads and DTensors: those of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from blocks_specified import BLOCK, BUILDS, EVERY, FORMATS, LAW, assert_holds, filled, u8
from dtensors import distributed
from same_bits import bits, forced
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from fastinit import Blocks, Part, init
from fastinit.fills.operator import Window, fill_

SHAPE = (4, 6, 192)

PARTS: dict[str, Callable[[], Part]] = {
    "all": lambda: Part(SHAPE),
    "rows": lambda: Part(SHAPE).chunk(1, 4, 1),
    "rows in turns": lambda: Part(SHAPE).split(1, 3, 1, stride=2),
    "columns": lambda: Part(SHAPE).chunk(2, 3, 2),
    "columns in turns": lambda: Part(SHAPE).split(2, 2, 1, stride=3),
    "an expert": lambda: Part(SHAPE).select(0, 2),
    "nothing": lambda: Part(SHAPE).chunk(1, 5, 4).chunk(1, 4, 3),
    "a flat range": lambda: Part(SHAPE, flat=(96 * 5, 32 * 31)),
}


def blocks_of(whole: Tensor, part: Part, per: int) -> Tensor:
    """The part of a tensor whose last dimension has one element for so many values."""
    shape = (*part.shape[:-1], part.shape[-1] // per)
    if part.flat:
        start, length = (n // per for n in part.flat)
        return whole.reshape(-1)[start : start + length]
    its = Part(shape, (*part.runs[:-1], tuple((s // per, n // per) for s, n in part.runs[-1])))
    pieces = [
        whole[tuple(slice(s, s + n) for s, n in runs)] for runs in itertools.product(*its.runs)
    ]
    if not pieces:
        return whole.new_empty(its.local_shape)
    for dim in reversed(range(len(shape))):
        n = max(len(its.runs[dim]), 1)
        pieces = [torch.cat(pieces[i : i + n], dim) for i in range(0, len(pieces), n)]
    return pieces[0]


@pytest.mark.parametrize("format", ["mxfp8", "nvfp4"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_that_of_the_whole(name: str, format: str) -> None:
    part = PARTS[name]()
    whole = filled(SHAPE, format, LAW, stream=7)
    data = whole.data.view(torch.uint8)
    wanted = (
        blocks_of(data, part, SHAPE[-1] // data.shape[-1]),
        blocks_of(whole.scale.view(torch.uint8), part, BLOCK[format]),
    )
    for build in EVERY if name in ("columns in turns", "an expert") else BUILDS:
        shape = tuple(part.local_shape)[1:] if name == "an expert" else part.local_shape
        got = Blocks.empty(shape, format)
        with forced(build):
            fill_(got, LAW, seed=5, stream=7, window=part)
        for here, its in zip((got.data, got.scale), wanted):
            assert bits(here).equal(its.flatten()), build
        if format == "nvfp4" and got.numel():
            assert torch.equal(got.tensor_scale, whole.tensor_scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_any_strides_but_within_a_block(format: str) -> None:
    shape = (3, 5, 128)
    wide = fill_(torch.empty(shape), LAW, seed=5)
    like = filled(shape, format, LAW)
    size, count = like.data.shape[-1], like.scale.shape[-1]
    for build in EVERY if format == "nvfp4" else BUILDS:
        data = torch.full((5, 3, size + 9), 0xA5, dtype=torch.uint8)
        scale = torch.full((count, 5, 2, 3), 0xA5, dtype=torch.uint8)
        views = data[:, :, 4:-5].transpose(0, 1), scale[:, :, 1].permute(2, 1, 0)
        got = Blocks(*views, format, like.tensor_scale)
        with forced(build):
            fill_(got, LAW, seed=5)
        assert_holds(got, wide, build)
        for around in (data[:, :, :4], data[:, :, -5:], scale[:, :, 0]):
            assert (around == 0xA5).all()
        # More dimensions than kernels take, none of which is one with the next.
        many = torch.zeros(*[2] * 10, 3, size, dtype=torch.uint8)[..., 1, :].permute(
            *range(9, -1, -1), 10
        )
        held = torch.zeros(*[2] * 10, count, dtype=torch.uint8)
        wide_one = fill_(torch.empty(*[2] * 10, 128), LAW, seed=5)
        with forced(build):
            assert_holds(
                fill_(Blocks(many, held, format, like.tensor_scale), LAW, seed=5), wide_one
            )


@pytest.mark.parametrize("format", FORMATS)
def test_threads_and_tasks(format: str) -> None:
    wide = fill_(torch.empty(3, 200_000 - 64), LAW, seed=5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_holds(filled(tuple(wide.shape), format, LAW), wide)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format", FORMATS)
def test_behind_the_carry_of_the_counter(format: str) -> None:
    start, n = 2**34 - 320, 640
    wide = fill_(torch.empty(n), LAW, seed=5, window=Window((1,), start))
    for build in BUILDS:
        with forced(build):
            part = Part((2**40,), (((start, n),),))
            assert_holds(filled((n,), format, LAW, window=part), wide, build)


@pytest.mark.parametrize("format", ["mxfp8", "mxfp4"])
def test_dtensors_of_whole_blocks(format: str) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = filled((6, 256), format, LAW)
    for rank in (0, 3):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        try:
            mesh = init_device_mesh("cpu", (4,), mesh_dim_names=(f"blocks{rank}",))
            for placement in (Shard(0), Shard(1), Replicate()):
                data, scale = (
                    distributed(t.view(torch.uint8), mesh, [placement])
                    for t in (torch.zeros_like(whole.data), torch.zeros_like(whole.scale))
                )
                got = Blocks(data, scale, format)
                assert got.shape == (6, 256)
                fill_(got, LAW, seed=5)
                for held, full in ((data, whole.data), (scale, whole.scale)):
                    its = distributed(full.view(torch.uint8), mesh, [placement])
                    assert held.to_local().equal(its.to_local())  # type: ignore[no-untyped-call]
            # Half a block on each rank; and data cut otherwise than scales.
            narrow = Blocks.empty((4, 64), format)
            cut, rows = (
                distributed(narrow.data.view(torch.uint8), mesh, [p]) for p in (Shard(1), Shard(0))
            )
            scales = distributed(narrow.scale.view(torch.uint8), mesh, [Shard(1)])
            for one in (cut, rows):
                with pytest.raises(ValueError, match="whole blocks"):
                    fill_(Blocks(one, scales, format), LAW, seed=5)
            with pytest.raises(ValueError, match="both be DTensors, or neither"):
                fill_(Blocks(rows, narrow.scale, format), LAW, seed=5)
            assert isinstance(rows, DTensor)
        finally:
            dist.destroy_process_group()


def test_rows_may_have_their_scales_behind_them() -> None:
    rows = u8(40, 17)
    got = init.normal_(Blocks(rows[:, :16], rows[:, 16:], "mxfp4"), seed=1)
    assert_holds(got, init.normal_(torch.empty(40, 32), seed=1))
