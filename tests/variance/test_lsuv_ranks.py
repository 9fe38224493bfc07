"""LSUV on ranks: what is sharded or replicated gets the scales of the whole model on the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from selection import cases
from sharded_nets import EXACT, LAYOUTS, WORLD, data, fsdp, mesh_of, mine, net, same, tp, whole
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import fastinit

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "center": {"center": True, "verify": True},
    "activation": {"activation": torch.relu, "tol": 1e-3},
    "targets": {"target_std": fastinit.schedules.alternating(1.25), "reuse": "pool"},
    "orthonormal": {"pre": "orthonormal"},
}


CASES = [(layout, "plain") for layout in LAYOUTS]  # and each option with a few
CASES += [(layout, option) for layout in ("FSDP2, gathered", "a group") for option in OPTIONS][1:]
CASES += [("FSDP2 over columns", option) for option in ("center", "orthonormal")]
CASES += [("parts of a sequence", option) for option in ("center", "activation", "targets")]


ALWAYS = [
    ("DDP", "plain"),
    ("DDP, composable", "plain"),
    ("FSDP2, gathered", "center"),
    ("FSDP2 over columns", "orthonormal"),
    ("a group", "activation"),
    ("columns, then rows", "plain"),
    ("parts of a sequence", "targets"),
]
"""Each kind of layout and each option once; the others with make slow."""


@pytest.mark.parametrize("case", cases(sorted(set(CASES)), ALWAYS), ids=str)
@on_ranks(WORLD)
def test_scales_are_those_of_the_whole_model_on_the_whole_batch(case: tuple[str, str]) -> None:
    layout, options = case
    shard, parts = LAYOUTS[layout]
    plain, x, asked = net(), data(), dict(OPTIONS[options])
    model = shard(copy.deepcopy(plain))
    if layout == "a group":
        asked["group"] = dist.group.WORLD
    elif layout == "a group over columns":
        asked["group"] = mesh_of(2, 2)["outer"]
    torch.manual_seed(2 + dist.get_rank() * (options != "orthonormal"))
    got = fastinit.lsuv_(model, mine(x, parts, dist.get_rank()), **asked)
    asked.pop("group", None)
    torch.manual_seed(2)
    same(got, fastinit.lsuv_(plain, x, **asked))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("layout", ["FSDP2 over columns", "columns, then rows"])
@on_ranks(WORLD)
def test_in_inference_mode(layout: str) -> None:
    """In which torch detaches no DTensor."""
    shard, parts = LAYOUTS[layout]
    plain, x = net(), data()
    model, own = shard(copy.deepcopy(plain)), mine(x, parts, dist.get_rank())
    with torch.inference_mode():
        got = fastinit.lsuv_(model, own, center=True)
        with fastinit.watch(model, group=dist.group.WORLD) as seen:
            model(own)
    same(got, fastinit.lsuv_(plain, x, center=True))
    with fastinit.watch(plain) as expected:
        plain(x)
    assert [layer.name for layer in seen.layers] == [layer.name for layer in expected.layers]
    for ours, theirs in zip(seen.layers, expected.layers, strict=True):
        assert ours.forward.count == theirs.forward.count
        assert ours.forward.var == pytest.approx(theirs.forward.var, rel=1e-5)  # float32 products


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["DDP", "FSDP2 over columns"])
@on_ranks(WORLD)
def test_batches(layout: str) -> None:
    shard, parts = LAYOUTS[layout]
    plain, x = net(), data()
    batches = x.chunk(3)
    model = shard(copy.deepcopy(plain))
    own = [(mine(batch, parts, dist.get_rank()), "target") for batch in batches]
    asked = {"center": True, "verify": True, "tol": 1e-3}
    got = fastinit.lsuv_(model, batches=own, get_input=lambda batch: batch[0], **asked)
    expected = fastinit.lsuv_(plain, batches=batches, **asked)
    assert got.passes == expected.passes > 1
    same(got, expected)


@on_ranks(WORLD)
def test_batches_that_differ_on_one_rank_alone() -> None:
    """Whether the first batch is run once more, all ranks do alike; and a note is on all."""
    x, rank = data(), dist.get_rank()

    class Growing(list[Tensor]):
        turns = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.turns += 1
            return iter([x * self.turns**2 if rank == 1 else x for x in list.__iter__(self)])

    model = fsdp(net(), mesh_of(4))
    result = fastinit.lsuv_(model, batches=Growing(mine(x, 4, rank).chunk(2)), tol=1e-6)
    everywhere: list[Any] = [None] * WORLD
    dist.all_gather_object(everywhere, repr(result.layers))
    assert len(set(everywhere)) == 1
    assert "their batches differed" in everywhere[0], (result.passes, everywhere[0])


# --- layers that are not affine, or not one tensor -----------------------------------------------


class Gated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.sigmoid(x[..., :1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.out = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 12)
        return self.out(self.attention(x, x * x, x)[0])


def normed() -> nn.Module:
    layers = (nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)) for _ in range(2))
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def hooked() -> nn.Module:
    """A hook that changes what one rank's rows give, and leaves alone the others'."""
    model = net()
    model[2].register_forward_hook(lambda m, args, out: out.clamp(max=1.2))
    return model


def capped(module: nn.Module, out: Any, mesh: Any) -> Tensor:
    """Of a DTensor its local part, which is all of it, and not as the layer gave it."""
    return out.to_local().clamp(max=1.2)


def called_torchs(module: nn.Module, out: Any, mesh: Any) -> Tensor:
    return capped(module, out, mesh)


called_torchs.__module__ = DTensor.__module__


class Capping:
    def __call__(self, module: nn.Module, out: Any, mesh: Any) -> Tensor:
        return capped(module, out, mesh)

    method = __call__


def replicated_input(module: nn.Module, args: tuple[Tensor, ...], mesh: Any) -> Any:
    return DTensor.from_local(args[0], mesh)


GIVEN: dict[str, Callable[..., Tensor]] = {
    "a function": capped,
    "one with a name of torch's": called_torchs,
    "a partial": partial(capped),
    "a method": Capping().method,
    "an object": Capping(),
}
"""By which a user brings outputs into another layout, and changes them."""


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh())
    model[2].weight = model[0].weight
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gated": lambda: nn.Sequential(Gated(12, 12), nn.ReLU(), Gated(12, 12), nn.ReLU()),
    "attention": Attending,
    "weight_norm": normed,
    "hooked": hooked,
    "tied": tied,
    "frozen": lambda: net().requires_grad_(False),
}


@pytest.mark.parametrize(
    "case",
    cases(
        [
            (kind, units)
            for kind in OTHERS
            for units in ("layers", "the whole", "copies")
            if (kind, units) != ("tied", "layers")  # FSDP2 refuses it
        ],
        always=[
            ("gated", "the whole"),
            ("attention", "layers"),
            ("weight_norm", "copies"),
            ("hooked", "layers"),
            ("tied", "the whole"),
        ],
    ),
    ids=str,
)
@on_ranks(WORLD)
def test_other_layers(case: tuple[str, str]) -> None:
    """Where a layer is no unit of its own, what is gathered is scaled with the shards."""
    kind, units = case
    torch.manual_seed(3)
    plain, x, rank = OTHERS[kind]().double(), data(), dist.get_rank()
    model: nn.Module = copy.deepcopy(plain)
    asked: dict[str, Any] = {"tol": 1e-3, "verify": True}
    if kind == "attention":
        asked["center"] = True
    if units == "copies":
        group = {"group": dist.group.WORLD}
    else:
        group = {}
        whole_mesh = mesh_of(4)
        model = (
            fsdp(model, whole_mesh) if units == "layers" else fully_shard(model, mesh=whole_mesh)
        )
    got = fastinit.lsuv_(model, mine(x, 4, rank), **asked, **group)
    same(got, fastinit.lsuv_(plain, x, **asked))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach(), rtol=1e-9, atol=1e-9)


@on_ranks(WORLD)
def test_what_changes_an_output_is_part_of_the_layer_whoever_calls_it() -> None:
    """``distribute_module`` makes a hook of torch's around what it is given."""
    plain, x = net(), data()
    plain[0].register_forward_hook(lambda m, args, out: out.clamp(max=1.2))
    expected = fastinit.lsuv_(plain, x, verify=True)
    for way, given in GIVEN.items():
        model = net()
        distribute_module(model[0], mesh_of(4), input_fn=replicated_input, output_fn=given)
        got = fastinit.lsuv_(model, x, verify=True)
        assert got.layers[0].iterations == expected.layers[0].iterations > 1, way
        same(got, expected)


