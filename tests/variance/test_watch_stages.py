"""A watch of pipeline stages: one table, in each rank's order, and stages without layers."""

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
import torch.distributed as dist
from ranks import on_ranks, pool
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from watched_ranks import WORLD, Block, assert_alike, inputs

import fastinit
from fastinit.variance.watch.rows import _order


def layers() -> list[nn.Module]:
    generator = torch.Generator().manual_seed(5)
    made = [nn.Linear(8, 8) for _ in range(4)]
    with torch.no_grad():
        for layer in made:
            layer.weight.normal_(generator=generator)
            layer.bias.normal_(generator=generator)
    return made


def staged(named: bool) -> str:
    """Two stages, each with two ranks, which have a batch of their own in two micro-batches."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    stage, data = mesh.get_local_rank("stage"), mesh.get_local_rank("data")
    model = nn.Sequential(*layers()[2 * stage : 2 * stage + 2])
    x, whole_name = inputs(8).chunk(2)[data], lambda name: str(2 * stage + int(name))
    options = {"full_name": whole_name} if named else {}
    with torch.no_grad(), fastinit.watch(model, group=dist.group.WORLD, **options) as watched:
        for micro in x.chunk(2):
            if stage == 0:
                dist.send(model(micro), dist.get_rank() + 2)
            else:
                received = torch.empty(2, 8)
                dist.recv(received, dist.get_rank() - 2)
                model(received)
    return watched.to_json()


def test_pipeline_stages_come_in_one_table() -> None:
    first, *others = pool(WORLD).run(staged, True)
    model = nn.Sequential(*layers())
    with torch.no_grad(), fastinit.watch(model) as watched:
        for micro in inputs(8).chunk(2):
            model(micro)
    assert_alike(first, watched.to_json())
    assert all(other == first for other in others)


def test_two_layers_of_one_name_are_an_error_on_all_ranks() -> None:
    for good, said in pool(WORLD).answers(staged, False):
        assert not good
        assert "ValueError: ranks 0 and 2 have different weights in 0: they should be" in said


def test_layers_come_in_the_order_of_each_rank() -> None:
    assert _order([["a", "b"], ["c", "d"], ["a", "b"]]) == ["a", "b", "c", "d"]
    assert _order([["b"], ["a", "b", "c"]]) == ["a", "b", "c"]
    assert _order([["a", "c"], ["a", "b", "c", "d"], []]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("which", [None, nn.Linear])
@on_ranks(2)
def test_a_stage_may_be_without_layers(which: type | None) -> None:
    rank = dist.get_rank()
    model = nn.Sequential(nn.ReLU() if rank else nn.Linear(8, 8))
    watch = fastinit.watch(model, layers=which, group=dist.group.WORLD)
    with watch:
        model(torch.ones(2, 8))
    assert watch.layers[0].forward.count == 16


@on_ranks(2)
def test_a_watch_of_no_layers_on_any_rank_is_an_error() -> None:
    watch = fastinit.watch(nn.Linear(8, 8), layers=nn.Bilinear, group=dist.group.WORLD)
    with (
        pytest.raises(ValueError, match=r"layers must choose at least one .* but do on none"),
        watch,
    ):
        pass


def test_names_are_given_by_a_function() -> None:
    with pytest.raises(TypeError, match="full_name must be a function of a name"):
        fastinit.watch(Block(), full_name="stage.")
    with fastinit.watch(Block(), full_name="stage.{}".format) as watched:
        pass
    assert list(watched.missing) == ["stage.up", "stage.down"]