@pytest.mark.parametrize("layout", ["FSDP2", "a group", "columns, then rows"])
@on_ranks(WORLD)
def test_a_head_that_is_not_built(layout: str) -> None:
    shard, parts = LAYOUTS[layout]
    plain, x = net(), data()
    torch.manual_seed(4)
    plain[4] = nn.Linear(12, 7, bias=False).double()
    if layout == "columns, then rows":
        model = tp(copy.deepcopy(plain), mesh_of(4), *[ColwiseParallel(), RowwiseParallel()] * 2)
    else:
        model = shard(copy.deepcopy(plain))
    group = {"group": dist.group.WORLD} if layout == "a group" else {}
    rows = mine(x, parts, dist.get_rank())
    got = fastinit.lsuv_(model, rows, unbuilt="4", verify=True, **group)
    same(got, fastinit.lsuv_(plain, x, unbuilt="4", verify=True))
    if layout == "FSDP2":  # whose forward was cut short
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        torch.testing.assert_close(model(rows), plain(rows))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["0", "2"])
@on_ranks(WORLD)
def test_hooks_of_layers_whose_output_is_laid_out_anew(place: str, when: str) -> None:
    """One that changes the output is part of the layer, one that leaves it alone is not."""
    plain, x = net(), data()

    def split(model: nn.Module) -> nn.Module:
        return tp(model, mesh_of(4), ColwiseParallel(), RowwiseParallel())

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out.clamp(max=0.9)

    for seen in (hook, lambda *_: None):
        ours, theirs = copy.deepcopy(plain), copy.deepcopy(plain)
        theirs.get_submodule(place).register_forward_hook(seen)
        if when == "after":
            ours = split(ours)
        ours.get_submodule(place).register_forward_hook(seen)
        if when == "before":
            if place == "2" and seen is hook:
                continue  # of partial sums, it would be another function
            ours = split(ours)
        got = fastinit.lsuv_(ours, x, tol=1e-3, verify=True)
        expected = fastinit.lsuv_(theirs, x, tol=1e-3, verify=True)
        for one, other in zip(got.layers, expected.layers, strict=True):
            assert one.std == pytest.approx(other.std, rel=1e-3)
        if when == "after":
            same(got, expected)


# --- larger than all memory together -------------------------------------------------------------


def recorded() -> nn.Module:
    with fastinit.deferred(seed=5):
        return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7))


@on_ranks(WORLD)
def test_a_recorded_model_that_is_to_be_sharded() -> None:
    """Each rank makes the weights that it uses, and drops them; later it has its shards of the same."""
    rank, x, world = dist.get_rank(), data().float(), dist.group.WORLD
    model, plain = recorded(), fastinit.materialize_(recorded())
    asked: dict[str, Any] = {"center": True, "pre": "orthonormal", "verify": True}
    torch.manual_seed(rank)
    got = fastinit.lsuv_(model, mine(x, 4, rank), group=world, **asked)
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.manual_seed(0)
    expected = fastinit.lsuv_(plain, x, **asked)
    for ours, theirs in zip(got.layers, expected.layers, strict=True):
        # Of float32 products, whose sums a BLAS rounds by their shapes.
        assert (ours.scale, ours.shift) == pytest.approx((theirs.scale, theirs.shift), rel=1e-5)
    assert got.plan is not None
    fully_shard(model, mesh=mesh_of(4))
    with pytest.raises(ValueError, match=r"Sharding makes other parameters.*run the model before"):
        fastinit.lsuv_(model, x)
    got.plan.apply_(model, device="cpu")
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach(), rtol=1e-5, atol=1e-6)
    again = fastinit.lsuv_(model, mine(x, 4, rank), center=True)
    assert list(again.scales.values()) == pytest.approx([1.0, 1.0], rel=1e-5)


class Asking(nn.Module):
    """Asks some ranks something between layers, as a tensor-parallel group does that has rows."""

    def __init__(self, group: dist.ProcessGroup, times: int, fails: bool) -> None:
        super().__init__()
        self.group, self.times, self.fails = group, times, fails

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            dist.all_reduce(torch.ones(2), group=self.group)
        if self.fails:
            raise ArithmeticError("so")
        return x


@pytest.mark.parametrize("failing", [None, 0, 3])
@on_ranks(WORLD)
def test_some_ranks_may_have_collectives_of_their_own(failing: int | None) -> None:
    rank, plain, x = dist.get_rank(), net(), data()
    pairs = mesh_of(2, 2)["inner"].get_group()
    model = fsdp(copy.deepcopy(plain), mesh_of(WORLD))
    model.insert(2, Asking(pairs, 2 * (rank // 2), rank == failing))
    model.insert(4, Asking(pairs, 1 - rank // 2, False))
    before = [p.to_local().clone() for p in model.parameters()]
    if failing is None:
        got = fastinit.lsuv_(model, mine(x, 4, rank))
        expected = fastinit.lsuv_(plain, x)
        for one, other in zip(got.layers, expected.layers):
            assert abs(one.scale / other.scale - 1) < EXACT
        return
    own = "so" if rank == failing else f"rank {failing} failed: ArithmeticError: so"
    with pytest.raises(ArithmeticError if rank == failing else RuntimeError, match=f"^{own}$"):
        fastinit.lsuv_(model, mine(x, 4, rank))
    assert all(torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before))
